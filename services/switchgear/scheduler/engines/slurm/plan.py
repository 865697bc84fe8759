"""What is to be asked of Slurm, from what should run and one look at it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from switchgear.scheduler.engines.slurm.fate import Fate, Kind, fate, is_ending
from switchgear.scheduler.engines.slurm.holds import in_line
from switchgear.scheduler.engines.slurm.keys import Key, drain_reason, is_our_drain
from switchgear.scheduler.engines.slurm.look import Look
from switchgear.scheduler.engines.slurm.script import unfit
from switchgear.scheduler.engines.slurm.settings import PATIENCE_S
from switchgear.scheduler.model import Wanted, WantedLauncher

#: So many refusals in a row, and the launcher is taken elsewhere.
REFUSALS_MAX = 3
#: Each is a program of some 50 ms: the next look comes before the first of them has waited for long.
SUBMISSIONS_MAX = 50


@dataclass(frozen=True, slots=True)
class Refusal:
    """Submissions of a launcher that Slurm refused, or whose answer was lost, in which case `count` is 0."""

    count: int
    message: str
    retry_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Idempotent: made again after a look that shows its effects, it is empty.

    submit: not before `cancel` was carried out. drain: reasons by node. Nodes have resource names.
    """

    submit: tuple[tuple[Key, WantedLauncher], ...] = ()
    cancel: tuple[int, ...] = ()
    drain: tuple[tuple[str, str], ...] = ()
    resume: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.submit or self.cancel or self.drain or self.resume)


def plan(
    seen: Look,
    wanted: Mapping[str, Wanted],
    refusals: Mapping[Key, Refusal],
    cluster: str,
    now_s: float,
    *,
    opened: Collection[str] = (),
) -> Plan:
    """now_s: Unix time, by the clock that Slurm's times are of. opened: nodes that are not to be drained again, see `opened_again`."""
    fates = fates_of(seen, wanted, refusals, now_s)
    launchers = dict(wanted_launchers(wanted))
    submit = [
        (key, launchers[key])
        for key, found in sorted(fates.items())
        if found.kind is Kind.MISSING and ((refusal := refusals.get(key)) is None or refusal.retry_s <= now_s)
    ]
    drain = []
    for name, one in wanted.items():
        node = seen.nodes.get(name)
        # What somebody else has closed stays as it is; once that is over, ours follows.
        if one.closed and node is not None and not node.is_drained and name not in opened:
            drain.append((name, drain_reason(one.closed, cluster)))
    resume = [
        name
        for name, node in seen.nodes.items()
        if node.is_drained and is_our_drain(node.reason, cluster) and not wanted.get(name, Wanted()).closed
    ]
    return Plan(
        tuple(submit[:SUBMISSIONS_MAX]),
        tuple(sorted({*_unwanted(seen, wanted), *(job for found in fates.values() for job in found.doubles)})),
        tuple(drain),
        tuple(resume),
    )


def our_drains(seen: Look, cluster: str) -> frozenset[str]:
    return frozenset(
        name for name, node in seen.nodes.items() if node.is_drained and is_our_drain(node.reason, cluster)
    )


def opened_again(drained: Collection[str], seen: Look, wanted: Mapping[str, Wanted]) -> frozenset[str]:
    """Those of the nodes that we had drained, and still keep closed, that somebody has opened in Slurm."""
    return frozenset(
        name
        for name in drained
        if (one := wanted.get(name)) and one.closed and name in seen.nodes and not seen.nodes[name].is_drained
    )


def wanted_launchers(wanted: Mapping[str, Wanted]) -> Iterator[tuple[Key, WantedLauncher]]:
    for node, one in wanted.items():
        for launcher in one.run:
            yield Key(launcher.ref.job, launcher.ref.epoch, node, launcher.create_time_unix_ns), launcher


def fates_of(
    seen: Look,
    wanted: Mapping[str, Wanted],
    refusals: Mapping[Key, Refusal],
    now_s: float,
    patience_s: float = PATIENCE_S,
) -> dict[Key, Fate]:
    """What has become of each launcher that should run."""
    found = {}
    for key, launcher in wanted_launchers(wanted):
        one = fate(seen.ours.get(key, ()), seen.nodes.get(key.node), now_s, patience_s)
        if one.kind is Kind.MISSING and (why := unfit(launcher.spec)):
            one = Fate(Kind.UNSTARTABLE, why)
        elif one.kind is Kind.MISSING and (refusal := refusals.get(key)) and refusal.count >= REFUSALS_MAX:
            one = Fate(Kind.UNSTARTABLE if key not in seen.ours else Kind.LOST, refusal.message)
        found[key] = one
    return in_line(found, seen)


def _unwanted(seen: Look, wanted: Mapping[str, Wanted]) -> Iterator[int]:
    """Jobs of launchers that should not run. One that should is cancelled by nobody here: a job that has been is taken for a wish."""
    run = {key for key, _ in wanted_launchers(wanted)}
    leave = {(ref.job, ref.epoch, node) for node, one in wanted.items() for ref in one.leave}
    for key, jobs in seen.ours.items():
        if key not in run and (key.job, key.epoch, key.node) not in leave:
            yield from (job.id for job in jobs if not job.has_ended and not is_ending(job))
