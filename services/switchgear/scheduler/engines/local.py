"""The engine of an installation without Slurm, Kubernetes or Ray: node agents start the launchers.

Commands are idempotent and are derived anew from what is wanted and what the agent last reported, so a lost command, a killed
agent and a restarted scheduler all mend with the next heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import grpc.aio

from switchgear.core import identity, names
from switchgear.core.clock import Clock
from switchgear.core.errors import AlreadyExists, Invalid, Reason, ResourceExhausted
from switchgear.core.service import Endpoints
from switchgear.core.warm import WarmKind
from switchgear.scheduler import translate
from switchgear.scheduler.model import Inventory, LauncherRef, NodeStatus, Observation, Wanted, WantedLauncher
from switchgear.scheduler.nodes import NODES_MAX, SILENCE_LIMIT_S
from switchgear.v1alpha import node_agent_service_pb2 as pb
from switchgear.v1alpha import node_agent_service_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

#: A launcher that ends by itself is started again after this, doubled with each end up to the maximum. The first delay lets the
#: end of a job arrive before its launcher would be started once more; no end of a job kills it by a signal, so there is none then.
RESTART_DELAY_S = 0.5
RESTART_DELAY_S_MAX = 30.0
#: A launcher that has run for so long starts its count of ends anew.
STABLE_S = 60.0
#: Then the node is taken at its word: it cannot start this launcher.
START_FAILURES_MAX = 3


@dataclass(slots=True)
class _Trouble:
    """Ends and failed starts of a launcher that should run."""

    ends: int = 0
    start_failures: int = 0
    retry_at_s: float = 0.0
    message: str = ""

    def wait(self, now_s: float, *, killed: bool = False) -> None:
        count = self.ends + self.start_failures
        delay_s = min(RESTART_DELAY_S * 2 ** min(count - 1, 10), RESTART_DELAY_S_MAX)
        self.retry_at_s = now_s if killed and count == 1 else now_s + delay_s


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """A connected agent. Two are never equal."""

    peer_host: str


@dataclass(slots=True)
class _Node:
    inventory: Inventory
    heard_s: float
    heard_unix_ns: int
    #: The one that speaks for the node; None when there is none.
    stream: _Stream | None = None
    #: Process of the agent that spoke last.
    instance_id: str = ""
    launchers: frozenset[LauncherRef] = frozenset()
    trouble: dict[LauncherRef, _Trouble] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class LocalEngine(pb_grpc.NodeAgentServiceServicer):
    """Serves `NodeAgentService`.

    changed: called whenever `observe` would answer something new, except for silence, which only time brings.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None], *, nodes_max: int = NODES_MAX) -> None:
        self._clock = clock
        self._changed = changed
        self._nodes_max = nodes_max
        self._start_s = clock.monotonic_s()
        self._nodes: dict[str, _Node] = {}
        self._wanted: Mapping[str, Wanted] | None = None
        self._warm: Mapping[str, Sequence[WarmKind]] = {}
        self._recovery_address = ""

    async def run(self, endpoints: Endpoints) -> None:
        """From now on launchers are started."""
        self._recovery_address = endpoints.recovery
        self._wake_all()
        await asyncio.Event().wait()

    def observe(self) -> Observation:
        now_s = self._clock.monotonic_s()
        return Observation(
            tuple((name, self._status(node, now_s)) for name, node in sorted(self._nodes.items())),
            complete=now_s - self._start_s > SILENCE_LIMIT_S,
        )

    def last_heard(self) -> Mapping[str, int]:
        return {name: node.heard_unix_ns for name, node in self._nodes.items() if node.stream is not None}

    def want(self, wanted: Mapping[str, Wanted], warm: Mapping[str, Sequence[WarmKind]]) -> None:
        if wanted == self._wanted and warm == self._warm:
            return
        self._wanted, self._warm = wanted, warm
        for name, node in self._nodes.items():
            run = {launcher.ref for launcher in wanted.get(name, Wanted()).run}
            node.trouble = {ref: trouble for ref, trouble in node.trouble.items() if ref in run}
        self._wake_all()

    async def Connect(
        self,
        request_iterator: AsyncIterator[pb.NodeAgentReport],
        context: grpc.aio.ServicerContext[pb.NodeAgentReport, pb.NodeAgentCommand],
    ) -> AsyncIterator[pb.NodeAgentCommand]:
        reports = aiter(request_iterator)
        first = await anext(reports, None)
        if first is None or first.WhichOneof("kind") != "hello":
            raise Invalid("the first report must be a hello", Reason.STREAM_PROTOCOL)
        name = first.hello.node.name
        names.parse(name, "nodes/*")
        identity.require_node(name)  # every later hello must name the same node
        if name not in self._nodes and len(self._nodes) >= self._nodes_max:
            self._forget_silent()
        self._refuse_second(name, first.hello.instance_id)
        stream = _Stream(translate.peer_host(context.peer()))
        self._take(name, stream, first)
        node = self._nodes[name]
        log.info("agent connected", extra={"node": name, "launchers": len(node.launchers)})
        reader = asyncio.create_task(self._read(name, stream, reports))
        reader.add_done_callback(lambda _: node.wake.set())
        told_warm: Sequence[WarmKind] | None = None
        try:
            while not reader.done() and node.stream is stream:
                node.wake.clear()
                for command in self._commands(name, node):
                    yield command
                warm = self._warm.get(name, ())
                if self._wanted is not None and warm != told_warm:
                    told_warm = warm
                    yield translate.keep_warm(warm)
                await self._next_wake(node)
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if node.stream is stream:
                node.stream = None
                self._changed()
            log.info("agent disconnected", extra={"node": name})

    def _forget_silent(self) -> None:
        """Makes room: a node that is not seen at all is judged like one that is silent."""
        now_s = self._clock.monotonic_s()
        silent = [n for n, node in self._nodes.items() if node.stream is None and self._status(node, now_s).silent]
        if not silent:
            raise ResourceExhausted(
                f"{self._nodes_max} nodes are connected already, which is the limit; run another scheduler for more",
                Reason.LIMIT_EXCEEDED,
            )
        for name in silent:
            del self._nodes[name]
        self._changed()

    def _refuse_second(self, name: str, instance_id: str) -> None:
        """Two agents of one name would end each other's launchers, each at the command that is meant for the other."""
        node = self._nodes.get(name)
        if node is None or node.stream is None or node.instance_id == instance_id:
            return
        if self._clock.monotonic_s() - node.heard_s <= SILENCE_LIMIT_S:
            raise AlreadyExists(
                f"another agent speaks for {name}; stop it, or give this one an id of its own with --node",
                Reason.ALREADY_EXISTS,
                name=name,
            )

    async def _read(self, name: str, stream: _Stream, reports: AsyncIterator[pb.NodeAgentReport]) -> None:
        async for report in reports:
            if self._nodes[name].stream is not stream:
                return  # the agent has connected anew: what comes here is older
            self._take(name, stream, report)
            self._nodes[name].wake.set()

    async def _next_wake(self, node: _Node) -> None:
        """Until something has happened, or a launcher may be tried again."""
        now_s = self._clock.monotonic_s()
        due = [trouble.retry_at_s - now_s for trouble in node.trouble.values() if trouble.retry_at_s > now_s]
        try:
            async with asyncio.timeout(min(due, default=None)):
                await node.wake.wait()
        except TimeoutError:
            pass

    def _take(self, name: str, stream: _Stream, report: pb.NodeAgentReport) -> None:
        now_s = self._clock.monotonic_s()
        node = self._nodes.get(name)
        before = None if node is None else self._status(node, now_s)
        if report.WhichOneof("kind") == "hello":
            if report.hello.node.name != name:
                raise Invalid(f"this stream speaks for {name}; open another one", Reason.STREAM_PROTOCOL)
            inventory = translate.inventory_from_proto(report.hello.node)
            if not translate.metrics_are_its_own(inventory, stream.peer_host):
                log.warning(
                    "metrics that are not on the agent's own node are left out; give it --metrics with the host of its --address",
                    extra={"node": name, "metrics": inventory.metrics_address, "peer": stream.peer_host},
                )
                inventory = replace(inventory, metrics_address="")
            if node is None:
                node = self._nodes[name] = _Node(inventory, now_s, self._clock.unix_ns())
            if node.stream is not stream:
                node.wake.set()  # an older stream sees that it is no longer the node's
            node.inventory, node.stream, node.instance_id = inventory, stream, report.hello.instance_id
        elif node is None:
            return
        match report.WhichOneof("kind"):
            case "hello":
                self._running(node, report.hello.launchers, now_s)
            case "heartbeat":
                self._running(node, report.heartbeat.launchers, now_s)
            case "launcher_exited":
                exited = report.launcher_exited
                ref = LauncherRef(exited.job, exited.placement_epoch)
                self._ended(name, node, ref, now_s, killed=exited.exit_code < 0)
            case "launcher_failed":
                failed = report.launcher_failed
                self._failed(name, node, LauncherRef(failed.job, failed.placement_epoch), failed.message, now_s)
        node.heard_s, node.heard_unix_ns = now_s, self._clock.unix_ns()
        if self._status(node, now_s) != before:
            self._changed()

    def _running(self, node: _Node, launchers: Iterable[pb.RunningLauncher], now_s: float) -> None:
        node.launchers = frozenset(LauncherRef(launcher.job, launcher.placement_epoch) for launcher in launchers)
        for ref in node.launchers & node.trouble.keys():
            node.trouble[ref].start_failures = 0
            if now_s - node.trouble[ref].retry_at_s > STABLE_S:
                del node.trouble[ref]

    def _ended(self, name: str, node: _Node, ref: LauncherRef, now_s: float, *, killed: bool) -> None:
        node.launchers -= {ref}
        if any(launcher.ref == ref for launcher in self._run_on(name)):
            trouble = node.trouble.setdefault(ref, _Trouble())
            trouble.ends += 1
            trouble.wait(now_s, killed=killed)
            log.warning("launcher ended", extra={"node": name, "job": ref.job, "ends": trouble.ends})

    def _failed(self, name: str, node: _Node, ref: LauncherRef, message: str, now_s: float) -> None:
        node.launchers -= {ref}
        if any(launcher.ref == ref for launcher in self._run_on(name)):
            trouble = node.trouble.setdefault(ref, _Trouble())
            trouble.start_failures += 1
            trouble.message = translate.clean(message, 1000)
            trouble.wait(now_s)
            log.warning("launcher could not be started", extra={"node": name, "job": ref.job, "error": trouble.message})

    def _run_on(self, name: str) -> tuple[WantedLauncher, ...]:
        return (self._wanted or {}).get(name, Wanted()).run

    def _commands(self, name: str, node: _Node) -> list[pb.NodeAgentCommand]:
        if self._wanted is None or not self._recovery_address:
            return []  # not knowing what is wanted is not the same as wanting nothing
        wanted = self._wanted.get(name, Wanted())
        now_s = self._clock.monotonic_s()
        run = {launcher.ref: launcher for launcher in wanted.run}
        starts = {
            ref.job: launcher
            for ref, launcher in run.items()
            if ref not in node.launchers and ((trouble := node.trouble.get(ref)) is None or trouble.retry_at_s <= now_s)
        }
        stops = sorted(
            ref
            for ref in node.launchers
            if ref not in run and ref not in wanted.leave and ref.job not in {wanted_ref.job for wanted_ref in run}
        )
        return [
            *(
                pb.NodeAgentCommand(stop_launcher=pb.StopLauncher(job=ref.job, placement_epoch=ref.epoch))
                for ref in stops
            ),
            *(translate.start_launcher(launcher, self._recovery_address) for launcher in starts.values()),
        ]

    @staticmethod
    def _status(node: _Node, now_s: float) -> NodeStatus:
        return NodeStatus(
            node.inventory,
            connected=node.stream is not None,
            silent=now_s - node.heard_s > SILENCE_LIMIT_S,
            launchers=node.launchers,
            unstartable=tuple(
                (ref, trouble.message)
                for ref, trouble in node.trouble.items()
                if trouble.start_failures >= START_FAILURES_MAX
            ),
        )

    def _wake_all(self) -> None:
        for node in self._nodes.values():
            node.wake.set()
