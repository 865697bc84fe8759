"""What each XID asks for."""

from __future__ import annotations

import pytest

from switchgear.collector.detectors import Silence, signals_of, silence_signal
from switchgear.collector.model import Event, Severity
from switchgear.core.catalog import Verdict, judge_xid


@pytest.mark.parametrize(
    ("code", "action", "severity"),
    [
        (13, "RESTART_APP", Severity.WARNING),
        (31, "RESTART_APP", Severity.WARNING),
        (45, "WORKFLOW_XID_45", Severity.WARNING),
        (48, "RESET_GPU", Severity.FATAL),
        (63, "IGNORE", Severity.INFO),
        (64, "RESET_GPU", Severity.FATAL),
        (74, "WORKFLOW_NVLINK_ERR", Severity.FATAL),
        (79, "RESTART_BM", Severity.FATAL),
        (94, "RESTART_APP", Severity.WARNING),
        (95, "RESET_GPU", Severity.FATAL),
        (109, "RESET_GPU", Severity.FATAL),
        (119, "RESET_GPU", Severity.FATAL),
        (142, "CONTACT_SUPPORT", Severity.WARNING),
        (151, "RESTART_VM", Severity.FATAL),
        (108, "IGNORE", Severity.WARNING),
        (162, "IGNORE", Severity.INFO),
        (171, "IGNORE", Severity.INFO),
        (173, "RESTART_BM", Severity.FATAL),
        (9999, "CONTACT_SUPPORT", Severity.WARNING),
    ],
)
def test_the_catalogs_action_decides_how_bad_a_code_is(code: int, action: str, severity: Severity) -> None:
    assert judge_xid(code) == Verdict(action, severity)


def test_nvlink5_lines_say_themselves_whether_they_are_fatal() -> None:
    assert judge_xid(149, "NETIR_LINK_EVT Fatal XC0 i0 Link 14").severity is Severity.FATAL
    assert judge_xid(149, "NETIR_BER_EVENT Nonfatal XC0 i0 Link 01").severity is Severity.WARNING


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("from 0x0 (None) to 0x1 (Drain and Reset)", Verdict("RESET_GPU", Severity.FATAL)),
        ("from 0x0 (None) to 0x2 (OS Reboot)", Verdict("RESTART_BM", Severity.FATAL)),
        ("from 0x1 (GPU Reset Required) to 0x0 (None)", Verdict("NONE", Severity.INFO)),
        ("from 0x0 (None) to 0x4 (whatever)", Verdict("DRAIN_AND_RESET", Severity.WARNING)),
        ("from 0x0 (None) to 0x99 (new)", Verdict("XID_154", Severity.WARNING)),
        ("", Verdict("XID_154", Severity.WARNING)),
    ],
)
def test_xid_154_is_decided_by_its_code_and_not_by_its_words(change: str, expected: Verdict) -> None:
    assert judge_xid(154, f"GPU recovery action changed {change}") == expected


def event(kind: str, code: int | None = None, gpu: int | None = 3, **detail: str) -> Event:
    return Event("nodes/n1", "boot", "kernel_log", 1, 5, kind, gpu, code, "the line", simulated=True, detail=detail)


def test_xid_79_is_a_lost_gpu_with_the_line_as_evidence() -> None:
    (signal,) = signals_of(event("XID", 79))
    assert (signal.kind, signal.severity, signal.gpu, signal.evidence) == ("GPU_LOST", Severity.FATAL, 3, "the line")
    assert signal.simulated


def test_a_lost_gpu_has_one_name_however_it_is_told() -> None:
    told = [event("XID", 79), event("GPU_FALLEN_OFF_BUS", 79), event("GPU_LOST")]
    assert [(signal.kind, signal.severity) for each in told for signal in signals_of(each)] == [
        ("GPU_LOST", Severity.FATAL)
    ] * 3


def test_a_line_may_say_that_it_is_worse_or_better_than_its_kind_mostly_is() -> None:
    told = [event("PCIE_AER_UNCORRECTABLE", level="FATAL"), event("GHES_HARDWARE_ERROR", level="INFO")]
    assert [signals_of(each)[0].severity for each in told] == [Severity.FATAL, Severity.INFO]
    assert signals_of(event("MCE", level="nonsense"))[0].severity is Severity.WARNING


def test_a_recovery_action_is_judged_by_what_the_driver_wants() -> None:
    (signal,) = signals_of(event("GPU_RECOVERY_ACTION", action="NODE_REBOOT"))
    assert (signal.severity, signal.action) == (Severity.FATAL, "RESTART_BM")


def test_nvlink5_is_judged_by_what_the_agent_decoded() -> None:
    (signal,) = signals_of(event("XID", 145, action="RESET_GPU"))
    assert (signal.severity, signal.action) == (Severity.FATAL, "RESET_GPU")


def test_a_channel_that_was_removed_asks_for_nothing_when_its_cause_was_told() -> None:
    assert judge_xid(45, "Ch 00000001 caused by previous Xid 149") == Verdict("IGNORE", Severity.INFO)


def test_the_same_event_always_raises_the_same_signal() -> None:
    assert signals_of(event("XID", 79)) == signals_of(event("XID", 79))


@pytest.mark.parametrize(
    ("kind", "severity"),
    [
        ("SXID", Severity.WARNING),
        ("SXID_FATAL", Severity.FATAL),
        ("SOURCE_STALLED", Severity.WARNING),
        ("KERNEL_PANIC", Severity.FATAL),
        ("OOM", Severity.WARNING),
        ("NFS_SERVER_RECOVERED", Severity.INFO),
        ("NIC_LOST", Severity.FATAL),
        ("GPU_POISON_FATAL", Severity.FATAL),
    ],
)
def test_other_events_raise_signals_too(kind: str, severity: Severity) -> None:
    assert [signal.severity for signal in signals_of(event(kind))] == [severity]


def test_an_event_of_a_kind_to_come_raises_nothing() -> None:
    assert signals_of(event("SOMETHING_NEW")) == []
    assert signals_of(event("XID", None)) == []


def test_silence_is_due_after_its_time_until_it_has_been_told_or_broken() -> None:
    silence = Silence(10)
    silence.gone("nodes/a", 100)
    silence.gone("nodes/b", 105)
    silence.gone("nodes/a", 109)  # still the same silence
    assert silence.due(110) == []
    assert silence.due(111) == [("nodes/a", 11)]
    assert silence.due(112) == [("nodes/a", 12)]  # not told yet
    silence.heard("nodes/a")
    silence.heard("nodes/b")
    assert silence.due(999) == []


def test_a_silence_that_begins_while_the_one_before_is_told_is_told_too() -> None:
    silence = Silence(10)
    silence.gone("nodes/a", 100)
    assert silence.due(111) == [("nodes/a", 11)]
    silence.heard("nodes/a")
    silence.gone("nodes/a", 112)
    silence.told("nodes/a", 111)
    assert silence.due(123) == [("nodes/a", 11)]
    silence.told("nodes/a", 123)
    assert silence.due(999) == []


def test_silence_warns_and_takes_nothing_out_of_service() -> None:
    signal = silence_signal("nodes/a", 12.3, 5)
    assert (signal.kind, signal.severity, signal.gpu) == ("NODE_SILENT", Severity.WARNING, None)
    assert "12 s" in signal.evidence
