"""What is asked of Slurm. `commands.Commands` asks by its programs, `rest.Rest` by slurmrestd; both are tested by the same contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from switchgear.slurm.model import Controller, SlurmJob, SlurmNode, Submission


class Slurm(Protocol):
    """One Slurm cluster.

    Each call raises Unavailable (SLURM_UNREACHABLE) when no controller answers in time, which says nothing about nodes and jobs,
    PermissionDenied when Slurm refuses this user, FailedPrecondition (SLURM_REFUSED) when it refuses the request in its present
    state, and Invalid when the request cannot be right: unknown nodes, partitions, accounts, jobs.
    """

    async def ping(self) -> Controller:
        """Who answers."""

    async def nodes(self, names: Sequence[str] = ()) -> Sequence[SlurmNode]:
        """All nodes, or those of these names that Slurm knows."""

    async def jobs(self, ids: Sequence[int] = ()) -> Sequence[SlurmJob]:
        """All jobs that this user may see, or those of these ids that Slurm still knows; also such as ended lately.

        A task of an array that has not started is known by the array's id.
        """

    async def submit(self, script: str, submission: Submission) -> int:
        """Id of the new job.

        script: what runs on the job's first node; begins with `#!`.
        Raises Unavailable (SLURM_OUTCOME_UNKNOWN) when the answer was lost: the job may or may not exist, so look for its comment
        before it is submitted again. After each other error there is none.
        """

    async def cancel(self, ids: Sequence[int]) -> None:
        """Ends these jobs: SIGTERM, then SIGKILL after Slurm's KillWait. Jobs that are unknown or have ended are none."""

    async def drain(self, node: str, reason: str) -> None:
        """Closes the node: what runs goes on, nothing starts. Replaces the reason of a drain that is there already."""

    async def resume(self, node: str) -> None:
        """Opens a drained or failed node; one that is open already stays so."""

    async def requeue(self, job: int) -> None:
        """Ends the run of a job and lets it wait to start anew; Slurm makes it wait for two minutes (see `start_now`)."""

    async def exclude(self, job: int, nodes: Sequence[str]) -> None:
        """The waiting job shall not start on these nodes; replaces what it excluded before."""

    async def start_now(self, job: int) -> None:
        """A waiting job need not wait for its start time. Without effect while it is still completing: wait until it is PENDING."""
