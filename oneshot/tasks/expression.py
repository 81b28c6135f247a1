"""A canonical spelling of one expression -> its tree, or a ReadError: the whole text is read, or none of it.

A tree is a `Node`: a kind and its parts. The spelling is that of normalise.py; lists, sets and relations are not
expressions (reading.py splits them).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from oneshot.tasks.normalise import FUNCTION_NAMES, word_set


class ReadError(ValueError):
    """A text that is no whole expression."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of an expression's tree: `num` has a value, `sym` and `call` have a name, others have parts only."""

    kind: str
    parts: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)


_TOKEN = re.compile(
    r"\s*(?:(?P<num>[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.\d+|\d+\.(?=\\overline|\\bar|\\dot)|\.\d+|\d+)"
    r"|(?P<cmd>\\(?:[A-Za-z]+|[{}|%]))|(?P<char>\S))"
)
_SYMBOLS = word_set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau "
    "upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar ldots reals "
    "emptyset"
)
_DECORATED = word_set(
    "vec hat bar overline tilde dot ddot angle triangle mathcal mathbb mathfrak mathscr overleftrightarrow widehat "
    "parallelogram widetilde measuredangle stackrel"
)
_NAMED = FUNCTION_NAMES | {"operatorname"}
_CLOSING = {"(": ")", "[": "]", r"\{": r"\}", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_MAX_DEPTH = 150
_MAX_NUMERAL = 4000  # digits; Python refuses to read more than 4,300


def parse(text: str) -> Node:
    """Return the tree of an expression. Raises ReadError: it is no whole expression, or nested too deeply."""
    tokens = _Tokens(text)
    node = _sum(tokens)
    if tokens.next:
        raise ReadError(f"{tokens.next!r} is left over in {text!r}")
    return node


def number(value: Fraction | int) -> Node:
    """Return the tree of a number."""
    return Node("num", value=Fraction(value))


def symbols(node: Node) -> frozenset[str]:
    """Return the names of an expression's free symbols."""
    if node.kind == "sym":
        return frozenset([node.name])
    return frozenset().union(*(symbols(part) for part in node.parts))


class _Tokens:
    """The tokens of a text, read from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = [match[0].strip() for match in _TOKEN.finditer(text)]
        self._place = 0
        self.depth = 0
        self.bars = 0  # open absolute values, in which a bar closes

    @property
    def next(self) -> str:
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def after(self, distance: int = 1) -> str:
        place = self._place + distance
        return self._tokens[place] if place < len(self._tokens) else ""

    def take(self) -> str:
        token = self.next
        if not token:
            raise ReadError("the text ends too early")
        self._place += 1
        return token

    def split(self, first: str, rest: str) -> None:
        """Replace the next token by two."""
        self._tokens[self._place : self._place + 1] = [first, rest]

    def expect(self, token: str) -> None:
        if self.take() != token:
            raise ReadError(f"{token!r} is missing")


def _sum(tokens: _Tokens) -> Node:
    tokens.depth += 1
    if tokens.depth > _MAX_DEPTH:
        raise ReadError("nested too deeply")
    sign = tokens.take() if tokens.next in ("+", "-") else "+"
    node = _negated(_product(tokens), sign)
    while tokens.next in ("+", "-"):
        sign = tokens.take()
        node = Node("add", (node, _negated(_product(tokens), sign)))
    tokens.depth -= 1
    return node


def _negated(node: Node, sign: str) -> Node:
    return Node("neg", (node,)) if sign == "-" else node


def _product(tokens: _Tokens) -> Node:
    node = _power(tokens)
    previous_is_number = node.kind == "num"
    while True:
        token = tokens.next
        if token in ("*", "/", r"\cdot", r"\times", r"\div", r"\ast"):
            tokens.take()
            sign = tokens.take() if tokens.next in ("+", "-") else "+"
            factor = _negated(_power(tokens), sign)
            node = Node("div" if token in ("/", r"\div") else "mul", (node, factor))
        elif _starts_factor(tokens):
            if previous_is_number and _is_number(token):
                raise ReadError("two numbers stand side by side")
            node = Node("mul", (node, _power(tokens)))
        else:
            return node
        previous_is_number = _is_number(token)


def _starts_factor(tokens: _Tokens) -> bool:
    token = tokens.next
    if token == "|":
        return tokens.bars == 0
    if token.startswith("\\"):
        name = token[1:]
        return name in _SYMBOLS or name in _DECORATED or name in _NAMED or name in _BASES or token in _CLOSING
    return token.isalnum() or _is_number(token) or token in ("(", "[", "{")


def _is_number(token: str) -> bool:
    return token[:1].isdigit() or (token[:1] == "." and token[1:2].isdigit())


def _power(tokens: _Tokens) -> Node:
    node = _base(tokens)
    while True:
        if tokens.next == "^":
            tokens.take()
            node = Node("pow", (node, _exponent(tokens)))
        elif tokens.next == "!":
            tokens.take()
            node = Node("call", (node,), name="factorial")
        elif tokens.next == r"\degree":
            tokens.take()
            node = Node("mul", (node, Node("div", (Node("pi"), number(180)))))
        elif tokens.next in (r"\%", "%"):
            tokens.take()
            node = Node("div", (node, number(100)))
        else:
            return node


def _exponent(tokens: _Tokens) -> Node:
    if tokens.next in ("-", "+"):
        sign = tokens.take()
        return _negated(_argument(tokens), sign)
    return _argument(tokens)


def _argument(tokens: _Tokens) -> Node:
    """Read what follows a command: a group in braces, or one item."""
    if tokens.next == "{":
        tokens.take()
        node = _sum(tokens)
        tokens.expect("}")
        return node
    return _base(tokens)


def _base(tokens: _Tokens) -> Node:
    token = tokens.take()
    if _is_number(token):
        return _mixed(_numeral(token, tokens), token, tokens)
    if token in _CLOSING or token == "{":
        node = _sum(tokens)
        tokens.expect(_CLOSING.get(token, "}"))
        return Node("call", (node,), name=token[1:]) if token in (r"\lfloor", r"\lceil") else node
    if token in ("|", r"\|"):
        tokens.bars += 1
        node = _sum(tokens)
        tokens.bars -= 1
        tokens.expect(token)
        return Node("call", (node,), name="abs")
    if token.startswith("\\"):
        name = token[1:]
        if name in _BASES:
            return _BASES[name](tokens)
        if name in _NAMED:
            return _call(name, tokens)
        if name in _DECORATED:
            return _indexed(f"{name}:{_raw_argument(tokens)}", tokens)
        if name in _SYMBOLS:
            return _indexed(name, tokens)
    if token.isascii() and token.isalpha() and len(token) == 1:
        if tokens.next not in ("_", "'") and token in ("e", "i"):
            return Node(token)
        return _indexed(token, tokens)
    raise ReadError(f"{token!r} is unknown")


def _indexed(name: str, tokens: _Tokens) -> Node:
    while tokens.next in ("_", "'"):
        name += tokens.take()
        if name.endswith("_"):
            name += _raw_argument(tokens)
    return Node("sym", name=name)


def _raw_argument(tokens: _Tokens) -> str:
    """Return the text of an argument in braces, or one token."""
    if tokens.next != "{":
        return tokens.take()
    tokens.take()
    text, depth = "", 1
    while True:
        token = tokens.take()
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth == 0:
            return text
        text += token


def _numeral(token: str, tokens: _Tokens) -> Node:
    """Read a numeral, with the period of a repeating decimal if it has one."""
    token = token.replace(",", "")
    if len(token) > _MAX_NUMERAL:
        raise ReadError("a numeral has too many digits")
    if "." in token and tokens.next in (r"\overline", r"\bar", r"\dot"):
        tokens.take()
        period = _raw_argument(tokens)
        if not period.isdecimal():
            raise ReadError(f"{period!r} is no period")
        return number(repeating(token, period))
    if "." in token and tokens.next == r"\ldots":
        tokens.take()
        whole, _, digits = token.partition(".")
        start, period = _find_period(digits)
        return number(repeating(f"{whole}.{start}", period))
    return number(Fraction(f"0{token}" if token.startswith(".") else token))


def repeating(start: str, period: str) -> Fraction:
    """Return the value of a decimal whose last digits repeat: ("1.2", "3") is 37/30."""
    scale = 10 ** len(start.partition(".")[2])
    return Fraction(f"{start}0") + Fraction(int(period), (10 ** len(period) - 1) * scale)


def _find_period(digits: str) -> tuple[str, str]:
    """Return the digits before the period, and the period, which stands at least twice at the end."""
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        if digits.endswith(period * 2):
            start = digits
            while start.endswith(period):
                start = start[:-length]
            return start, period
    raise ReadError(f"{digits!r} has no period")


def _mixed(whole: Node, token: str, tokens: _Tokens) -> Node:
    """Read the fraction of a mixed number: two whole numbers, the lower one larger."""
    if tokens.next != r"\frac" or not token.isdecimal():
        return whole
    tokens.take()
    fraction = _fraction(tokens)
    upper, lower = fraction.parts
    if upper.kind == lower.kind == "num" and upper.value < lower.value and upper.value.denominator == 1:
        return number(whole.value + upper.value / lower.value)
    return Node("mul", (whole, fraction))


def _fraction(tokens: _Tokens) -> Node:
    if tokens.next.isdecimal() and len(tokens.next) > 1:
        tokens.split(tokens.next[0], tokens.next[1:])
    upper = _argument(tokens)
    return Node("div", (upper, _argument(tokens)))


def _root(tokens: _Tokens) -> Node:
    if tokens.next != "[":
        return Node("call", (_argument(tokens),), name="sqrt")
    tokens.take()
    degree = _sum(tokens)
    tokens.expect("]")
    return Node("call", (_argument(tokens), degree), name="root")


def _binomial(tokens: _Tokens) -> Node:
    upper = _argument(tokens)
    return Node("call", (upper, _argument(tokens)), name="binomial")


def _logarithm(tokens: _Tokens) -> Node:
    base = None
    if tokens.next == "_":
        tokens.take()
        base = _argument(tokens)
    power = _function_power(tokens)
    arguments = (_operand(tokens),) if base is None else (_operand(tokens), base)
    node = Node("call", arguments, name="log")
    return node if power is None else Node("pow", (node, power))


def _decimal_logarithm(tokens: _Tokens) -> Node:
    return Node("call", (_operand(tokens), number(10)), name="log")


def _call(name: str, tokens: _Tokens) -> Node:
    if name in ("max", "min", "gcd", "lcm"):
        return Node("call", _several(tokens), name=name)
    power = _function_power(tokens)
    if power == number(-1) or power == Node("neg", (number(1),)):
        name, power = f"arc{name}", None
    node = Node("call", (_operand(tokens),), name=name)
    return node if power is None else Node("pow", (node, power))


def _function_power(tokens: _Tokens) -> Node | None:
    if tokens.next != "^":
        return None
    tokens.take()
    return _exponent(tokens)


def _several(tokens: _Tokens) -> tuple[Node, ...]:
    """Read arguments in parentheses or braces with commas between them."""
    opening = tokens.take()
    if opening not in ("(", "{", r"\{"):
        raise ReadError("arguments in parentheses are missing")
    nodes = [_sum(tokens)]
    while tokens.next == ",":
        tokens.take()
        nodes.append(_sum(tokens))
    tokens.expect({"(": ")", "{": "}"}.get(opening, r"\}"))
    return tuple(nodes)


def _operand(tokens: _Tokens) -> Node:
    """Read a function's argument: a group, or a product that ends before another function."""
    if tokens.next in ("(", "[", "{", "|"):
        return _base(tokens)
    if tokens.next.startswith("\\") and tokens.next[1:] in _NAMED:
        return _power(tokens)
    node = _power(tokens)
    while _starts_factor(tokens) and tokens.next[:1] != "(" and tokens.next[1:] not in _NAMED | {"log", "ln"}:
        node = Node("mul", (node, _power(tokens)))
    return node


_BASES: dict[str, Callable[[_Tokens], Node]] = {
    "frac": _fraction,
    "sqrt": _root,
    "binom": _binomial,
    "dbinom": _binomial,
    "tbinom": _binomial,
    "log": _logarithm,
    "ln": _logarithm,
    "lg": _decimal_logarithm,
    "pi": lambda _: Node("pi"),
    "infty": lambda _: Node("inf"),
}
