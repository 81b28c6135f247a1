"""A YAML text -> plain Python, with the line of each of its places.

The YAML is version 1.2, as ruamel reads it: `1e-6` is a number, `on` and `no` are text, and a key that appears twice is
an error.
"""

import re
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from oneshot.config.paths import Where
from oneshot.errors import SweepFileError
from oneshot.text import stray_character


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The text of a file, and the line of each of its places."""

    name: str
    text: str
    lines: dict[Where, int]

    def at(self, where: Where) -> str:
        """Return `file:line: dotted.path` of a place. The line is that of the nearest place around it that has one."""
        if where and str(where[0]).startswith("--"):
            return " ".join(str(part) for part in where)
        place = where
        while place and place not in self.lines:
            place = place[:-1]
        path = ".".join(str(part) for part in where)
        shown = path if path.isprintable() else repr(path)
        return f"{self.name}:{self.lines.get(place, 1)}: {shown or 'the file'}"

    def error(self, where: Where, message: str) -> SweepFileError:
        """Return an error about a place."""
        return SweepFileError(f"{self.at(where)}: {message}")


def parse_yaml(text: str, name: str) -> tuple[Any, Source]:
    """Parse a YAML text into plain Python, with the line of each of its places.

    Raises SweepFileError: it is not valid YAML, or a key appears twice.
    """
    yaml = YAML(typ="rt", pure=True)
    try:
        tree = yaml.load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise SweepFileError(
            f"{name}:{line}: {error.problem.split(' with value')[0].replace('found ', '')}; keep one"
        ) from error
    except MarkedYAMLError as error:
        raise _yaml_error(error, name, text) from error
    except ReaderError as error:
        line = len(_LINE_END.findall(text, 0, error.position)) + 1
        raise SweepFileError(f"{name}:{line}: not YAML: a control character; remove it") from error
    except Exception as error:  # ruamel raises what Python says of a day of no calendar or a mapping as a key
        raise SweepFileError(
            f"{name}: not YAML: a key, a date or a number does not exist, or brackets are nested too deep; put text in "
            "quotes"
        ) from error
    lines: dict[Where, int] = {}
    data = _plain(tree, (), lines)
    source = Source(name=name, text=text, lines=lines)
    _check_characters(data, (), source)
    return data, source


_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")  # as YAML counts lines
_YAML_MISTAKES = {
    "mapping values are not allowed": "a colon and a space inside text; quote the text, or correct its indentation",
    "unknown escape": "a backslash in double quotes begins an escape; use single quotes",
    "undefined alias": "text cannot begin with *; put it in quotes",
    "could not find expected ':'": "a line that is no `key: value`; add a colon and a space, or put text in quotes",
    "found '<scalar>'": "text after a quote or bracket; put the whole text in one pair of quotes",
    "<block end>": "the indentation does not fit the lines above; align the keys of a section",
    "flow sequence": "a list is not closed; add ] or a comma",
    "flow mapping": "a mapping is not closed; add } or a comma",
    "another document": "the file has two documents; remove the line ---",
    "quoted scalar": "a quoted text is not closed; add the quote",
}
"""What ruamel's messages contain -> what is wrong, in plain words, and how to fix it."""


def _yaml_error(error: MarkedYAMLError, name: str, text: str) -> SweepFileError:
    """Return an error with the line of what is not YAML, in plain words."""
    problem = f"{error.problem or ''} {error.context or ''}"
    mark = error.problem_mark or error.context_mark
    if "could not find" in problem and error.context_mark:  # the mark of the problem is where the search ended
        mark = error.context_mark
    line = _LINE_END.split(text)[mark.line]
    if "cannot start any token" in problem:
        char = line[mark.column : mark.column + 1]
        why = "a tab; indent with spaces" if char == "\t" else f"text cannot begin with {char}; put it in quotes"
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        why = "a tab; indent with spaces"
    else:
        default = "text with a character that has a meaning in YAML; put the text in quotes"
        why = next((why for part, why in _YAML_MISTAKES.items() if part in problem), default)
    return SweepFileError(f"{name}:{mark.line + 1}: not YAML: {why}")


def _check_characters(value: Any, where: Where, source: Source) -> None:
    """Check that no text contains a control character, which a backslash in double quotes makes.

    Raises SweepFileError: a text does; names its place.
    """
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _check_characters(inner, (*where, key), source)
    elif isinstance(value, str) and (stray := stray_character(value)):
        raise source.error(
            where, f"contains {stray}, as a backslash in double quotes begins an escape; use single quotes"
        )


def _plain(node: Any, where: Where, lines: dict[Where, int]) -> Any:
    """Convert ruamel's tree to plain Python, and note the line of every key and item."""
    if isinstance(node, CommentedMap):
        plain = {}
        for key, value in node.items():
            name = key if isinstance(key, str) else str(key)
            lines[(*where, name)] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else lines.get(where, 1)
            plain[name] = _plain(value, (*where, name), lines)
        return plain
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*where, index)] = node.lc.item(index)[0] + 1
        return [_plain(value, (*where, index), lines) for index, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
