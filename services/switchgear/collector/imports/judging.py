"""What imported series mean for their nodes: faults go the way of an agent's events, silence that of an agent's silence."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from switchgear.collector.event_writer import EventWriter
from switchgear.collector.imports import rules, store
from switchgear.collector.imports.metrics import ImportMetrics
from switchgear.collector.imports.presence import Presence
from switchgear.collector.imports.rules import Baseline, Finding
from switchgear.collector.imports.store import Origin
from switchgear.collector.model import Event
from switchgear.collector.series import SeriesKey
from switchgear.core.clock import Clock
from switchgear.store.database import Database

log = logging.getLogger(__name__)

#: An agent that streamed so lately has told what a slow exporter shows only now,
FAULT_NS = 60 * 1_000_000_000
#: and its own silence is that of its node.
SILENCE_NS = 600 * 1_000_000_000
#: After a restart of the collector the sources of all nodes have so long to speak up again.
RESTART_S = 300.0
#: Nodes and sources that are remembered; when there are more after a restart, the silent ones are forgotten.
ORIGINS_MAX = 20_000
_TICK_S = 1.0
_SAVED_AT_ONCE = 500


class Agents(Protocol):
    """What judging asks of the collector of agents."""

    def streams(self, node: str) -> bool:
        """Whether an agent of ours streams for `nodes/{node}` now."""

    def heard(self, node: str) -> None:
        """Somebody tells of `nodes/{node}`, for the first time or again after its silence."""

    async def tell_silence(self, node: str, silent_s: float, missing: str) -> None:
        """Stores the signal; see `detectors.silence_signal`. Raises while it cannot."""


class Judging:
    """Remembers each node's baseline in the database: what changed while the collector was away is told, and nothing twice."""

    def __init__(
        self,
        agents: Agents,
        database: Database,
        writer: EventWriter,
        clock: Clock,
        metrics: ImportMetrics,
        *,
        silence_s: float,
    ) -> None:
        self._agents, self._database, self._writer, self._clock = agents, database, writer, clock
        self._metrics = metrics
        self._presence = Presence(silence_s)
        self._baselines: dict[Origin, Baseline] = {}
        #: Events that are not committed yet: until they are, the baseline that follows from them is not stored.
        self._open = Counter[Origin]()
        self._agent_unix_ns: dict[str, int] = {}
        self._loaded = asyncio.Event()

    async def load(self) -> None:
        """What the collector before knew. Until then nothing is judged."""
        if self._loaded.is_set():
            return
        async with self._database.read() as session:
            self._baselines = await store.baselines(session)
        if len(self._baselines) > ORIGINS_MAX:
            silent = [origin for origin, baseline in self._baselines.items() if baseline.silent]
            async with self._database.write() as session:
                await store.forget(session, silent)
            for origin in silent:
                del self._baselines[origin]
        self._loaded.set()

    async def ready(self) -> None:
        await self._loaded.wait()

    def expect(self, is_expected: Callable[[Origin], bool], good_s: float = RESTART_S) -> None:
        """Nodes that were there before this collector began, of such origins, have so long to come back."""
        for origin, baseline in self._baselines.items():
            if not baseline.silent and is_expected(origin):
                self._presence.heard(origin[0], self._clock.monotonic_s(), good_s)

    def expect_target(self, node: str, source: str, good_s: float) -> None:
        """The node has a page that is asked for; its first word is due within `good_s`, unless it was silent before already."""
        baseline = self._baseline((node, source))
        if baseline is not None and not baseline.silent:
            self._presence.heard(node, self._clock.monotonic_s(), good_s)

    def forget(self, node: str) -> None:
        """Nobody asks about the node any more."""
        self._presence.forget(node)

    async def look(
        self, node: str, source: str, samples: Iterable[tuple[SeriesKey, float]], time_unix_ns: int, good_s: float
    ) -> None:
        """Judges what came. good_s: until when more is due. Waits while the store lags behind."""
        self._presence.heard(node, self._clock.monotonic_s(), good_s)
        origin = node, source
        baseline = self._baseline(origin)
        if baseline is None:
            return
        if baseline.silent:
            baseline.silent, baseline.changed = False, True
            self._agents.heard(node)
        elif node in self._agent_unix_ns and not self._had_agent(node, SILENCE_NS):
            self._agents.heard(node)  # its agent was silent and is gone for good; the node is not
        findings = rules.look(baseline, samples, time_unix_ns)
        if self._had_agent(node, FAULT_NS):
            return  # it has told it, with more words
        events = []
        for finding in findings:
            baseline.sequence += 1
            events.append(_event(origin, baseline, finding, time_unix_ns))
        self._open[origin] += len(events)
        for event in events:
            await self._writer.put(event, lambda _: self._committed(origin))

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self.tick()
            except Exception:
                log.exception("cannot store what imports know; trying again")

    async def tick(self) -> None:
        """Tells silences that are due, and stores what changed."""
        silent = set[str]()
        try:
            for node, silent_s in self._presence.due(self._clock.monotonic_s()):
                if not self._had_agent(node, SILENCE_NS):
                    await self._agents.tell_silence(node, silent_s, "scrape or export of its metrics")
                    silent.add(node)
                self._presence.forget(node)
        finally:
            for (node, _), baseline in self._baselines.items() if silent else ():
                if node in silent:
                    baseline.silent, baseline.changed = True, True
        changed = [
            (origin, baseline)
            for origin, baseline in self._baselines.items()
            if baseline.changed and not self._open[origin]
        ]
        for begin in range(0, len(changed), _SAVED_AT_ONCE):
            part = changed[begin : begin + _SAVED_AT_ONCE]
            # As they are now: events that are found meanwhile are not committed yet.
            kept = {origin: replace(baseline, values=dict(baseline.values)) for origin, baseline in part}
            for _, baseline in part:
                baseline.changed = False
            try:
                async with self._database.write() as session:
                    await store.save(session, kept)
            except Exception:
                for _, baseline in part:
                    baseline.changed = True
                raise

    def _baseline(self, origin: Origin) -> Baseline | None:
        """The one that is remembered, or a new one; None when there are as many as there may be."""
        baseline = self._baselines.get(origin)
        if baseline is None and len(self._baselines) < ORIGINS_MAX:
            baseline = self._baselines[origin] = Baseline(self._clock.unix_ns(), changed=True)
            self._agents.heard(origin[0])
        return baseline

    def _had_agent(self, node: str, within_ns: int) -> bool:
        """Whether an agent streamed for the node so lately, as far as anybody looked."""
        now = self._clock.unix_ns()
        if self._agents.streams(node):
            self._agent_unix_ns[node] = now
        ago_ns = now - self._agent_unix_ns.get(node, 0)
        if ago_ns > SILENCE_NS:
            self._agent_unix_ns.pop(node, None)
        return ago_ns <= within_ns

    def _committed(self, origin: Origin) -> None:
        self._open[origin] -= 1
        if not self._open[origin]:
            del self._open[origin]
        self._metrics.events.labels(origin[1]).inc()


def _event(origin: Origin, baseline: Baseline, finding: Finding, time_unix_ns: int) -> Event:
    """The same fault has the same key, also when the next collector finds it again; another one never has, also when two collectors
    look at a node for a while because it moves from one to the other.
    """
    node, source = origin
    life = hashlib.sha256(f"{node} {source} {baseline.begin_unix_ns}".encode()).hexdigest()[:32]
    fault = zlib.crc32(f"{finding.kind} {finding.code} {finding.gpu} {finding.text}".encode())
    return Event(
        node=node,
        boot_id=f"import-{life}",
        source=f"import/{source.removeprefix('scrape/')}",
        sequence=baseline.sequence << 32 | fault,
        time_unix_ns=time_unix_ns,
        kind=finding.kind,
        gpu=finding.gpu,
        code=finding.code,
        text=finding.text,
        simulated=False,
        pci=finding.pci,
        detail=finding.detail,
    )
