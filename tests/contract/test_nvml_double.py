"""The unmodified pynvml on the double: what a real driver does to its callers, each thing once.

The library is loaded by a process of its own, since the loader's path counts only before a process starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_double.fixtures import run_python, scenario_or_skip
from nvml_double.scenario import SYSTEM, Scenario

BEGIN = """
import pynvml as n
from pynvml import *
nvmlInit()
gpus = [nvmlDeviceGetHandleByIndex(i) for i in range(nvmlDeviceGetCount())]
def code(call, *arguments):
    try:
        call(*arguments)
        return 0
    except NVMLError as error:
        return type(error).__name__.removeprefix('NVMLError_')
"""


@pytest.fixture
def node(tmp_path: Path) -> Scenario:
    return scenario_or_skip(tmp_path / "nvml")


class Session:
    """A process with pynvml and the double, that answers one expression at a time."""

    def __init__(self, scenario: Scenario) -> None:
        loop = BEGIN + "import sys\nprint(flush=True)\nfor line in sys.stdin:\n    print(repr(eval(line)), flush=True)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", loop],
            env=scenario.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()  # pynvml has begun

    def send(self, expression: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        self.send(expression)
        return self.answer()

    def until(self, expression: str, expected: str) -> None:
        """Asks until a change of the scenario has arrived."""
        for _ in range(400):
            if (last := self.ask(f"__import__('time').sleep(0.005) or {expression}")) == expected:
                return
        raise AssertionError(f"{expression} is still {last}, not {expected}")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def session(node: Scenario) -> Iterator[Session]:
    session = Session(node)
    yield session
    session.close()


def test_a_gpu_is_found_by_index_uuid_serial_and_any_spelling_of_its_pci_address(node: Scenario) -> None:
    told = json.loads(
        run_python(
            node,
            BEGIN
            + """
import json
gpu = gpus[5]
uuid, pci = nvmlDeviceGetUUID(gpu), nvmlDeviceGetPciInfo(gpu)
same = [nvmlDeviceGetHandleByUUID(uuid), nvmlDeviceGetHandleByPciBusId('0:6d:0.0'), nvmlDeviceGetHandleByPciBusId(pci.busId)]
print(json.dumps({'count': len(gpus), 'name': nvmlDeviceGetName(gpu), 'pci': pci.busId, 'old': pci.busIdLegacy,
                  'minor': nvmlDeviceGetMinorNumber(gpu), 'same': [nvmlDeviceGetIndex(one) for one in same],
                  'driver': nvmlSystemGetDriverVersion(), 'none': code(nvmlDeviceGetHandleByIndex, 8)}))
""",
        )
    )
    assert told == {
        "count": 8,
        "name": "NVIDIA H100 80GB HBM3",
        "pci": "00000000:6D:00.0",
        "old": "0000:6D:00.0",
        "minor": 5,
        "same": [5, 5, 5],
        "driver": "570.133.20",
        "none": "InvalidArgument",
    }


def test_the_first_memory_struct_counts_what_is_reserved_as_used_and_the_second_tells_it_apart(
    session: Session,
) -> None:
    assert session.ask("(lambda one: one.total - one.used - one.free)(nvmlDeviceGetMemoryInfo(gpus[0]))") == "0"
    second = "(lambda two: (two.reserved, two.total - two.used - two.free))"
    assert session.ask(second + "(nvmlDeviceGetMemoryInfo(gpus[0], version=nvmlMemory_v2))") == str((2**29, 2**29))


def test_field_values_come_in_one_call_each_with_its_own_type_and_answer(node: Scenario) -> None:
    node.set(0, fi__138__3="ull 18446744073709551615", fi__193="sint -5", fi__308="double 45.25", fi__150="! 15")
    node.remove(0, "fi.82")
    assert run_python(
        node,
        BEGIN
        + """
values = nvmlDeviceGetFieldValues(gpus[0], [82, (138, 3), 193, 308, 150, 9999])
print([value.nvmlReturn for value in values])
print(values[1].value.ullVal, values[2].value.siVal, values[3].value.dVal, [value.valueType for value in values[1:4]])
""",
    ).splitlines() == ["[3, 0, 0, 0, 15, 3]", "18446744073709551615 -5 45.25 [3, 5, 0]"]


def test_a_struct_of_a_version_that_the_driver_does_not_know_is_refused(node: Scenario, session: Session) -> None:
    fabric = "code(nvmlDeviceGetGpuFabricInfoV, gpus[0], byref({}()))"
    assert session.ask(fabric.format("c_nvmlGpuFabricInfo_v3_t")) == "0"
    node.put(SYSTEM, {"struct_max.nvmlDeviceGetGpuFabricInfoV": 1, "struct_max.nvmlDeviceGetMemoryInfo_v2": 0})
    session.until(fabric.format("c_nvmlGpuFabricInfo_v3_t"), "'ArgumentVersionMismatch'")
    assert session.ask(fabric.format("c_nvmlGpuFabricInfo_v2_t")) == "0"
    assert session.ask("code(lambda: nvmlDeviceGetMemoryInfo(gpus[0], version=nvmlMemory_v2))") == (
        "'ArgumentVersionMismatch'"
    )


def test_a_function_that_an_older_library_lacks_is_not_found_and_one_that_a_gpu_lacks_is_not_supported(
    tmp_path: Path,
) -> None:
    node = scenario_or_skip(tmp_path, without=["nvmlDeviceGetFieldValues", "nvmlGpmQueryDeviceSupport"])
    node.unsupport(1, "nvmlDeviceGetPowerUsage")
    said = run_python(
        node,
        BEGIN
        + """
print(code(nvmlDeviceGetFieldValues, gpus[0], [82]), code(nvmlGpmQueryDeviceSupport, gpus[0]),
      code(nvmlDeviceGetPowerUsage, gpus[1]), code(nvmlDeviceGetPowerUsage, gpus[0]), code(nvmlDeviceGetGpcClkVfOffset, gpus[0]))
""",
    )
    assert said.split() == ["FunctionNotFound", "FunctionNotFound", "NotSupported", "0", "NotSupported"]


def test_a_lost_gpu_says_so_in_every_call_and_the_others_answer(node: Scenario, session: Session) -> None:
    node.lose(3)
    session.until("code(nvmlDeviceGetPowerUsage, gpus[3])", "'GpuIsLost'")
    assert session.ask("[code(call, gpus[3]) for call in (nvmlDeviceGetName, nvmlDeviceGetFanSpeed)]") == (
        "['GpuIsLost', 'GpuIsLost']"
    )
    assert session.ask("code(nvmlDeviceGetHandleByIndex, 3)") == "'GpuIsLost'"
    assert session.ask("code(nvmlDeviceGetPowerUsage, gpus[2]), nvmlDeviceGetCount()") == "(0, 8)"


def test_a_call_that_hangs_holds_up_no_other_gpu_and_ends_when_it_is_released(node: Scenario, session: Session) -> None:
    session.ask("exec('import threading, time; hung = []')")
    node.hang(2, "nvmlDeviceGetPowerUsage")
    session.ask("__import__('time').sleep(0.1)")
    start = "threading.Thread(target=lambda: hung.append(nvmlDeviceGetPowerUsage(gpus[2])), daemon=True).start()"
    session.ask(start)
    assert (
        session.ask("[code(nvmlDeviceGetPowerUsage, gpu) for gpu in gpus[:2] + gpus[3:]], hung") == f"({[0] * 7}, [])"
    )
    assert session.ask("nvmlDeviceGetTemperature(gpus[2], 0), hung") == "(47, [])"
    node.release(2, "nvmlDeviceGetPowerUsage")
    session.until("len(hung)", "1")


def test_an_xid_wakes_who_waits_for_events_of_its_gpu_and_a_wait_without_one_times_out(
    node: Scenario, session: Session
) -> None:
    node.xid(4, 31)
    session.ask("exec('events = nvmlEventSetCreate()')")
    assert session.ask("nvmlDeviceGetSupportedEventTypes(gpus[4]) & nvmlEventTypeXidCriticalError") == "8"
    session.ask("nvmlDeviceRegisterEvents(gpus[4], nvmlEventTypeXidCriticalError, events)")
    assert session.ask("code(nvmlEventSetWait_v2, events, 1)") == "'Timeout'", "the event of before is not seen"
    session.send(
        "(lambda e: (nvmlDeviceGetIndex(e.device), e.eventType, e.eventData))(nvmlEventSetWait_v2(events, 20000))"
    )
    node.xid(5, 13)  # nobody registered for it
    node.xid(4, 79)
    assert session.answer() == "(4, 8, 79)"
    session.send("code(nvmlEventSetWait_v2, events, 20000)")
    node.lose(4)
    assert session.answer() == "'GpuIsLost'"


def test_after_a_restart_of_the_driver_old_handles_are_dead_until_init(node: Scenario, session: Session) -> None:
    node.unload_driver()
    session.until("code(nvmlDeviceGetPowerUsage, gpus[0])", "'DriverNotLoaded'")
    assert session.ask("code(nvmlInit)") == "'DriverNotLoaded'"
    node.restart_driver()
    session.until("code(nvmlDeviceGetPowerUsage, gpus[0])", "'Uninitialized'")
    assert session.ask("code(nvmlInit), code(nvmlDeviceGetPowerUsage, gpus[0])") == "(0, 'InvalidArgument')"
    assert session.ask("code(nvmlDeviceGetPowerUsage, nvmlDeviceGetHandleByIndex(0))") == "0"


def test_a_divided_gpu_has_mig_devices_with_memory_and_processes_of_their_own(node: Scenario) -> None:
    node.mig(1, [(7, 0), (9, 0)])
    node.put(1, {"mig.1.processes": "4242:1073741824:9:0"})
    assert run_python(
        node,
        BEGIN
        + """
print(nvmlDeviceGetMigMode(gpus[1]), nvmlDeviceGetMigMode(gpus[0]), nvmlDeviceGetMaxMigDeviceCount(gpus[1]))
print(code(nvmlDeviceGetMigDeviceHandleByIndex, gpus[1], 2), code(nvmlDeviceGetMigDeviceHandleByIndex, gpus[0], 0))
mig = nvmlDeviceGetMigDeviceHandleByIndex(gpus[1], 1)
print(nvmlDeviceGetGpuInstanceId(mig), nvmlDeviceGetMemoryInfo(mig).total >> 30, code(nvmlDeviceGetPowerUsage, mig))
print([(one.pid, one.gpuInstanceId) for one in nvmlDeviceGetComputeRunningProcesses(mig)])
print(nvmlDeviceGetIndex(nvmlDeviceGetDeviceHandleFromMigDeviceHandle(mig)), nvmlDeviceGetAttributes_v2(mig).memorySizeMB)
""",
    ).splitlines() == ["[1, 1] [0, 0] 7", "NotFound NotFound", "9 10 NotSupported", "[(4242, 9)]", "1 9728"]


def test_gpm_gives_rates_between_two_samples_and_none_without_time_between_them(node: Scenario) -> None:
    node.set(1, gpm__supported=0)
    assert run_python(
        node,
        BEGIN
        + """
print(nvmlGpmQueryDeviceSupport(gpus[0]).isSupportedDevice, nvmlGpmQueryDeviceSupport(gpus[1]).isSupportedDevice)
first, second = nvmlGpmSampleAlloc(), nvmlGpmSampleAlloc()
get = c_nvmlGpmMetricsGet_t()
get.version, get.numMetrics, get.sample1, get.sample2 = NVML_GPM_METRICS_GET_VERSION, 2, first, second
get.metrics[0].metricId, get.metrics[1].metricId = NVML_GPM_METRIC_SM_UTIL, 400
print(code(nvmlGpmMetricsGet, get), code(nvmlGpmSampleGet, gpus[1], first))
nvmlGpmSampleGet(gpus[0], first)
__import__('time').sleep(0.002)
nvmlGpmSampleGet(gpus[0], second)
nvmlGpmMetricsGet(get)
print(get.metrics[0].nvmlReturn, get.metrics[0].value, get.metrics[1].nvmlReturn)
get.sample1, get.sample2 = second, first
nvmlGpmMetricsGet(get)
print(get.metrics[0].nvmlReturn == NVML_ERROR_NO_DATA, code(nvmlGpmSampleFree, first))
""",
    ).splitlines() == ["1 0", "InvalidArgument NotSupported", "0 91.0 3", "True 0"]


def test_errors_links_and_limits_are_told_as_a_healthy_h100_tells_them(node: Scenario) -> None:
    node.put(0, {"ecc.1.0": 2, "ecc.1.0.2": 2, "remapped.uncorrected": 1, "remapped.pending": 1, "retired.1": 3})
    assert run_python(
        node,
        BEGIN
        + """
gpu = gpus[0]
print(nvmlDeviceGetTotalEccErrors(gpu, 1, 0), nvmlDeviceGetMemoryErrorCounter(gpu, 1, 0, 2), nvmlDeviceGetEccMode(gpu))
print(nvmlDeviceGetRemappedRows(gpu), nvmlDeviceGetRowRemapperHistogram(gpu).max, len(nvmlDeviceGetRetiredPages(gpu, 1)))
sram = c_nvmlEccSramErrorStatus_v1_t()
nvmlDeviceGetSramEccErrorStatus(gpu, byref(sram))
print(sram.volatileUncParity, sram.bThresholdExceeded, nvmlDeviceGetViolationStatus(gpu, 0).violationTime)
print([nvmlDeviceGetNvLinkState(gpu, link) for link in (0, 17)], code(nvmlDeviceGetNvLinkState, gpu, 18))
print(nvmlDeviceGetNvLinkErrorCounter(gpu, 3, 0), nvmlDeviceGetNvLinkRemotePciInfo(gpu, 3).busId)
print(nvmlDeviceGetP2PStatus(gpu, gpus[1], 2), nvmlDeviceGetTemperatureThreshold(gpu, 0), nvmlDeviceGetMarginTemperature(gpu))
print(nvmlDeviceGetEnforcedPowerLimit(gpu), nvmlDeviceGetCurrPcieLinkGeneration(gpu), nvmlDeviceGetCurrPcieLinkWidth(gpu))
print(nvmlDeviceGetCurrentClocksEventReasons(gpu), nvmlDeviceGetPersistenceMode(gpu), nvmlDeviceGetMaxClockInfo(gpu, 1))
""",
    ).splitlines() == [
        "2 2 [1, 1]",
        "(0, 1, 1, 0) 2560 3",
        "0 0 0",
        "[1, 1] NotSupported",
        "0 00000000:08:00.0",
        "0 92 42",
        "700000 5 16",
        "0 1 1980",
    ]


def test_memory_of_a_process_that_the_driver_does_not_tell_is_none_and_no_samples_raise_success(node: Scenario) -> None:
    node.set(0, processes="4242:1073741824 77:-", process_utilization="4242:81:40:0:0")
    assert run_python(
        node,
        BEGIN
        + """
print([(one.pid, one.usedGpuMemory) for one in nvmlDeviceGetComputeRunningProcesses(gpus[0])])
print([(one.pid, one.smUtil) for one in nvmlDeviceGetProcessUtilization(gpus[0], 0)])
try:
    nvmlDeviceGetProcessUtilization(gpus[1], 0)
except NVMLError as none:
    print(none.value)
""",
    ).splitlines() == ["[(4242, 1073741824), (77, None)]", "[(4242, 81)]", "0"]


def test_values_move_by_themselves_and_counters_never_go_back(tmp_path: Path) -> None:
    node = scenario_or_skip(tmp_path, 1, moving=True)
    energy, powers = json.loads(
        run_python(
            node,
            BEGIN
            + """
import json, time
seen = [(time.sleep(0.01), nvmlDeviceGetTotalEnergyConsumption(gpus[0]), nvmlDeviceGetPowerUsage(gpus[0])) for _ in range(20)]
print(json.dumps([[one[1] for one in seen], [one[2] for one in seen]]))
""",
        )
    )
    assert energy == sorted(set(energy))
    assert all(470_000 <= power <= 650_000 for power in powers)


def test_calls_are_counted_by_function_field_and_gpu(node: Scenario) -> None:
    run_python(
        node,
        BEGIN
        + "nvmlDeviceGetFieldValues(gpus[6], [82, 83, 82]); nvmlDeviceGetName(gpus[6]); code(nvmlDeviceGetFanSpeed, gpus[6])",
    )
    calls = node.calls()
    asked = [
        calls.of(name, 6) for name in ("nvmlDeviceGetFieldValues", "field 82", "field 83", "nvmlDeviceGetFanSpeed")
    ]
    assert asked == [1, 2, 1, 1]
    assert (calls.of("nvmlDeviceGetName", 5), calls.of("nvmlDeviceGetCount_v2", SYSTEM)) == (0, 1)
    assert calls.on(6) == calls.on(5) + 3


def test_threads_read_whole_scenarios_while_it_changes(node: Scenario, session: Session) -> None:
    """Two fields are always written with the same value, and a batch never has them from two scenarios."""
    for index in range(8):
        node.put(index, {"fi.83": "ull 0", "fi.191": "ull 0"})
    session.until("{nvmlDeviceGetFieldValues(gpu, [83])[0].value.ullVal for gpu in gpus}", "{0}")
    session.ask("exec('import threading; wrong, reads, over = [], [0] * 3, threading.Event()')")
    session.ask(
        "exec('''def read(i):\\n"
        "    while not over.is_set():\\n"
        "        energy = {one.value.ullVal for one in nvmlDeviceGetFieldValues(gpus[i], [83, 191] * 20)}\\n"
        "        reads[i] += 1; over.wait(0.0005)\\n"
        "        if len(energy) != 1:\\n"
        "            wrong.append((i, energy))\\n''')"
    )
    session.ask("[threading.Thread(target=read, args=(i,), daemon=True).start() for i in range(3)]")
    for step in (1, 2):
        node.put(step, {"fi.83": f"ull {step}", "fi.191": f"ull {step}"})
        session.until(f"nvmlDeviceGetFieldValues(gpus[{step}], [191])[0].value.ullVal", str(step))
    assert session.ask("over.set() or (wrong, min(reads) > 10)") == "([], True)"


def test_a_call_may_be_slow(node: Scenario) -> None:
    node.put(0, {"delay_ms.nvmlDeviceGetName": 60})
    took = run_python(
        node,
        BEGIN + "import time; begun = time.monotonic(); nvmlDeviceGetName(gpus[0]); print(time.monotonic() - begun)",
    )
    assert float(took) >= 0.06


def test_a_line_that_is_no_line_of_a_scenario_is_told_and_there_is_no_driver(node: Scenario) -> None:
    (node.folder / "scenario").write_text("0.power_mw\n")
    ended = subprocess.run(
        [sys.executable, "-c", BEGIN], env=node.environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert "line 1 of the scenario, `0.power_mw`, is not `[GPU.]key value`" in ended.stderr
    assert "DriverNotLoaded" in ended.stderr
