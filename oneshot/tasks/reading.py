"""A canonical spelling -> the answer that it means: a number or expression, text, a list, a set, an interval, ...

A spelling that fits no type, as a whole, is `Opaque`: it is equal to the same spelling only, or is left to
math-verify. A part of a text is never read as if it were all of it.
"""

import re
from collections.abc import Callable

from oneshot.tasks.answer_types import (
    REALS,
    Answer,
    Approximate,
    Assigned,
    Many,
    Matrix,
    Opaque,
    Piece,
    Ratio,
    Region,
    Relation,
    Text,
    Value,
)
from oneshot.tasks.evaluation import are_equal
from oneshot.tasks.expression import Node, ReadError, number, parse, symbols
from oneshot.tasks.normalise import word_set, words_of
from oneshot.tasks.numerals import clock, digits
from oneshot.tasks.regions import as_region, union, without
from oneshot.tasks.split import enclosed, separators, split
from oneshot.tasks.units import split_unit

MAX_ELEMENTS = 200

_AND_OR = re.compile(r"(?:\\text\{\s*,?\s*(?:and|or|OR|AND)\s*,?\s*\}|(?<![A-Za-z\\])(?:and|or|OR)(?![A-Za-z]))")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_COMMA = re.compile(r"[;,]")
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|(?:not)?in|equiv)(?![A-Za-z])|[<>=≈]")
_MATRIX = re.compile(r"\\begin\s*\{([pbvBV]?matrix|smallmatrix)\}(.*)\\end\s*\{\1\}", re.DOTALL)
_SYSTEM = re.compile(
    r"(?:\\\{\s*)?\\begin\s*\{(array|cases|aligned)\}(?:\s*\{[lcr| ]*\})?(.*)\\end\s*\{\1\}", re.DOTALL
)
_PLAIN_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,.()-]*")
_SET_OF = re.compile(
    r"(?:\\?[A-Za-z]+\s*(?:\\in\s*\\reals)?|\(?[a-z](?:\s*,\s*[a-z])*\)?)\s*(?:\||:|\\colon)(.*)", re.DOTALL
)
_SHORT_WORDS = word_set("yes no odd")
_ALL_REALS = {"all real numbers", "all reals", "the set of all real numbers", "any real number", "all real x"}


def read(text: str) -> Answer:
    """Return the answer that a canonical spelling means."""
    try:
        return _read(text)
    except (ReadError, RecursionError):
        return Opaque(re.sub(r"\s+", "", text))


def _read(text: str) -> Answer:
    if not text:
        raise ReadError("there is no answer")
    for reader in _READERS:
        answer = reader(text)
        if answer is not None:
            return answer
    raise ReadError("no reader reads it")


def _parts(texts: list[str]) -> tuple[Answer, ...]:
    texts = [text for text in texts if text]
    if len(texts) > MAX_ELEMENTS:
        raise ReadError("too many elements")
    return tuple(_element(text) for text in texts)


def _element(text: str) -> Answer:
    """Read one element; one without a type is opaque, and its list is still a list."""
    return read(text.strip())


def _text(text: str) -> Answer | None:
    """Read words: all in `\\text`, or plain letters that are no product of variables."""
    in_text = re.fullmatch(r"(?:\\text\s*\{[^{}]*\}[\s,.]*)+", text) is not None
    if not in_text and (not _PLAIN_WORDS.fullmatch(text) or not _has_word(text)):
        return None
    words = words_of(text)
    if words in _ALL_REALS:
        return REALS
    if words in ("empty set", "null set"):
        return Many((), "set")
    if in_text and re.fullmatch(r"[\d.,]+", words):
        return None
    parts = re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", re.sub(r"\\text\s*\{([^{}]*)\}", r"\1 ", text).strip())
    if in_text and len(parts) > 1 and all(parts):
        return Many(tuple(Text(words_of(part)) for part in parts), "list")
    if not words or (not in_text and re.search(r"[,(]", text) and not re.search(r"[a-z]{4}", text)):
        return None
    return Text(words)


def _has_word(text: str) -> bool:
    """Return whether plain letters have a word: four letters or more, or capitals side by side, or a capital first."""
    words = re.findall(r"[A-Za-z]+", text)
    return any(
        len(word) >= 4 or word.lower() in _SHORT_WORDS or re.fullmatch(r"[A-Z]{2,}|[A-Z][a-z]{2,}", word)
        for word in words
    )


def _and_or(text: str) -> Answer | None:
    parts = split(text, _AND_OR)
    if len(parts) < 2:
        return None
    regions = [read(part.strip(" ,")) for part in parts]
    if all(isinstance(region, Region) for region in regions):
        joins = {re.sub(r"[^a-z]", "", found.lower().replace("\\text", "")) for found in separators(text, _AND_OR)}
        if joins == {"or"}:
            return union([region for region in regions if isinstance(region, Region)])
    return Many(tuple(item for part in parts for item in _flat(part)), "list")


def _flat(text: str) -> tuple[Answer, ...]:
    answer = read(text.strip(" ,"))
    return answer.items if isinstance(answer, Many) and answer.kind == "list" else (answer,)


def _list(text: str) -> Answer | None:
    parts = split(text, _COMMA)
    if len(parts) < 2 or any(not part for part in parts):
        return None
    return _named_list(parts) or Many(tuple(item for part in parts for item in _flat(part)), "list")


def _named_list(parts: list[str]) -> Answer | None:
    """Read `n = 2, 5, 13`: one name for all elements."""
    first = _element(parts[0])
    if not isinstance(first, Assigned) or any(_RELATION.search(part) for part in parts[1:]):
        return None
    rest = tuple(item for part in parts[1:] for item in _flat(part))
    own = first.answer.items if isinstance(first.answer, Many) and first.answer.kind == "list" else (first.answer,)
    return Assigned(first.name, Many((*own, *rest), "list"))


def _plus_minus(text: str) -> Answer | None:
    if re.search(r"\\[pm]{2}(?![A-Za-z])", text) is None or text.count("pm") + text.count("mp") > 4:
        return None
    both = [re.sub(r"\\pm(?![A-Za-z])", sign, re.sub(r"\\mp(?![A-Za-z])", other, text)) for sign, other in ("+-", "-+")]
    return Many(tuple(item for spelling in both for item in _flat(spelling)), "list")


def _bracketed(text: str) -> Answer | None:
    outer = enclosed(text)
    if outer is None:
        return None
    opening, inner, closing = outer
    if opening == r"\{" and closing == r"\}":
        condition = _SET_OF.fullmatch(inner)
        if condition is not None and _RELATION.search(condition[1]):
            return read(condition[1].strip())
        if not inner:
            return Many((), "set")
        answer = read(inner)
        items = answer.items if isinstance(answer, Many) and answer.kind == "list" else (answer,)
        return Many(items, "set")
    parts = split(inner, _COMMA)
    if len(parts) == 1:
        if opening == "[" and closing == "]":
            return Many((_element(inner),), "square")
        return None if (opening, closing) != ("(", ")") or not _is_group(inner) else _element(inner)
    if any(not part for part in parts):
        raise ReadError("an element is missing")
    if (opening, closing) == ("(", ")"):
        return Many(_parts(parts), "tuple")
    if (opening, closing) == ("[", "]"):
        return Many(_parts(parts), "square")
    if len(parts) == 2 and opening in ("(", "[") and closing in (")", "]"):
        return Region((_piece(parts, opening, closing),))
    raise ReadError("its brackets do not match")


def _is_group(inner: str) -> bool:
    return bool(_RELATION.search(inner)) or re.fullmatch(r"[A-Z]|\\text\{[^{}]*\}", inner) is not None


def _piece(parts: list[str], opening: str, closing: str) -> Piece:
    return Piece(parse(parts[0]), parse(parts[1]), opening == "(", closing == ")")


def _set_operation(text: str) -> Answer | None:
    parts = split(text, _CUP)
    if len(parts) > 1:
        return union([_region(part) for part in parts])
    parts = split(text, re.compile(r"\\setminus(?![A-Za-z])"))
    if len(parts) != 2 and re.search(r"(?<=[})s])\s*-\s*\\\{", text):
        parts = split(text, re.compile(r"-(?=\s*\\\{)"))
    if len(parts) != 2:
        return None
    return without(_region(parts[0]), _region(parts[1]))


def _region(text: str) -> Region:
    region = as_region(read(text))
    if region is None:
        raise ReadError(f"{text!r} is no set of numbers")
    return region


def _either(text: str) -> Answer | None:
    """Read inequalities with a union sign between them."""
    parts = split(text, _CUP)
    return union([_region(part) for part in parts]) if len(parts) > 1 and all(map(_RELATION.search, parts)) else None


def _reals(text: str) -> Answer | None:
    if text in (r"\reals", r"x \in \reals", r"x\in\reals"):
        return REALS
    return Many((), "set") if text == r"\emptyset" else None


def _relation(text: str) -> Answer | None:
    ops = [found.removeprefix("\\") for found in separators(text, _RELATION)]
    if not ops:
        return None
    parts = split(text, _RELATION)
    if not parts[0] and set(ops) <= {"=", "approx"}:
        parts, ops = parts[1:], ops[1:]
        if not ops:
            return _element(parts[0])
    if any(not part for part in parts):
        raise ReadError("a side is missing")
    if ops[-1] == "approx":
        exact = _chain(parts[:-1], ops[:-1]) if len(parts) > 2 else _element(parts[0])
        if len(parts) == 2 and _name(parts[0]):
            return Assigned(_name(parts[0]), _element(parts[1]))
        return Approximate(exact, _element(parts[-1]))
    return _chain(parts, ops)


def _chain(parts: list[str], ops: list[str]) -> Answer:
    if not ops:
        return _element(parts[0])
    if set(ops) == {"="}:
        return _equation(parts)
    if ops == ["in"]:
        answer = _element(parts[1])
        region = as_region(answer)
        if isinstance(answer, Many) and answer.kind == "set":
            return Assigned(_name(parts[0]), answer) if _name(parts[0]) else answer
        if region is not None and answer is not REALS:
            return Region(region.pieces, _name(parts[0]))
        if answer is REALS:
            return REALS
    if len(ops) == 1 and ops[0] in ("<", ">", "le", "ge", "ne"):
        return _inequality(parts[0], ops[0], parts[1])
    if len(ops) == 2 and (set(ops) <= {"<", "le"} or set(ops) <= {">", "ge"}) and _name(parts[1]):
        if ops[0] in (">", "ge"):
            parts, ops = parts[::-1], ops[::-1]
        strict = [op in ("<", ">") for op in ops]
        return Region((Piece(parse(parts[0]), parse(parts[2]), strict[0], strict[1]),), _name(parts[1]))
    raise ReadError("a relation of another kind")


def _name(text: str) -> str:
    """Return the name on the left of an equation: a symbol, words, or a function of symbols; "" for anything else."""
    plain = re.sub(r"\s|\\text|[{}]", "", text)
    symbol = r"\\?[A-Za-z]+(?:_[A-Za-z0-9]+)?'*"
    is_name = re.fullmatch(
        rf"{symbol}(?:\({symbol}(?:,{symbol})*\))?|\({symbol}(?:,{symbol})+\)|\|?[A-Z]{{2,3}}\|?", plain
    )
    if is_name is None or (
        not re.match(r"\s*\\text", text) and re.match(r"[a-z]{2,}(?!\()", plain) and not _has_word(plain)
    ):
        return ""
    return "" if plain in ("e", "i", r"\pi", r"\infty") else plain


def _equation(parts: list[str]) -> Answer:
    name = _name(parts[0])
    if name:
        values = [_element(part) for part in parts[1:]]
        if len(values) == 1:
            relation = _as_relation("=", parts[0], parts[1])
            return Assigned(name, values[0], relation)
        return Assigned(name, _consistent(values))
    if len(parts) == 2:
        left, right = (_element(part) for part in parts)
        relation = _as_relation("=", parts[0], parts[1])
        if relation is not None and _has_symbols(relation):
            if _name(parts[1]):
                return Assigned(_name(parts[1]), left, relation)
            return relation
        return _consistent([left, right])
    return _consistent([_element(part) for part in parts])


def _consistent(values: list[Answer]) -> Answer:
    """Return the last of several equal values. Raises ReadError: they are not equal, so the equation is false."""
    nodes = [value.node for value in values if isinstance(value, Value)]
    if len(nodes) < len(values) or any(not are_equal(nodes[-1], node) for node in nodes):
        raise ReadError("a false equation")
    return values[-1]


def _has_symbols(relation: Relation) -> bool:
    return bool(symbols(relation.left) | symbols(relation.right))


def _as_relation(op: str, left: str, right: str) -> Relation | None:
    try:
        return Relation(op, parse(left), parse(right))
    except ReadError:
        return None


_FLIPPED = {"<": ">", ">": "<", "le": "ge", "ge": "le", "ne": "ne"}


def _inequality(left: str, op: str, right: str) -> Answer:
    """Read an inequality: a region if one side is a variable, or else a relation."""
    if not _name(left) and _name(right):
        left, op, right = right, _FLIPPED[op], left
    name = _name(left)
    if not name or (op != "ne" and _name(right)):
        return Relation(op, parse(left), parse(right))
    if op == "ne":
        points = _element(right)
        items = points.items if isinstance(points, Many) and points.kind == "list" else (points,)
        region = as_region(Many(items, "set"))
        if region is None:
            raise ReadError("it excludes no number")
        try:
            return Region(without(REALS, region).pieces, name)
        except ReadError:
            return Relation(op, parse(left), parse(right))
    bound, end = parse(right), Node("inf")
    if op in ("<", "le"):
        return Region((Piece(Node("neg", (end,)), bound, True, op == "<"),), name)
    return Region((Piece(bound, end, op == ">", True),), name)


def _ratio(text: str) -> Answer | None:
    parts = split(text, re.compile(r":|\\colon(?![A-Za-z])"))
    return None if len(parts) < 2 else Ratio(tuple(parse(part) for part in parts))


def _matrix(text: str) -> Answer | None:
    match = _MATRIX.fullmatch(text)
    if match is not None and match[1] not in ("vmatrix", "Vmatrix") and r"\begin" not in match[2]:
        rows = [row for row in match[2].replace(r"\cr", r"\\").split(r"\\") if row.strip()]
        return Matrix(tuple(tuple(_element(cell) for cell in row.split("&")) for row in rows))
    match = _SYSTEM.fullmatch(text)
    if match is not None and r"\begin" not in match[2]:
        rows = [row.replace("&", " ").strip(" ,") for row in match[2].split(r"\\") if row.strip()]
        return Many(_parts(rows), "list")
    return None


def _value(text: str) -> Answer:
    body, unit, factor = split_unit(text)
    body = re.sub(r"(?<![\d.])(\d+) (\d+)/(\d+)$", r"\1\\frac{\2}{\3}", body)
    percent = re.search(r"\s*(?:\\?%)$", body)
    if percent is not None:
        body = body[: percent.start()]
    exponent = re.fullmatch(r"([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)", body)
    if exponent is not None:
        body = rf"{exponent[1].rstrip('.')} \cdot 10^{{{exponent[2]}}}"
    node = parse(body.removesuffix("."))
    if factor != 1:
        node = Node("mul", (node, number(factor)))
    return Value(node, unit, percent is not None, body)


_READERS: tuple[Callable[[str], Answer | None], ...] = (
    _matrix,
    clock,
    _text,
    _reals,
    _and_or,
    _list,
    _either,
    _relation,
    _set_operation,
    _bracketed,
    _plus_minus,
    digits,
    _ratio,
    _value,
)
