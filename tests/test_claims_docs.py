"""Every example of docs/claims.md is a part of a sweep file that plans, and its words are those of the code."""

import json
import re
from dataclasses import fields
from typing import Any

import pytest
import yaml
from conftest import PROJECT

from oneshot.config.claims import ClaimConfig
from oneshot.config.file import read
from oneshot.plan.plan import make_plan
from oneshot.report.looks import bounds
from oneshot.report.verdicts import JudgedClaim

PAGE = (PROJECT / "docs" / "claims.md").read_text()
SUITES = ("math500", "aime24", "aime25", "amc23", "minerva", "olympiadbench")
SECTIONS = ("claims", "groups", "seeds", "looks", "failed", "published")
AROUND: dict[str, Any] = {
    "version": 1,
    "name": "documented",
    "question": "Do the examples plan?",
    "trial": {
        "model": {"path": "tiny:qwen2"},
        "prompt": {"template": "plain", "train_suffix": ""},
        "rollout": {"num_groups": 4, "group_size": 4, "temperature": 1.0, "max_tokens": 56},
        "train": {"num_steps": 2},
        "eval": {
            "suites": {
                **{name: {"source": "arithmetic", "num_problems": 4} for name in SUITES},
                "held-out": {"source": "arithmetic-val"},
            }
        },
    },
    "axes": {
        "model": {name: {"set": {"optim.lr": lr}} for name, lr in (("one", 0.1), ("two", 0.2), ("three", 0.3))},
        "example": {
            "pi_1": {"set": {"examples": ["arithmetic:47+38"]}},
            "dsr_sub": {"set": {"examples": ["arithmetic:47+38", "arithmetic:12*7"]}},
        },
        "arm": {"outcome": {}, "format": {"set": {"reward.kind": "format"}}},
    },
    "seeds": [0, 1, 2],
}
"""A sweep that has the cells and suites that the examples name."""


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


BLOCKS = [block for block in map(yaml.safe_load, examples("yaml")) if set(block) & set(SECTIONS)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "-".join(block))
def test_an_example_plans(block: dict[str, Any]) -> None:
    plan = make_plan(read(yaml.safe_dump({**AROUND, **block}, sort_keys=False), name="claims.md"))
    assert plan.grid


def test_there_is_an_example_of_every_section_and_of_every_key_of_a_claim() -> None:
    assert {section for block in BLOCKS for section in block} >= set(SECTIONS)
    used = {key for block in BLOCKS for claim in block.get("claims", ()) for key in claim}
    assert used >= set(ClaimConfig.model_fields) - {"for_all", "categories"}
    assert all(f"| `{key}` |" in PAGE for key in ClaimConfig.model_fields)
    expected = {key for block in BLOCKS for claim in block.get("claims", ()) for key in claim["expect"]}
    assert expected == {"greater_by", "within", "share_at_least"}


def test_the_fields_of_a_verdict_are_those_of_the_code() -> None:
    (verdict,) = json.loads(next(text for text in examples("json") if '"verdict"' in text))
    names = [field.name for field in fields(JudgedClaim)]
    assert set(verdict) == set(names)
    table = PAGE[PAGE.index("### As data") : PAGE.index("## For a reviewer")]
    assert all(f"`{name}`" in table for name in names)


def test_the_bounds_of_the_looks_are_those_of_the_code() -> None:
    assert "0.00035, 0.0113 and 0.0456" in PAGE
    assert bounds((3, 6, 10)) == pytest.approx((0.00035, 0.0113, 0.0456), rel=0.02)


def test_its_prose_wraps_at_100_characters() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) > 100 and not line.startswith("|")] == []


def test_its_links_within_the_page_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= headings
