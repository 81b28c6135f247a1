"""Runs -> the environments that they ran in, each once, and in words what differs between environments."""

from collections.abc import Mapping, Sequence
from typing import Any

from oneshot.report.runs import Run


def environments_of(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """Of all their attempts, in the order in which they first occur."""
    found: list[dict[str, Any]] = []
    for run in runs:
        found += [one for one in run.environments if one not in found]
    return tuple(found)


def differences(environments: Sequence[Mapping[str, Any]]) -> str:
    """`torch 2.0 or 2.1; gpu A100 or none`: what differs between environments, in words."""
    found = _facts(environments)
    return "; ".join(f"{name} {' or '.join(values)}" for name, values in found.items() if len(values) > 1)


def apart(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> str:
    """`torch 2.0 in A, 2.1 in B`: in what two sides ran in other environments, in words; nothing of a side unknown."""
    of_a, of_b = _facts(a), _facts(b)
    return "; ".join(
        f"{name} {' or '.join(of_a.get(name, ['none']))} in A, {' or '.join(of_b.get(name, ['none']))} in B"
        for name in (dict.fromkeys([*of_a, *of_b]) if a and b else ())
        if of_a.get(name) != of_b.get(name)
    )


def _facts(environments: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Version, GPU or platform -> what it is, sorted."""
    facts = [{**one["versions"], "gpu": one["gpu"] or "none", "platform": one["platform"]} for one in environments]
    names = dict.fromkeys(name for one in facts for name in one)
    return {name: sorted({str(one.get(name, "none")) for one in facts}) for name in names}
