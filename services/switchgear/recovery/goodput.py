"""What the ledger says: shares, ratios and mean times of a job or of many, and the report for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

from switchgear.recovery import model as m
from switchgear.recovery.ledger import OTHER, Bucket, Cost, Ledger, settled_at

#: Lines of `Reliability.costs`.
FLEET_COSTS_MAX = 1000
#: Accounts, users or queues that are told apart; as many as a table for people can hold, and few clusters have more.
GROUPS_MAX = 1000
#: Lines about faults in a report.
_REPORT_COSTS = 3


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of one job or of several. Times are nanoseconds; `productive_wall_ns` is that of all GPUs of a job at once."""

    jobs: int
    gpu_ns: int
    buckets: dict[Bucket, int]
    productive_wall_ns: int
    #: Costliest first.
    costs: tuple[Cost, ...]

    @property
    def goodput(self) -> float:
        """Share of the time in which new steps were made, 0 to 1; at least so much where `UNKNOWN` is not empty. `ettr` likewise."""
        return self._productive / self.gpu_ns if self.gpu_ns else 0.0

    @property
    def ettr(self) -> float | None:
        """Effective training time ratio after Meta's RSC (arXiv 2410.21680), the queue left out; None before the first new step."""
        return self._productive / (self.gpu_ns - self.buckets[Bucket.QUEUE]) if self._productive else None

    @property
    def mttf_s(self) -> float | None:
        """Mean productive time between two incidents."""
        return (
            self.productive_wall_ns / incidents / 1e9 if (incidents := sum(c.incidents for c in self.costs)) else None
        )

    @property
    def mttr_s(self) -> float | None:
        """Mean time from the fault to the first new step, of incidents that came so far."""
        return mttr_s(reduce(Cost.plus, self.costs, Cost("", "")))

    @property
    def _productive(self) -> int:
        return self.buckets[Bucket.PRODUCTIVE]


def mttr_s(cost: Cost) -> float | None:
    """Mean time from the fault to the first new step; None when no incident came so far."""
    return cost.recovery_ns / cost.recovered / 1e9 if cost.recovered else None


@dataclass(slots=True)
class Sum:
    """Adds up ledgers. by_node: the cost of faults is told apart by node as well as by cause."""

    by_node: bool = True
    _jobs: int = 0
    _productive_wall_ns: int = 0
    _buckets: dict[Bucket, int] = field(default_factory=lambda: dict.fromkeys(Bucket, 0))
    _costs: dict[tuple[str, str], Cost] = field(default_factory=dict)

    def add(self, ledger: Ledger) -> None:
        """One job's."""
        self._jobs += 1
        self._productive_wall_ns += _productive_wall_ns(ledger)
        for bucket, booked in ledger.gpu_ns.items():
            self._buckets[bucket] += booked
        self._add_costs(ledger.costs)

    def merge(self, other: Sum) -> None:
        """All that another one has added up."""
        self._jobs += other._jobs
        self._productive_wall_ns += other._productive_wall_ns
        for bucket, booked in other._buckets.items():
            self._buckets[bucket] += booked
        self._add_costs(other._costs.values())

    def _add_costs(self, costs: Iterable[Cost]) -> None:
        for cost in costs:
            named = cost if self.by_node else replace(cost, node="")
            known = self._costs.get((named.cause, named.node))
            self._costs[named.cause, named.node] = known.plus(named) if known else named

    @property
    def gpu_ns(self) -> int:
        """Of all buckets."""
        return sum(self._buckets.values())

    def told(self) -> Goodput:
        """All so far. Causes and nodes beyond `FLEET_COSTS_MAX` are told as one."""
        costs = sorted(self._costs.values(), key=lambda c: (-c.lost_gpu_ns, c.cause, c.node))
        if len(costs) > FLEET_COSTS_MAX:
            costs[FLEET_COSTS_MAX - 1 :] = [reduce(Cost.plus, costs[FLEET_COSTS_MAX - 1 :], Cost(OTHER, ""))]
        return Goodput(self._jobs, self.gpu_ns, dict(self._buckets), self._productive_wall_ns, tuple(costs))


def told_apart(sums: Mapping[str, Sum]) -> list[tuple[str, Goodput]]:
    """By account, user or queue, most GPU time first; those beyond `GROUPS_MAX` as one, `OTHER`, which is the last."""
    ordered = sorted(sums.items(), key=lambda item: (-item[1].gpu_ns, item[0]))
    if len(ordered) > GROUPS_MAX:
        rest = Sum(by_node=False)
        for _, beyond in ordered[GROUPS_MAX - 1 :]:
            rest.merge(beyond)
        ordered[GROUPS_MAX - 1 :] = [(OTHER, rest)]
    return [(key, added.told()) for key, added in ordered]


def of_job(state: m.JobState, now: m.Now) -> Goodput:
    """All of the job's time up to `now` or to its end; what is not decided yet under the best present knowledge."""
    total = Sum()
    total.add(settled_at(state, now))
    return total.told()


def productive_ns(state: m.JobState) -> int:
    """Nanoseconds in which new steps were made on all GPUs that the job asked for, as far as they are booked."""
    return _productive_wall_ns(state.ledger)


def stepping_ns(state: m.JobState) -> int:
    """The same with the steps of which nobody knows whether they were new."""
    unknown_ns = state.ledger.gpu_ns.get(Bucket.UNKNOWN, 0)
    return productive_ns(state) + (unknown_ns // state.ledger.gpus if unknown_ns else 0)


def goodput(state: m.JobState, now_unix_ns: int) -> float:
    """Share of the job's age in which new steps were made, 0 to 1; as far as it is booked and known."""
    wall_ns = (state.end_ns or now_unix_ns) - state.create_ns
    return min(1.0, productive_ns(state) / wall_ns) if wall_ns > 0 else 0.0


def _productive_wall_ns(ledger: Ledger) -> int:
    return ledger.gpu_ns.get(Bucket.PRODUCTIVE, 0) // ledger.gpus if ledger.gpus else 0


def report(state: m.JobState, found: Goodput, steps_redone: int) -> str:
    """Where the time went, for a terminal: a dozen lines, without a line break at the end."""
    ranks = state.spec.world_size
    lines = [f"where the {duration(found.gpu_ns / ranks / 1e9)} of {_counted(ranks, 'rank')} went:"]
    width = max(len(bucket) for bucket in Bucket)
    lines += [
        f"  {bucket:<{width}}  {booked / found.gpu_ns:6.1%}  {duration(booked / ranks / 1e9):>11}"
        for bucket, booked in found.buckets.items()
        if booked * 2000 >= found.gpu_ns > 0  # 0.0 % is not worth a line
    ]
    if found.ettr is None:  # a script whose steps cannot be seen need not have failed
        lines.append("no two steps were seen, so its goodput is not known")
    else:
        least, steps = "", f"{_counted(state.high_water_step, 'step')}, {steps_redone} of them made again"
        if found.buckets[Bucket.UNKNOWN]:
            least, steps = (
                "at least ",
                "steps after a restart have no number, so how many of them were made again is not known",
            )
        lines.append(f"goodput {least}{found.goodput:.1%}, ETTR {least}{found.ettr:.1%}; {steps}")
    if found.mttf_s is not None:
        each = f", one each {duration(found.mttf_s)} of productive time" if found.mttf_s else ""
        back = f", {duration(found.mttr_s)} from the fault to the next new step" if found.mttr_s is not None else ""
        lines.append(f"{_counted(sum(cost.incidents for cost in found.costs), 'incident')}{each}{back}:")
    for cost in found.costs[:_REPORT_COSTS]:
        on = f" on {cost.node.rpartition('/')[2]}" if cost.node else ""
        lines.append(f"  {cost.cause}{on}: {cost.incidents} x, {duration(cost.lost_gpu_ns / ranks / 1e9)} lost")
    if len(found.costs) > _REPORT_COSTS:
        lines.append(f"  and {len(found.costs) - _REPORT_COSTS} more causes and nodes")
    return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """A time for people: `0.35 s`, `48.3 s`, `4 min 10 s`, `3 h 05 min`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
