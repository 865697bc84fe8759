"""The autoscaling policy: follows the rule that would have kept the promise on the traffic so far at the lowest cost.

At each observation: learn what a replica does (`steps`), what requests are like (`means`), how long starts take (`starts`) and what arrives
(`load`); offer the requests that came to the fleets that might have been (`experts`); size by the best rule. Up at once; down when
the rule that has proven itself longer needs less, and nothing was asked for in the last minutes. What is not known is never taken for zero:
then nothing goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from switchgear.autoscaler.observation import Decision, Observation, Phase, ReplicaRow, Slo
from switchgear.autoscaler.sizing.experts import Experts
from switchgear.autoscaler.sizing.load import Jumps, Load, Peaks
from switchgear.autoscaler.sizing.means import Means
from switchgear.autoscaler.sizing.rules import STAY_S, WINDOWS_S, Ahead, Levels, Rule, wanted
from switchgear.autoscaler.sizing.starts import Starts
from switchgear.autoscaler.sizing.steps import Learned, Steps

#: A minute smooths single requests, five minutes smooth bursts; the level is the higher of both: it rises fast and falls slowly.
SHORT_S, LONG_S = 60.0, 300.0
#: Of rules that follow no burst.
SMOOTH_S = 120.0
#: By this share of starts the next one is expected to be ready.
HORIZON_SHARE = 0.9
#: A start that takes this many times what 95 in 100 take is not coming.
LOST = 3.0
#: Lacking capacity below this part of a replica is noise.
LACKING_MIN = 0.15
#: How long requests may wait where the promise says nothing of it.
SPARE_S = 2.0
#: Where a user asked to go down within seconds, the level is of so long at least.
QUICK_S = 10.0
#: Requests of the last minute, about; so many of them must have ended to tell, and this part of them broken is no chance.
RECENT_S, RECENT_MIN, RECENT_BROKEN = 30.0, 20.0, 0.1
#: When the promise has been broken for so long and nothing is coming, this part more is asked for, whatever the figures say.
PRESSED_S, PRESSED = 60.0, 0.2
#: After a jump, so many times what it takes to serve it: until replicas have started, as much comes to wait.
JUMPED = 2.0
#: So much of the fleet goes at once, one replica at least, and then nothing for so long: what was too much shows before it is dear. More and
#: sooner where a start is shorter than that, at most so many times: what is missed is back the sooner.
PART, PART_S, PART_START_S, PART_TIMES = 0.15, 200.0, 120.0, 2.0
#: Newest memory that `restored` takes.
VERSION = 4


class Policy:
    """See the module. One object a service, in the order of its observations; `memory` and `restored` carry it over a restart."""

    name = "switchgear"
    interval_s = 5.0

    def __init__(self) -> None:
        self._learned, self._means, self._starts, self._load = Learned(), Means(), Starts(), Load()
        self._experts = Experts()
        self._peaks = {(ahead, window_s): Peaks(window_s) for ahead in Ahead for window_s in WINDOWS_S}
        #: Those of before a restart, until the first observation says what time it is.
        self._remembered: list[list[float]] = []
        self._quick = Peaks(QUICK_S)
        self._jumps = Jumps()
        #: Real requests that ended lately, and those of them that broke the promise.
        self._recent = (0.0, 0.0)
        self._late_since_s: float | None = None
        self._used_s = -math.inf
        #: When one went last.
        self._less_s = -math.inf
        #: When a replica was asked for last; unset before the first observation.
        self._asked_s: float | None = None
        #: Nobody asked for the first fleet just now: of what is too much some may go as soon as its level has been seen.
        self._stayed_s = STAY_S - SMOOTH_S

    def decide(self, now_s: float, seen: Observation) -> Decision:
        """O(replicas) and a bounded number of fleets: a few milliseconds for a thousand replicas."""
        self._starts.take(seen.cold_starts_s, seen.failed_starts_s, seen.cold_start_s)
        if self._asked_s is None:
            self._asked_s = now_s - self._stayed_s
        held = seen.bounded(seen.desired)
        if why := _blind(seen):
            # When it sees again, the level of before is no level, and what suffices has to show anew.
            self._load.restart()
            self._jumps = Jumps()
            self._asked_s = now_s
            if held == 0 and seen.queue is not None and seen.queue.requests and (first := seen.bounded(1)):
                # What is held is known, and nobody else would ask for the first replica.
                text = f"goes from 0 to {first}: {seen.queue.requests} requests are held and there is no replica, although not all is seen: {why}"
                return Decision(first, "HELD", text)
            return Decision(held, "BLIND", f"stays at {held}: {why}, and what is not known is not zero")
        self._learned.take(seen.replicas, seen.engine, seen.interval_s)
        self._means.take(seen.arrived, seen.completed)
        steps = self._steps(seen)
        levels = self._observe(now_s, seen, steps)
        target, cause, why, evidence = self._target(now_s, seen, steps, levels)
        replicas = seen.bounded(target)
        if replicas != target:
            cause, why = "BOUNDS", f"{why}; that makes {target}, but {_bounds(seen)}"
        if replicas > seen.desired:
            self._asked_s = now_s
        elif replicas < seen.desired:
            self._less_s = now_s
        move = f"stays at {replicas}" if replicas == seen.desired else f"goes from {seen.desired} to {replicas}"
        return Decision(replicas, cause, f"{move}: {why}", evidence)

    def memory(self) -> dict[str, object]:
        """What it has learned, JSON-able. Queues of the moment are left out: the fleets that might have been begin anew at the real size."""
        return {
            "version": VERSION,
            "learned": self._learned.memory(),
            "means": self._means.memory(),
            "starts": self._starts.memory(),
            "load": self._load.memory(),
            "experts": self._experts.memory(),
            "peaks": self._remembered or [peaks.memory() for peaks in self._peaks.values()],
        }

    @classmethod
    def restored(cls, memory: Mapping[str, Any]) -> Policy:
        """Continues what `memory` told; memory of another version, or none, begins anew."""
        policy = cls()
        if memory.get("version") == VERSION:
            policy._learned = Learned.restored(memory["learned"])
            policy._means = Means.restored(memory["means"])
            policy._starts = Starts.restored(memory["starts"])
            policy._load = Load.restored(memory["load"])
            policy._experts = Experts.restored(memory["experts"])
            policy._remembered = [list(one) for one in memory["peaks"]]
            # Its last replica may have been asked for a moment before.
            policy._stayed_s = 0.0
        return policy

    def _steps(self, seen: Observation) -> Steps:
        return Steps(*self._learned.coefficients, self._learned.slots(seen.engine), service_s=self._means.slot_s)

    def _observe(self, now_s: float, seen: Observation, steps: Steps) -> Levels:
        came = self._means.came(now_s, seen, self._experts.ENTRIES_MAX)
        output = self._means.output_mean
        work = sum([steps.work_s(one.input_tokens, one.requests * output, one.requests) for one in came])
        wall_s = seen.unix_s if seen.unix_s is not None else now_s
        per_replica = self._per_replica(seen, steps)
        self._load.add(now_s, seen.interval_s, work / per_replica, wall_s)
        rate = self._jumps.add(now_s, seen.interval_s, sum([one.requests for one in came]))
        jump = steps.work_s(rate * self._means.input_mean, rate * output, rate) / per_replica
        levels = self._levels(now_s, wall_s, per_replica, jump)
        ended, broken = self._means.judged(seen, steps.prompt_s(self._means.input_mean))
        self._experts.step(
            now_s,
            seen,
            came=came,
            output_tokens=output,
            steps=steps,
            levels=levels,
            spare_s=_spare_s(seen.slo),
            ended_and_broken=(ended, broken),
            cold_start_s=self._starts.draw_s,
        )
        fade = 0.5 ** (seen.interval_s / RECENT_S)
        self._recent = (self._recent[0] * fade + ended, self._recent[1] * fade + broken)
        return levels

    def _per_replica(self, seen: Observation, steps: Steps) -> float:
        """Seconds of work that a replica does in a second."""
        paced = steps.capacity(seen.slo.tpot_s, self._input_per_output)
        # What replicas did that had more than they could take is the truth, whatever the model of their iterations says.
        most = self._learned.full_work(steps)
        return paced if most is None else max(1e-6, min(paced, most))

    @property
    def _input_per_output(self) -> float:
        return self._means.input_mean / max(1.0, self._means.output_mean)

    def _levels(self, now_s: float, wall_s: float, per_replica: float, jump: float) -> Levels:
        load, start_s = self._load, self._starts.quantile_s(HORIZON_SHARE)
        short = load.mean(now_s, SHORT_S)
        level = max(short, load.mean(now_s, LONG_S))
        trend = level + load.trend(start_s)
        ahead = {
            Ahead.NOW: load.mean(now_s, SMOOTH_S),
            Ahead.TREND: trend,
            Ahead.PATTERN: max(trend, load.pattern(wall_s, start_s)),
        }
        if len(self._remembered) == len(self._peaks):
            for peaks, memory in zip(self._peaks.values(), self._remembered, strict=True):
                peaks.remember(now_s, memory)
        self._remembered = []
        peak = {key: peaks.add(now_s, ahead[key[0]]) for key, peaks in self._peaks.items()}
        return Levels(level, ahead, peak, short, per_replica, start_s, jump)

    def _target(
        self, now_s: float, seen: Observation, steps: Steps, levels: Levels
    ) -> tuple[int, str, str, dict[str, float]]:
        """Replicas, before bounds; class of the decision, why, and the figures."""
        up, hold = self._experts.choice
        rows = [row for row in seen.replicas if row.phase is Phase.READY]
        lacking = self._learned.lacking(rows)
        waiting_s = self._waiting_s(seen, steps, rows)
        in_full = steps.full(self._input_per_output) <= levels.per_replica
        late_s = waiting_s - _spare_s(seen.slo) * max(1, len(rows)) * (levels.per_replica if in_full else 1.0)
        stay_s = levels.stay_s(hold)
        if seen.scale_down_delay_s is not None:
            stay_s = seen.scale_down_delay_s
            need, keep = self._quickly(now_s, seen, levels, late_s)
        else:
            need, keep = wanted(up, levels, late_s)
            keep = max(keep, wanted(hold, levels, late_s)[1])
        slow = math.ceil(lacking - LACKING_MIN) if lacking > LACKING_MIN else 0
        lost = sum([row.phase is Phase.STARTING and self._lost(row) for row in seen.replicas])
        need, keep = need + slow + lost, keep + slow
        if self._in_use(now_s, seen, rows):
            need, keep = max(1, need), max(1, keep)
        # The fleets that might have been do without: a rule must not look dear for what happens once.
        need = max(need, math.ceil(JUMPED * levels.jump))
        if self._pressed(now_s, seen, late_s, lost):
            # The figures say that there is enough, and the requests say that there is not: believe the requests.
            need = max(need, seen.desired + math.ceil(seen.desired * PRESSED))
        if self._late_since_s is not None:
            # Who goes down while requests are late comes up again at once.
            keep = max(keep, seen.desired)
        evidence = {
            "work_replicas": levels.now,
            "expected_replicas": levels.ahead[up.ahead],
            "per_replica": levels.per_replica,
            "margin": up.margin,
            "extra": up.extra,
            "margin_down": hold.margin,
            "extra_down": hold.extra,
            "start_s": levels.start_s,
            "waiting_s": waiting_s,
            "lacking": lacking,
        }
        why = self._why(seen, levels, up, late_s=late_s, slow=slow, lost=lost)
        if need > seen.desired:
            if seen.scale_down_delay_s is None and now_s - self._less_s < STAY_S:
                # Too much went a moment ago: a whole part comes back, not one after another while the first one starts.
                need = max(need, seen.desired + math.ceil(seen.desired * PART))
            return need, "LOAD" if seen.desired else "HELD", why, evidence
        if keep >= seen.desired:
            return seen.desired, "FITS", why, evidence
        fewer, yet = self._fewer(now_s, seen, keep, levels.start_s, stay_s)
        if yet:
            return seen.desired, "LESS", f"{why}; {yet}", evidence
        return fewer, "DOWN" if fewer else "IDLE", why, evidence

    def _fewer(self, now_s: float, seen: Observation, keep: int, start_s: float, stay_s: float) -> tuple[int, str]:
        """How many stay when `keep` are enough, and why all do yet, if they do."""
        asked_s = self._asked_s if self._asked_s is not None else -math.inf
        if now_s - asked_s < stay_s:
            return seen.desired, f"{keep} must suffice for {stay_s:g} s first"
        if seen.scale_down_delay_s is not None:
            return keep, ""
        times = min(PART_TIMES, max(1.0, PART_START_S / max(start_s, 1.0)))
        if now_s - self._less_s < PART_S / times:
            return seen.desired, f"{keep} are enough, but some went less than {PART_S / times:.0f} s ago"
        return max(keep, seen.desired - max(1, math.floor(seen.desired * PART * times))), ""

    def _in_use(self, now_s: float, seen: Observation, rows: list[ReplicaRow]) -> bool:
        """Whether somebody waits or is served, or was a moment ago by the user's word."""
        waits = seen.queue is not None and seen.queue.requests > 0
        if waits or any((row.running or 0) + (row.waiting or 0) for row in rows):
            self._used_s = now_s
            return True
        return seen.scale_down_delay_s is not None and now_s - self._used_s < seen.scale_down_delay_s and bool(rows)

    def _pressed(self, now_s: float, seen: Observation, late_s: float, lost: int) -> bool:
        """Whether the promise is being broken for long, and nothing is on its way."""
        ended, broken = self._recent
        # What broke the promise before says nothing when nobody is served any more.
        served = any(row.running for row in seen.replicas)
        late = late_s > 0 or (served and ended >= RECENT_MIN and broken > RECENT_BROKEN * ended)
        if not late:
            self._late_since_s = None
        elif self._late_since_s is None:
            self._late_since_s = now_s
        coming = sum([row.phase is Phase.STARTING for row in seen.replicas]) > lost
        # What came last must have had the time to work off what waited.
        since_s = max(self._late_since_s or now_s, self._asked_s or 0.0)
        return late and now_s - since_s >= PRESSED_S and not coming and seen.desired > 0

    def _quickly(self, now_s: float, seen: Observation, levels: Levels, late_s: float) -> tuple[int, int]:
        """As `wanted`, where the user says how long less must suffice: the level is of that time, no rule is asked."""
        delay_s = max(QUICK_S, seen.scale_down_delay_s or 0.0)
        level = max(self._load.mean(now_s, QUICK_S), self._load.mean(now_s, min(delay_s, SHORT_S)))
        self._quick.window_s = delay_s
        now = Levels(
            level,
            {Ahead.TREND: level},
            {(Ahead.TREND, delay_s): self._quick.add(now_s, level)},
            level,
            levels.per_replica,
            levels.start_s,
        )
        return wanted(Rule(1.0, delay_s, Ahead.TREND, least=0), now, late_s)

    def _waiting_s(self, seen: Observation, steps: Steps, rows: list[ReplicaRow]) -> float:
        """Of requests that wait: what their prompts take of a replica, or all of them where it is the batch that is full."""
        means = self._means
        requests, tokens = float(sum([row.waiting or 0 for row in rows])), 0.0
        if seen.queue is not None:
            requests += seen.queue.requests
            known = seen.queue.input_tokens
            tokens = seen.queue.requests * means.input_mean if known is None else float(known)
        tokens += sum([row.waiting or 0 for row in rows]) * means.input_mean
        full = self._learned.full_work(steps) is not None
        return steps.work_s(tokens, requests * means.output_mean if full else 0.0, requests)

    def _lost(self, row: ReplicaRow) -> bool:
        return row.age_s > LOST * self._starts.quantile_s(0.95)

    def _why(self, seen: Observation, levels: Levels, up: Rule, *, late_s: float, slow: int, lost: int) -> str:
        text = f"work for {levels.now:.1f} replicas comes"
        if (ahead := levels.ahead[up.ahead]) > 1.01 * levels.now:
            text += f", {ahead:.1f} are expected when a start of {levels.start_s:.0f} s is over"
        if levels.jump:
            text += f", at this moment for {levels.jump:.1f} and faster than ever"
        if late_s > 0:
            text += f", {late_s:.0f} s of a replica's work wait longer than promised"
        if seen.scale_down_delay_s is None:
            extra = f" and {up.extra} more" if up.extra else ""
            text += f"; {up.margin:g} times that{extra} has kept the promise at the lowest cost"
        if slow:
            text += f"; slow or sick replicas lack {slow}"
        if lost:
            text += f"; {lost} start{'s' if lost > 1 else ''} overdue"
        return text


def _spare_s(slo: Slo) -> float:
    """For how long a request may wait within the promise."""
    return next((limit_s for limit_s in (slo.ttft_s, slo.wait_s, slo.e2e_s) if limit_s is not None), SPARE_S)


def _bounds(seen: Observation) -> str:
    if seen.gpu_budget is not None and seen.bounded(seen.max_replicas) < seen.max_replicas:
        return f"the budget of {seen.gpu_budget} GPUs allows {seen.bounded(seen.max_replicas)}"
    return f"{seen.min_replicas} to {seen.max_replicas} are allowed"


def _blind(seen: Observation) -> str:
    """Why nothing may go; empty when enough is known."""
    if seen.blind:
        return seen.blind
    if seen.arrived is None and seen.completed is None:
        return "nobody counts requests"
    rows = [row for row in seen.replicas if row.phase is Phase.READY]
    if rows and all(row.running is None and row.busy_s is None and row.decode_tokens is None for row in rows):
        return "no replica tells what it does"
    return ""
