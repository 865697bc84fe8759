"""One fault is one event, whoever sees it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from switchgear.agent.events import Events, Finding
from switchgear.agent.fault_join import (
    GPU_LOST,
    GPU_RETURNED,
    LOST_WINDOW_S,
    REMEMBERED_MAX,
    WAIT_S,
    WINDOW_S,
    XID_OF,
    DriverJoin,
    FaultJoin,
)
from switchgear.agent.nvml.events import TYPES
from switchgear.agent.nvml.lifecycle import DRIVER_AVAILABLE, DRIVER_HANGS, DRIVER_UNAVAILABLE
from switchgear.agent.spool import Spool
from switchgear.agent.xids import WINDOW_S as XID_WINDOW_S
from switchgear.agent.xids import XidHistory
from switchgear.core.catalog.kinds import DRIVER_KINDS, KINDS
from switchgear.core.clock import ManualClock

GPU_0, GPU_1 = "0000:18:00", "0000:29:00"


def xid(code: int, pci: str = GPU_0, text: str = "NVRM: Xid") -> Finding:
    return Finding("XID", text, code=code, pci=pci)


def lost(pci: str = GPU_0) -> Finding:
    return Finding(GPU_LOST, "NVML: lost", pci=pci)


@pytest.fixture
def join() -> DriverJoin:
    return DriverJoin()


def due(join: DriverJoin, now_s: float) -> list[Finding]:
    return [finding for finding, _ in join.due(now_s)]


def test_the_line_of_the_log_is_told_and_the_drivers_event_of_it_is_not(join: DriverJoin) -> None:
    assert join.from_kernel(xid(48), 10.0)
    join.from_driver(xid(48), 10.4)
    assert due(join, 20.0) == []


def test_the_drivers_event_waits_for_the_line_of_the_log(join: DriverJoin) -> None:
    join.from_driver(xid(48), 10.0)
    assert due(join, 10.0 + WAIT_S - 0.1) == []
    assert join.from_kernel(xid(48), 10.5)
    assert due(join, 20.0) == []


def test_the_drivers_event_is_told_when_the_log_stays_silent_and_a_late_line_is_not(join: DriverJoin) -> None:
    join.from_driver(xid(48), 10.0)
    assert list(join.due(10.0 + WAIT_S)) == [(xid(48), 10.0)]
    assert not join.from_kernel(xid(48), 10.0 + WAIT_S + 1)
    assert join.from_kernel(xid(48), 10.0 + WAIT_S + 2)  # another one, for each event swallows one line


def test_gpus_that_the_driver_names_by_their_index_alone_are_told_each(join: DriverJoin) -> None:
    found = [Finding("GPU_UNAVAILABLE", "NVML: no", gpu=index) for index in (0, 1, 1)]
    for finding in found:
        join.from_driver(finding, 10.0)
    assert due(join, 10.0) == found[:2]


def test_faults_of_other_gpus_other_codes_and_other_times_are_other_faults(join: DriverJoin) -> None:
    assert join.from_kernel(xid(48), 10.0)
    join.from_driver(xid(48, GPU_1), 10.0)
    join.from_driver(xid(63), 10.0)
    join.from_driver(xid(48), 10.0 + WINDOW_S + 1)
    assert due(join, 30.0) == [xid(48, GPU_1), xid(63), xid(48)]


def test_a_line_from_before_the_agent_started_is_not_joined_with_what_happens_now(join: DriverJoin) -> None:
    join.from_driver(xid(31), 1000.0)
    assert join.from_kernel(xid(31), 10.0)
    assert due(join, 1000.0 + WAIT_S) == [xid(31)]


def test_a_storm_of_one_event_is_told_once(join: DriverJoin) -> None:
    for hundredth in range(100):
        join.from_driver(xid(45), hundredth / 100)
    assert due(join, 10.0) == [xid(45)]


@pytest.mark.parametrize("first", [xid(79), Finding("GPU_FALLEN_OFF_BUS", "", pci=GPU_0)])
def test_a_gpu_off_the_bus_is_one_fault_in_all_its_forms(join: DriverJoin, first: Finding) -> None:
    assert join.from_kernel(first, 10.0)
    join.from_driver(xid(79), 10.1)
    join.from_driver(lost(), 10.0 + LOST_WINDOW_S - 1)
    assert due(join, 10.0 + LOST_WINDOW_S + 10) == []


def test_a_gpu_that_returned_and_is_lost_again_is_a_new_fault(join: DriverJoin) -> None:
    assert join.from_kernel(xid(79), 10.0)
    join.mended(GPU_0)
    join.from_driver(lost(), 60.0)
    assert due(join, 60.0 + WAIT_S) == [lost()]


@pytest.mark.parametrize(
    ("kind", "code"), [("ECC_DOUBLE_BIT", 48), ("GPU_POISON_FATAL", 95), ("GPU_RECOVERY_ACTION", 154)]
)
def test_what_the_driver_names_in_its_own_way_is_the_xid_of_the_log(join: DriverJoin, kind: str, code: int) -> None:
    line = "NVRM: Xid (PCI:0000:18:00): 154, GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)"
    assert join.from_kernel(xid(code, text=line), 10.0)
    join.from_driver(Finding(kind, "", pci=GPU_0, detail={"action": "NODE_REBOOT"}), 10.0)
    assert due(join, 20.0) == []


def test_what_the_driver_wants_done_is_told_each_time_that_it_changes_also_at_once(join: DriverJoin) -> None:
    wanted = [Finding("GPU_RECOVERY_ACTION", "", pci=GPU_0, detail={"action": name}) for name in ("GPU_RESET", "NONE")]
    for at_s in (10.0, 10.2):  # by an event and by a field value
        for finding in wanted:
            join.from_driver(finding, at_s)
    assert due(join, 20.0) == wanted
    for finding in wanted:
        join.from_driver(finding, 11.0)
    assert due(join, 20.0) == []


def test_a_clock_that_is_set_back_holds_up_no_event(join: DriverJoin) -> None:
    join.from_driver(xid(48), 3600.0)
    assert due(join, 10.0) == [xid(48)]


def test_what_the_log_cannot_have_is_told_at_once_and_passes_by(join: DriverJoin) -> None:
    unavailable = Finding("GPU_DRIVER_UNAVAILABLE", "no driver")
    join.from_driver(unavailable, 10.0)
    assert due(join, 10.0) == [unavailable]
    assert join.from_kernel(Finding("OOM_KILL", "Out of memory"), 10.0)


def test_where_there_is_no_log_nothing_waits() -> None:
    join = DriverJoin(wait_s=0)
    join.from_driver(xid(48), 10.0)
    assert due(join, 10.0) == [xid(48)]


def test_what_is_remembered_is_bounded(join: DriverJoin) -> None:
    for code in range(3 * REMEMBERED_MAX):
        join.from_kernel(xid(code), 10.0)
        join.from_driver(xid(code, GPU_1), 10.0)
    assert len(due(join, 20.0)) == REMEMBERED_MAX
    join.from_driver(xid(0), 10.0)  # forgotten
    assert due(join, 20.0) == [xid(0)]


def test_a_line_that_is_no_news_moves_the_cursor_all_the_same(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = Spool(tmp_path / "spool", "boot")
    events = Events(spool, {GPU_0: 0}, clock, lambda: None, simulated=False)
    told = list[tuple[str, int | None]]()
    events.observe(lambda finding: told.append((finding.kind, finding.code)))
    faults = FaultJoin(events, clock, log_source="kernel_log", kernel_log=True)
    faults.tell(xid(48))
    faults.close()
    assert told == [("XID", 48)]
    events.tell("kernel_log", xid(48), cursor="7")
    events.tell("links", Finding("LINK_DOWN", "mlx5_0 port 1"))
    assert told == [("XID", 48), ("LINK_DOWN", None)]
    assert events.cursor("kernel_log") == "7"
    spool.close()


def test_xids_are_counted_within_dcgm_exporters_window() -> None:
    clock = ManualClock()
    history = XidHistory(clock)
    assert list(history.values(GPU_0)) == [("DCGM_FI_DEV_XID_ERRORS", (), 0.0)]
    for finding in (xid(31), xid(31), lost(), Finding("LINK_DOWN", ""), xid(94, GPU_1)):
        history.observe(finding)
    window = ("window_size_in_ms", "300000")
    assert list(history.values(GPU_0)) == [
        ("DCGM_FI_DEV_XID_ERRORS", (), 79.0),
        ("DCGM_EXP_XID_ERRORS_COUNT", (("xid", "31"), window), 2.0),
        ("DCGM_EXP_XID_ERRORS_COUNT", (("xid", "79"), window), 1.0),
    ]
    clock.advance(XID_WINDOW_S + 1)
    history.observe(xid(31))
    assert list(history.values(GPU_0)) == [
        ("DCGM_FI_DEV_XID_ERRORS", (), 31.0),
        ("DCGM_EXP_XID_ERRORS_COUNT", (("xid", "31"), window), 1.0),
        ("DCGM_EXP_XID_ERRORS_COUNT", (("xid", "79"), window), 0.0),
    ]


def test_every_kind_that_the_driver_tells_is_in_the_catalog_and_nothing_else() -> None:
    told = {type_.kind for type_ in TYPES} | {
        GPU_LOST,
        GPU_RETURNED,
        DRIVER_UNAVAILABLE,
        DRIVER_AVAILABLE,
        DRIVER_HANGS,
    }
    assert set(DRIVER_KINDS) == told - set(KINDS)
    assert set(XID_OF) <= told | set(KINDS)
