"""When what is open on a node opens and ends, and the verdict that follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from switchgear.collector import health
from switchgear.collector.detectors import signals_of, silence_signal
from switchgear.collector.health import CONDITIONS_MAX, NodeHealth, NodeVerdict
from switchgear.collector.model import Event
from switchgear.core.catalog import AGENT_KINDS, COLLECTOR_KINDS, DRIVER_KINDS, KINDS, NODE_HEARD, NODE_KINDS, Severity
from switchgear.core.catalog.ends import end_of
from switchgear.core.catalog.table import rows

S = 1_000_000_000
NODE = "nodes/gpu-01"
NEW = NodeHealth(NODE, boot_id="boot-1", epoch="epoch-1")


def event(kind: str, code: int | None = None, at_s: float = 0, **fields: Any) -> Event:
    defaults: dict[str, Any] = {
        "boot_id": "boot-1.spool",
        "source": "kernel_log",
        "text": f"{kind} {code}",
        "gpu": None,
    }
    return Event(
        NODE, sequence=1, time_unix_ns=round(at_s * S), kind=kind, code=code, simulated=False, **(defaults | fields)
    )


def after(start: NodeHealth, *events: Event, now_s: float = 0) -> NodeHealth:
    for one in events:
        for signal in signals_of(one):
            start = health.told(start, one, signal, round(now_s * S) or one.time_unix_ns)
    return start


def kinds(found: NodeHealth) -> list[str]:
    return [one.text for one in found.conditions]


LINK = {"detail": {"link": "mlx5_0/1"}, "pci": "0000:01:00"}
GPU = {"gpu": 3, "pci": "0000:41:00"}


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (event("LINK_DOWN", **LINK), event("LINK_UP", **LINK)),
        (event("LINK_FLAPPING", **LINK), event("LINK_STABLE", **LINK)),
        (event("LINK_DOWN", **LINK), event("LINK_UNWATCHED", **LINK)),
        (event("NIC_LOST", **LINK), event("NIC_FOUND", **LINK)),
        (event("MOUNT_HANGS", detail={"mountpoint": "/data", "device": "a"}), event("MOUNT_ANSWERS", detail={"mountpoint": "/data"})),
        (event("SOURCE_STALLED", text="gpu3 did not answer", gpu=3), event("SOURCE_RESUMED", text="gpu3 answers again", gpu=3)),
        (event("XID", 79, **GPU), event("GPU_RETURNED", **GPU)),
        (event("XID", 79, gpu=None, pci="0000:41:00"), event("GPU_RETURNED", **GPU)),
        (event("XID", 48, **GPU), event("GPU_RECOVERY_ACTION", **GPU, detail={"action": "NONE"})),
        (event("XID", 154, **GPU, text="changed from 0x0 to 0x1"), event("XID", 154, **GPU, text="changed from 0x1 to 0x0")),
        (
            event("GPU_POISON_FATAL", **GPU, detail={"uuid": "GPU-1"}),
            event("GPU_RESET_ACK", detail={"device": "GPU-1"}, text="GPU reset executed: GPU-1, success: true"),
        ),
        (event("GPU_DRIVER_UNAVAILABLE"), event("GPU_DRIVER_AVAILABLE")),
        (event("CLOCK_SKEW", source="collector"), event("CLOCK_RIGHT", source="collector")),
        (event("NFS_SERVER_NOT_RESPONDING", detail={"device": "nas"}), event("NFS_SERVER_RECOVERED", detail={"device": "nas"})),
    ],
)  # fmt: skip
def test_what_is_told_to_be_over_is_over(fault: Event, end: Event) -> None:
    broken = after(NEW, fault)
    assert broken.verdict in (NodeVerdict.FAILED, NodeVerdict.DEGRADED)
    assert after(broken, end).verdict is NodeVerdict.HEALTHY
    other = {name: value if name == "action" else "other" for name, value in end.detail.items()}
    elsewhere = replace(end, gpu=5 if fault.gpu is not None else None, pci="0000:99:00", detail=other)
    if fault.detail or fault.pci:
        assert after(broken, elsewhere).conditions == broken.conditions


def test_the_same_fault_again_is_counted_and_another_is_another() -> None:
    found = after(NEW, event("XID", 48, 1, gpu=0), event("XID", 48, 5, gpu=0), event("XID", 48, 2, gpu=1))
    assert [(one.subject.gpu, one.count, one.begin_unix_ns // S, one.newest_unix_ns // S) for one in found.conditions] == [
        (0, 2, 1, 5),
        (1, 1, 2, 2),
    ]  # fmt: skip


def test_a_fault_that_is_told_again_with_less_to_name_its_gpu_is_of_the_same_gpu() -> None:
    named = event("XID", 48, gpu=3, pci="0000:41:00", detail={"uuid": "GPU-1"})
    found = after(NEW, named, event("XID", 48, pci="0000:41:00"))
    assert [(one.text, one.count) for one in found.conditions] == [("XID 48 on GPU 3", 2)]
    assert after(found, event("GPU_RESET_ACK", detail={"device": "GPU-1"})).conditions == ()
    assert health.cleared(found, 3, "user:ann says: x", S).conditions == ()


def test_a_fault_that_is_fatal_outweighs_silence_and_that_a_warning() -> None:
    warned = after(NEW, event("XID", 31, gpu=0))
    silent = health.silent(warned, silence_signal(NODE, 11, 2 * S), 2 * S)
    failed = after(silent, event("XID", 79, 3, gpu=1))
    assert [one.verdict for one in (NEW, warned, silent, failed)] == ["HEALTHY", "DEGRADED", "SILENT", "FAILED"]
    assert kinds(failed) == ["GPU_LOST 79 on GPU 1", "NODE_SILENT", "XID 31 on GPU 0"]
    heard = health.heard(failed, "boot-1.spool", "epoch-1", 9 * S)
    assert (heard.verdict, heard.since_unix_ns) == (NodeVerdict.FAILED, 3 * S)
    assert kinds(heard) == ["GPU_LOST 79 on GPU 1", "XID 31 on GPU 0"]


def test_a_boot_ends_what_a_boot_mends_and_a_new_agent_what_it_looks_at_anew() -> None:
    broken = after(
        NEW,
        event("XID", 79, gpu=1),
        event("LINK_DOWN", **LINK),
        event("SOURCE_STALLED", text="nvml did not answer"),
        event("EDAC_UE"),
    )
    anew = health.heard(broken, "boot-1.another-spool", "epoch-2", S)
    assert sorted(kinds(anew)) == ["EDAC_UE", "GPU_LOST 79 on GPU 1", "LINK_DOWN on mlx5_0/1"]
    booted = health.heard(broken, "boot-2.spool", "epoch-2", S)
    assert sorted(kinds(booted)) == ["EDAC_UE", "LINK_DOWN on mlx5_0/1"]
    assert "booted" in booted.change


def test_what_an_agent_kept_from_before_the_boot_is_over() -> None:
    booted = health.heard(NEW, "boot-2.spool", "epoch-2", S)
    assert after(booted, event("XID", 79, gpu=1)) is booted
    assert after(booted, event("LINK_DOWN", **LINK)).verdict is NodeVerdict.DEGRADED


def test_quiet_is_counted_from_the_event_and_not_from_its_coming() -> None:
    found = after(NEW, event("XID", 31, 100, gpu=0), now_s=400)
    assert found.expires_unix_ns == 700 * S
    assert health.passed(found, 699 * S) is found
    assert health.passed(found, 700 * S).verdict is NodeVerdict.HEALTHY
    ahead = after(NEW, event("XID", 31, 9000, gpu=0), now_s=400)  # the node's clock
    assert ahead.expires_unix_ns == 1000 * S


def test_a_restart_of_the_collector_ends_only_what_it_measures_itself() -> None:
    found = after(NEW, event("CLOCK_SKEW", source="collector"), event("XID", 79, gpu=1))
    assert kinds(health.restarted(found, S)) == ["GPU_LOST 79 on GPU 1"]


def test_an_operator_clears_everything_but_silence() -> None:
    found = after(health.silent(NEW, silence_signal(NODE, 11, S), S), event("XID", 79, gpu=1), event("EDAC_UE"))
    assert kinds(health.cleared(found, 1, "user:ann says: x", S)) == ["NODE_SILENT", "EDAC_UE"]
    assert kinds(health.cleared(found, None, "user:ann says: x", S)) == ["NODE_SILENT"]
    assert health.cleared(found, 7, "user:ann says: x", S) is found


def test_a_node_that_was_forgotten_is_listed_again_when_it_is_heard() -> None:
    gone = health.forgotten(health.silent(NEW, silence_signal(NODE, 11, S), S), 9 * S)
    assert (gone.verdict, gone.conditions) == (NodeVerdict.FORGOTTEN, ())
    back = health.heard(gone, "boot-1.spool", "epoch-1", 10 * S)
    assert (back.verdict, back.since_unix_ns) == (NodeVerdict.HEALTHY, 10 * S)


def test_of_too_many_the_mildest_and_oldest_go() -> None:
    found = after(NEW, event("XID", 79, gpu=0), *(event("EDAC_UE", at_s=n, pci=f"{n}") for n in range(1, 100)))
    assert len(found.conditions) == CONDITIONS_MAX
    assert found.verdict is NodeVerdict.FAILED
    assert found.conditions[-1].newest_unix_ns == (100 - CONDITIONS_MAX + 1) * S


def test_every_end_in_the_table_is_a_kind_that_is_told_and_every_row_has_a_reason() -> None:
    known = {NODE_HEARD, "NODE_SILENT", "GPU_LOST", *KINDS, *NODE_KINDS, *DRIVER_KINDS, *AGENT_KINDS, *COLLECTOR_KINDS}
    for row in rows("ends"):
        assert {row["kind"] or "XID", *filter(None, row["ended_by"].split("/"))} <= known, row
        assert row["why"], row


def test_every_fault_ends_somehow() -> None:
    for kind in (*KINDS, *NODE_KINDS, *DRIVER_KINDS, *AGENT_KINDS):
        for severity in (Severity.WARNING, Severity.FATAL):
            end = end_of(kind, None, "", severity)
            assert end.ended_by or end.until or end.quiet_s
