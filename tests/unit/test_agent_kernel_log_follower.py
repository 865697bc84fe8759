"""The kernel log into the spool: each fault once, also over restarts of the agent."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from switchgear.agent.events import Events
from switchgear.agent.kernel_log_follower import MOVE_S, SOURCE, KernelLogFollower
from switchgear.agent.sources.log_reader import KernelRing, TextLog
from switchgear.agent.spool import Spool
from switchgear.core.clock import ManualClock

XID = "[{at}.0] NVRM: Xid (PCI:0000:3b:00): {code}, pid={pid}, name=train, whatever"


class Node:
    """One node's log and the agent that follows it, which may be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clock = ManualClock()
        self.log = folder / "kern.log"
        self.log.touch()
        self.start()

    def start(self) -> None:
        self.spool = Spool(self._folder / "spool", "boot")
        events = Events(self.spool, {"0000:3b:00": 3}, self.clock, lambda: None, simulated=False)
        self._follower = KernelLogFollower(TextLog(self.log, events.cursor(SOURCE), from_end=True), events, self.clock)

    def restart(self) -> None:
        self.spool.close()
        self.start()

    def happen(self, *lines: str, after_s: float = 0.0) -> None:
        """Lines are logged, and read; time passes; what is due is told."""
        with self.log.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
        self._follower.poll()
        self.clock.advance(after_s)
        self._follower.poll()

    def told(self) -> list[tuple[str, int | None, int | None]]:
        return [(event.kind, event.code, event.gpu) for _, event in self.spool.pending(0, 100)]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_line_is_an_event_of_the_gpu_that_it_names(node: Node) -> None:
    node.happen(XID.format(at=1, code=31, pid=5), "[1.1] nothing", "[2.0] eth0: Link is Up")
    assert node.told() == [("XID", 31, 3)]
    _, event = node.spool.pending(0, 1)[0]
    assert event.detail["process"] == "train"


def test_a_restart_replays_nothing(node: Node) -> None:
    node.happen(XID.format(at=1, code=31, pid=5))
    node.restart()
    node.happen(XID.format(at=9, code=13, pid=6))
    assert node.told() == [("XID", 31, 3), ("XID", 13, 3)]


def test_where_reading_goes_on_is_kept_without_events_too(node: Node) -> None:
    node.happen("[1.0] a line that is none", after_s=MOVE_S)
    assert node.spool.cursor(SOURCE) == f"{node.log.stat().st_ino}:{node.log.stat().st_size}"


def test_what_happens_while_a_fresh_agent_is_away_is_told_when_it_is_back(node: Node) -> None:
    node.happen(after_s=MOVE_S)
    with node.log.open("a") as file:
        file.write(XID.format(at=9, code=79, pid=6) + "\n")
    node.restart()
    node.happen()
    assert node.told() == [("XID", 79, 3)]


def test_a_block_that_is_open_when_the_agent_dies_is_read_again_and_told_once(node: Node) -> None:
    node.happen("[5.0] train invoked oom-killer: gfp_mask=0x100cca, order=0", "[5.0] Mem-Info:")
    assert node.told() == []  # who is killed is still to come
    node.restart()
    node.happen("[5.1] Out of memory: Killed process 77 (train) total-vm:1kB, anon-rss:1kB")
    assert node.told() == [("OOM", None, None)]


def test_an_event_before_an_open_block_does_not_move_the_log_past_it(node: Node) -> None:
    node.happen(XID.format(at=4, code=31, pid=5), "[5.0] train invoked oom-killer: gfp_mask=0x100cca, order=0")
    node.restart()
    node.happen(after_s=2.0)
    assert node.told() == [("XID", 31, 3), ("OOM_START", None, None)]


def test_a_block_is_told_when_nothing_more_comes(node: Node) -> None:
    node.happen("[7.0] INFO: task train:88 blocked for more than 122 seconds.")
    assert node.told() == []
    node.happen(after_s=2.0)
    assert node.told() == [("TASK_BLOCKED_TOO_LONG", None, None)]


def test_a_storm_is_told_once_a_second_with_its_count(node: Node) -> None:
    storm = [XID.format(at=f"{second}", code=45, pid=n) for second in (1, 2, 3) for n in range(3000)]
    node.happen(*storm, after_s=5.0)
    counts = [event.detail.get("count") for _, event in node.spool.pending(0, 100)]
    assert counts == [None, "3000", "3000", "2999"]


def test_a_ring_is_waited_for_and_left_at_once(tmp_path: Path) -> None:
    """Nothing wakes the thread in between: its next look is `MOVE_S` away."""
    ring = tmp_path / "kmsg"
    os.mkfifo(ring)
    kernel = os.open(ring, os.O_RDWR)
    told = threading.Event()
    spool = Spool(tmp_path / "spool", "boot")
    events = Events(spool, {}, ManualClock(), told.set, simulated=False)
    follower = KernelLogFollower(KernelRing("boot", "boot:0", ring), events, ManualClock())
    thread = threading.Thread(target=follower.run)
    thread.start()
    os.write(kernel, b"4,1,1000000,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=5, name=train, whatever\n")
    assert told.wait(MOVE_S / 2)
    follower.close()
    thread.join(MOVE_S / 2)
    assert not thread.is_alive()
    os.close(kernel)
    spool.close()
