"""GPUs that do not exist behave like ones that do, and say that they are simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.agent.sources.kernel_log import KernelLogParser
from switchgear.core.clock import ManualClock
from switchgear.core.errors import FailedPrecondition, Invalid
from switchgear.sim.gpus import SimulatedGpus
from switchgear.sim.inject import FAULTS_FILE, KERNEL_LOG_FILE, inject_xid


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gpus(tmp_path: Path, clock: ManualClock) -> SimulatedGpus:
    return SimulatedGpus("n1", 4, tmp_path, clock)


def everything(gpus: SimulatedGpus, index: int) -> dict[str, float | str]:
    return {name: value for slow in (False, True) for name, _, value in gpus.read(index, slow=slow)}


def log_lines(folder: Path) -> list[str]:
    path = folder / KERNEL_LOG_FILE
    return path.read_text().splitlines() if path.exists() else []


def test_every_metric_has_a_value_within_what_a_gpu_can_show(gpus: SimulatedGpus, clock: ManualClock) -> None:
    for _ in range(50):
        clock.advance(7)
        values = everything(gpus, 1)
        assert values.keys() == METRICS.keys()
        assert 50 <= float(values["DCGM_FI_DEV_POWER_USAGE"]) <= 700
        assert 20 <= float(values["DCGM_FI_DEV_GPU_TEMP"]) <= 90
        assert 0 <= float(values["DCGM_FI_DEV_GPU_UTIL"]) <= 100


def test_values_follow_from_node_index_and_time_alone(tmp_path: Path, clock: ManualClock) -> None:
    first, second = (SimulatedGpus("n1", 2, tmp_path, clock) for _ in range(2))
    clock.advance(3)
    assert everything(first, 0) == everything(second, 0)
    assert everything(first, 0) != everything(first, 1)


def test_energy_is_the_integral_of_power(gpus: SimulatedGpus, clock: ManualClock) -> None:
    total_mj, previous = 0.0, 0.0
    for _ in range(600):
        total_mj += float(everything(gpus, 0)["DCGM_FI_DEV_POWER_USAGE"]) * 100
        clock.advance(0.1)
        energy_mj = float(everything(gpus, 0)["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"])
        assert energy_mj >= previous
        previous = energy_mj
    assert previous == pytest.approx(total_mj, rel=0.01)


def test_simulated_devices_say_so(gpus: SimulatedGpus) -> None:
    devices = gpus.devices()
    assert all(device.simulated and "Simulated" in device.model for device in devices)
    assert len({device.uuid for device in devices}) == len({device.pci_bus_id for device in devices}) == 4


def test_a_fault_is_logged_in_the_drivers_form_with_its_device(gpus: SimulatedGpus, tmp_path: Path) -> None:
    inject_xid(tmp_path, 2, 94)
    gpus.follow_faults()
    (line,) = log_lines(tmp_path)
    found = KernelLogParser().feed(line, 0)
    assert found is not None
    assert (found.kind, found.code, found.pci) == ("XID", 94, gpus.devices()[2].pci_bus_id.removesuffix(".0"))
    assert "simulated" in line
    assert everything(gpus, 2)["DCGM_FI_DEV_XID_ERRORS"] == 94


def test_xid_79_loses_the_gpu_with_all_its_values_and_the_others_go_on(gpus: SimulatedGpus, tmp_path: Path) -> None:
    inject_xid(tmp_path, 3, 79)
    inject_xid(tmp_path, 3, 31)
    gpus.follow_faults()
    assert set(everything(gpus, 3).values()) == {"GPU is lost"}
    assert "GPU is lost" not in everything(gpus, 2).values()


def test_a_restart_knows_lost_gpus_and_logs_no_fault_again(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject_xid(tmp_path, 0, 79)
    gpus.follow_faults()
    inject_xid(tmp_path, 1, 48)  # while the agent is away
    again = SimulatedGpus("n1", 4, tmp_path, clock)
    again.follow_faults()
    again.follow_faults()
    assert "GPU is lost" in everything(again, 0).values()
    assert [line.partition("): ")[2].partition(",")[0] for line in log_lines(tmp_path)] == ["79", "48"]


def test_lines_that_are_no_fault_are_passed_over(gpus: SimulatedGpus, tmp_path: Path) -> None:
    (tmp_path / FAULTS_FILE).write_text('rubbish\n{"gpu": 9, "xid": 79}\n{"gpu": -1, "xid": 79}\n[]\n')
    inject_xid(tmp_path, 1, 79)
    gpus.follow_faults()
    assert len(log_lines(tmp_path)) == 1


def test_half_a_line_waits_for_its_other_half(gpus: SimulatedGpus, tmp_path: Path) -> None:
    line = json.dumps({"gpu": 1, "xid": 79})
    for part in (line[:9], line[9:] + "\n"):
        with (tmp_path / FAULTS_FILE).open("a") as file:
            file.write(part)
        gpus.follow_faults()
    assert len(log_lines(tmp_path)) == 1


def test_injecting_needs_an_agent_with_that_gpu(gpus: SimulatedGpus, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="--sim-gpus"):
        inject_xid(tmp_path / "elsewhere", 0, 79)
    with pytest.raises(Invalid, match="0 to 3"):
        inject_xid(tmp_path, 4, 79)
    with pytest.raises(Invalid, match="1 to 9999"):
        inject_xid(tmp_path, 0, 0)
