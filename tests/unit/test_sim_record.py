"""Recordings for benchmarks: reproducible, labelled as the agent labels, honest about how much changes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from switchgear.agent.sources.gpu import GpuSource
from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid
from switchgear.sim import record
from switchgear.sim.gpus import SimulatedGpus
from switchgear.sim.record import recording


def test_the_same_seed_gives_the_same_values_and_another_seed_others() -> None:
    first, again, other = (list(recording(seed, gpus=2, seconds=20)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_each_tick_has_a_value_for_each_series_and_a_later_time() -> None:
    made = recording(7, gpus=3, seconds=40)
    ticks = list(made)
    assert len(ticks) == 40
    assert {len(values) for _, values in ticks} == {len(made.series)}
    times = [time_unix_ns for time_unix_ns, _ in ticks]
    assert times == sorted(set(times))


def test_the_series_are_those_of_the_agents_gpu_sources(tmp_path: Path) -> None:
    driver = SimulatedGpus("recorded", 2, tmp_path, ManualClock())
    sources = [GpuSource(driver, driver.devices()[1], "recorded", slow=slow) for slow in (False, True)]
    keys = [reading.key for source in sources for reading in source.sample()]
    mine = [series for series in recording(7, gpus=2, seconds=2).series if dict(series.labels)["gpu"] == "1"]
    assert [(series.metric, series.labels) for series in mine] == [(key.metric, key.labels) for key in keys]


def test_counters_of_a_recording_only_grow() -> None:
    made = recording(7, gpus=1, seconds=60)
    counters = [place for place, series in enumerate(made.series) if METRICS[series.metric].kind.value == "counter"]
    rows = [values for _, values in made]
    assert all(later[place] >= row[place] for row, later in pairwise(rows) for place in counters)


def test_what_reads_seldom_changes_seldom_and_an_idle_gpu_less_than_a_busy_one() -> None:
    busy, idle = (recording(7, gpus=2, seconds=120, work=work).changed_share() for work in ("training", "idle"))
    assert 0.1 < busy < 0.3
    assert 0.01 < idle < busy / 2


def test_a_recording_may_have_faults_that_show_in_values() -> None:
    made = recording(7, gpus=1, seconds=60, script="at 10s gpu 0 ecc-storm rate 50 for 10s")
    place = [series.metric for series in made.series].index("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL")
    counts = [values[place] for _, values in made]
    assert (counts[9], counts[59]) == (0, 500)  # read each 15 s
    with pytest.raises(Invalid, match="cannot be recorded"):
        recording(7, gpus=1, seconds=30, script="at 1s gpu 0 vanish")


def test_the_command_writes_a_file_and_states_the_rate_of_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recording.jsonl"
    assert record.main(["--gpus", "1", "--seconds", "10", "--out", str(file)]) == 0
    summary = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 11
    assert len(lines[0]["series"]) == summary["series"] == len(lines[1][1])
    assert 0 < summary["changed_share"] < 1


def test_what_is_out_of_bounds_is_refused_with_the_bound() -> None:
    with pytest.raises(Invalid, match="1 to 16"):
        recording(7, gpus=99)
    with pytest.raises(Invalid, match="no GPU profile"):
        recording(7, profile="H9000")


def test_the_documentation_states_the_rate_of_change_of_the_default_recording() -> None:
    text = (Path(__file__).parents[2] / "docs/simulation.md").read_text()
    made = recording(7)
    assert f"| training | {len(made.series)} | {100 * made.changed_share():.1f} % |" in text
