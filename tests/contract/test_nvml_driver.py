"""NVIDIA GPUs as the agent reads them: our code and the unmodified pynvml on the double of the driver's library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_agent import NvmlAgent
from nvml_double.fixtures import scenario_or_skip
from nvml_double.scenario import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, SYSTEM, UNKNOWN, Scenario

from switchgear.agent.sources.gpu_metrics import METRICS

PCI_1 = "0000:29:00"
INVALID_ARGUMENT = 2
RECOVERY_EVENT = 0x8000


@pytest.fixture
def node(tmp_path: Path) -> Scenario:
    return scenario_or_skip(tmp_path / "nvml", gpus=2)


@pytest.fixture
def agent(node: Scenario, tmp_path: Path) -> Iterator[NvmlAgent]:
    agent = NvmlAgent(node, tmp_path / "agent")
    yield agent
    agent.close()


def one(values: object, name: str) -> object:
    """The value of a metric without labels."""
    assert isinstance(values, dict)
    return values.get((name,))


def test_a_gpu_is_known_by_what_the_driver_says_of_it(agent: NvmlAgent) -> None:
    assert agent.devices[1] == {
        "index": 1,
        "uuid": "GPU-00000001-5e1f-4a6b-9c00-000000000001",
        "model": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 80 * 2**30,
        "pci_bus_id": "00000000:29:00.0",
        "driver_version": "570.133.20",
        "device_file": "nvidia1",
        "simulated": False,
    }
    labels = next(key[1:] for key in agent.slow(1) if key[0] == "switchgear_gpu_info")
    assert dict(labels)["DCGM_FI_DEV_SERIAL"] == "1652023000001"
    assert dict(labels)["DCGM_FI_DEV_VBIOS_VERSION"] == "96.00.89.00.01"


def test_the_default_counters_of_dcgm_exporter_have_its_units(agent: NvmlAgent) -> None:
    agent.fast(1)  # GPM needs two samples
    values = {**agent.fast(1), **agent.slow(1)}
    used = 64 * 1024 + 1
    expected = {
        "DCGM_FI_DEV_SM_CLOCK": 1755,
        "DCGM_FI_DEV_MEM_CLOCK": 2619,
        "DCGM_FI_DEV_MEMORY_TEMP": 59,
        "DCGM_FI_DEV_GPU_TEMP": 46,
        "DCGM_FI_DEV_POWER_USAGE": 521.0,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 1_000_000_001,
        "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 0,
        "DCGM_FI_DEV_GPU_UTIL": 97,
        "DCGM_FI_DEV_MEM_COPY_UTIL": 41,
        "DCGM_FI_DEV_ENC_UTIL": 0,
        "DCGM_FI_DEV_DEC_UTIL": 0,
        "DCGM_FI_DEV_FB_FREE": 80 * 1024 - 512 - used,
        "DCGM_FI_DEV_FB_USED": used,
        "DCGM_FI_DEV_FB_RESERVED": 512,
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL": 18_000_001 + 36_000_001,
        "DCGM_FI_DEV_VGPU_LICENSE_STATUS": 0,
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": 0,
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS": 0,
        "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE": pytest.approx(0.97125),
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": pytest.approx(0.62125),
        "DCGM_FI_PROF_DRAM_ACTIVE": pytest.approx(0.38125),
        "DCGM_FI_PROF_PCIE_TX_BYTES": pytest.approx(1200.125 * 2**20),
        "DCGM_FI_PROF_PCIE_RX_BYTES": pytest.approx(2400.125 * 2**20),
    }
    assert {name: one(values, name) for name in expected} == expected


def test_everything_that_is_reported_is_in_the_table_of_metrics(node: Scenario, agent: NvmlAgent) -> None:
    node.mig(0, [(1, 0), (2, 0)])
    node.field(0, 206, 3, scope=5)
    agent.until(lambda: one(agent.slow(0), "DCGM_FI_DEV_MIG_MODE"), 1)
    values = {**agent.fast(0), **agent.fast(0), **agent.slow(0)}
    assert {key[0] for key in values} - set(METRICS) == set()


def test_a_field_that_the_driver_refuses_is_unknown_and_the_others_of_the_batch_go_on(
    node: Scenario, agent: NvmlAgent
) -> None:
    assert one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP") == 58
    node.field(0, 82, f"! {NO_PERMISSION}")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), "Insufficient Permissions")
    assert one(agent.fast(0), "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") == 1_000_000_000
    node.field(0, 82, 61, kind="uint")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), 61)


def test_a_field_may_change_its_type_and_all_bits_set_means_that_there_is_no_value(
    node: Scenario, agent: NvmlAgent
) -> None:
    assert one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP") == 58
    node.field(0, 82, 58.5, kind="double")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), 58.5)
    node.field(0, 82, -3, kind="sint")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), -3)
    node.field(0, 82, 2**32 - 1, kind="uint")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), "not available")


def test_what_a_gpu_does_not_have_is_asked_once_and_has_no_series(node: Scenario, tmp_path: Path) -> None:
    node.unsupport(0, "nvmlDeviceGetEncoderUtilization", "nvmlDeviceGetFanSpeed")
    node.remove(0, "fi.82")
    agent = NvmlAgent(node, tmp_path / "agent")
    values = [agent.fast(0) for _ in range(5)]
    agent.close()
    assert all(one(value, "DCGM_FI_DEV_ENC_UTIL") is None for value in values)
    assert one(values[4], "DCGM_FI_DEV_DEC_UTIL") == 0
    assert node.calls().of("nvmlDeviceGetEncoderUtilization", 0) == 1
    assert node.calls().of("field 82", 0) == 1
    assert node.calls().of("field 83", 0) == 5


def test_what_a_gpu_had_once_is_not_given_up_when_the_driver_refuses_it_later(node: Scenario, agent: NvmlAgent) -> None:
    assert one(agent.fast(0), "DCGM_FI_DEV_DEC_UTIL") == 0
    node.unsupport(0, "nvmlDeviceGetDecoderUtilization")
    node.field(0, 82, f"! {NOT_SUPPORTED}")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_DEC_UTIL"), "Not Supported")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), "Not Supported")
    node.remove(0, "error.nvmlDeviceGetDecoderUtilization")
    node.field(0, 82, 60, kind="uint")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_DEC_UTIL"), 0)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_MEMORY_TEMP"), 60)


def test_a_handle_that_is_void_is_looked_up_again_after_a_while(node: Scenario, agent: NvmlAgent) -> None:
    assert one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP") == 45
    node.fail(0, "nvmlDeviceGetUtilizationRates", INVALID_ARGUMENT)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP"), "Invalid Argument")
    node.remove(0, "error.nvmlDeviceGetUtilizationRates")
    agent.advance(31)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP"), 45)
    assert agent.told() == []


def test_a_byte_counter_of_32_bits_that_wraps_within_a_tick_is_left_out(node: Scenario, tmp_path: Path) -> None:
    node.field(0, 197, 5, kind="uint")
    node.field(0, 198, 2**40)
    agent = NvmlAgent(node, tmp_path / "agent")
    values = agent.fast(0)
    agent.close()
    assert one(values, "switchgear_gpu_pcie_transmit_bytes_total") is None
    assert one(values, "switchgear_gpu_pcie_receive_bytes_total") == 2**40


def test_one_call_a_tick_reads_all_fields(node: Scenario, agent: NvmlAgent) -> None:
    for _ in range(3):
        agent.fast(0)
    before = node.calls().of("nvmlDeviceGetFieldValues", 0)
    for _ in range(4):
        agent.fast(0)
    assert node.calls().of("nvmlDeviceGetFieldValues", 0) == before + 4


def test_an_older_library_is_read_by_its_older_functions(tmp_path: Path) -> None:
    node = scenario_or_skip(
        tmp_path / "nvml",
        gpus=1,
        without=[
            "nvmlDeviceGetTemperatureV",
            "nvmlDeviceGetMemoryInfo_v2",
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetFieldValues",
            "nvmlGpmQueryDeviceSupport",
            "nvmlDeviceGetGpuFabricInfoV",
        ],
    )
    agent = NvmlAgent(node, tmp_path / "agent")
    fast, slow = agent.fast(0), agent.slow(0)
    agent.close()
    assert one(fast, "DCGM_FI_DEV_GPU_TEMP") == 45
    assert one(fast, "DCGM_FI_DEV_FB_USED") == 64 * 1024 + 512  # the first struct counts what is reserved as used
    assert one(fast, "DCGM_FI_DEV_FB_RESERVED") is None
    assert one(fast, "DCGM_FI_DEV_CLOCKS_EVENT_REASONS") == 0
    assert one(fast, "DCGM_FI_PROF_GR_ENGINE_ACTIVE") is None
    assert one(slow, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION") == 1_000_000_000
    assert one(slow, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL") == 0
    assert one(slow, "DCGM_FI_DEV_ROW_REMAP_FAILURE") == 0


def test_a_driver_that_refuses_a_newer_struct_is_asked_with_the_older_one(node: Scenario, tmp_path: Path) -> None:
    node.put(-1, {"struct_max.nvmlDeviceGetMemoryInfo_v2": 0, "struct_max.nvmlDeviceGetGpuFabricInfoV": 1})
    agent = NvmlAgent(node, tmp_path / "agent")
    fast, slow = agent.fast(0), agent.slow(0)
    agent.close()
    assert one(fast, "DCGM_FI_DEV_FB_TOTAL") == 80 * 1024
    assert one(fast, "DCGM_FI_DEV_FB_RESERVED") is None
    assert one(slow, "switchgear_gpu_fabric_state") == 3


def test_a_lost_gpu_is_told_once_keeps_its_index_and_is_found_again(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(0)
    node.lose(0)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP"), "GPU is lost")
    assert set(agent.fast(0).values()) == {"GPU is lost"}
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46
    agent.advance(3)
    agent.until(agent.told, [("GPU_LOST", None, 0)])
    before = node.calls().on(0)
    agent.fast(0)
    assert node.calls().on(0) == before  # it is left alone for a while
    node.remove(0, "lost")

    def a_minute_later() -> object:
        agent.advance(60)  # each time: it may look before what the scenario says has arrived
        return one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP")

    agent.until(a_minute_later, 45)
    agent.until(agent.told, [("GPU_LOST", None, 0), ("GPU_RETURNED", None, 0)])


def test_a_restart_of_the_driver_costs_some_samples_and_no_index(node: Scenario, agent: NvmlAgent) -> None:
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46
    node.unload_driver()
    agent.until(lambda: isinstance(one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP"), str), True)
    agent.until(lambda: [kind for kind, _, _ in agent.told()], ["GPU_DRIVER_UNAVAILABLE"])
    node.restart_driver()
    agent.until(lambda: one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP"), 46)
    assert one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP") == 45
    assert [kind for kind, _, _ in agent.told()] == ["GPU_DRIVER_UNAVAILABLE", "GPU_DRIVER_AVAILABLE"]


def test_a_call_that_hangs_costs_its_own_gpu_only(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(0)
    node.hang(0, "nvmlDeviceGetPowerUsage")
    agent.until(lambda: agent.fast(0), {})
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46
    node.release(0, "nvmlDeviceGetPowerUsage")
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP"), 45)


def test_a_gpu_that_hangs_does_not_keep_the_driver_from_telling_of_others_when_one_more_is_lost(
    tmp_path: Path,
) -> None:
    three = scenario_or_skip(tmp_path / "three", gpus=3)
    agent = NvmlAgent(three, tmp_path / "agent")
    for gpu in range(3):
        agent.fast(gpu)
    three.hang(0)
    agent.until(lambda: agent.fast(0), {})
    three.lose(1)
    agent.until(lambda: one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP"), "GPU is lost")
    agent.until(lambda: len(agent.told_later()), 1)
    three.xid(2, 31)
    agent.until(lambda: agent.told_later()[1:], [("XID", 31, 2)])
    agent.close()


def test_a_driver_that_cannot_be_opened_again_because_a_call_hangs_is_told_and_so_is_its_return(
    node: Scenario, agent: NvmlAgent
) -> None:
    agent.fast(1)
    node.hang(0, "nvmlDeviceGetPowerUsage")
    agent.until(lambda: agent.fast(0), {})
    node.restart_driver()
    agent.until(agent.told, [("GPU_DRIVER_HANGS", None, None)])
    assert "GPU 0 hangs" in agent.ask("told")[0][3]
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == "the driver was restarted"
    node.release(0, "nvmlDeviceGetPowerUsage")
    agent.until(lambda: agent.told()[1:], [("GPU_DRIVER_AVAILABLE", None, None)])


def test_a_gpu_is_found_without_a_question_to_the_others_and_also_where_it_moved_to(
    node: Scenario, agent: NvmlAgent
) -> None:
    agent.fast(0)
    node.restart_driver()
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP"), 45)
    assert node.calls().of("nvmlDeviceGetHandleByUUID", SYSTEM) == 0
    node.set(0, pci="00000000:29:00.0")
    node.set(1, pci="00000000:18:00.0")
    node.restart_driver()
    agent.until(lambda: [one(agent.fast(gpu), "DCGM_FI_DEV_GPU_TEMP") for gpu in (0, 1)], [45, 46])
    assert node.calls().of("nvmlDeviceGetHandleByUUID", SYSTEM) > 0


def test_a_gpu_that_sleeps_is_not_touched(node: Scenario, agent: NvmlAgent, tmp_path: Path) -> None:
    agent.fast(1)
    status = tmp_path / "agent/sys/bus/pci/devices/0000:29:00.0/power/runtime_status"
    status.parent.mkdir(parents=True)
    status.write_text("suspended\n")
    before = node.calls().on(1)
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == "not sampled: suspended"
    agent.slow(1)
    assert agent.ask("processes", gpu=1) == []
    assert node.calls().on(1) == before
    status.write_text("active\n")
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46


def test_a_gpu_that_sleeps_when_the_agent_starts_is_watched_once_it_wakes(node: Scenario, tmp_path: Path) -> None:
    devices = tmp_path / "agent/sys/bus/pci/devices"
    for address, status in (("0000:18:00.0", "active"), ("0000:29:00.0", "suspended")):
        (devices / address / "power").mkdir(parents=True)
        for name, text in (("vendor", "0x10de"), ("class", "0x030200"), ("power/runtime_status", status)):
            (devices / address / name).write_text(f"{text}\n")
    agent = NvmlAgent(node, tmp_path / "agent")
    assert [device["index"] for device in agent.devices] == [0]
    assert one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP") == 45
    assert node.calls().on(1) == 0
    (devices / "0000:29:00.0/power/runtime_status").write_text("active\n")
    agent.until(agent.told, [("late", None, None)])
    agent.close()


def test_a_call_that_fails_makes_its_own_metrics_unknown(node: Scenario, agent: NvmlAgent) -> None:
    assert one(agent.fast(0), "DCGM_FI_DEV_POWER_USAGE") == 520.0
    node.fail(0, "nvmlDeviceGetPowerUsage", UNKNOWN)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_POWER_USAGE"), "Unknown Error")
    assert one(agent.fast(0), "DCGM_FI_DEV_GPU_TEMP") == 45


def test_nvlink5_counters_are_summed_and_a_link_with_errors_is_named(node: Scenario, tmp_path: Path) -> None:
    values = dict[str, float | str]()
    for link in range(18):
        values[f"fi.202.{link}"] = f"ull {1000 + link}"
        values[f"fi.206.{link}"] = f"ull {7 if link == 5 else 0}"
        values[f"fi.220.{link}"] = f"uint {0x500 + (12 if link == 3 else 15)}"
    node.put(0, {**values, "fi.165.9": "uint 0"})
    agent = NvmlAgent(node, tmp_path / "agent")
    read = agent.slow(0)
    agent.close()
    assert one(read, "DCGM_FI_DEV_NVLINK_COUNT_TX_BYTES") == 18 * 1000 + 153
    assert one(read, "DCGM_FI_DEV_NVLINK_COUNT_EFFECTIVE_BER_FLOAT") == pytest.approx(5e-12)
    assert one(read, "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS") == 7
    assert {key[1]: value for key, value in read.items() if key[0] == "switchgear_gpu_nvlink_errors_total"} == {
        ("nvlink", "5"): 7
    }
    assert one(read, "switchgear_gpu_nvlinks_active") == 17
    assert one(read, "DCGM_FI_DEV_NVLINK_BANDWIDTH_L0") == 1_000_000 + 2_000_000
    assert {key[1]: value for key, value in read.items() if key[0] == "switchgear_gpu_nvlink_up"} == {
        ("nvlink", "9"): 0
    }


def test_a_sum_over_links_is_unknown_and_not_less_while_a_link_does_not_answer(node: Scenario, tmp_path: Path) -> None:
    node.put(0, {f"fi.206.{link}": "ull 7" for link in range(18)})
    agent = NvmlAgent(node, tmp_path / "agent")
    malformed = "DCGM_FI_DEV_NVLINK_COUNT_RX_MALFORMED_PACKET_ERRORS"
    of_5 = ("switchgear_gpu_nvlink_errors_total", ("nvlink", "5"))
    agent.until(lambda: (one(agent.slow(0), malformed), agent.slow(0)[of_5]), (18 * 7, 7))
    node.field(0, 206, f"! {UNKNOWN}", scope=5)
    agent.until(lambda: (one(agent.slow(0), malformed), agent.slow(0)[of_5]), ("Unknown Error", "Unknown Error"))
    agent.close()


def test_reasons_for_lower_clocks_are_counted_as_dcgm_exporter_does(node: Scenario, agent: NvmlAgent) -> None:
    node.set(0, clock_events=0x40 | 0x8)
    agent.until(lambda: one(agent.fast(0), "DCGM_FI_DEV_CLOCKS_EVENT_REASONS"), 0x48)
    agent.fast(0)
    window = ("window_size_in_ms", "300000")
    values = agent.slow(0)
    assert values["DCGM_EXP_CLOCK_EVENTS_COUNT", ("clock_event", "hw_thermal"), window] == 2
    assert values["DCGM_EXP_CLOCK_EVENTS_COUNT", ("clock_event", "power_cap"), window] == 0


def test_processes_are_told_with_their_memory(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(0)
    node.set(0, processes="4711:1073741824 77:-", processes__mps="4711:1073741824")
    agent.until(lambda: agent.ask("processes", gpu=0), [[4711, None, 2**30], [77, None, None]])
    node.set(0, processes="4711:1073741824:9:0")
    agent.until(lambda: agent.ask("processes", gpu=0), [[4711, 9, 2**30], [4711, None, 2**30]])


def test_an_xid_of_the_driver_alone_is_told_when_the_log_stays_silent(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(1)
    node.xid(1, 94)
    agent.until(agent.told_later, [("XID", 94, 1)])
    counted = [
        ["DCGM_FI_DEV_XID_ERRORS", [], 94],
        ["DCGM_EXP_XID_ERRORS_COUNT", [["xid", "94"], ["window_size_in_ms", "300000"]], 1],
    ]
    assert agent.ask("xids", pci=PCI_1) == counted
    agent.advance(301)
    counted[1][2] = 0
    assert agent.ask("xids", pci=PCI_1) == counted


def test_what_the_driver_wants_done_is_told_once_and_when_it_is_done(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(1)
    node.xid(1, 4, event=RECOVERY_EVENT)
    node.field(1, 230, 4, kind="uint")
    agent.until(lambda: one(agent.fast(1), "switchgear_gpu_recovery_action"), 4)
    agent.until(agent.told_later, [("GPU_RECOVERY_ACTION", None, 1)])
    assert "DRAIN_AND_RESET" in agent.ask("told")[0][3]
    agent.advance(60)
    node.field(1, 230, 0, kind="uint")
    agent.until(lambda: one(agent.fast(1), "switchgear_gpu_recovery_action"), 0)
    agent.until(agent.told_later, [("GPU_RECOVERY_ACTION", None, 1)] * 2)


def test_a_gpu_that_falls_off_the_bus_is_one_event_of_three_sources(node: Scenario, agent: NvmlAgent) -> None:
    agent.fast(1)
    agent.ask("kernel_log", code=79, pci=PCI_1)
    node.xid(1, 79)
    node.lose(1)
    agent.until(lambda: one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP"), "GPU is lost")
    agent.advance(10)

    def told_of_another() -> object:
        node.xid(0, 31)  # again and again, since the driver keeps none while the set of events is made anew
        return agent.told_later()

    # Seen after the others, so that they are all through.
    agent.until(told_of_another, [("XID", 79, None), ("XID", 31, 0)])


def test_a_gpu_that_is_lost_from_the_start_leaves_the_others_their_index(node: Scenario, tmp_path: Path) -> None:
    node.fail(0, "nvmlDeviceGetHandleByIndex_v2", GPU_IS_LOST)
    agent = NvmlAgent(node, tmp_path / "agent")
    assert [device["index"] for device in agent.devices] == [1]
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46
    assert agent.told() == [("GPU_UNAVAILABLE", None, 0)]
    agent.close()


def test_a_gpu_that_hangs_when_the_agent_starts_hides_no_other_and_is_announced_when_it_answers(
    node: Scenario, tmp_path: Path
) -> None:
    node.hang(0)
    agent = NvmlAgent(node, tmp_path / "agent")
    assert [device["index"] for device in agent.devices] == [1]
    assert one(agent.fast(1), "DCGM_FI_DEV_GPU_TEMP") == 46
    assert agent.told() == [("SOURCE_STALLED", None, 0)]
    node.release(0)
    agent.until(agent.told, [("SOURCE_STALLED", None, 0), ("SOURCE_RESUMED", None, 0), ("late", None, None)])
    agent.close()


def test_an_agent_that_stops_while_a_gpu_hangs_ends_and_tells_nothing_of_it(node: Scenario, tmp_path: Path) -> None:
    node.hang(0)
    agent = NvmlAgent(node, tmp_path / "agent")
    assert agent.ask("stop")
    assert agent.told() == [("SOURCE_STALLED", None, 0)]
    agent.close()


def test_a_gpu_whose_name_nobody_understands_hides_no_other(node: Scenario, tmp_path: Path) -> None:
    with (node.folder / "scenario").open("ab") as file:
        file.write(b"0.name \xff\xfe\n")  # what pynvml cannot decode
    agent = NvmlAgent(node, tmp_path / "agent")
    assert [device["index"] for device in agent.devices] == [1]
    assert agent.told() == [("GPU_UNAVAILABLE", None, 0)]
    agent.close()


def test_gpus_that_are_kept_from_the_agents_container_are_no_fault(node: Scenario, tmp_path: Path) -> None:
    node.fail(0, "nvmlDeviceGetHandleByIndex_v2", NO_PERMISSION)
    agent = NvmlAgent(node, tmp_path / "agent")
    assert [device["index"] for device in agent.devices] == [1]
    assert agent.told() == []
    agent.close()


def test_gpus_of_a_driver_that_is_loaded_after_the_agent_started_are_announced(node: Scenario, tmp_path: Path) -> None:
    node.unload_driver()
    agent = NvmlAgent(node, tmp_path / "agent")
    assert agent.devices == []
    node.restart_driver()
    agent.until(agent.told, [("late", None, None)])
    agent.close()


def test_a_driver_that_hangs_while_it_is_opened_does_not_keep_the_agent_from_starting(
    node: Scenario, tmp_path: Path
) -> None:
    node.hang(SYSTEM, "nvmlInitWithFlags")
    agent = NvmlAgent(node, tmp_path / "agent", patience_s=0.2)
    assert agent.devices == []
    node.release(SYSTEM, "nvmlInitWithFlags")
    agent.until(agent.told, [("late", None, None)])
    agent.close()
