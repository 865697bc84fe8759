"""Launchers that are quicker than the scheduler's word of their placement: one that was kept warm is."""

from __future__ import annotations

from recovery_plane import Launcher, refusal

from switchgear.core import rpc
from switchgear.core.errors import Reason
from switchgear.recovery.actor import JobActor
from switchgear.recovery.launchers import LOOK_AGAIN_S, LauncherSessions, not_known_yet
from switchgear.v1alpha import launcher_service_pb2_grpc as wire_grpc
from switchgear.v1alpha.node_agent_service_pb2 import StartLauncher

JOB = "jobs/llama"


class Jobs:
    """Nobody knows the job for so many looks; then it has ended."""

    def __init__(self, looks_in_vain: int) -> None:
        self.looks, self._in_vain = 0, looks_in_vain

    async def find(self, job: str) -> JobActor | None:
        self.looks += 1
        return await not_known_yet(job) if self.looks <= self._in_vain else None


async def test_a_launcher_whose_placement_is_not_known_yet_is_answered_as_soon_as_it_is() -> None:
    jobs, server = Jobs(looks_in_vain=2), rpc.Server()
    wire_grpc.add_LauncherServiceServicer_to_server(LauncherSessions(jobs.find), server.grpc)
    address = await server.start("127.0.0.1:0", [])
    try:
        command = await Launcher(address, StartLauncher(job=JOB), "nodes/a").connect_once()
    finally:
        await server.stop(0)
    assert (command.finish.reason, jobs.looks) == ("the job has ended", 3)


async def test_a_launcher_of_a_job_that_nobody_comes_to_know_is_sent_away_to_connect_again() -> None:
    jobs, server = Jobs(looks_in_vain=100), rpc.Server()
    wire_grpc.add_LauncherServiceServicer_to_server(LauncherSessions(jobs.find), server.grpc)
    address = await server.start("127.0.0.1:0", [])
    try:
        error = await refusal(Launcher(address, StartLauncher(job=JOB), "nodes/a").connect_once())
    finally:
        await server.stop(0)
    assert (error.reason, jobs.looks) == (Reason.NOT_FOUND, 1 + len(LOOK_AGAIN_S))
