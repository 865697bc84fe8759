"""Seeded recordings of a node with eight H100 in training: the same ticks for whoever is measured.

Values have the grain in which hardware reports them (NVML: °C, %, MHz in steps of 15, mW, MiB, mJ, µs; GPM: doubles; Linux: hundredths of a
second, pages, sectors), move as under a training step of about three seconds, and most of what counts errors stands still.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from switchgear.agent.readings import Kind, Reading, SeriesKey, known, series
from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.sim import record

GPUS = 8
_CONSTANT = (
    "DCGM_FI_DEV_MEM_CLOCK", "DCGM_FI_DEV_ENC_UTIL", "DCGM_FI_DEV_DEC_UTIL", "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_FB_RESERVED",
    "DCGM_FI_DEV_PSTATE", "DCGM_FI_DEV_ROW_REMAP_FAILURE", "DCGM_FI_DEV_ROW_REMAP_PENDING", "DCGM_FI_DEV_ENFORCED_POWER_LIMIT",
    "DCGM_FI_DEV_PCIE_LINK_GEN", "DCGM_FI_DEV_PCIE_LINK_WIDTH", "DCGM_FI_DEV_MIG_MODE", "DCGM_FI_DEV_PERSISTENCE_MODE",
    "switchgear_gpu_nvlinks_active", "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
)  # fmt: skip
_STANDING = (
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "DCGM_FI_DEV_THERMAL_VIOLATION",
    "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
)  # fmt: skip
_GPM = (
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "DCGM_FI_PROF_SM_ACTIVE", "DCGM_FI_PROF_SM_OCCUPANCY", "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
    "DCGM_FI_PROF_DRAM_ACTIVE", "DCGM_FI_PROF_PIPE_FP16_ACTIVE", "DCGM_FI_PROF_PIPE_FP32_ACTIVE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recording:
    """ticks: (time in ns, readings of all series in the same order). changed_share: of the samples, those that differ from the tick before."""

    ticks: list[tuple[int, list[Reading]]]
    changed_share: float

    @property
    def series(self) -> list[SeriesKey]:
        return [reading.key for reading in self.ticks[0][1]]


def noisy(seconds: int, seed: int) -> Recording:
    """Every reading with the noise that measured ones have: the harder case."""
    rng = random.Random(seed)
    sources = [*(_gpu(index, rng) for index in range(GPUS)), _host(rng)]
    ticks = []
    for number in range(seconds):
        # As an event loop keeps its ticks: a millisecond late, more or less.
        at_ns = 1_795_000_000_000_000_000 + number * 10**9 + int(rng.expovariate(1 / 1.2e6))
        ticks.append((at_ns, [reading for source in sources for reading in next(source)]))
    return _recording(ticks)


def simulated(seconds: int, seed: int) -> Recording:
    """The GPUs of `switchgear.sim.record`, with all series that the agent reads of an H100, and the same host beside them."""
    gpus = record.recording(seed, profile="H100", gpus=GPUS, seconds=seconds)
    keys = [
        series(item.metric, METRICS[item.metric].unit, METRICS[item.metric].kind, *item.labels) for item in gpus.series
    ]
    host = _host(random.Random(seed))
    return _recording(
        [
            (time_unix_ns, [*(known(key, value) for key, value in zip(keys, values, strict=True)), *next(host)])
            for time_unix_ns, values in gpus
        ]
    )


RECORDINGS = {"simulated": simulated, "noisy": noisy}


def _recording(ticks: list[tuple[int, list[Reading]]]) -> Recording:
    changed = sum(
        now != before for (_, first), (_, second) in pairwise(ticks) for before, now in zip(first, second, strict=True)
    )
    return Recording(ticks, changed / (len(ticks[0][1]) * (len(ticks) - 1)))


def _gpu(index: int, rng: random.Random) -> Iterator[list[Reading]]:
    labels = (
        ("gpu", str(index)),
        ("UUID", f"GPU-{rng.getrandbits(32):08x}-{rng.getrandbits(16):04x}-{rng.getrandbits(16):04x}-{rng.getrandbits(48):012x}"),
        ("pci_bus_id", f"00000000:{16 + 21 * index:02X}:00.0"),
        ("device", f"nvidia{index}"),
        ("modelName", "NVIDIA H100 80GB HBM3"),
        ("hostname", "gpu-0001.example"),
    )  # fmt: skip

    def gauge(name: str) -> SeriesKey:
        return series(name, "", Kind.GAUGE, *labels)

    def counter(name: str) -> SeriesKey:
        return series(name, "", Kind.COUNTER, *labels)

    temperature, memory_temperature, used = 58.0, 66.0, 71_204
    energy, violation, moved_kib = (rng.randrange(10**12) for _ in range(3))
    constants = [
        known(gauge(name), value)
        for name, value in zip(_CONSTANT, (2619, 0, 0, 0, 551, 0, 0, 0, 700, 5, 16, 0, 1, 18, 0), strict=True)
    ]
    standing = [known(counter(name), value) for name, value in zip(_STANDING, (0, 0, 0, 3, 0, 0, 0, 0), strict=True)]
    phase = rng.random() * 0.2
    second = 0
    while True:
        # Share of this second in which the step computed rather than communicated.
        compute = min(1.0, max(0.0, 0.72 + 0.2 * ((second * 0.31 + phase) % 1 - 0.5) + rng.gauss(0, 0.04)))
        power_w = min(699.0, 210 + 560 * compute + rng.gauss(0, 9))
        temperature += 0.05 * (38 + power_w / 22 - temperature) + rng.gauss(0, 0.25)
        memory_temperature += 0.05 * (46 + power_w / 25 - memory_temperature) + rng.gauss(0, 0.25)
        capped = max(0.0, compute - 0.7)
        energy += int(1000 * (power_w + rng.gauss(0, 4)))
        violation += int(1e6 * capped * rng.random())
        moved = 180e9 * (1 - compute) * rng.uniform(0.95, 1.05)
        received = moved * rng.uniform(0.999, 1.001)
        moved_kib += int((moved + received) / 1024)
        if rng.random() < 0.01:
            used += rng.choice((-2, 2, 256, -256))
        yield [
            known(gauge("DCGM_FI_DEV_SM_CLOCK"), 1980 - 15 * int(14 * capped * rng.random() + 0.3)),
            known(gauge("DCGM_FI_DEV_GPU_TEMP"), round(temperature)),
            known(gauge("DCGM_FI_DEV_MEMORY_TEMP"), round(memory_temperature)),
            known(gauge("DCGM_FI_DEV_POWER_USAGE"), round(1000 * power_w) / 1000),
            known(gauge("DCGM_FI_DEV_POWER_USAGE_INSTANT"), round(1000 * (power_w + rng.gauss(0, 25))) / 1000),
            known(gauge("DCGM_FI_DEV_GPU_UTIL"), 100 if rng.random() < 0.8 else rng.randrange(90, 100)),
            known(gauge("DCGM_FI_DEV_MEM_COPY_UTIL"), round(55 * compute + rng.gauss(0, 2))),
            known(gauge("DCGM_FI_DEV_CLOCKS_EVENT_REASONS"), 4 if capped > 0.02 else 0),
            known(gauge("DCGM_FI_DEV_FB_USED"), used),
            known(gauge("DCGM_FI_DEV_FB_FREE"), 81_559 - 551 - used),
            *(known(gauge(name), round(min(1.0, max(0.0, compute * share + rng.gauss(0, 0.015))), 6))
              for name, share in zip(_GPM, (1.3, 1.1, 0.6, 0.55, 0.5, 0.02, 0.1), strict=True)),
            known(counter("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), energy),
            known(counter("DCGM_FI_DEV_POWER_VIOLATION"), violation),
            known(counter("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL"), moved_kib),
            known(gauge("DCGM_FI_PROF_NVLINK_TX_BYTES"), round(moved)),
            known(gauge("DCGM_FI_PROF_NVLINK_RX_BYTES"), round(received)),
            known(gauge("DCGM_FI_PROF_PCIE_TX_BYTES"), round(rng.gauss(4e8, 3e7))),
            known(gauge("DCGM_FI_PROF_PCIE_RX_BYTES"), round(rng.gauss(9e8, 8e7))),
            *constants, *standing,
        ]  # fmt: skip
        second += 1


def _host(rng: random.Random) -> Iterator[list[Reading]]:
    """A hundred series of the host: counters of time, bytes, packets and pages, and some levels."""
    hundredths = {
        mode: rng.randrange(10**8) for mode in ("user", "system", "idle", "iowait", "irq", "softirq", "nice", "steal")
    }
    rate = {"user": 2900, "system": 310, "idle": 15_900, "iowait": 40, "irq": 0, "softirq": 22, "nice": 0, "steal": 0}
    memory = {
        name: rng.randrange(10**8)
        for name in ("MemFree", "MemAvailable", "Cached", "Dirty", "AnonPages", "Slab", "Mapped", "Buffers")
    }
    fixed = {name: rng.randrange(10**9) for name in ("MemTotal", "SwapTotal", "SwapFree", "HugePages_Total")}
    disks = {f"nvme{number}n1": [rng.randrange(10**9) for _ in range(6)] for number in range(4)}
    nics = {
        name: [rng.randrange(10**13) for _ in range(4)] + [0, 0, 0, 0]
        for name in ("eth0", "mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3")
    }
    load = 31.0
    tcp = [rng.randrange(10**8) for _ in range(4)]
    while True:
        readings: list[Reading] = []
        for mode, mean in rate.items():
            hundredths[mode] += max(0, int(rng.gauss(mean, mean**0.5)))
            readings.append(
                known(series("node_cpu_seconds_total", "seconds", Kind.COUNTER, ("mode", mode)), hundredths[mode] / 100)
            )
        for name in list(memory):
            memory[name] += 4096 * int(rng.gauss(0, 900))
            readings.append(
                known(series(f"node_memory_{name}_bytes", "bytes", Kind.GAUGE), memory[name] // 4096 * 4096)
            )
        readings += [
            known(series(f"node_memory_{name}_bytes", "bytes", Kind.GAUGE), value * 1024)
            for name, value in fixed.items()
        ]
        load += rng.gauss(0, 0.05)
        readings += [known(series(f"node_load{m}", "", Kind.GAUGE), round(load + m / 100, 2)) for m in (1, 5, 15)]
        for number, (disk, values) in enumerate(disks.items()):
            busy = number == 0 or rng.random() < 0.05
            for at, step in enumerate((120, 900, 40, 2048, 512, 60)):
                values[at] += int(busy * rng.expovariate(1 / step))
            names = (
                "reads_completed",
                "writes_completed",
                "io_time_seconds",
                "read_bytes",
                "written_bytes",
                "write_time_seconds",
            )
            for name, value, scale in zip(names, values, (1, 1, 1e-3, 512, 512, 1e-3), strict=True):
                shown = value / 1000 if scale == 1e-3 else value * scale
                readings.append(known(series(f"node_disk_{name}_total", "", Kind.COUNTER, ("device", disk)), shown))
        for nic, values in nics.items():
            size = 4e4 if nic == "eth0" else 5e9
            for at, per_packet in enumerate((1, 1, 1000, 1000)):
                values[at] += int(size * rng.uniform(0.9, 1.1) / per_packet)
            names = (
                "receive_bytes",
                "transmit_bytes",
                "receive_packets",
                "transmit_packets",
                "receive_errs",
                "transmit_errs",
                "receive_drop",
                "transmit_drop",
            )
            readings += [
                known(series(f"node_network_{name}_total", "", Kind.COUNTER, ("device", nic)), value)
                for name, value in zip(names, values, strict=True)
            ]
        for at, step in enumerate((60, 55, 3, 0)):
            tcp[at] += int(rng.expovariate(1 / step)) if step else 0
        readings += [
            known(series(f"node_netstat_Tcp_{name}", "", Kind.COUNTER), value)
            for name, value in zip(("InSegs", "OutSegs", "RetransSegs", "InErrs"), tcp, strict=True)
        ]
        readings += [
            known(series("node_entropy_available_bits", "", Kind.GAUGE), 256),
            known(series("node_filefd_allocated", "", Kind.GAUGE), 9000 + 32 * rng.randrange(12)),
        ]
        readings += [
            known(series("node_boot_time_seconds", "seconds", Kind.GAUGE), 1_794_000_123),
            known(series("node_timex_sync_status", "", Kind.GAUGE), 1),
        ]
        readings += [
            known(
                series("node_filesystem_free_bytes", "bytes", Kind.GAUGE, ("mountpoint", f"/m{number}")),
                4096 * (10**8 + number),
            )
            for number in range(3)
        ]
        yield readings
