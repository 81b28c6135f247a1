"""Runs -> the distinct environments that they ran in, and the differences between environments in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from oneshot.report.runs import Run


def environments_of(runs: Sequence[Run]) -> tuple[dict[str, Any], ...]:
    """Return the distinct environments of all attempts, in the order in which they first occur."""
    environments: list[dict[str, Any]] = []
    for run in runs:
        environments += [each for each in run.environments if each not in environments]
    return tuple(environments)


def differences(environments: Sequence[Mapping[str, Any]]) -> str:
    """Return what differs between environments, in words: `torch 2.0 or 2.1; gpu A100 or none`."""
    values = _values(environments)
    return "; ".join(f"{name} {' or '.join(texts)}" for name, texts in values.items() if len(texts) > 1)


def differences_of_sides(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> str:
    """Return what differs between the environments of two sides, in words: `torch 2.0 in A, 2.1 in B`.

    The text is empty if one side has no environments on record.
    """
    of_a, of_b = _values(a), _values(b)
    return "; ".join(
        f"{name} {' or '.join(of_a.get(name, ['none']))} in A, {' or '.join(of_b.get(name, ['none']))} in B"
        for name in (dict.fromkeys([*of_a, *of_b]) if a and b else ())
        if of_a.get(name) != of_b.get(name)
    )


def _values(environments: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the sorted values of each version, of the GPU and of the platform."""
    rows = [{**env["versions"], "gpu": env["gpu"] or "none", "platform": env["platform"]} for env in environments]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sorted({str(row.get(name, "none")) for row in rows}) for name in names}
