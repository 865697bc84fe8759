"""Where the nodes of a job without a server meet, over real gRPC; nodes and launchers are played by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from recovery_plane import Launcher, ended, until

from switchgear.cli.rendezvous import Rendezvous
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import node_agent_service_pb2 as agent_pb
from switchgear.v1alpha import rendezvous_service_pb2 as pb
from switchgear.v1alpha import rendezvous_service_pb2_grpc as pb_grpc

JOB = "jobs/pair"
SPEC = JobSpec(argv=["train.py"], nnodes=2, nproc_per_node=1, max_restarts=3)


async def test_a_run_that_is_started_again_waits_for_the_nodes_of_the_newest_generation_and_counts_on_from_it() -> None:
    rendezvous = Rendezvous(JOB, "pair", SPEC, ManualClock(), generation=0, last_call_s=30, join_timeout_s=600)
    server = await rendezvous.serve("127.0.0.1:0", None)
    heard: dict[str, list[pb.JoinResponse]] = {"a": [], "b": [], "spare": []}
    tasks = [asyncio.create_task(rendezvous.run())]

    async def join(channel: Any, node: str, generation: int) -> None:
        request = pb.JoinRequest(
            run_id="pair", node=f"nodes/{node}", address=node, nproc_per_node=1, nnodes=2, generation=generation
        )
        async for response in pb_grpc.RendezvousServiceStub(channel).Join(request):  # type: ignore[attr-defined]  # the asynchronous stub
            heard[node].append(response)

    def said(node: str, text: str) -> bool:
        return any(text in response.said for response in heard[node])

    def placed(node: str) -> bool:
        return any(response.placement_epoch for response in heard[node])

    try:
        async with rpc.channel(server.address) as channel:
            for node, generation in (("a", 3), ("spare", 0)):
                tasks.append(asyncio.create_task(join(channel, node, generation)))
            await until(lambda: said("a", "ranks of generation 3 may still run on a node that is not here"))
            tasks.append(asyncio.create_task(join(channel, "b", 3)))
            await until(lambda: placed("a") and placed("b"))
            assert not placed("spare")
            launchers = [
                Launcher(server.address, agent_pb.StartLauncher(job=JOB, spec=SPEC), f"nodes/{node}") for node in "ab"
            ]
            tasks += [asyncio.create_task(launcher.run()) for launcher in launchers]
            for launcher in launchers:
                await launcher.has("start", 4)
    finally:
        await ended(tasks)
        await server.stop(0)
