"""Real replica processes of the example model behind the router, under load: what is killed, drained or added costs no request."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry
from serving_plane import ServingPlane, replica_name, serving_plane

from switchgear.cli.demo.stage import example_trainer
from switchgear.serve import load, router
from switchgear.serve.switchboard import Limits
from switchgear.v1alpha import serving_service_pb2 as pb

SCRIPT = example_trainer().with_name("serve_gpt.py")
_MAKE_MODEL = "import sys, torch; from train_gpt import Gpt; torch.manual_seed(1); torch.save({'model': Gpt().state_dict()}, sys.argv[1])"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a readable checkpoint of an untrained model, and a newer one that is damaged."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make = [sys.executable, "-c", _MAKE_MODEL, str(folder / "step-00000010.pt")]
    subprocess.run(make, check=True, env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)}, timeout=60)
    (folder / "step-00000020.pt").write_bytes((folder / "step-00000010.pt").read_bytes()[:5000])
    return folder


@dataclass
class Replicas:
    """Processes of the example server, as a launcher would start them."""

    checkpoints: Path
    autoscaler: str
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def start(self, number: int) -> None:
        environment = {
            **os.environ,
            "SWITCHGEAR_REPLICA": replica_name(number),
            "SWITCHGEAR_NODE_ADDRESS": "127.0.0.1",
            "SWITCHGEAR_AUTOSCALER": self.autoscaler,
        }
        options = ("--checkpoint", str(self.checkpoints), "--tokens-per-second-max", "100")
        self.processes[number] = subprocess.Popen(
            [sys.executable, str(SCRIPT), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def close(self) -> Iterator[str]:
        """Ends all; gives what each wrote."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            yield process.communicate(timeout=20)[0]


@dataclass
class Stage:
    plane: ServingPlane
    replicas: Replicas
    url: str

    async def load_until(self, enough: asyncio.Event) -> load.Report:
        """20 requests a second, for as long as the test needs them on this machine."""
        outcomes = list[load.Outcome]()

        async def second(seed: int) -> None:
            phases = load.profile("1x20")
            settings = load.LoadSettings(url=self.url, model="chat", phases=phases, seed=seed, tokens=(4, 8))
            outcomes.extend((await load.run(settings)).outcomes)

        async with asyncio.TaskGroup() as tasks:
            for seed in itertools.count():
                tasks.create_task(second(seed))
                await asyncio.sleep(1)
                if enough.is_set():
                    break
        return load.Report(load.compared(outcomes))


@pytest.fixture
async def stage(checkpoints: Path) -> AsyncIterator[Stage]:
    async with serving_plane() as plane:
        replicas = Replicas(checkpoints, plane.address)
        limits = Limits(in_flight_per_replica=8)
        settings = router.RouterSettings(autoscaler=plane.address, listen="127.0.0.1:0", limits=limits)
        try:
            async with router.serve(settings, CollectorRegistry()) as address:
                yield Stage(plane, replicas, f"http://{address}")
        finally:
            for output in await asyncio.to_thread(lambda: list(replicas.close())):
                print(output)  # noqa: T201 - for who reads why a test failed


async def test_no_request_is_lost_from_zero_to_two_through_a_kill_a_drain_and_the_end_of_a_replica(
    stage: Stage,
) -> None:
    plane, replicas = stage.plane, stage.replicas
    for number in (1, 2, 3):
        replicas.start(number)
    first, second, third = [await plane.ready(number) for number in (1, 2, 3)]
    await plane.publish()
    enough = asyncio.Event()
    loading = asyncio.create_task(stage.load_until(enough))
    await plane.until(lambda: plane.demand().held_requests > 0)
    await plane.publish(first, second)
    await plane.until(lambda: [demand.in_flight_requests > 0 for demand in plane.demand().replicas] == [True, True])

    replicas.processes[1].kill()
    await plane.publish(second, third)
    await plane.until(lambda: any(d.replica == third.replica and d.in_flight_requests for d in plane.demand().replicas))

    await plane.publish(pb.ReplicaRoute(replica=second.replica, address=second.address, draining=True), third)
    await plane.until(
        lambda: all(d.in_flight_requests == 0 for d in plane.demand().replicas if d.replica == second.replica)
    )
    replicas.processes[2].send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(replicas.processes[2].wait, 20) == 0
    await plane.publish(third)

    enough.set()
    report = await loading
    assert (report.lost, len(report.outcomes) > 20) == (0, True), report.failures()

    # One that is terminated with requests in it finishes them; both have the same seed. What it told last may be of the load.
    await plane.until(lambda: plane.loads[third.replica].running_requests == 0)
    async with httpx.AsyncClient(base_url=f"http://{third.address}", timeout=60, trust_env=False) as client:
        body = {"model": "chat", "prompt": "def f(", "max_tokens": 500, "temperature": 0.7, "seed": 3}
        asked = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
        await plane.until(lambda: plane.loads[third.replica].running_requests == 2)
        replicas.processes[3].terminate()
        answers = [(await task).json()["choices"][0]["text"] for task in asked]
    assert answers[0] == answers[1]
    assert await asyncio.to_thread(replicas.processes[3].wait, 20) == 0
