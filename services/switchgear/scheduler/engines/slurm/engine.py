"""Looks at Slurm, tells what it sees, and asks for what misses. All that it knows comes back with the next look."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Invalid, Reason, SwitchgearError
from switchgear.core.service import Endpoints
from switchgear.core.warm import WarmKind
from switchgear.scheduler.engines.base import Engine
from switchgear.scheduler.engines.slurm.holds import Hold, holds
from switchgear.scheduler.engines.slurm.keys import Key
from switchgear.scheduler.engines.slurm.look import Look, is_gone, look
from switchgear.scheduler.engines.slurm.plan import (
    REFUSALS_MAX,
    Plan,
    Refusal,
    fates_of,
    opened_again,
    our_drains,
    plan,
    wanted_launchers,
)
from switchgear.scheduler.engines.slurm.script import script, submission
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.engines.slurm.sight import observation
from switchgear.scheduler.model import Observation, Wanted, WantedLauncher
from switchgear.slurm.client import Slurm
from switchgear.slurm.model import SlurmNode

log = logging.getLogger(__name__)

#: Between two looks while something of ours is in Slurm, and while nothing is: then foreign jobs and drains are all that changes.
POLL_S = 1.0
IDLE_POLL_S = 5.0
#: A look costs slurmctld what it costs us: no more than a tenth of the time is spent on it.
_POLL_SHARE = 10
POLL_S_MAX = 30.0
#: After an effect, so that its success is seen soon.
_AFTER_EFFECT_S = 0.2
#: A submission whose answer was lost may still be on its way.
UNKNOWN_S = 10.0
#: After a refusal, doubled with each.
REFUSED_S = 1.0
#: Of a drain or its end that Slurm refused: somebody has to be given the right to do it.
KEEP_RETRY_S = 60.0


class SlurmEngine:
    """See `engines.base.Engine`.

    agents: what the agents of the same nodes say, where they run. changed: called whenever `observe` would answer something new, except
    for what only time brings.
    """

    def __init__(
        self, slurm: Slurm, settings: SlurmSettings, agents: Engine, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self._slurm, self._settings, self._agents, self._clock = slurm, settings, agents, clock
        self._changed = changed
        self._seen: Look | None = None
        self._observed = Observation()
        self._away = ""
        self._looked_unix_ns = 0
        self._wanted: Mapping[str, Wanted] | None = None
        #: Until a launcher has its job, or is not wanted any more.
        self._refusals: dict[Key, Refusal] = {}
        #: Nodes that somebody has opened although we keep them closed, until we do so no longer.
        self._opened: frozenset[str] = frozenset()
        #: Nodes that are drained by us, as far as we know.
        self._drained: set[str] = set()
        #: Nodes that Slurm keeps from us. A restart forgets them, which costs one more try.
        self._held: Mapping[str, Hold] = {}
        #: When nodes may be drained or resumed again of which Slurm refused it, by monotonic time.
        self._keep_after_s: dict[str, float] = {}
        #: Jobs that it did not let us cancel the last time.
        self._uncancelled: frozenset[int] = frozenset()
        self._wake = asyncio.Event()

    def observe(self) -> Observation:
        return self._observed

    def last_heard(self) -> Mapping[str, int]:
        if self._seen is None or self._away:
            return {}
        return {name: self._looked_unix_ns for name, node in self._seen.nodes.items() if not is_gone(node)}

    def want(self, wanted: Mapping[str, Wanted], warm: Mapping[str, Sequence[WarmKind]]) -> None:  # noqa: ARG002 - what is ready but runs no job would have to hold GPUs of Slurm
        if wanted == self._wanted:
            return
        self._wanted = wanted
        keys = {key for key, _ in wanted_launchers(wanted)}
        self._refusals = {key: refusal for key, refusal in self._refusals.items() if key in keys}
        self._opened = frozenset(name for name in self._opened if (one := wanted.get(name)) and one.closed)
        self._wake.set()

    async def run(self, endpoints: Endpoints) -> None:
        if endpoints.tls and not self._settings.tls:
            raise FailedPrecondition(
                "launchers in Slurm need certificates: let each node join (`switchgear agent --join`) and name the folder of what it got "
                "there with --slurm-tls",
                Reason.TLS_FILES,
            )
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            begin_s, acted, look_s = loop.time(), False, 0.0
            try:
                await self._look()
                acted = await self._act(endpoints)
                look_s = loop.time() - begin_s
            except SwitchgearError as error:
                await self._lose_sight(error)
            except Exception:
                log.exception("a look at Slurm failed; trying again")
            # Who does not answer has spent nothing on it, however long it took.
            pause_s = min(max(self._poll_s(), look_s * _POLL_SHARE), POLL_S_MAX)
            try:
                async with asyncio.timeout(_AFTER_EFFECT_S if acted else pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        # Nodes first: what starts in between is seen as running on a node that looks free, and not the other way round.
        nodes, jobs = await self._slurm.nodes(), await self._slurm.jobs()
        seen = await asyncio.to_thread(look, nodes, jobs, self._settings)
        self._refusals = {key: one for key, one in self._refusals.items() if not _is_there(seen, key)}
        if self._away:
            log.info("Slurm answers again")
        self._opened |= opened_again(self._drained, seen, self._wanted or {})
        self._drained = set(our_drains(seen, self._settings.cluster))
        self._seen, self._away, self._looked_unix_ns = seen, "", self._clock.unix_ns()
        await self._judge(seen)

    async def _lose_sight(self, error: SwitchgearError) -> None:
        if self._away:
            return
        log.warning("Slurm does not answer: what runs goes on, and nothing is started: %s", error.message)
        self._away = "out of sight: Slurm does not answer"
        if self._seen is not None:
            await self._judge(self._seen)

    async def _judge(self, seen: Look) -> None:
        """While Slurm is away no time passes for what it said."""
        wanted, refusals, now_s = self._wanted or {}, dict(self._refusals), self._looked_unix_ns / 1e9
        agents, away, opened = dict(self._agents.observe().nodes), self._away, self._opened

        def judged() -> tuple[Mapping[str, Hold], Observation]:
            fates = fates_of(seen, wanted, refusals, now_s, self._settings.patience_s)
            held = holds(self._held, seen, fates, now_s)
            return held, observation(seen, fates, agents, self._settings.cluster, away=away, opened=opened, held=held)

        # Of ten thousand nodes it takes a second.
        before, (self._held, self._observed) = self._observed, await asyncio.to_thread(judged)
        if self._observed != before:
            self._changed()

    async def _act(self, endpoints: Endpoints) -> bool:
        """Whether anything was done."""
        if self._seen is None or self._wanted is None:
            return False  # not knowing what is wanted is not the same as wanting nothing
        todo = await asyncio.to_thread(
            plan,
            self._seen,
            self._wanted,
            dict(self._refusals),
            self._settings.cluster,
            self._now_s(),
            opened=self._opened,
        )
        nodes = self._seen.nodes
        acted = await self._keep_nodes(todo, nodes)
        if todo.cancel:
            acted |= await self._cancel(todo.cancel)
        for key, launcher in todo.submit:
            if launcher not in self._wanted.get(key.node, Wanted()).run:
                continue  # not any more, since the plan was made
            acted |= await self._submit(key, launcher, nodes[key.node], endpoints)
            if key in self._refusals and not self._refusals[key].count:
                break  # who does not answer one is not asked for the next
        return acted

    async def _cancel(self, jobs: Sequence[int]) -> bool:
        # What is refused is asked again with each look, and told once.
        if news := sorted(frozenset(jobs) - self._uncancelled):
            log.info("cancelling Slurm jobs", extra={"slurm_jobs": news})
        try:
            await self._slurm.cancel(jobs)
        except SwitchgearError as error:
            _require_reached(error)
            if news:
                log.warning("Slurm refused to cancel jobs of ours: %s", error.message)
            self._uncancelled = frozenset(jobs)
            return False
        self._uncancelled = frozenset()
        return True

    async def _submit(self, key: Key, launcher: WantedLauncher, node: SlurmNode, endpoints: Endpoints) -> bool:
        job = submission(launcher, key, node, self._settings)
        text = script(launcher, key, node, self._settings, endpoints)
        about = {"job": key.job, "node": key.node, "placement_epoch": key.epoch}
        try:
            number = await self._slurm.submit(text, job)
        except SwitchgearError as error:
            _require_reached(error)
            log.warning("a launcher was not submitted: %s", error.message, extra=about)
            self._refusals[key] = self._refused(key, error)
            return False
        log.info("submitted a launcher", extra={**about, "slurm_job": number})
        return True

    def _refused(self, key: Key, error: SwitchgearError) -> Refusal:
        if error.reason is Reason.SLURM_OUTCOME_UNKNOWN:
            return Refusal(0, error.message, self._now_s() + UNKNOWN_S)
        if isinstance(error, Invalid):  # asked again, it would be refused again
            return Refusal(REFUSALS_MAX, error.message, self._now_s())
        count = self._refusals[key].count + 1 if key in self._refusals else 1
        return Refusal(count, error.message, self._now_s() + REFUSED_S * 2 ** (count - 1))

    async def _keep_nodes(self, todo: Plan, nodes: Mapping[str, SlurmNode]) -> bool:
        """A user who may submit need not be one who may drain: then jobs go on all the same."""
        acted = False
        for name, reason in todo.drain:
            drain = partial(self._slurm.drain, reason=reason)
            if await self._keep(name, nodes[name], f"drain it ({reason})", drain):
                self._drained.add(name)
                acted = True
        for name in todo.resume:
            if await self._keep(name, nodes[name], "resume it", self._slurm.resume):
                self._drained.discard(name)
                acted = True
        return acted

    async def _keep(self, name: str, node: SlurmNode, what: str, effect: Callable[[str], Awaitable[None]]) -> bool:
        """Whether Slurm has done it."""
        now_s = self._clock.monotonic_s()
        if now_s < self._keep_after_s.get(name, now_s):
            return False
        try:
            await effect(node.name)
        except SwitchgearError as error:
            _require_reached(error)
            self._keep_after_s[name] = now_s + KEEP_RETRY_S
            log.warning("Slurm refused to %s: %s", what, error.message, extra={"node": name})
            return False
        log.info("asked Slurm to %s", what, extra={"node": name})
        return True

    def _poll_s(self) -> float:
        ours = self._seen is not None and any(not job.has_ended for jobs in self._seen.ours.values() for job in jobs)
        busy = ours or any(one.run for one in (self._wanted or {}).values())
        return POLL_S if busy else IDLE_POLL_S

    def _now_s(self) -> float:
        return self._clock.unix_ns() / 1e9


def _require_reached(error: SwitchgearError) -> None:
    """Raises what says that Slurm is away: then nothing else can be asked of it either."""
    if error.reason is Reason.SLURM_UNREACHABLE:
        raise error


def _is_there(seen: Look, key: Key) -> bool:
    return any(not job.has_ended for job in seen.ours.get(key, ()))
