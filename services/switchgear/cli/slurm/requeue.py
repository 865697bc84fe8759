"""A job that gives its allocation back, to be started again by Slurm without the nodes that it has lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence

from switchgear.cli.slurm.task import Task
from switchgear.core.errors import SwitchgearError
from switchgear.slurm.client import Slurm

#: What a requeue may take to be accepted: Slurm's programs wait 10 s for a controller, and there are four to run.
REQUEUE_S_MAX = 60.0
#: What a slurmd may take to start a step that does nothing.
PROBE_S_MAX = 10.0
#: Slurm finds out that a node is lost after SlurmdTimeout, 300 s unless configured.
LOST_S_MAX = 900.0
POLL_S = 1.0


async def requeue(task: Task, given_up: Collection[str], slurm: Slurm, tell: Callable[[str], None]) -> str:
    """Why Slurm does not requeue the job; empty when it does, and will end this process soon."""
    await _until_taken_out(task, [node for node in given_up if node in task.nodes], slurm, tell)
    without = f" without {', '.join(given_up)}" if given_up else ""
    tell(f"switchgear: requeues the job{without}; run {task.restarts + 2} goes on from the newest checkpoint")
    command = (sys.executable, "-m", "switchgear.cli.slurm.leave", str(task.job_id), str(task.job_nodes), *given_up)
    return await asyncio.to_thread(_answer_of, command)


def _answer_of(command: Sequence[str]) -> str:
    try:
        # Its stderr must not be ours: slurmstepd would wait for the end of whoever holds that.
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=REQUEUE_S_MAX,
            start_new_session=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"Slurm has not answered within {REQUEUE_S_MAX:g} s"
    return "" if ended.stdout == "\n" else ended.stdout.strip() or "the program for it has failed"


async def _until_taken_out(task: Task, lost: Collection[str], slurm: Slurm, tell: Callable[[str], None]) -> None:
    """Waits until Slurm has seen that nodes are lost which do not answer.

    A requeued job does not start before that in any case. And Slurm 22.05 forgets the GPUs of a job that was requeued earlier: it
    starts without any, and those of its next nodes stay taken for ever.
    """
    answers = await asyncio.gather(*(_answers(task, node) for node in lost))
    silent = {node for node, answered in zip(lost, answers, strict=True) if not answered}
    if not silent:
        return
    tell(f"switchgear: waits until Slurm has given up {', '.join(sorted(silent))} too")
    try:
        async with asyncio.timeout(LOST_S_MAX):
            while silent & set(await _nodes(task, slurm)):  # noqa: ASYNC110  # Slurm tells nobody
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass


async def _nodes(task: Task, slurm: Slurm) -> Collection[str]:
    """Those that the job has now; while Slurm does not say, those that it had."""
    try:
        found = await slurm.jobs([task.job_id])
    except SwitchgearError:
        return task.nodes
    return found[0].nodes if found else ()


async def _answers(task: Task, node: str) -> bool:
    """Whether the slurmd there starts a step of the job."""
    process = await asyncio.create_subprocess_exec(
        *(
            "srun",
            f"--jobid={task.job_id}",
            "--overlap",
            "--nodes=1",
            "--ntasks=1",
            f"--nodelist={node}",
            "--gres=none",
        ),
        *("--input=none", "--output=none", "--error=none", "true"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PROBE_S_MAX):
            return await process.wait() == 0
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
