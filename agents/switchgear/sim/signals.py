"""What a simulated GPU does at a given time. Pure: profile, workload, seed, faults and time in, its state out.

Counters are integrals of the rates that the gauges show; clocks move in the hardware's steps; temperatures follow the power of the last
minute. How a vendor's driver tells this state is in `nvidia` and `amd`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from switchgear.sim.faults import FaultKind, History
from switchgear.sim.profiles import Profile
from switchgear.sim.workloads import Rate, Workload, noise

#: Metric, labels, and the value or why there is none.
Value = tuple[str, tuple[tuple[str, str], ...], float | str]

#: Over which the driver averages what it shows as present.
WINDOW_S = 1.0
#: How late that is at most: each GPU's driver has windows of its own.
LATE_S = 0.3
#: Over which the power decides the temperature.
WARMING_S = 40.0
_AMBIENT_C = 29.0
#: Above ambient at the power limit.
_RISE_C = 36.0
#: How far power and rates of one GPU are from those of another of the same model.
_SPREAD = 0.02
#: Of a GPU that throttles: what is left of each rate.
_THROTTLED = 0.55


@dataclass(frozen=True, slots=True)
class Moment:
    """done: integral of each rate since the start, in seconds. mean: of each rate in the last second. noise_seed, tick: for `jitter`."""

    time_s: float
    done: Sequence[float]
    mean: Sequence[float]
    power_w: float
    energy_j: float
    temperature_c: float
    clock_mhz: int
    used_mib: int
    noise_seed: int
    tick: int

    def jitter(self, place: int, share: float) -> float:
        """A factor near 1, by `share` at most: what a sensor adds."""
        return 1 + share * noise(self.noise_seed, self.tick, place)

    @property
    def busy(self) -> bool:
        return self.mean[Rate.BUSY] > 0


class GpuSignals:
    """One GPU. Times are seconds since the simulation's start."""

    def __init__(self, profile: Profile, workload: Workload, seed: int, history: History) -> None:
        self.profile = profile
        self.history = history
        self._workload = workload
        self._seed = seed
        self._spread = self.spread(1)
        self._late_s = LATE_S * (0.5 + 0.5 * noise(seed, 14))
        self._offset_s = 0.0 if workload.together else workload.cycle.period_s * (0.5 + 0.5 * noise(seed, 2))
        self._ambient_c = _AMBIENT_C + 3 * noise(seed, 3)
        self._begin = workload.cycle.integral(self._offset_s)

    def spread(self, place: int) -> float:
        """A factor near 1 that sets this GPU apart from the others, always the same for the same place."""
        return 1 + _SPREAD * noise(self._seed, place)

    def at(self, time_s: float) -> Moment:
        tick = int(time_s * 10)
        done = self._integral(time_s)
        shown_s = time_s - self._late_s
        window = zip(self._integral(shown_s), self._integral(shown_s - WINDOW_S), strict=True)
        mean = [max(0.0, now - then) / WINDOW_S for now, then in window]
        return Moment(
            time_s=time_s,
            done=done,
            mean=mean,
            power_w=self._power_w(mean[Rate.POWER]),
            energy_j=self._energy_j(time_s, done),
            temperature_c=self._temperature_c(time_s, done) + 0.6 * noise(self._seed, tick, 5),
            clock_mhz=self._clock_mhz(time_s, mean, tick),
            used_mib=self._used_mib(tick),
            noise_seed=self._seed,
            tick=tick,
        )

    def _integral(self, time_s: float) -> Sequence[float]:
        """Of each rate since the start, with what faults take away."""
        cuts = sorted(
            {
                edge
                for span in self.history.spans
                if span.fault.kind in (FaultKind.THERMAL_THROTTLE, FaultKind.SLOW)
                for edge in (span.start_s, span.end_s)
                if 0 < edge < time_s
            }
        )
        if not cuts and self._speed(time_s) == 1:
            return self._since_start(time_s)
        total = [0.0] * len(Rate)
        for begin_s, end_s in pairwise((0.0, *cuts, time_s)):
            kept = self._kept(self._speed(begin_s))
            spans = zip(self._since_start(begin_s), self._since_start(end_s), kept, strict=True)
            for rate, (begin, end, share) in enumerate(spans):
                total[rate] += (end - begin) * share
        return total

    def _since_start(self, time_s: float) -> Sequence[float]:
        at = self._workload.cycle.integral(time_s + self._offset_s)
        return [now - begin for now, begin in zip(at, self._begin, strict=True)]

    def _speed(self, time_s: float) -> float:
        """What is left of the clock, 0 to 1."""
        speed = 1.0
        for span in self.history.spans:
            if span.holds(time_s):
                if span.fault.kind is FaultKind.THERMAL_THROTTLE:
                    speed = min(speed, _THROTTLED)
                elif span.fault.kind is FaultKind.SLOW:
                    speed = min(speed, span.fault.clock_mhz / self.profile.clock_max_mhz)
        return speed

    @staticmethod
    def _kept(speed: float) -> Sequence[float]:
        """What a slower clock leaves of each rate: it is as busy as before, moves less and takes less power."""
        return (1.0, 1.0, 1.0, speed, speed, speed, speed, 0.3 * speed + 0.7 * speed**2, float(speed == 1))

    def _power_w(self, share: float) -> float:
        profile = self.profile
        return profile.power_idle_w + (profile.power_max_w - profile.power_idle_w) * share * self._spread

    def _energy_j(self, time_s: float, done: Sequence[float]) -> float:
        profile = self.profile
        span_w = (profile.power_max_w - profile.power_idle_w) * self._spread
        return profile.power_idle_w * time_s + span_w * done[Rate.POWER]

    def _temperature_c(self, time_s: float, done: Sequence[float]) -> float:
        for span in self.history.of(FaultKind.THERMAL_THROTTLE):
            if span.holds(time_s):
                return self.profile.slowdown_c + min(2.0, (time_s - span.start_s) / 10)
        power = (done[Rate.POWER] - self._integral(time_s - WARMING_S)[Rate.POWER]) / WARMING_S
        return self._ambient_c + _RISE_C * self._power_w(power) / self.profile.power_max_w

    def _clock_mhz(self, time_s: float, mean: Sequence[float], tick: int) -> int:
        """At the power limit the clock gives way, in steps; a GPU without work rests."""
        profile = self.profile
        if not mean[Rate.BUSY]:
            return profile.clock_idle_mhz
        highest = profile.clock_max_mhz * self._speed(time_s)
        gives_way = 0.35 * mean[Rate.CAPPED] * profile.clock_max_mhz * (1 + 0.3 * noise(self._seed, tick, 10))
        return int((highest - gives_way) / profile.clock_step_mhz) * profile.clock_step_mhz

    def _used_mib(self, tick: int) -> int:
        """Allocations grow and are given back now and then, about twice a minute."""
        share = self._workload.memory_share * (1 + 0.01 * noise(self._seed, 11))
        pages = 2 * round(20 * noise(self._seed, tick // 300, 12)) if share else 0
        return round((self.profile.memory_mib - self.profile.reserved_mib) * share) + pages
