"""What a sweep plans -> its frozen record in the store, written before any trial begins, and read again by reports.

One digest covers the whole record: the claims, the time, the seeds, the cells with their steps, the suites with their
problems, and the rules of the verdicts. Every attempt of the sweep carries this digest. A record that somebody edits no
longer has its digest; a record that somebody replaces has another digest than the attempts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

from pydantic import TypeAdapter

from oneshot.config.claims import ClaimConfig, GroupConfig
from oneshot.config.sweep import SeedsConfig, SweepConfig
from oneshot.config.trial import TrialConfig
from oneshot.errors import UserError
from oneshot.plan.claims import cell_key
from oneshot.plan.plan import Plan
from oneshot.store.folder import Folder, now_ms
from oneshot.tasks.benchmarks import load_suites

FILE = "claims.json"
MIN_LOOK = 3  # fewest seeds of a planned look
FORMAT = 2  # in format 1, which had no number, the digest covered only the claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How verdicts are made, as the sweep file says."""

    looks: tuple[int, ...] = ()
    stop: Literal["decided"] | None = None
    failed: Literal["start", "worst", "leave_out"] = "start"
    groups: dict[str, GroupConfig] = field(default_factory=dict)
    allow_selection_on_test: bool = False

    def __post_init__(self) -> None:
        """Refuse looks that no sweep file can have. A record may come from a stranger."""
        if list(self.looks) != sorted({*self.looks}) or any(look < MIN_LOOK for look in self.looks):
            raise ValueError(f"looks: {list(self.looks)} must rise, and begin at {MIN_LOOK} seeds or more")

    @classmethod
    def of(cls, config: SweepConfig) -> "Rules":
        """Return the rules of a sweep file."""
        return cls(
            looks=tuple(config.looks),
            stop=config.seeds.stop if isinstance(config.seeds, SeedsConfig) else None,
            failed=config.failed,
            groups=dict(config.groups),
            allow_selection_on_test=config.allow_selection_on_test,
        )


_RULES = TypeAdapter(Rules)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """Everything that is frozen when a sweep begins."""

    claims: tuple[ClaimConfig, ...] = ()
    seeds: tuple[int, ...] = ()
    num_steps: Mapping[str, int] = field(default_factory=dict)  # steps of each cell of the grid, by `cell_key`
    suites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # suite -> its digests, as `suite_digests` does
    rules: Rules = field(default_factory=Rules)

    @classmethod
    def of(cls, config: SweepConfig, plan: Plan) -> "Planned":
        """Return what a sweep file plans for its grid."""
        return cls(
            claims=tuple(config.claims),
            seeds=config.planned_seeds,
            num_steps={cell_key(trial.cell): trial.config.train.num_steps for trial in plan.grid},
            suites=suite_digests(trial.config for trial in plan.grid),
            rules=Rules.of(config),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """The record of a sweep when it began."""

    claims: tuple[ClaimConfig, ...]
    digest: str  # sha256 (hex) of the record's canonical JSON; of the claims' alone in format 1
    frozen_ms: int | None  # time on the driver's clock, before any trial began; None if nothing was frozen
    is_intact: bool  # whether the record still matches its digest
    written: Mapping[str, Any]  # the record exactly as it is in the store
    seeds: tuple[int, ...] = ()  # seeds of the sweep when it began; empty if not recorded
    num_steps: Mapping[str, int] = field(default_factory=dict)  # steps of each cell when the sweep began, by `cell_key`
    suites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # suite -> its digests; empty if not recorded
    rules: Rules = field(default_factory=Rules)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the names of the grid's cells when the sweep began; empty if not recorded."""
        return tuple(self.num_steps)

    @property
    def frozen_at(self) -> str | None:
        """Return the time as text, in UTC."""
        if self.frozen_ms is None:
            return None
        return datetime.fromtimestamp(self.frozen_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def suite_digests(configs: Iterable[TrialConfig]) -> dict[str, tuple[str, ...]]:
    """Return the sorted digests of each suite of trials: several if its sampling rule differs between trials.

    A digest covers the problems, their answers and the sampling rule. A suite whose problems are unknown until they are
    fetched has none.
    """
    by_rule = {config.model_dump_json(include={"eval", "prompt", "rollout"}): config for config in configs}
    digests: dict[str, set[str]] = {}
    for config in by_rule.values():
        for suite in load_suites(config):
            digests.setdefault(suite.name, set()).update([suite.digest] if suite.is_known else [])
    return {name: tuple(sorted(found)) for name, found in sorted(digests.items())}


def rule_changes(was: Rules, now: Rules) -> list[str]:
    """Return the names of the rules that changed, as the sweep file calls them. A new group is an addition."""
    names = ("looks", "stop", "failed", "allow_selection_on_test")
    changed = [name for name in names if getattr(was, name) != getattr(now, name)]
    changed = ["seeds.stop" if name == "stop" else name for name in changed]
    return changed + [f"groups.{name}" for name, group in was.groups.items() if now.groups.get(name) != group]


def _digest(data: Any) -> str:
    """Return sha256 (hex) of canonical JSON, for which the order of keys does not matter."""
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def record(planned: Planned, frozen_ms: int | None) -> dict[str, Any]:
    """Return the record with its digest, as claims.json has it."""
    content = {
        "format": FORMAT,
        "claims": [claim.model_dump(mode="json") for claim in planned.claims],
        "frozen_ms": frozen_ms,
        "seeds": list(planned.seeds),
        "num_steps": dict(planned.num_steps),
        "suites": {name: list(digests) for name, digests in planned.suites.items()},
        "rules": _RULES.dump_python(planned.rules, mode="json"),
    }
    return {**content, "digest": _digest(content)}


def freeze(folder: Folder, planned: Planned) -> Frozen:
    """Record what a sweep plans when it begins, with the time. An existing record is kept."""
    folder.create(FILE, json.dumps(record(planned, now_ms()), indent=2, sort_keys=True))
    return frozen(folder, planned)


def frozen(folder: Folder, planned: Planned) -> Frozen:
    """Return the record, or what is planned without a time if nothing is recorded."""
    try:
        fields = folder.read_json(FILE)
        if fields is not None:
            return thaw(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.path}/{FILE}: cannot be read as frozen claims ({type(error).__name__}); restore the file"
        ) from error
    return thaw(record(planned, None))


def recorded_digest(folder: Folder) -> str:
    """Return the digest that a sweep's record states, or an empty text if nothing is recorded."""
    return str((folder.read_json(FILE) or {}).get("digest", ""))


def thaw(fields: Mapping[str, Any]) -> Frozen:
    """Return the record that `freeze` wrote, in this format or the one before.

    Raises KeyError, TypeError, ValueError: it is not such a record.
    """
    covered = {name: value for name, value in fields.items() if name != "digest"}
    return Frozen(
        claims=tuple(ClaimConfig.model_validate(claim) for claim in fields["claims"]),
        digest=fields["digest"],
        frozen_ms=fields["frozen_ms"],
        is_intact=_digest(covered if "format" in fields else fields["claims"]) == fields["digest"],
        written=dict(fields),
        seeds=tuple(fields.get("seeds", ())),
        num_steps=dict(fields.get("num_steps", {})),
        suites={name: tuple(digests) for name, digests in fields.get("suites", {}).items()},
        rules=_RULES.validate_python(fields.get("rules", {})),
    )
