"""How things stand once all that can start now has started: where a job would fit then, and who is in its way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from math import inf

from switchgear.planner.fleet import Fleet, Mask
from switchgear.planner.gangs import Place, find
from switchgear.planner.mix import Mix
from switchgear.planner.model import Decisions, Job, NoRoom, Preempt, Running, Snapshot
from switchgear.planner.packing import Packer
from switchgear.planner.quota import Ledger
from switchgear.planner.reservations import open_to, spared
from switchgear.planner.victims import victims


class Standing:
    """decisions: the plan for this snapshot and time. Nothing here may be changed."""

    def __init__(self, snapshot: Snapshot, decisions: Decisions, now_s: float) -> None:
        self.snapshot, self.decisions, self.now_s = snapshot, decisions, now_s
        self.fleet = Fleet(snapshot.nodes, snapshot.levels, snapshot.running, snapshot.pending)
        self.ledger = Ledger(snapshot)
        #: Names of those that start, in their order.
        self.starts = dict.fromkeys(start.job.name for start in decisions.starts)
        self.starting = tuple(Running(start.job, start.seats, now_s) for start in decisions.starts)
        for start in decisions.starts:
            kept = {seat for _, seat in start.job.kept}
            for seat in start.seats:
                if seat not in kept:
                    self.fleet.take(seat, start.job.task)
            self.ledger.charge(start.job, len(start.seats) * start.job.task.gpu_share)

    @cached_property
    def spared(self) -> Mask:
        before = Fleet(self.snapshot.nodes, self.snapshot.levels, self.snapshot.running, self.snapshot.pending)
        return spared(before, self.snapshot, self.now_s)

    def mask(self, job: Job, snapshot: Snapshot | None = None) -> Mask:
        """Nodes that it may use for as long as it may run. snapshot: with other reservations or spares."""
        here = snapshot or self.snapshot
        seconds = inf if job.time_limit_s is None else job.time_limit_s
        mask = open_to(self.fleet, here, job, self.now_s, seconds)
        return mask if job.kept or not here.policy.spares else mask & ~self.spared

    def place(self, job: Job) -> Place | None:
        """Where it fits beside all that runs and starts; None: nowhere."""
        place = find(self.fleet, job, self.mask(job))
        return None if isinstance(place, NoRoom) else place

    def admits(self, job: Job) -> NoRoom | None:
        """Whether quotas let the least of it start beside all that runs and starts: None when they do."""
        return self.ledger.admits(job, job.tasks_least * job.task.gpu_share)

    def startable(self, job: Job) -> bool:
        """Whether room and quotas would let it start; others may be before it all the same."""
        return self.admits(job) is None and self.place(job) is not None

    def stops(
        self, job: Job, among: Iterable[str], *, wait_s: float, quotas: bool = True
    ) -> tuple[Preempt, ...] | None:
        """Who of `among` would have to be gone so that the job can start, of least loss; None when all of them are not enough.

        Whose claim is stronger, and who has just started, is not asked. wait_s: a checkpoint is awaited for so long. quotas: whether they have to
        let it in as well.
        """
        names, snapshot = frozenset(among), self.snapshot
        first = 1 + max((one.job.priority for one in (*snapshot.running, *self.starting)), default=job.priority)
        boss = replace(job, priority=max(first, job.priority), harvest=False, queue="" if job.harvest else job.queue)
        running = tuple(
            one
            if one.job.preemptible is (one.job.name in names)
            else replace(one, job=replace(one.job, preemptible=not one.job.preemptible))
            for one in (*snapshot.running, *self.starting)
        )
        # What is guaranteed protects from others; what is kept by those that do not lend cannot be had by stopping anybody.
        queues = tuple(replace(queue, guaranteed=0.0 if queue.lends else queue.guaranteed) for queue in snapshot.queues)
        wish = replace(
            snapshot,
            running=running,
            queues=queues if quotas else (),
            pending=tuple(one for one in snapshot.pending if one.name not in self.starts),
            policy=replace(snapshot.policy, guaranteed_run_s=0.0, checkpoint_wait_s=wait_s, preemption=True),
        )
        packer = Packer(self.fleet, Mix.of([(job.task, 1.0)]))
        return victims(packer, wish, Ledger(wish), boss, self.now_s, self.mask(job))
