"""Whom to stop so that a job can start: those who lose least of those who have the weaker claim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from switchgear.planner.claims import Claim
from switchgear.planner.cover import Site, cheapest, cheapest_sum, without_needless
from switchgear.planner.fleet import Fleet, Mask, Reals
from switchgear.planner.future import without
from switchgear.planner.gangs import find
from switchgear.planner.holdings import Holdings
from switchgear.planner.model import Job, NoRoom, Policy, Preempt, Snapshot, Workload
from switchgear.planner.packing import Packer
from switchgear.planner.quota import Ledger
from switchgear.planner.topology import Ladder

#: Choices that are tried on the nodes: the cheapest fails only on what `Site` does not know.
_TRIED_MAX = 8
#: Sets of victims that are tried before only those are left who may be stopped in any set.
_CHOICES_MAX = 4
#: Harvesting jobs go first: their loss counts beside that of others only between choices that are equal otherwise.
_HARVEST_WEIGHT = 1e-9


def victims(  # noqa: PLR0917 - all that it depends on is passed in
    packer: Packer,
    snapshot: Snapshot,
    ledger: Ledger,
    job: Job,
    now_s: float,
    open_to: Mask,
    holdings: Holdings | None = None,
) -> tuple[Preempt, ...] | None:
    """Who is to leave so that `tasks_least` tasks of the job can start, in quota and in room; None when nobody with a weaker claim makes that room.

    () when those that are leaving for it already are enough, or nobody needs to leave. Whose claim is weaker: `claims.Claim`. Of all
    choices the one of least loss (`Holdings.losses`), harvesting jobs before any others, none within `Policy.guaranteed_run_s` of its start.
    A gang that needs a topology domain looks for the cheapest domain, so that a full one can be cleared. Each choice is proven by
    `gangs.find` on nodes without the victims. The packer is left as it is.
    A queue that admits the job only when others of it leave is no obstacle: call this as well when `Ledger.admits` refuses. Who takes the
    answer up calls `Ledger.promise`, so that the next job does not count on the same GPUs.
    holdings: of these nodes and running jobs, to share it between calls.
    """
    holdings = holdings or Holdings(packer.fleet, snapshot.running)
    search = _Search(packer.fleet, ledger, job, snapshot.policy, now_s=now_s, open_to=open_to, holdings=holdings)
    found = search.best()
    if found is None:
        return None
    return tuple(
        Preempt(holdings.running[at].job.name, job.name, float(search.by_s[at]), float(search.lost_gpu_s[at]))
        for at in sorted(found, key=lambda at: holdings.running[at].job.name)
    )


class _Search:
    def __init__(
        self,
        fleet: Fleet,
        ledger: Ledger,
        job: Job,
        policy: Policy,
        *,
        now_s: float,
        open_to: Mask,
        holdings: Holdings,
    ) -> None:
        self._job, self._ledger, self._open_to, self._holdings = job, ledger, open_to, holdings
        self._preempts = policy.preemption
        self._gpus = job.tasks_least * job.task.gpu_share
        self._tasks = max(job.tasks_least - len(job.kept), 0)
        self._over = ledger.excess(job, self._gpus)
        self._queue_of = np.array([ledger.tree.of(one.job) for one in holdings.running], np.int64)
        waits = self._gpus if job.workload is Workload.INFERENCE else 0.0
        self.lost_gpu_s, self.by_s = holdings.losses(now_s, policy.checkpoint_wait_s, waits)
        self._costs: Reals = np.where(holdings.harvest, self.lost_gpu_s * _HARVEST_WEIGHT, self.lost_gpu_s)
        self._claim = Claim(ledger, holdings, job, self._gpus, started_by_s=now_s - policy.guaranteed_run_s)
        leaving = [
            holdings.at[name] for name, for_job in ledger.leaving.items() if for_job == job.name and name in holdings.at
        ]
        gone = np.zeros(len(holdings), bool)
        gone[leaving] = True
        self._fleet = without(fleet, holdings, gone)

    def best(self) -> list[int] | None:
        """Numbers of the running jobs that are to leave."""
        if self._over is None and self._fits(()):
            return []
        if not self._preempts:
            return None
        claim = self._claim
        if (jobs := self._cheapest(claim.harvest)) is not None:
            return jobs
        may = claim.perhaps
        for _ in range(_CHOICES_MAX):
            if (jobs := self._cheapest(may)) is None:
                break
            if claim.upheld(jobs):
                return jobs
            spared = claim.covered_despite(jobs)
            if not spared.any():
                break
            may = may & ~spared
        return None if jobs is None and may is claim.perhaps else self._cheapest(claim.surely)

    def _cheapest(self, may: Mask) -> list[int] | None:
        """Of those who may leave, the cheapest that make room."""
        if not may.any():
            return None
        found = [(self._cost(jobs), jobs, site) for site in self._sites() for jobs in self._within(site, may)]
        found.sort(key=lambda one: one[:2])
        best = [
            without_needless(site, jobs, self._costs, self._tasks, self._dispensable(jobs))
            for _, jobs, site in found[:_TRIED_MAX]
        ]
        return next((jobs for jobs in sorted(best, key=self._cost) if self._fits(jobs)), None)

    def _cost(self, jobs: list[int]) -> float:
        return float(self._costs[jobs].sum())

    def _sites(self) -> Iterator[Site]:
        """For each domain that would hold the whole gang, the nodes in it that the gang may use."""
        fleet, job = self._fleet, self._job
        allowed = fleet.open & self._open_to & fleet.meant(job.task)
        allowed[fleet.rows(job.excluded)] = False
        kept = [fleet.at[seat.node] for _, seat in job.kept if seat.node in fleet.at]
        if job.one_a_node:
            allowed[kept] = False
        required = frozenset() if job.tasks == 1 else frozenset(near.level for near in job.near if near.required)
        if not required <= set(fleet.levels):
            return
        several = job.tasks > 1 and job.task.gpu_share > 0 and len(fleet.models) > 1
        # Models are mixed only where their speeds are known to be alike.
        for one_model in {several, several and not job.speeds}:
            bound = Ladder.of(fleet, required, one_model).bound
            rows = np.flatnonzero(allowed & (bound >= 0))
            domains = np.unique(bound[kept] if kept else bound[rows])
            per_node = 1 if job.one_a_node else self._tasks
            for domain in domains.tolist():
                here = rows[bound[rows] == domain]
                yield Site(fleet, self._holdings, job.task, here, per_node)

    def _within(self, site: Site, may: Mask) -> Iterator[list[int]]:
        """Of those who may leave, cheap ones that make room for the gang on these nodes and in quotas."""
        # Where quotas are in the way as well: first for room, or first for quotas.
        for first in ([], self._for_quota([], may)) if self._over else ([],):
            if first is None:
                continue
            costs = self._costs.copy()
            costs[first] = 0.0
            more = cheapest(site, may, costs, self._tasks)
            jobs = None if more is None else self._for_quota(sorted({*first, *more}), may)
            if jobs is not None:
                yield jobs

    def _for_quota(self, jobs: list[int], may: Mask) -> list[int] | None:
        """The jobs, and the cheapest others that quotas need to stop as well; None when they do not do."""
        if self._over is None:
            return jobs
        tree, jobs, may = self._ledger.tree, list(jobs), may & ~self._holdings.harvest
        may[jobs] = False
        ledger = self._ledger.copy()
        for job in jobs:
            self._leave(ledger, job)
        while (over := ledger.excess(self._job, self._gpus)) is not None:
            queue, by = over
            among = np.flatnonzero(may & (tree.chain[self._queue_of, tree.depth[queue]] == queue))
            if not len(among):
                return None
            more = among[cheapest_sum(self._holdings.gpus[among], self._costs[among], by)]
            may[more] = False
            for job in more.tolist():
                self._leave(ledger, job)
                jobs.append(job)
        return sorted(jobs)

    def _dispensable(self, jobs: list[int]) -> Callable[[int], bool]:
        """Whether quotas let the job in when this one goes on."""
        if self._over is None:
            return lambda _: True
        ledger = self._ledger.copy()
        for job in jobs:
            self._leave(ledger, job)

        def goes_on(job: int) -> bool:
            ledger.charge(self._holdings.running[job].job, float(self._holdings.gpus[job]))
            if ledger.admits(self._job, self._gpus) is None:
                return True
            self._leave(ledger, job)
            return False

        return goes_on

    def _leave(self, ledger: Ledger, job: int) -> None:
        ledger.release(self._holdings.running[job].job, float(self._holdings.gpus[job]))

    def _fits(self, jobs: Sequence[int]) -> bool:
        gone = np.zeros(len(self._holdings), bool)
        gone[list(jobs)] = True
        fleet = without(self._fleet, self._holdings, gone)
        return not isinstance(find(fleet, self._job, self._open_to), NoRoom)
