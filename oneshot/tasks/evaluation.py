"""Two trees of expressions -> whether they are equal, by exact fractions or by intervals of 60 to 600 digits.

Expressions with symbols are compared at fixed points: they are equal if they are equal wherever both are real. No
float is involved, and no tolerance: two numbers are different if their difference keeps its first digits when the
precision rises.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from typing import Any

import mpmath
from mpmath import mp

from oneshot.tasks.expression import Node, symbols

MAX_BITS = 400_000  # of an exact power; larger ones are compared by their digits
MAX_FACTORIAL = 20_000
_DIGITS = (60, 300, 600)
_DIGITS_AT_POINTS = (60, 100)
_POINTS = (
    ("1.37", "2.91", "0.83", "4.19", "1.73", "3.61", "2.23", "0.57"),
    ("0.31", "0.47", "0.73", "0.19", "0.61", "0.11", "0.89", "0.53"),
    ("7", "3", "11", "5", "13", "2", "17", "19"),
    ("4", "6", "10", "8", "12", "9", "15", "14"),
    ("-1.29", "2.37", "-0.71", "-3.13", "1.93", "-2.57", "0.41", "-4.11"),
    ("-0.37", "-1.91", "2.83", "0.29", "-0.87", "3.37", "-1.13", "1.51"),
    ("112.3", "251.7", "97.9", "183.1", "311.3", "77.7", "141.1", "205.9"),
)


class TooLargeError(ArithmeticError):
    """A number with too many digits to be computed."""


class _UndefinedError(ArithmeticError):
    """An expression without a real value at a point."""


def are_equal(one: Node, other: Node) -> bool:
    """Return whether two expressions are equal. Raises TooLargeError: their digits decide nothing, and are too many."""
    if one == other:
        return not _is_undefined(one)
    names = sorted(symbols(one) | symbols(other))
    if names:
        return _equal_at_points(one, other, names)
    too_large = False
    try:
        left, right = exact(one), exact(other)
        if left is not None and right is not None:
            return left == right
    except TooLargeError:
        too_large = True
    except ZeroDivisionError:
        return False
    try:
        equal = _is_zero(partial(_difference, one, other, {}), [one, other])
    except (_UndefinedError, ZeroDivisionError):
        return False
    if equal and too_large:
        raise TooLargeError("the numbers have too many digits")
    return equal


def are_proportional(one: Node, other: Node, *, positive: bool = False) -> bool:
    """Return whether one expression is a constant other than 0, or a positive one, times the other."""
    names = sorted(symbols(one) | symbols(other))
    ratio: Any = None
    num_points = 0
    for point in _points(names):
        with mp.workdps(60):
            try:
                left, right = (_value(node, _at(point)) for node in (one, other))
            except (_UndefinedError, ZeroDivisionError, ValueError):
                continue
            if abs(left) < mp.mpf(10) ** -40 or abs(right) < mp.mpf(10) ** -40:
                if abs(left - right) > mp.mpf(10) ** -40:
                    return False
                continue
            num_points += 1
            if ratio is None:
                ratio = left / right
            elif abs(left / right - ratio) > mp.mpf(10) ** -30 * abs(ratio):
                return False
    return num_points >= 2 and (not positive or (not isinstance(ratio, mpmath.mpc) and ratio > 0))


def order(one: Node, other: Node) -> int | None:
    """Return -1, 0 or 1 as one number is below, equal to or above the other; None unless both are real numbers."""
    if symbols(one) or symbols(other):
        return None
    if are_equal(one, other):
        return 0
    with mp.workdps(_DIGITS[1]):
        try:
            difference = _value(one, {}) - _value(other, {})
        except (_UndefinedError, ZeroDivisionError, ValueError):
            return None
        return None if isinstance(difference, mpmath.mpc) else (1 if difference > 0 else -1)


def exact(node: Node) -> Fraction | None:
    """Return an expression's value if it is a fraction that fractions alone give, otherwise None.

    Raises ZeroDivisionError, TooLargeError.
    """
    if node.kind == "num":
        return node.value
    if node.kind not in ("add", "mul", "div", "pow", "neg", "call"):
        return None
    parts = [exact(part) for part in node.parts]
    values = [part for part in parts if part is not None]
    if len(values) < len(parts):
        return None
    if node.kind == "call":
        return _exact_call(node.name, values)
    if node.kind == "neg":
        return -values[0]
    left, right = values
    if node.kind == "add":
        return left + right
    if node.kind == "mul":
        return left * right
    return left / right if node.kind == "div" else _exact_power(left, right)


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        root = _exact_root(base, exponent.denominator) if base >= 0 else None
        return None if root is None else _exact_power(root, Fraction(exponent.numerator))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and bits * abs(exponent.numerator) > MAX_BITS:
        raise TooLargeError("a power has too many digits")
    return Fraction(base ** (exponent.numerator % 2)) if abs(base) == 1 else Fraction(base**exponent.numerator)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    if degree > 64 or value < 0:
        return None
    roots = [_whole_root(part, degree) for part in (value.numerator, value.denominator)]
    return None if roots[0] is None or roots[1] is None else Fraction(roots[0], roots[1])


def _whole_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    else:
        with mp.workdps(int(value.bit_length() * 0.302 / degree) + 20):
            root = int(mpmath.nint(mpmath.root(value, degree)))
    return root if root**degree == value else None


def _exact_call(name: str, values: list[Fraction]) -> Fraction | None:
    value = values[0]
    whole = all(one.denominator == 1 for one in values)
    if name == "abs":
        return abs(value)
    if name in ("lfloor", "lceil"):
        return Fraction(math.floor(value) if name == "lfloor" else math.ceil(value))
    if name in ("max", "min"):
        return max(values) if name == "max" else min(values)
    if name in ("sqrt", "root"):
        degree = values[1] if name == "root" else Fraction(2)
        return _exact_root(value, int(degree)) if degree.denominator == 1 and degree > 0 else None
    if name in ("gcd", "lcm") and whole:
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*(int(one) for one in values)))
    if name == "factorial" and whole and value >= 0:
        if value > MAX_FACTORIAL:
            raise TooLargeError("a factorial has too many digits")
        return Fraction(math.factorial(int(value)))
    if name == "binomial" and whole and values[1] >= 0 and 0 <= value <= MAX_FACTORIAL:
        return Fraction(math.comb(int(value), int(values[1])))
    return None


def _is_undefined(node: Node) -> bool:
    """Return whether a number divides by zero, so that it does not even equal itself."""
    try:
        exact(node)
    except ZeroDivisionError:
        return True
    except TooLargeError:
        return False
    return False


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    for values in _POINTS:
        yield {name: Fraction(values[place % len(values)]) + place // len(values) for place, name in enumerate(names)}


def _at(point: Mapping[str, Fraction]) -> dict[str, Any]:
    return {name: mp.mpf(value.numerator) / value.denominator for name, value in point.items()}


def _equal_at_points(one: Node, other: Node, names: list[str]) -> bool:
    num_equal = num_undefined = 0
    for point in _points(names):
        undefined = []
        for node in (one, other):
            with mp.workdps(_DIGITS[0]):
                try:
                    _value(node, _at(point), real=True)
                except (_UndefinedError, ZeroDivisionError, ValueError):
                    undefined.append(node)
        if len(undefined) == 1 and "i" not in (_kinds(one) | _kinds(other)):
            num_undefined += 1  # one of them may be written without the root or logarithm of the other
            continue
        try:
            zero = _is_zero(partial(_difference, one, other, point), [one, other], point)
        except (_UndefinedError, ZeroDivisionError, ValueError):
            continue
        if not zero:
            if undefined:
                continue
            return False
        num_equal += 1
    return num_equal >= 2


def _difference(one: Node, other: Node, point: Mapping[str, Fraction]) -> Any:
    return _value(one, _at(point)) - _value(other, _at(point))


def _kinds(node: Node) -> set[str]:
    return {node.kind}.union(*(_kinds(part) for part in node.parts))


def _is_zero(difference: Callable[[], Any], nodes: list[Node], point: Mapping[str, Fraction] | None = None) -> bool:
    """Return whether a difference is zero: it is not if its first digits are the same at two precisions."""
    previous: Any = None
    for digits in _DIGITS if point is None else _DIGITS_AT_POINTS:
        with mp.workdps(digits):
            value = difference()
            if value == 0:
                previous = value
                continue
            if mpmath.isnan(value):
                raise _UndefinedError
            if mpmath.isinf(value):
                return False
            size = max(abs(_value(node, _at(point or {}))) for node in nodes)
            if abs(value) > size * mp.mpf(10) ** (-digits // 3):
                return False  # far above the error of any computation with so many digits
            if previous is not None and previous != 0 and abs(value - previous) < abs(value) * mp.mpf(10) ** -10:
                return False
            previous = value
    return True


def _value(node: Node, point: Mapping[str, Any], *, real: bool = False) -> Any:
    """Return the value at a point, at mpmath's present precision.

    Raises _UndefinedError: it has no value, or with `real` a part of it is not real.
    """
    if node.kind == "num":
        return mp.mpf(node.value.numerator) / node.value.denominator
    if node.kind == "sym":
        return point[node.name]
    if node.kind in _CONSTANTS:
        return _CONSTANTS[node.kind]()
    parts = [_value(part, point, real=real) for part in node.parts]
    if node.kind == "neg":
        return -parts[0]
    if node.kind == "add":
        return _defined(parts[0] + parts[1])
    if node.kind == "mul":
        return _defined(parts[0] * parts[1])
    if node.kind == "div":
        return _defined(parts[0] / parts[1])
    if node.kind == "pow":
        value = _power(*parts)
    else:
        try:
            value = _CALLS[node.name](*parts)
        except TooLargeError:
            raise
        except (ValueError, KeyError, TypeError, ArithmeticError) as error:
            raise _UndefinedError from error
    if isinstance(value, mpmath.mpc) and real and not any(isinstance(part, mpmath.mpc) for part in parts):
        raise _UndefinedError
    return _defined(value)


def _defined(value: Any) -> Any:
    if mpmath.isnan(value):
        raise _UndefinedError
    if isinstance(value, mpmath.mpc) and abs(value.imag) < abs(value.real) * mp.mpf(10) ** (-mp.dps * 3 // 4):
        return value.real
    return value


def _power(base: Any, exponent: Any) -> Any:
    if base == 0 and not isinstance(exponent, mpmath.mpc) and exponent < 0:
        raise ZeroDivisionError
    if abs(exponent) > 10**12 and mpmath.isfinite(exponent) and abs(base) not in (0, 1):
        raise TooLargeError("a power has too many digits")
    return mpmath.power(base, exponent)


def _factorial(value: Any) -> Any:
    if abs(value) > 10**12:
        raise TooLargeError("a factorial has too many digits")
    return mpmath.factorial(value)


def _log(value: Any, base: Any = None) -> Any:
    if value == 0 or base == 1:
        raise _UndefinedError
    return mpmath.log(value) if base is None else mpmath.log(value) / mpmath.log(base)


def _root(value: Any, degree: Any) -> Any:
    """Return the real root if there is one, as schools write: the cube root of -8 is -2."""
    if not isinstance(value, mpmath.mpc) and value < 0 and degree == int(degree) and int(degree) % 2:
        return -mpmath.root(-value, int(degree))
    return mpmath.power(value, 1 / degree)


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "pi": lambda: +mp.pi,
    "e": lambda: +mp.e,
    "i": lambda: mp.mpc(0, 1),
    "inf": lambda: mp.inf,
}
_CALLS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(mpmath, name)
        for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh", "tanh", "exp")
    },
    **{
        f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan", "sec", "csc", "cot", "sinh", "cosh")
    },
    "arctanh": mpmath.atanh,
    "abs": abs,
    "sqrt": mpmath.sqrt,
    "root": _root,
    "log": _log,
    "factorial": _factorial,
    "binomial": mpmath.binomial,
    "lfloor": mpmath.floor,
    "lceil": mpmath.ceil,
    "max": max,
    "min": min,
}
