"""The sweeps that share a cluster -> how many GPUs each may hold. A detached Ray actor keeps this, one a cluster.

GPUs are given out one trial at a time, first to the highest priority, then to the sweep whose use per unit of weight is
smallest: what it used since the sweeps met, plus `HORIZON_S` seconds of what it is given now. So a sweep that has had
less than its share gets more until it has caught up. Sweeps without GPUs share CPU cores in the same way.

This module imports nothing of oneshot, because Ray pickles it by value: drivers of two versions can share one actor.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

HORIZON_S = 600.0  # a sweep that is behind catches up over about this time
SWITCH_S = 300.0  # lead in use (seconds of one GPU, per unit of weight) at which a held GPU is given to another sweep
LAPSE_S = 15.0  # a driver that is silent for this long is taken for dead
Unit = Literal["GPU", "CPU"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A sweep that runs on the cluster, as its driver describes it. Amounts are in GPUs, or cores without GPUs."""

    driver: str  # host and process
    sweep: str
    storage: str
    user: str
    project: str
    priority: int
    share: float  # weight
    most: float | None  # most units at a time
    preemptible: bool
    unit: Unit
    need: float  # units of its next trial
    held: float  # units of its running trials
    wanted: float  # units that it could use now, those that it holds included
    num_waiting: int  # trials that wait for units
    cost: float | None = None  # what it has spent, if its budget has prices
    used_s: float = 0.0  # units times seconds since it joined
    granted: float = 0.0  # units that it may hold
    debt_s: float = 0.0  # what counts as its use when units are given out

    @property
    def wants(self) -> float:
        """Return the units that it could use, within its own limit."""
        return self.wanted if self.most is None else min(self.wanted, self.most)


def grants(members: Sequence[Member], capacity: Mapping[Unit, float]) -> dict[str, float]:
    """Return the units that each driver may hold. No unit stays free that somebody wants and that fits."""
    granted = {member.driver: 0.0 for member in members}
    left = dict(capacity)
    for priority in sorted({member.priority for member in members}, reverse=True):
        group = [member for member in members if member.priority == priority]
        while fitting := [
            member
            for member in group
            if member.need > 0
            and granted[member.driver] + member.need <= member.wants + 1e-9
            and member.need <= left.get(member.unit, 0.0) + 1e-9
        ]:
            member = min(fitting, key=lambda each: (_use(each, granted[each.driver]), -each.held, each.driver))
            granted[member.driver] += member.need
            left[member.unit] -= member.need
    return granted


def _use(member: Member, granted: float) -> float:
    """Return a sweep's use per unit of weight if it is given one trial more; it keeps what it holds for a while."""
    is_held = granted + member.need <= member.held + 1e-9
    return (member.debt_s + HORIZON_S * granted) / member.share - SWITCH_S * is_held


class Ledger:
    """The sweeps on a cluster. Drivers call `renew` about once a second and hold no more than it grants."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._members: dict[str, Member] = {}
        self._seen_s: dict[str, float] = {}

    def renew(self, fields: Mapping[str, Any], capacity: Mapping[Unit, float]) -> dict[str, Any]:
        """Take a driver's description of its sweep and its view of the cluster's size.

        Return `granted`, the units that it may hold, and `is_shared`: whether other sweeps want such units.
        """
        now_s = self._clock_s()
        fresh = Member(**{name: value for name, value in fields.items() if name in Member.__slots__})
        self._drop_silent(now_s)
        known = self._members.get(fresh.driver)
        if known is None:
            fresh = replace(fresh, debt_s=fresh.share * _least(self._rivals(fresh)))
        else:
            used_s = known.held * (now_s - self._seen_s[fresh.driver])
            fresh = replace(fresh, used_s=known.used_s + used_s, debt_s=known.debt_s + used_s)
        self._members[fresh.driver], self._seen_s[fresh.driver] = fresh, now_s
        self._forgive(fresh)
        granted = grants(list(self._members.values()), capacity)
        self._members = {driver: replace(each, granted=granted[driver]) for driver, each in self._members.items()}
        is_shared = any(other.unit == fresh.unit for other in self._members.values() if other.driver != fresh.driver)
        return {"granted": granted[fresh.driver], "is_shared": is_shared}

    def leave(self, driver: str) -> bool:
        """Forget a driver; return whether nobody is left."""
        self._members.pop(driver, None)
        self._seen_s.pop(driver, None)
        return not self._members

    def members(self) -> list[dict[str, Any]]:
        """Return the sweeps that run, by priority and then by name."""
        self._drop_silent(self._clock_s())
        return [asdict(each) for each in sorted(self._members.values(), key=lambda m: (-m.priority, m.sweep))]

    def _drop_silent(self, now_s: float) -> None:
        for driver in [driver for driver, seen_s in self._seen_s.items() if now_s - seen_s > LAPSE_S]:
            self.leave(driver)

    def _forgive(self, member: Member) -> None:
        """Let a sweep save no claim on the future while it has all that it wants."""
        if member.wants > member.held + 1e-9:
            return
        hungry = [each for each in self._rivals(member) if each.wants > each.held + 1e-9]
        least = member.share * _least(hungry)
        if least > member.debt_s:
            self._members[member.driver] = replace(member, debt_s=least)

    def _rivals(self, member: Member) -> list[Member]:
        """Return the other sweeps of the same unit and priority."""
        rank = (member.unit, member.priority)
        others = (other for other in self._members.values() if other.driver != member.driver)
        return [other for other in others if (other.unit, other.priority) == rank]


def _least(members: Collection[Member]) -> float:
    return min((member.debt_s / member.share for member in members), default=0.0)
