"""Whatever faults there are: counters count, and a moment is the same however one comes to it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.sim import driver
from switchgear.sim.faults import History, parse_script
from switchgear.sim.profiles import PROFILES
from switchgear.sim.signals import GpuSignals
from switchgear.sim.workloads import WORKLOADS, workload

FAULTS = (
    "ecc-storm rate 7",
    "ecc-storm rate 900 for 3s",
    "thermal-throttle for 9s",
    "thermal-throttle",
    "nvlink-errors link 2 rate 30 for 5s",
    "slow clock 700 for 6s",
    "slow clock 1500",
    "xid 94",
    "vanish",
    "mend",
)
scripts = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(FAULTS)), max_size=6)
gpus = st.builds(
    lambda profile, work, seed, script: GpuSignals(
        profile,
        workload(work, seed),
        seed,
        History(parse_script("\n".join(f"at {at_s}s gpu 0 {fault}" for at_s, fault in script))),
    ),
    st.sampled_from(list(PROFILES.values())),
    st.sampled_from(WORKLOADS),
    st.integers(0, 2**64 - 1),
    scripts,
)


def values(gpu: GpuSignals, time_s: float) -> dict[tuple[object, ...], float | str]:
    return {
        (metric, labels): value
        for slow in (False, True)
        for metric, labels, value in driver.read(gpu, time_s, slow=slow)
    }


@settings(max_examples=40)
@given(gpus, st.lists(st.floats(0, 60), min_size=2, max_size=8))
def test_counters_only_grow_and_gauges_stay_within_what_they_can_be(gpu: GpuSignals, times: list[float]) -> None:
    seen = [values(gpu, time_s) for time_s in sorted(times)]
    for before, after in pairwise(seen):
        for (metric, labels), value in after.items():
            earlier = before.get((metric, labels))
            if METRICS[str(metric)].kind.value == "counter" and isinstance(value, float) and isinstance(earlier, float):
                assert value >= earlier, metric
    for found in seen:
        for (metric, _), value in found.items():
            if METRICS[str(metric)].unit in {"ratio", "percent"} and isinstance(value, float):
                assert 0 <= value <= (1 if METRICS[str(metric)].unit == "ratio" else 100), metric


@settings(max_examples=20)
@given(gpus, st.floats(0, 3600), st.floats(0, 3600))
def test_a_moment_is_the_same_whatever_was_read_before_it(gpu: GpuSignals, one_s: float, other_s: float) -> None:
    first = values(gpu, one_s)
    values(gpu, other_s)
    assert values(gpu, one_s) == first
