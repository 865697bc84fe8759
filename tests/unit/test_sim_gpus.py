"""GPUs that do not exist behave like ones that do, and say that they are simulated."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from switchgear.agent.sources.gpu_metrics import METRICS
from switchgear.agent.sources.kernel_log import KernelLogParser, classify
from switchgear.core.clock import ManualClock
from switchgear.core.errors import FailedPrecondition, Invalid
from switchgear.sim.gpus import SimulatedGpus
from switchgear.sim.inject import FAULTS_FILE, KERNEL_LOG_FILE, inject, inject_xid
from switchgear.sim.profiles import PROFILES
from switchgear.sim.workloads import WORKLOADS

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gpus(tmp_path: Path, clock: ManualClock) -> SimulatedGpus:
    return SimulatedGpus("n1", 4, tmp_path, clock)


def series(gpus: SimulatedGpus, index: int) -> dict[tuple[str, Labels], float | str]:
    return {(name, labels): value for slow in (False, True) for name, labels, value in gpus.read(index, slow=slow)}


def everything(gpus: SimulatedGpus, index: int) -> dict[str, float | str]:
    return {name: value for (name, labels), value in series(gpus, index).items() if not labels}


def number(gpus: SimulatedGpus, metric: str, index: int = 0) -> float:
    value = everything(gpus, index)[metric]
    assert isinstance(value, float | int), value
    return value


def log_lines(folder: Path) -> list[str]:
    path = folder / KERNEL_LOG_FILE
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("work", WORKLOADS)
def test_every_value_is_one_that_the_agent_knows_and_that_such_a_gpu_can_show(
    profile: str, work: str, tmp_path: Path, clock: ManualClock
) -> None:
    gpus = SimulatedGpus("n1", 2, tmp_path, clock, profile=profile, work=work)
    facts = PROFILES[profile]
    for _ in range(40):
        clock.advance(11)
        values = series(gpus, 1)
        assert {name for name, _ in values} <= METRICS.keys()
        plain = everything(gpus, 1)
        assert 0.9 * facts.power_idle_w <= float(plain["DCGM_FI_DEV_POWER_USAGE"]) <= 1.02 * facts.power_max_w
        assert 20 <= float(plain["DCGM_FI_DEV_GPU_TEMP"]) < facts.slowdown_c
        assert 0 <= float(plain["DCGM_FI_DEV_GPU_UTIL"]) <= 100
        assert facts.clock_idle_mhz <= float(plain["DCGM_FI_DEV_SM_CLOCK"]) <= facts.clock_max_mhz
        assert float(plain["DCGM_FI_DEV_SM_CLOCK"]) % facts.clock_step_mhz == 0
        assert (
            float(plain["DCGM_FI_DEV_FB_FREE"]) + float(plain["DCGM_FI_DEV_FB_USED"])
            == facts.memory_mib - facts.reserved_mib
        )


@pytest.mark.parametrize("work", WORKLOADS)
def test_counters_never_run_backwards_and_count_in_whole_numbers(work: str, tmp_path: Path, clock: ManualClock) -> None:
    gpus = SimulatedGpus("n1", 1, tmp_path, clock, work=work)
    inject(tmp_path, "gpu 0 slow clock 800 for 20s", clock)
    inject(tmp_path, "gpu 0 ecc-storm rate 30 for 5s", clock)
    gpus.follow_faults()
    counters = [name for name, metric in METRICS.items() if metric.kind.value == "counter"]
    before = dict.fromkeys(series(gpus, 0), 0.0)
    for _ in range(200):
        clock.advance(0.37)
        now = {key: value for key, value in series(gpus, 0).items() if key[0] in counters}
        for key, value in now.items():
            assert isinstance(value, float)
            assert value >= before[key], key
            assert value == int(value), key
            before[key] = value


def test_values_follow_from_node_index_and_time_alone(tmp_path: Path, clock: ManualClock) -> None:
    first, second = (SimulatedGpus("n1", 2, tmp_path, clock) for _ in range(2))
    clock.advance(3)
    assert everything(first, 0) == everything(second, 0)
    assert everything(first, 0) != everything(first, 1)


def test_another_seed_makes_another_history(tmp_path: Path, clock: ManualClock) -> None:
    first, second = (SimulatedGpus("n1", 1, tmp_path, clock, seed=seed) for seed in (1, 2))
    clock.advance(30)
    assert everything(first, 0) != everything(second, 0)


def test_energy_is_the_integral_of_power_also_while_a_gpu_is_slow(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    clock.advance(10)
    inject(tmp_path, "gpu 0 slow clock 900 for 15s", clock)
    gpus.follow_faults()
    start_mj, total_mj = number(gpus, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"), 0.0
    for _ in range(60):
        clock.advance(1)
        total_mj += number(gpus, "DCGM_FI_DEV_POWER_USAGE") * 1000
    used_mj = number(gpus, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") - start_mj
    assert used_mj == pytest.approx(total_mj, rel=0.01)


def test_simulated_devices_say_so(gpus: SimulatedGpus) -> None:
    devices = gpus.devices()
    assert all(device.simulated and device.model.startswith("Simulated ") for device in devices)
    assert len({device.uuid for device in devices}) == len({device.pci_bus_id for device in devices}) == 4


def test_a_fault_is_logged_in_the_drivers_form_with_its_device(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject_xid(tmp_path, 2, 94, clock)
    gpus.follow_faults()
    (line,) = log_lines(tmp_path)
    (found,) = KernelLogParser().feed(line, 0)
    assert (found.kind, found.code, found.pci) == ("XID", 94, gpus.devices()[2].pci_bus_id.removesuffix(".0"))
    assert "simulated" in line


def test_xid_79_loses_the_gpu_with_all_its_values_and_the_others_go_on(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject_xid(tmp_path, 3, 79, clock)
    inject_xid(tmp_path, 3, 31, clock)
    gpus.follow_faults()
    assert set(everything(gpus, 3).values()) == {"GPU is lost"}
    assert "GPU is lost" not in everything(gpus, 2).values()


def test_a_lost_gpu_is_back_when_it_is_mended(gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock) -> None:
    inject(tmp_path, "gpu 1 vanish", clock)
    gpus.follow_faults()
    assert set(everything(gpus, 1).values()) == {"GPU is lost"}
    clock.advance(5)
    inject(tmp_path, "gpu 1 mend", clock)
    gpus.follow_faults()
    assert "GPU is lost" not in everything(gpus, 1).values()


def test_a_restart_knows_lost_gpus_goes_on_counting_and_logs_no_fault_again(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject_xid(tmp_path, 0, 79, clock)
    gpus.follow_faults()
    clock.advance(60)
    energy_mj = number(gpus, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1)
    inject_xid(tmp_path, 1, 48, clock)  # while the agent is away
    again = SimulatedGpus("n1", 4, tmp_path, clock)
    again.follow_faults()
    again.follow_faults()
    assert "GPU is lost" in everything(again, 0).values()
    assert [line.partition("): ")[2].partition(",")[0] for line in log_lines(tmp_path)] == ["79", "48"]
    assert number(again, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", 1) == energy_mj > 0


def test_a_script_runs_once_from_the_agents_first_start_also_over_restarts(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    script = "# two faults\nat 20s gpu 1 xid 48\nat 10s gpu 0 xid 31  # first\n"
    gpus.plan(script)
    gpus.follow_faults()
    assert log_lines(tmp_path) == []
    clock.advance(10)
    gpus.follow_faults()
    assert ["31," in line for line in log_lines(tmp_path)] == [True]
    again = SimulatedGpus("n1", 4, tmp_path, clock)
    again.plan(script)
    clock.advance(10)
    again.follow_faults()
    assert [line.partition("): ")[2].partition(",")[0] for line in log_lines(tmp_path)] == ["31", "48"]


def test_lines_that_are_no_fault_are_passed_over(gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / FAULTS_FILE).write_text(
        'rubbish\n{"at_unix_ns": 0, "fault": "gpu 9 xid 79"}\n{"at_unix_ns": "x", "fault": "gpu 1 xid 79"}\n[]\n'
        '{"at_unix_ns": 0, "fault": "gpu -1 xid 79"}\n'
        f'{{"at_unix_ns": 1{"0" * 400}, "fault": "gpu 1 xid 79"}}\n' + "[" * 100_000 + "\n"
    )
    inject_xid(tmp_path, 1, 79, clock)
    gpus.follow_faults()
    assert len(log_lines(tmp_path)) == 1


def test_half_a_line_waits_for_its_other_half(gpus: SimulatedGpus, tmp_path: Path) -> None:
    line = json.dumps({"at_unix_ns": 0, "fault": "gpu 1 xid 79"})
    for part in (line[:9], line[9:] + "\n"):
        with (tmp_path / FAULTS_FILE).open("a") as file:
            file.write(part)
        gpus.follow_faults()
    assert len(log_lines(tmp_path)) == 1


def test_injecting_needs_an_agent_with_that_hardware(gpus: SimulatedGpus, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="--sim-gpus"):
        inject_xid(tmp_path / "elsewhere", 0, 79)
    with pytest.raises(Invalid, match="0 to 3"):
        inject_xid(tmp_path, 4, 79)
    with pytest.raises(Invalid, match="1 to 9999"):
        inject_xid(tmp_path, 0, 0)
    with pytest.raises(Invalid, match="NIC 7 does not exist; the simulated ones are 0 to 1"):
        inject(tmp_path, "nic 7 link-flap times 2")
    with pytest.raises(Invalid, match="link 18 does not exist; a GPU has 0 to 17"):
        inject(tmp_path, "gpu 0 nvlink-errors link 18 rate 1")
    with pytest.raises(Invalid, match="NVSwitch 4 does not exist; the simulated ones are 0 to 3"):
        inject(tmp_path, "nvswitch 4 sxid 20034 link 2")


def test_an_amd_gpu_has_no_xids_and_none_of_nvidias_units(tmp_path: Path, clock: ManualClock) -> None:
    gpus = SimulatedGpus("n1", 1, tmp_path, clock, profile="MI300X")
    assert "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL" not in everything(gpus, 0)
    assert gpus.devices()[0].device_file == "renderD128"
    for fault, what in (("xid 79", "XIDs"), ("nvlink-errors link 0 rate 5", "NVLinks")):
        with pytest.raises(Invalid, match=f"{what} are NVIDIA's"):
            inject(tmp_path, f"gpu 0 {fault}")
    inject(tmp_path, "gpu 0 vanish", clock)
    gpus.follow_faults()
    found = [classify(line) for line in log_lines(tmp_path)]
    assert found[0] is not None
    assert (found[0].kind, found[0].pci) == ("AMDGPU_RESET", "0000:10:00")
    assert set(everything(gpus, 0).values()) == {"GPU is lost"}


def test_a_hanging_gpu_answers_again_when_its_time_is_over_and_the_others_go_on(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject(tmp_path, "gpu 2 hang for 30s", clock)
    gpus.follow_faults()
    answered = threading.Event()

    def call() -> None:
        list(gpus.read(2, slow=False))
        answered.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert number(gpus, "DCGM_FI_DEV_GPU_UTIL", 1) >= 0
    assert not answered.wait(0.1)
    clock.advance(31)
    assert answered.wait(5)
    thread.join()


def test_a_slow_gpu_keeps_busy_at_a_low_clock_and_nothing_says_why(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock
) -> None:
    inject(tmp_path, "gpu 0 slow clock 600 for 60s", clock)
    gpus.follow_faults()
    clock.advance(30)
    assert number(gpus, "DCGM_FI_DEV_SM_CLOCK") <= 600
    assert number(gpus, "DCGM_FI_DEV_GPU_UTIL") >= 80
    assert number(gpus, "DCGM_FI_DEV_POWER_USAGE") < 0.5 * number(gpus, "DCGM_FI_DEV_POWER_USAGE", 1)
    assert log_lines(tmp_path) == []
    clock.advance(60)
    assert number(gpus, "DCGM_FI_DEV_SM_CLOCK") > 1500


def test_a_gpu_that_throttles_is_hot_and_slow(gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock) -> None:
    inject(tmp_path, "gpu 0 thermal-throttle for 60s", clock)
    gpus.follow_faults()
    clock.advance(30)
    assert number(gpus, "DCGM_FI_DEV_GPU_TEMP") >= PROFILES["H100"].slowdown_c
    assert number(gpus, "DCGM_FI_DEV_SM_CLOCK") < 0.6 * PROFILES["H100"].clock_max_mhz


def test_an_ecc_storm_counts_at_its_rate_and_no_longer(gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock) -> None:
    inject(tmp_path, "gpu 0 ecc-storm rate 400 for 10s", clock)
    gpus.follow_faults()
    clock.advance(4)
    assert number(gpus, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL") == 1600
    clock.advance(40)
    assert number(gpus, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL") == 4000
    assert number(gpus, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", 1) == 0


def test_a_state_directory_that_is_gone_is_complained_about_once_a_minute(
    gpus: SimulatedGpus, tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    gpus.follow_faults()
    shutil.rmtree(tmp_path)
    thread = threading.Thread(target=gpus.run)
    thread.start()
    for _ in range(5):  # the interfaces' files are written anew each half second, and between these rounds all is well
        clock.advance(0.5)
        time.sleep(0.15)
    gpus.close()
    thread.join()
    assert [record.message.partition(":")[0] for record in caplog.records] == ["simulated faults wait"]
