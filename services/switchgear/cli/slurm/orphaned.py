"""What is left of a job whose first node is lost, which kept it together and ran its batch script: it has itself requeued."""

from __future__ import annotations

import logging

from switchgear.cli.output import tell
from switchgear.cli.slurm.flags import RideOptions
from switchgear.cli.slurm.requeue import requeue
from switchgear.cli.slurm.task import Task
from switchgear.core.errors import SwitchgearError
from switchgear.recovery.values import Timing
from switchgear.slurm.client import Slurm
from switchgear.slurm.model import JobState

log = logging.getLogger(__name__)

#: How often Slurm is asked, by two nodes of a job at most: the second one is for a loss of two.
ASK_S = 10.0
ASKING_RANKS = (1, 2)


class Orphaned:
    """Slurm leaves a job with `--no-kill` standing without its batch script until its time limit, when that script's node is lost."""

    def __init__(self, task: Task, options: RideOptions, timing: Timing, slurm: Slurm) -> None:
        self._task, self._options, self._timing, self._slurm = task, options, timing, slurm
        self._asked_s = 0.0

    async def told(self, silent_s: float) -> None:
        """The first node has not answered for so long.

        Its ranks, and those of the others, have ended with their lease before anything is done; and Slurm must have found that the
        node is lost, since a node that is only out of our reach keeps the job together with those that it reaches.
        """
        task = self._task
        begun = self._timing.silence_s_max + ASK_S * (task.node_rank - 1)
        if task.node_rank not in ASKING_RANKS or silent_s < max(begun, self._asked_s + ASK_S):
            return
        self._asked_s = silent_s
        try:
            found = next(iter(await self._slurm.jobs([task.job_id])), None)
        except SwitchgearError as error:
            log.info("Slurm does not say whether the first node is lost: %s", error.message)
            return
        if found is None or (found.state, found.restarts) != (JobState.RUNNING, task.restarts):
            return
        if task.nodes[0] in found.nodes or task.restarts >= self._options.restarts_max:
            return
        _tell(f"switchgear: {task.nodes[0]}, which kept the job together, is lost")
        if refused := await requeue(task, task.nodes[:1], self._slurm, _tell):
            _tell(f"switchgear: the job cannot be requeued: {refused}")


def _tell(line: str) -> None:
    try:
        tell(line)
    except BrokenPipeError:
        pass  # srun, which listened, was on the node that is lost
