"""What a simulated GPU shows at a given time. Pure: profile, workload, seed, faults and time in, values out, in the form of the hardware's.

Counters are integrals of the rates that the gauges show, whole numbers in the counter's unit; clocks move in the hardware's steps; power
comes in milliwatts; temperatures are whole degrees that follow the power of the last minute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from switchgear.sim.faults import LOST, FaultKind, History
from switchgear.sim.profiles import Profile
from switchgear.sim.workloads import Rate, Workload, noise

#: Metric, labels, and the value or why there is none.
Value = tuple[str, tuple[tuple[str, str], ...], float | str]

#: Over which the driver averages what it shows as present.
WINDOW_S = 1.0
#: Over which the power decides the temperature.
WARMING_S = 40.0
_AMBIENT_C = 29.0
#: Above ambient at the power limit.
_RISE_C = 36.0
#: How far power and rates of one GPU are from those of another of the same model.
_SPREAD = 0.02
#: Of a GPU that throttles: what is left of each rate.
_THROTTLED = 0.55
# Bits of the clock-event reasons, as in nvml.h.
REASON_IDLE, REASON_POWER, REASON_HW_SLOWDOWN, REASON_HW_THERMAL = 0x1, 0x4, 0x8, 0x40
#: Of sixteen lanes in one direction, by generation, after the encoding.
PCIE_BYTES_PER_S = {4: 31.5e9, 5: 63e9}


class GpuSignals:
    """One GPU. Times are seconds since the simulation's start; a GPU that is lost says so in place of every value."""

    def __init__(self, profile: Profile, workload: Workload, seed: int, history: History) -> None:
        self._profile = profile
        self._workload = workload
        self._seed = seed
        self._spread = 1 + _SPREAD * noise(seed, 1)
        self._offset_s = 0.0 if workload.together else workload.cycle.period_s * (0.5 + 0.5 * noise(seed, 2))
        self._ambient_c = _AMBIENT_C + 3 * noise(seed, 3)
        self._begin = workload.cycle.integral(self._offset_s)
        self.history = history

    def read(self, time_s: float, *, slow: bool) -> Iterator[Value]:
        """What changes from second to second, or (slow) what changes seldom."""
        lost = self.history.lost(time_s)
        for metric, labels, value in self._slow(time_s) if slow else self._fast(time_s):
            yield metric, labels, LOST if lost else value

    def _fast(self, time_s: float) -> Iterator[Value]:
        profile, seed, tick = self._profile, self._seed, int(time_s * 10)
        done = self._integral(time_s)
        before = self._integral(time_s - WINDOW_S)
        mean = [(now - then) / WINDOW_S for now, then in zip(done, before, strict=True)]
        power_w = self._power_w(mean[Rate.POWER])
        jitter = 0.008 if mean[Rate.BUSY] else 0.003
        temperature_c = self._temperature_c(time_s, done) + 0.6 * noise(seed, tick, 5)
        used_mib = self._used_mib(tick)
        yield "DCGM_FI_DEV_SM_CLOCK", (), self._clock_mhz(time_s, mean, tick)
        yield "DCGM_FI_DEV_MEM_CLOCK", (), float(profile.memory_clock_mhz)
        yield "DCGM_FI_DEV_GPU_TEMP", (), float(round(temperature_c))
        yield "DCGM_FI_DEV_MEMORY_TEMP", (), float(round(temperature_c + 7 + 6 * mean[Rate.DRAM]))
        yield "DCGM_FI_DEV_POWER_USAGE", (), self._shown_w(power_w, jitter, tick, 4)
        yield "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", (), float(int(self._energy_j(time_s, done) * 1000))
        yield "DCGM_FI_DEV_GPU_UTIL", (), float(round(100 * mean[Rate.BUSY]))
        yield "DCGM_FI_DEV_MEM_COPY_UTIL", (), float(round(100 * mean[Rate.DRAM] * self._spread))
        yield "DCGM_FI_DEV_FB_FREE", (), profile.memory_mib - profile.reserved_mib - used_mib
        yield "DCGM_FI_DEV_FB_USED", (), used_mib
        yield "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", (), 0.0
        yield "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", (), float(self.history.count(FaultKind.ECC_STORM, time_s))
        yield "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", (), 0.0
        if not profile.is_amd:
            yield from self._fast_nvidia(time_s, done, mean, tick)

    def _fast_nvidia(self, time_s: float, done: Sequence[float], mean: Sequence[float], tick: int) -> Iterator[Value]:
        """What NVML has beside what the drivers of all vendors have."""
        profile = self._profile
        link_bytes = profile.links * profile.link_bytes_per_s
        pcie_bytes = PCIE_BYTES_PER_S[profile.pcie_generation]
        throttled_ns = float(int(self.history.lasted_s(FaultKind.THERMAL_THROTTLE, time_s) * 1e9))
        yield "DCGM_FI_DEV_POWER_USAGE_INSTANT", (), self._shown_w(self._power_w(mean[Rate.POWER]), 0.03, tick, 13)
        yield "DCGM_FI_DEV_XID_ERRORS", (), float(self.history.last_xid(time_s))
        yield "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", (), float(self._reasons(time_s, mean))
        yield "DCGM_FI_DEV_PSTATE", (), 0.0
        yield "DCGM_FI_DEV_ENC_UTIL", (), 0.0
        yield "DCGM_FI_DEV_DEC_UTIL", (), 0.0
        yield "DCGM_FI_DEV_FB_RESERVED", (), float(profile.reserved_mib)
        yield "DCGM_FI_DEV_POWER_VIOLATION", (), float(int(done[Rate.CAPPED] * 1e9))
        yield "DCGM_FI_DEV_THERMAL_VIOLATION", (), throttled_ns
        yield "DCGM_FI_DEV_RELIABILITY_VIOLATION", (), 0.0
        yield "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION", (), 0.0
        yield "switchgear_gpu_hw_thermal_slowdown_nanoseconds_total", (), throttled_ns
        yield "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", (), float(int(done[Rate.LINK] * link_bytes * 2 / 1024))
        yield "switchgear_gpu_nvlink_transmit_bytes_total", (), float(int(done[Rate.LINK] * link_bytes))
        yield "switchgear_gpu_nvlink_receive_bytes_total", (), float(int(done[Rate.LINK] * link_bytes * self._spread))
        yield "switchgear_gpu_pcie_transmit_bytes_total", (), float(int(done[Rate.PCIE_OUT] * pcie_bytes))
        yield "switchgear_gpu_pcie_receive_bytes_total", (), float(int(done[Rate.PCIE_IN] * pcie_bytes))
        if profile.gpm:
            for place, (metric, share) in enumerate(
                (
                    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", mean[Rate.BUSY]),
                    ("DCGM_FI_PROF_SM_ACTIVE", mean[Rate.SM]),
                    ("DCGM_FI_PROF_SM_OCCUPANCY", 0.42 * mean[Rate.SM]),
                    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", mean[Rate.TENSOR]),
                    ("DCGM_FI_PROF_DRAM_ACTIVE", mean[Rate.DRAM]),
                    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", 0.0),
                    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", 0.13 * mean[Rate.SM]),
                    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", 0.04 * mean[Rate.SM]),
                ),
                20,
            ):
                yield metric, (), self._share(share, tick, place)
            for place, (metric, rate) in enumerate(
                (
                    ("DCGM_FI_PROF_PCIE_TX_BYTES", mean[Rate.PCIE_OUT] * pcie_bytes),
                    ("DCGM_FI_PROF_PCIE_RX_BYTES", mean[Rate.PCIE_IN] * pcie_bytes),
                    ("DCGM_FI_PROF_NVLINK_TX_BYTES", mean[Rate.LINK] * link_bytes),
                    ("DCGM_FI_PROF_NVLINK_RX_BYTES", mean[Rate.LINK] * link_bytes),
                ),
                30,
            ):
                kib = int(rate * (1 + 0.01 * noise(self._seed, tick, place)) / 1024)
                yield metric, (), kib * 1024.0

    def _slow(self, time_s: float) -> Iterator[Value]:
        profile = self._profile
        yield "DCGM_FI_DEV_FB_TOTAL", (), float(profile.memory_mib)
        yield "DCGM_FI_DEV_MAX_SM_CLOCK", (), float(profile.clock_max_mhz)
        yield "DCGM_FI_DEV_POWER_MGMT_LIMIT", (), float(profile.power_max_w)
        yield "DCGM_FI_DEV_ECC_CURRENT", (), 1.0
        yield "DCGM_FI_DEV_PCIE_LINK_GEN", (), float(profile.pcie_generation)
        yield "DCGM_FI_DEV_PCIE_LINK_WIDTH", (), 16.0
        yield "DCGM_FI_DEV_PCIE_MAX_LINK_GEN", (), float(profile.pcie_generation)
        yield "DCGM_FI_DEV_PCIE_MAX_LINK_WIDTH", (), 16.0
        if profile.is_amd:
            return
        errors = float(self.history.count(FaultKind.ECC_STORM, time_s))
        yield "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL", (), errors
        yield "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL", (), 0.0
        yield "DCGM_FI_DEV_ECC_SBE_VOL_DEV", (), errors
        yield "DCGM_FI_DEV_ECC_DBE_VOL_DEV", (), 0.0
        yield "DCGM_FI_DEV_ECC_SBE_VOL_SRM", (), 0.0
        yield "DCGM_FI_DEV_ECC_DBE_VOL_SRM", (), 0.0
        yield "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", (), 0.0
        yield "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", (), 0.0
        yield "DCGM_FI_DEV_ROW_REMAP_FAILURE", (), 0.0
        yield "DCGM_FI_DEV_ROW_REMAP_PENDING", (), 0.0
        yield "DCGM_FI_DEV_SLOWDOWN_TEMP", (), float(profile.slowdown_c)
        yield "DCGM_FI_DEV_MAX_MEM_CLOCK", (), float(profile.memory_clock_mhz)
        yield "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", (), float(profile.power_max_w)
        yield "DCGM_FI_DEV_PERSISTENCE_MODE", (), 1.0
        yield "DCGM_FI_DEV_COMPUTE_MODE", (), 0.0
        yield "DCGM_FI_DEV_MIG_MODE", (), 0.0
        yield "DCGM_FI_DEV_VGPU_LICENSE_STATUS", (), 0.0
        yield "switchgear_gpu_nvlinks", (), float(profile.links)
        yield "switchgear_gpu_nvlinks_active", (), float(profile.links)
        if profile.nvlink >= 4:
            yield "switchgear_gpu_fabric_state", (), 3.0
            yield "switchgear_gpu_fabric_status", (), 0.0
        yield "switchgear_gpu_recovery_action", (), 0.0
        yield from self._link_errors(time_s)

    def _link_errors(self, time_s: float) -> Iterator[Value]:
        errors = float(self.history.count(FaultKind.NVLINK_ERRORS, time_s))
        if self._profile.nvlink >= 5:
            yield "DCGM_FI_DEV_NVLINK_COUNT_RX_ERRORS", (), errors
            yield "DCGM_FI_DEV_NVLINK_COUNT_RX_SYMBOL_ERRORS", (), errors
            yield "DCGM_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS", (), float(errors // 100)
        else:
            yield "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", (), errors
            yield "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", (), 0.0
            yield "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", (), errors
            yield "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", (), float(errors // 100)
        for link in sorted({span.fault.link for span in self.history.of(FaultKind.NVLINK_ERRORS)}):
            on_link = self.history.count(FaultKind.NVLINK_ERRORS, time_s, link)
            yield "switchgear_gpu_nvlink_errors_total", (("nvlink", str(link)),), float(on_link)

    def _reasons(self, time_s: float, mean: Sequence[float]) -> int:
        """Why the clock is what it is. A clock that only is stuck gives no reason: that is what makes it hard to find."""
        if self.history.holds(FaultKind.THERMAL_THROTTLE, time_s):
            return REASON_HW_SLOWDOWN | REASON_HW_THERMAL
        if not mean[Rate.BUSY]:
            return REASON_IDLE
        return REASON_POWER if mean[Rate.CAPPED] > 0.1 else 0

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
                    speed = min(speed, span.fault.clock_mhz / self._profile.clock_max_mhz)
        return speed

    @staticmethod
    def _kept(speed: float) -> Sequence[float]:
        """What a slower clock leaves of each rate: it is as busy as before, moves less and takes less power."""
        return (1.0, 1.0, 1.0, speed, speed, speed, speed, 0.3 * speed + 0.7 * speed**2, float(speed == 1))

    def _power_w(self, share: float) -> float:
        profile = self._profile
        return profile.power_idle_w + (profile.power_max_w - profile.power_idle_w) * share * self._spread

    def _shown_w(self, power_w: float, jitter: float, tick: int, place: int) -> float:
        """To the milliwatt."""
        shown_w = power_w * (1 + jitter * noise(self._seed, tick, place))
        return round(min(shown_w, self._profile.power_max_w * 1.01), 3)

    def _energy_j(self, time_s: float, done: Sequence[float]) -> float:
        profile = self._profile
        span_w = (profile.power_max_w - profile.power_idle_w) * self._spread
        return profile.power_idle_w * time_s + span_w * done[Rate.POWER]

    def _temperature_c(self, time_s: float, done: Sequence[float]) -> float:
        for span in self.history.of(FaultKind.THERMAL_THROTTLE):
            if span.holds(time_s):
                return self._profile.slowdown_c + min(2.0, (time_s - span.start_s) / 10)
        power = (done[Rate.POWER] - self._integral(time_s - WARMING_S)[Rate.POWER]) / WARMING_S
        return self._ambient_c + _RISE_C * self._power_w(power) / self._profile.power_max_w

    def _clock_mhz(self, time_s: float, mean: Sequence[float], tick: int) -> float:
        """At the power limit the clock gives way, in steps; a GPU without work rests."""
        profile = self._profile
        if not mean[Rate.BUSY]:
            return float(profile.clock_idle_mhz)
        highest = profile.clock_max_mhz * self._speed(time_s)
        gives_way = 0.35 * mean[Rate.CAPPED] * profile.clock_max_mhz * (1 + 0.3 * noise(self._seed, tick, 10))
        return float(int((highest - gives_way) / profile.clock_step_mhz) * profile.clock_step_mhz)

    def _used_mib(self, tick: int) -> float:
        """Allocations grow and are given back now and then, about twice a minute."""
        share = self._workload.memory_share * (1 + 0.01 * noise(self._seed, 11))
        pages = 2 * round(20 * noise(self._seed, tick // 300, 12)) if share else 0
        return float(round((self._profile.memory_mib - self._profile.reserved_mib) * share) + pages)

    def _share(self, mean: float, tick: int, place: int) -> float:
        """To a hundredth of a percent."""
        return round(min(1.0, max(0.0, mean * (1 + 0.01 * noise(self._seed, tick, place)))), 4)
