"""A launcher under test: its supervisor in this process, everything below it real."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from switchgear.launcher import proc
from switchgear.launcher.settings import LauncherSettings
from switchgear.launcher.supervisor import Supervisor
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb

TRAIN = """
import os, sys, time
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
steps, sleep_s = int(sys.argv[1]), float(sys.argv[2])
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
done, folder, resume = 0, os.environ["SWITCHGEAR_CHECKPOINT_DIR"], os.environ["SWITCHGEAR_RESUME_FROM"]
if resume:
    state = torch.load(resume)
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"]); done = state["step"]
ddp = DDP(model)
while done < steps:
    optimizer.zero_grad()
    ddp(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    done += 1
    if folder and done % 5 == 0 and dist.get_rank() == 0:
        path = f"{folder}/step-{done:04d}.pt"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}, path + ".tmp")
        os.replace(path + ".tmp", path)
    time.sleep(sleep_s)
print("done", done)
dist.destroy_process_group()
"""


class Launcher:
    """A supervisor, the reports that it made, and the commands of a control plane that has one node."""

    def __init__(self, folder: Path, script: str = "", *argv: str, nproc: int = 2, **settings: Any) -> None:
        self.folder = folder
        (folder / "script.py").write_text(script)
        self.spec = JobSpec(
            argv=["script.py", *argv],
            working_directory=str(folder),
            nnodes=1,
            nproc_per_node=nproc,
            max_restarts=3,
            **settings.pop("spec", {}),
        )
        self.supervisor = Supervisor(
            LauncherSettings(
                job="jobs/test",
                node="nodes/here",
                placement_epoch=1,
                address="127.0.0.1",
                gpu_indices=None,
                spec=self.spec,
                state_dir=folder / "state",
                python=sys.executable,
                **settings,
            )
        )
        self.nproc = nproc
        self.port = 0
        self.reports: list[pb.LauncherReport] = []
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Launcher:
        await self.supervisor.start()
        self.port = self.supervisor.hello().hello.reserved_port
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.supervisor.close()
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        async for report in self.supervisor.reports():
            self.reports.append(report)
            body = getattr(report, str(report.WhichOneof("kind")))
            self.port = getattr(body, "reserved_port", 0) or self.port
            self._news.set()

    async def run(self, script: str, *argv: str, generation: int, **start: Any) -> list[pb.RankExited]:
        """Runs another script in the same launcher to its end and returns the exits by rank."""
        self.becomes(script, *argv)
        await self.start(generation, **start)
        await self.wait(generation, "attempt_stopped")
        return sorted((r.rank_exited for r in self.of(generation, "rank_exited")), key=lambda e: e.rank)

    def becomes(self, script: str, *argv: str) -> None:
        """Replaces the job's script."""
        (self.folder / "script.py").write_text(script)
        del self.spec.argv[1:]
        self.spec.argv.extend(argv)

    async def start(self, generation: int, **start: Any) -> None:
        """Sends StartAttempt for a job on this node alone."""
        defaults = {"world_size": self.nproc, "nnodes": 1, "master_address": "127.0.0.1", "master_port": self.port}
        await self.command(generation, start=pb.StartAttempt(**{**defaults, **start}))

    async def stop(self, generation: int, grace_s: float = 0) -> None:
        await self.command(generation, stop=pb.StopAttempt(grace_seconds=grace_s))

    async def command(self, generation: int, **kind: Any) -> None:
        await self.supervisor.handle(pb.LauncherCommand(generation=generation, **kind))

    def of(self, generation: int, kind: str) -> list[pb.LauncherReport]:
        return [r for r in self.reports if r.generation == generation and r.WhichOneof("kind") == kind]

    async def wait(
        self,
        generation: int,
        kind: str,
        count: int = 1,
        *,
        where: Callable[[Any], bool] = lambda _: True,
        timeout_s: float = 30,
    ) -> list[Any]:
        """Bodies of the first `count` reports of that kind."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = [body for r in self.of(generation, kind) if where(body := getattr(r, kind))]
                if len(found) >= count:
                    return found
                self._news.clear()
                await self._news.wait()

    async def wait_for_steps(self, generation: int, count: int = 1) -> pb.Progress:
        """Until every rank has completed that many steps of the attempt."""
        found = await self.wait(generation, "progress", where=lambda p: all(rank.count >= count for rank in p.ranks))
        progress: pb.Progress = found[0]
        return progress

    async def pids(self, generation: int) -> list[int]:
        started = await self.wait(generation, "rank_started", self.nproc)
        return [s.pid for s in sorted(started, key=lambda s: s.rank)]

    def log(self, generation: int, rank: int, stream: str = "stdout") -> str:
        return (self.folder / f"state/logs/{generation}/rank-{rank}.{stream}.log").read_text()


async def until(condition: Callable[[], bool], timeout_s: float = 5) -> float:
    """Polls until the condition holds; returns the seconds that it took. Raises TimeoutError."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # the kernel sets no event
            await asyncio.sleep(0.005)  # the kernel sets no event
    return time.monotonic() - began


def alive(pids: Sequence[int]) -> list[int]:
    """Those of the processes that live (a zombie does not)."""
    return [pid for pid in pids if proc.state(pid) not in (None, "Z", "X")]
