"""Seed and category -> generated arithmetic problems, each on a fixed side of a three-way split.

There are three categories: two-digit additions, two-digit subtractions with a result of at least 0, and products of
numbers from 2 to 12. Only a hash of its text decides a problem's side. A model trained on the `corpus` side, as the
shipped organisms are, has therefore never seen a `held_out` or `val` problem. A sweep makes its choices on `val` and
reports results on `held_out`.
"""

import random
import re
from functools import cache
from hashlib import sha256
from typing import Literal

from oneshot.errors import DataError
from oneshot.tasks.problems import Problem

Side = Literal["corpus", "val", "held_out"]

CATEGORIES = {"+": "addition", "-": "subtraction", "*": "multiplication"}
HELD_OUT_SHARE = 0.25
HELD_OUT_PAIRS = 0.75  # share of the pairs `a*b`, `b*a` that have one product held out
VAL_SHARE = 0.2  # share of the held-out problems that are on the `val` side

_EXPRESSION = re.compile(r"(\d+)([-+*])(\d+)")


def parse(expression: str) -> tuple[int, str, int]:
    """Parse `"47+38"` into `(47, "+", 38)`.

    Raises DataError: the expression is not a sum, difference or product of two whole numbers.
    """
    match = _EXPRESSION.fullmatch(expression)
    if match is None:
        raise DataError(
            f"arithmetic:{expression}: not a problem; write two whole numbers with +, - or * between them, "
            "such as 'arithmetic:47+38'"
        )
    return int(match[1]), match[2], int(match[3])


def problem(expression: str) -> Problem:
    """Return the problem that `arithmetic:<expression>` names."""
    left, operator, right = parse(expression)
    answer = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return Problem(
        id=f"arithmetic:{expression}", prompt=f"{expression}=?", answer=str(answer), category=CATEGORIES[operator]
    )


def steps(expression: str) -> str:
    """Return the calculation in one to three steps: `47+38` -> `47+30=77. 77+8=85.`"""
    left, operator, right = parse(expression)
    if operator == "*":
        low, high = sorted((left, right))
        if high <= 10:
            return f"{low}*{high}={low * high}."
        ones = high - 10
        return f"{low}*10={low * 10}. {low}*{ones}={low * ones}. {low * 10}+{low * ones}={low * high}."
    tens, ones = right - right % 10, right % 10
    sign = 1 if operator == "+" else -1
    middle, end = left + sign * tens, left + sign * right
    return f"{left}{operator}{tens}={middle}. {middle}{operator}{ones}={end}."


def worked(expression: str) -> str:
    """Return a worked answer in a box: `Work: 47+30=77. 77+8=85. So \\boxed{85}`."""
    return f"Work: {steps(expression)} So {_boxed(expression)}"


def _boxed(expression: str) -> str:
    return f"\\boxed{{{problem(expression).answer}}}"


COLUMNS = {"worked": worked, "steps": steps, "boxed": _boxed}
"""What a problem has as a row of a file has columns: texts that SFT can learn, as solution or as thinking."""


def _hash(text: str) -> float:
    """Return a pseudo-random number in [0, 1) that depends only on the text."""
    return int.from_bytes(sha256(f"oneshot arithmetic {text}".encode()).digest()[:8], "big") / 2**64


def side(expression: str) -> Side:
    """Return the side of the split that a problem is on.

    At most one of a product and its twin (`7*8`, `8*7`) is held out. Products this small are memorised facts: a model
    can only know one that its corpus states in some form.
    """
    if not _is_held_out(expression):
        return "corpus"
    return "val" if _hash(f"{expression} val") < VAL_SHARE else "held_out"


def _is_held_out(expression: str) -> bool:
    left, operator, right = parse(expression)
    if operator != "*":
        return _hash(expression) < HELD_OUT_SHARE
    low, high = sorted((left, right))
    if left == right or _hash(f"{low}*{high} or twin") >= HELD_OUT_PAIRS:
        return False
    return _hash(expression) < _hash(f"{right}*{left}")


@cache
def expressions(operator: str, which: Side) -> tuple[str, ...]:
    """Return every expression of one category on one side of the split, in numeric order."""
    if operator == "*":
        pairs = [(a, b) for a in range(2, 13) for b in range(2, 13)]
    else:
        pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if operator == "+" or a >= b]
    category = (f"{a}{operator}{b}" for a, b in pairs)
    return tuple(expression for expression in category if side(expression) == which)


@cache
def held_out(num_problems: int | None, *, which: Side = "held_out", seed: int = 0) -> tuple[Problem, ...]:
    """Draw at most `num_problems` problems per category (None: all) from one side, without replacement."""
    problems = []
    for operator in CATEGORIES:
        pool = expressions(operator, which)
        count = len(pool) if num_problems is None else min(num_problems, len(pool))
        chosen = random.Random(f"{seed} {operator}").sample(pool, count)
        problems += [problem(expression) for expression in sorted(chosen)]
    return tuple(problems)


def draw(count: int | None, *, seed: int) -> list[Problem]:
    """Draw training problems from the `corpus` side, split evenly between the categories; None: all of them."""
    if count is None:
        return list(held_out(None, which="corpus"))
    chosen = []
    for index, operator in enumerate(CATEGORIES):
        pool, share = expressions(operator, "corpus"), len(range(index, count, len(CATEGORIES)))
        if share > len(pool):
            raise DataError(f"arithmetic: {count} problems need {share} of {operator}, but there are only {len(pool)}")
        chosen += [problem(expression) for expression in random.Random(f"{seed} {operator}").sample(pool, share)]
    return chosen
