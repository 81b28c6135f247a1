"""Trials -> the problems that are where they should not be: trained on and judged, or several times in what is judged.

Texts are compared where they are on this machine, so that near duplicates are found too. Otherwise the digests of
prompts are compared, which finds only exact ones. Published sets are not searched for near duplicates among themselves,
since nobody can change them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Literal

from oneshot.config.claims import ClaimConfig, GroupConfig
from oneshot.config.trial import TrialConfig
from oneshot.plan.claims import judged_suites
from oneshot.plan.leakage import VAL_SUITES
from oneshot.tasks import arithmetic, sets
from oneshot.tasks.benchmarks import GENERATED, Suite, load_suites
from oneshot.tasks.duplicates import Index
from oneshot.tasks.examples import example_rows, identify_shots, row_content

NUM_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A problem: its name, the sha256 of its prompt, and the prompt if it is on this machine."""

    id: str
    digest: str
    prompt: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """A problem that is, exactly or nearly, another one."""

    id: str
    other: str
    is_exact: bool

    def __str__(self) -> str:
        if self.is_exact:
            return self.id if self.id == self.other else f"{self.id} ({self.other})"
        return f"{self.id} (nearly {self.other})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Problems of a suite that are trained on, that repeat another one, or that another suite has too."""

    kind: Literal["trained", "repeated", "shared"]
    suite: str
    other: str = ""  # the other suite, if problems are shared
    num: int  # number of problems
    num_near: int  # of these, near duplicates
    first: _Match

    def __str__(self) -> str:
        if self.kind == "repeated":
            many, one, where = "problems", "repeats another problem", f"of {self.suite}"
        elif self.kind == "trained":
            many, one, where = "training problems", "is", f"in {self.suite}"
        else:
            many, one, where = "problems", "is", f"in both {self.suite} and {self.other}"
        if self.num == 1:
            return f"{self.first} {one} {where}"
        verb = "repeat others" if self.kind == "repeated" else "are"
        return f"{self.num} {many} {verb} {where}, such as {self.first}"


def find_leaks(
    configs: Iterable[TrialConfig], claims: Sequence[ClaimConfig], groups: Mapping[str, GroupConfig]
) -> list[Leak]:
    """Return the leaks of trials whose examples are known. Suites that only choose may not be trained on anyway."""
    configs = [config for config in configs if config.script is None]
    suites = {
        (suite.name, suite.source, suite.num_problems): suite for config in configs for suite in load_suites(config)
    }
    claimed = {name for claim in claims for name in judged_suites(claim, groups)}
    judging = [suite for suite in suites.values() if suite.source not in VAL_SUITES or suite.name in claimed]
    trained = _trained(configs)
    leaks: list[Leak | None] = [_leak("trained", suite, _matches(trained, suite)) for suite in judging]
    leaks += [_leak("repeated", suite, _repeated(suite)) for suite in judging if suite.source not in GENERATED]
    for suite, other in combinations(suites.values(), 2):
        is_in_group = any({suite.name, other.name} <= {*group.suites} for group in groups.values())
        if suite.name != other.name and (suite.source != other.source or is_in_group):
            leaks.append(_leak("shared", suite, _shared(suite, other), other=other.name))
    return list(dict.fromkeys(leak for leak in leaks if leak is not None))


def leak_warnings(leaks: Sequence[Leak]) -> list[str]:
    """Return a warning for each of the first leaks, and one with the number of the others.

    Rows of a file that repeat another one exactly are left out: warnings.py names them.
    """
    leaks = [leak for leak in leaks if leak.kind != "repeated" or leak.num_near]
    more = len(leaks) - NUM_SHOWN
    return [*(f"leak: {leak}" for leak in leaks[:NUM_SHOWN]), *([f"leak: {more} more"] if more > 0 else [])]


def by_suite(leaks: Sequence[Leak], groups: Mapping[str, GroupConfig]) -> dict[str, tuple[str, ...]]:
    """Return the leaks that concern a verdict on a suite, or on a group as `@name`.

    Problems that two suites share concern only a group of both, where they would count twice.
    """
    texts: dict[str, list[str]] = {}
    for leak in leaks:
        names = [leak.suite]
        if leak.kind == "shared":
            names = [f"@{name}" for name, group in groups.items() if {leak.suite, leak.other} <= {*group.suites}]
        for name in names:
            texts.setdefault(name, []).append(str(leak))
    return {name: tuple(lines) for name, lines in texts.items()}


def _leak(
    kind: Literal["trained", "repeated", "shared"], suite: Suite, matches: Sequence[_Match], *, other: str = ""
) -> Leak | None:
    if not matches:
        return None
    num_near = sum(not match.is_exact for match in matches)
    return Leak(kind=kind, suite=suite.name, other=other, num=len(matches), num_near=num_near, first=matches[0])


def _trained(configs: Sequence[TrialConfig]) -> list[_Row]:
    """Return every problem that trials train on or show in their prompts, once."""
    rows: dict[str, _Row] = {}
    by_examples = {
        json.dumps(config.model_dump(mode="json", include={"examples", "prompt"})): config
        for config in configs
        if config.train.num_steps
    }
    # within this call: files may change between two
    contents_of = cache(sets.contents)
    prompts_of = cache(lambda source: [each.prompt for each in sets.load(source)] if sets.is_here(source) else None)
    for config in by_examples.values():
        for row in example_rows(config.examples):
            name = row.problem.id if row.problem is not None else f"{row.source}:{row.row}"
            if name not in rows:
                if row.problem is not None:
                    prompt: str | None = row.problem.prompt
                else:
                    prompts = prompts_of(row.source)
                    prompt = None if prompts is None else prompts[row.row]
                rows[name] = _Row(id=name, digest=row_content(row, contents_of)[0], prompt=prompt)
        shots = identify_shots(config.prompt)
        for name, digest in zip(shots.ids, shots.prompts, strict=True):
            rows.setdefault(f"shot {name}", _Row(id=f"shot {name}", digest=digest, prompt=None))
    return list(rows.values())


def _matches(rows: Sequence[_Row], suite: Suite, *, is_near: bool = True) -> list[_Match]:
    """Return the rows that are problems of a suite, exactly or nearly."""
    places, index = _places(*_key(suite)), _index(*_key(suite)) if is_near else None
    matches = []
    for row in rows:
        if (other := places.get(row.digest)) is not None:
            matches.append(_Match(id=row.id, other=other, is_exact=True))
        elif index is not None and row.prompt is not None and (near := index.near(row.prompt)):
            matches.append(_Match(id=row.id, other=_rows(*_key(suite))[near[0]].id, is_exact=False))
    return matches


def _repeated(suite: Suite) -> list[_Match]:
    """Return the problems of a suite that repeat an earlier one."""
    first: dict[str, str] = {}
    rows = _rows(*_key(suite))
    index = None if _is_published(suite.source) else _index(*_key(suite))
    matches = []
    for place, row in enumerate(rows):
        other = first.setdefault(row.digest, row.id)
        if other != row.id:
            matches.append(_Match(id=row.id, other=other, is_exact=True))
        elif index is not None and row.prompt is not None and (nearest := index.near(row.prompt)[0]) != place:
            matches.append(_Match(id=row.id, other=rows[nearest].id, is_exact=False))
    return matches


def _shared(suite: Suite, other: Suite) -> list[_Match]:
    is_near = not (_is_published(suite.source) and _is_published(other.source))
    return _matches(_rows(*_key(suite)), other, is_near=is_near)


def _is_published(source: str) -> bool:
    return source in GENERATED or source in sets.KNOWN or source in sets.PARTS


# --- suites by their contents ---


def _key(suite: Suite) -> tuple[str, int | None, object]:
    return suite.source, suite.num_problems, sets.version(suite.source)


@cache
def _rows(source: str, num_problems: int | None, _version: object) -> tuple[_Row, ...]:
    """Return the problems of a suite; none if even their digests are unknown."""
    if source in GENERATED or sets.is_here(source):
        if source in GENERATED:
            problems = arithmetic.held_out(num_problems, which=GENERATED[source])
        else:
            problems = sets.load(source)[:num_problems]
        return tuple(_Row(id=problem.id, digest=problem.content[0], prompt=problem.prompt) for problem in problems)
    base, subset = sets.parts_of(source)
    contents = sets.contents(base) or ()
    places = range(len(contents)) if subset is None else subset
    return tuple(_Row(id=f"{base}:{place}", digest=contents[place][0], prompt=None) for place in places[:num_problems])


@cache
def _places(source: str, num_problems: int | None, version: object) -> dict[str, str]:
    """Return the name of each problem by the sha256 of its prompt."""
    return {row.digest: row.id for row in reversed(_rows(source, num_problems, version))}


@cache
def _index(source: str, num_problems: int | None, version: object) -> Index | None:
    """Return the index of a suite's texts; None if they are not here, or are too short to resemble others."""
    if source in GENERATED:
        return None
    prompts = [row.prompt for row in _rows(source, num_problems, version) if row.prompt is not None]
    return Index(prompts) if prompts else None
