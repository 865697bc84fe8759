"""The scheduler, its engine and the nodes' agents in virtual time: placements, cordons, launchers that are kept running."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from simworld.kernel import Kernel
from simworld.launcher import SimLauncher, SimNode

from switchgear.recovery import model as m

UNREACHABLE_S = 10.0
AGENT_S = (0.1, 0.5)
RESTART_S = (0.5, 2.0)
PASS_S = 0.5


class Refused(Exception):
    """Answered with ABORTED or FAILED_PRECONDITION: the world has moved on."""


@dataclass(eq=False)
class SimScheduler:
    """One job on some of the nodes. changed: called with each change of the job."""

    kernel: Kernel
    nodes: dict[str, SimNode]
    job: str
    nnodes: int
    nnodes_min: int
    launch: Callable[[SimNode, int], SimLauncher]
    changed: Callable[[], None] = lambda: None
    state: str = "PENDING"
    message: str = ""
    epoch: int = 0
    placement: tuple[m.Slot, ...] = ()
    cordoned: set[str] = field(default_factory=set)
    excluded: set[str] = field(default_factory=set)
    unreachable: set[str] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    #: Calls fail until then.
    away_until_s: float = 0.0
    _silent_since_s: dict[str, float] = field(default_factory=dict)
    _starting: set[str] = field(default_factory=set)

    @property
    def ended(self) -> bool:
        return self.state in {"SUCCEEDED", "FAILED", "CANCELLED"}

    def run(self) -> None:
        """One pass after another, for ever."""
        self._judge_nodes()
        if self.state == "PENDING":
            self._place()
        for node in self.nodes.values():
            self._reconcile(node)
        self.kernel.after(PASS_S, self.run)

    def call(self, call: m.Call) -> None:
        """Raises Refused. Idempotent by the call's id."""
        if call.call_id in self.answered:
            return
        self.kernel.note(f"scheduler  {describe(call)}")
        match call.kind:
            case "set_state":
                assert call.outcome is not None
                if self.ended and call.outcome.value != self.state:
                    raise Refused(f"the job has ended as {self.state}")
                if self.state not in {"PENDING", "PREEMPTED"} or call.outcome.value in {"SUCCEEDED", "FAILED"}:
                    self._move(call.outcome.value, call.reason)
            case "cordon":
                self.cordoned.add(call.node)
            case "replace":
                if self.ended:
                    raise Refused(f"the job has ended as {self.state}")
                if call.epoch != self.epoch:
                    raise Refused(f"the placement is epoch {self.epoch}")
                if self.state == "PREEMPTED":
                    self.placement = ()
                    self._move("PENDING", "it has left its nodes")
                else:
                    self.excluded |= {node for node in call.node.split(",") if node}
                    self._place()
        if call.kind != "set_state":
            self.answered.add(call.call_id)

    def cancel(self) -> None:
        if not self.ended:
            self._move("CANCELLED", "cancelled by user")

    def preempt(self) -> None:
        """Others are to have its nodes; it gets some again as soon as they are free."""
        if self.placement and not self.ended and self.state != "PREEMPTED":
            self.kernel.note("scheduler  the job is to leave its nodes")
            self._move("PREEMPTED", "for jobs/k")

    def uncordon(self, node: str) -> None:
        """The node has been repaired."""
        self.cordoned.discard(node)
        self.excluded.discard(node)

    def _move(self, state: str, message: str) -> None:
        self.state, self.message = state, message
        self.changed()

    def _healthy(self, name: str) -> bool:
        return name not in self.cordoned | self.excluded | self.unreachable

    def _place(self) -> None:
        kept = {slot.node: slot for slot in self.placement if self._healthy(slot.node)}
        free = [
            name
            for name, node in self.nodes.items()
            if name not in kept and self._healthy(name) and node.launcher is None and node.link.up and node.alive
        ]
        names = [slot.node if slot.node in kept else None for slot in self.placement] or [None] * self.nnodes
        names += [None] * (self.nnodes - len(names))
        if len(kept) + len(free) < self.nnodes_min:
            if self.placement or self.state != "PENDING":
                self.kernel.note("scheduler  no free node: the job waits")
                self.placement = ()
                self._move("PENDING", "no free node")
            return
        self.epoch += 1
        seats = [name for seat in names if (name := seat or (free.pop(0) if free else None))]
        self.placement = tuple(kept.get(name) or m.Slot(name, name.split("/")[-1], self.epoch) for name in seats)
        self.excluded.clear()
        self.kernel.note(f"scheduler  placement {self.epoch} on {', '.join(seats)}")
        self._move("STARTING" if self.state == "PENDING" else self.state, f"placed on {', '.join(seats)}")

    def _judge_nodes(self) -> None:
        for name, node in self.nodes.items():
            if node.alive and node.link.up:
                self._silent_since_s.pop(name, None)
                if name in self.unreachable:
                    self.unreachable.discard(name)
                    self.excluded.discard(name)
            elif self.kernel.now_s - self._silent_since_s.setdefault(name, self.kernel.now_s) > UNREACHABLE_S:
                self.unreachable.add(name)

    # What the engine and the node's agent do.

    def _reconcile(self, node: SimNode) -> None:
        if not node.alive or not node.link.up:
            return
        slot = next((slot for slot in self.placement if slot.node == node.name), None)
        wanted = None if slot is None or self.ended else slot.launcher_epoch
        launcher = node.launcher
        if launcher and launcher.epoch != wanted:
            launcher.close()
        elif launcher is None and wanted is not None and node.name not in self._starting:
            self._starting.add(node.name)
            delay_s = self.kernel.between(*(RESTART_S if node.launchers_started else AGENT_S))
            self.kernel.after(delay_s, lambda: self._start(node, wanted))

    def _start(self, node: SimNode, epoch: int) -> None:
        self._starting.discard(node.name)
        still = any(slot.node == node.name and slot.launcher_epoch == epoch for slot in self.placement)
        if node.alive and node.launcher is None and still and not self.ended:
            node.launcher = self.launch(node, epoch)


def describe(call: m.Call) -> str:
    match call.kind:
        case "set_state":
            return f"job {call.outcome}: {call.reason}"
        case "cordon":
            return f"cordon {call.node}: {call.reason}"
        case _:
            return f"replace {call.node or 'nothing'} of placement {call.epoch}"
