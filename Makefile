# setup quickstart test test-all check fmt bench: what the README names, and what CI calls
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 20
.DEFAULT_GOAL := help

.PHONY: help setup setup-dev quickstart miniature laptop test test-all check fmt docs bench clean

help:
	@echo "make setup       a virtual environment in .venv with oneshot in it"
	@echo "make quickstart  the shipped sweep: 18 trials on two tiny models, a few minutes on 2 cores"
	@echo "make miniature   the paper's story on tiny models: collect, rank, one-shot; ten minutes"
	@echo "make laptop      one-shot GRPO on SmolLM2-135M-Instruct, downloaded first; half an hour"
	@echo "make test        fast tests and those on a local Ray (make test-all: every test)"
	@echo "make check       ruff, mypy, import-linter"
	@echo "make bench       a GRPO step against TRL's, sweeps against plain Tune, a report of 500 trials, two processes"
	@echo "make docs        writes the generated documents anew"

# A torch that is in .venv already is kept; TORCH=... picks another one for a new environment.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some minutes the first time"
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

setup: .venv/ready

setup-dev: .venv/ready-dev

quickstart: .venv/ready
	$(BIN)/oneshot run sweeps/quickstart.yaml

miniature: .venv/ready
	$(BIN)/oneshot run sweeps/miniature-collect.yaml
	$(BIN)/oneshot rank --history miniature-collect
	$(BIN)/oneshot run sweeps/miniature.yaml

models/SmolLM2-135M-Instruct/model.safetensors: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt gguf
	$(BIN)/python -m oneshot.tiny.smollm2 $(@D)

laptop: models/SmolLM2-135M-Instruct/model.safetensors
	$(BIN)/oneshot run sweeps/laptop.yaml

test: .venv/ready-dev
	$(BIN)/pytest -q $(PARALLEL) -m "not slow and not cluster and not gpu"

test-all: .venv/ready-dev
	$(BIN)/pytest -q -m "slow or cluster"

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready-dev
	$(BIN)/oneshot schema > docs/sweep.schema.json
	$(BIN)/oneshot schema --markdown > docs/sweep-file.md
	$(BIN)/python docs/catalog.py sweeps > docs/sweeps.md

bench: .venv/ready-dev
	$(BIN)/python bench/grpo_step.py
	$(BIN)/python bench/orchestration.py
	$(BIN)/python bench/report.py
	$(BIN)/python bench/processes.py

clean:
	rm -rf .venv runs
