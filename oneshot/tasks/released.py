"""Completion and label -> right or wrong by the rules of the released evaluation, `math_equal` of Qwen2.5-Math.

Written from the description of its rules, which the published accuracies were made with: both spellings are reduced by
string rules; two numbers are equal within a relative 1e-4, and as a percentage; tuples, matrices and equations are
equal by parts; anything else is equal if sympy finds it so. https://github.com/QwenLM/Qwen2.5-Math, evaluation/.
"""

import math
import re
from itertools import zip_longest

from math_verify import parse
from sympy import Expr, N
from sympy.simplify.simplify import simplify

from oneshot.tasks.answers import extract_boxed
from oneshot.tasks.split import split

RELATIVE = 1e-4
_COMMA = re.compile(",")
_NUMBER = re.compile(r"-?\d*\.?\d+")
_WORDS = re.compile(
    r"\b(?:degrees?|cm|centimeters?|meters?|miles?|feet|inch(?:es)?|dollars?|cents?|hours?|minutes?|seconds?|days?|"
    r"weeks?|units?|square|sq|students?|people|points?|mph|percent|kg|grams?)\b"
)
_REMOVED = re.compile(
    r"\\(?:left|right|!|,|;|:|quad|qquad|displaystyle|\$)|\^\s*\{?\\circ\}?|\\?%|\$|\s|\\text\{\s*\}|(?<=\d),(?=\d{3}(?!\d))"
)


def released_equal(completion: str, label: str) -> bool:
    """Return whether the released evaluation counts a completion as right."""
    answer = extract(completion)
    return math_equal(reduce(answer), reduce(label)) if answer else False


def extract(completion: str) -> str:
    """Return the answer that the released evaluation extracts: a box, what follows "answer is", or the last number."""
    boxed = extract_boxed(completion)
    if boxed is not None:
        return boxed
    for phrase in ("final answer is", "he answer is"):
        if phrase in completion:
            rest = completion.rpartition(phrase)[2].strip().lstrip(":").split("\n")[0]
            return re.split(r"\. |\.$|\.? I hope", rest)[0].strip()
    numbers = _NUMBER.findall(completion.replace(",", ""))
    return numbers[-1] if numbers else ""


def reduce(text: str) -> str:
    """Return a spelling by the released string rules: without units, spaces, `x =`, percent and degree signs."""
    text = text.strip().split("\n")[0].rstrip(".").replace(r"\{", "{").replace(r"\}", "}") if text.strip() else ""
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    text = re.sub(r"(?<=[\d}])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?\d\}?)?$", "", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = _REMOVED.sub("", _WORDS.sub("", text) if re.search(r"\d", text) else text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{([^{}]+)\}(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac(\d)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\d])\.(?=\d)", "0.", text)
    text = re.sub(r"(\d+)\.0+(?!\d)", r"\1", text)
    left, sign, right = text.partition("=")
    return right if sign and len(left) <= 2 and "=" not in right else text


def math_equal(answer: str, label: str, *, percent: bool = True) -> bool:
    """Return whether two reduced spellings are equal by the released rules."""
    if answer.lower() == label.lower():
        return True
    if len(label) == 1 and label in "ABCDE":
        letters = re.findall(r"(?<![A-Za-z])[A-E](?![A-Za-z])", answer)
        return bool(letters) and letters[-1] == label
    one, other = _float(answer), _float(label)
    if one is not None and other is not None:
        targets = (other / 100, other, other * 100) if percent else (other,)
        return any(math.isclose(one, target, rel_tol=RELATIVE) for target in targets)
    if not answer:
        return False
    if _bare(answer, label) == _bare(label, answer):
        return True
    for parts in (_tuple, _matrix):
        mine, theirs = parts(answer), parts(label)
        if mine is not None and theirs is not None:
            return len(mine) == len(theirs) and all(
                math_equal(a, b, percent=percent) for a, b in zip_longest(mine, theirs, fillvalue="")
            )
    if answer.count("=") == label.count("=") == 1:
        differences = ["({})-({})".format(*side.split("=")) for side in (answer, label)]
        return _symbolic(*differences) or _symbolic(f"-({differences[0]})", differences[1])
    for named, plain in ((answer, label), (label, answer)):
        left, sign, right = named.partition("=")
        if sign and "=" not in plain and "=" not in right and len(left.strip()) <= 2:
            return math_equal(right, plain, percent=percent)
    return _symbolic(answer, label)


def _bare(text: str, other: str) -> str:
    """Return a spelling without braces and parentheses, and without the square brackets that the other has none of."""
    plain = text.strip("[]") if "[" not in other or "(" not in text + other else text
    return re.sub(r"[{}()]", "", plain).lower()


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _tuple(text: str) -> list[str] | None:
    if not re.fullmatch(r"[(\[].+[)\]]", text):
        return None
    return split(text[1:-1], _COMMA)


def _matrix(text: str) -> list[str] | None:
    match = re.fullmatch(r"\\begin\{[pb]matrix\}(.*)\\end\{[pb]matrix\}", text)
    return None if match is None else [cell for row in match[1].split(r"\\") if row for cell in row.split("&")]


def _symbolic(answer: str, label: str) -> bool:
    """Return whether sympy finds two spellings equal, exactly or within the tolerance."""
    one, other = (_expression(text) for text in (answer, label))
    if one is None or other is None:
        return False
    if one == other or simplify(one - other) == 0:
        return True
    values = [N(expression) for expression in (one, other) if not expression.free_symbols]
    return len(values) == 2 and bool(abs(values[0] - values[1]) <= RELATIVE * max(abs(value) for value in values))


def _expression(text: str) -> Expr | None:
    parsed = parse(rf"\boxed{{{text}}}", parsing_timeout=None, fallback_mode="no_fallback")  # type: ignore[arg-type]  # None means no alarm
    return parsed[0] if parsed and isinstance(parsed[0], Expr) else None
