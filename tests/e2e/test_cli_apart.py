"""The services as processes of their own on PostgreSQL: killed one after the other, and one that stands by for another."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from terminal import RANKS, STEPS, Terminal, wait_for

from switchgear.cli.compose import ENDPOINTS
from switchgear.cli.demo import proofs
from switchgear.launcher.state import is_held

#: Six processes begin at once.
START_S = 120


def free_ports(count: int) -> list[int]:
    """Below those that the kernel gives to others meanwhile: the processes take theirs seconds later."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found = [*dict.fromkeys([*found, port])]
    return found


class Apart(Terminal):
    """A terminal in which five services and an agent with two simulated GPUs run."""

    def __init__(self, folder: Path, database_url: str) -> None:
        super().__init__(folder)
        self.environment["SWITCHGEAR_DATABASE_URL"] = database_url
        *ports, http, self.standby_port = free_ports(len(ENDPOINTS) + 2)
        self.at = {name: f"127.0.0.1:{port}" for name, port in zip(ENDPOINTS, ports, strict=True)}
        self.environment["SWITCHGEAR_HTTP"] = f"127.0.0.1:{http}"
        for name, address in self.at.items():
            self.environment[f"SWITCHGEAR_{name.upper()}"] = address
        # Whoever speaks to the scheduler finds the one that stands by as well.
        self.environment["SWITCHGEAR_SCHEDULER"] += f",127.0.0.1:{self.standby_port}"
        self.services: dict[str, subprocess.Popen[str]] = {}

    def up(self) -> None:
        for name in ENDPOINTS:
            self.serve(name)
        scheduler = self.environment["SWITCHGEAR_SCHEDULER"]
        others = [part for name in ("collector", "autoscaler") for part in (f"--{name}", self.at[name])]
        state = str(self.folder / "agent")
        self.start("agent", "--scheduler", scheduler, *others, "--node", "n1", "--sim-gpus", "2", "--state-dir", state)
        wait_for(lambda: any(node["state"] == "HEALTHY" for node in self.items("nodes")), START_S)

    def serve(self, name: str, address: str = "") -> subprocess.Popen[str]:
        process = self.services[name] = self.start("serve", name, "--grpc", address or self.at[name])
        return process

    def kill(self, name: str) -> None:
        self.services[name].kill()
        self.services[name].communicate()

    def items(self, collection: str) -> list[dict[str, Any]]:
        """Over REST; nothing while the gateway or the service behind it is away."""
        try:
            answer = httpx.get(
                f"http://{self.environment['SWITCHGEAR_HTTP']}/v1/{collection}", timeout=10, trust_env=False
            )
        except httpx.HTTPError:
            return []
        found: list[dict[str, Any]] = answer.json().get(collection, [])
        return found

    def submit(self, name: str) -> None:
        ended = self.run("run", "--detach", "--server", self.at["gateway"], *self.training(name))
        assert ended.returncode == 0, ended.stderr

    def state(self, name: str) -> str:
        return next((job["state"] for job in self.items("jobs") if job["name"] == f"jobs/{name}"), "")

    def launcher_dirs(self) -> list[Path]:
        return [path for path in (self.folder / "agent" / "launchers").glob("*") if path.is_dir()]

    def ranks_of(self) -> list[int]:
        (folder,) = self.launcher_dirs()
        processes = json.loads((folder / "generation.json").read_text())["processes"]
        return [process["pid"] for process in processes][:RANKS]


async def _ask_server(socket_folder: Path, statement: str) -> None:
    server = await asyncpg.connect(host=str(socket_folder), user="postgres", database="postgres")
    try:
        await server.execute(statement)
    finally:
        await server.close()


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, postgres_server: Path) -> Iterator[Apart]:
    name = f"test_{uuid.uuid4().hex}"
    asyncio.run(_ask_server(postgres_server, f"CREATE DATABASE {name}"))
    url = f"postgresql+asyncpg://postgres@/{name}?host={postgres_server}"
    apart = Apart(tmp_path_factory.mktemp("apart"), url)
    try:
        apart.up()
        yield apart
        wait_for(lambda: not any(is_held(folder) for folder in apart.launcher_dirs()), 20)
    finally:
        apart.close()
        asyncio.run(_ask_server(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


def test_a_job_outlives_the_death_of_every_service_and_of_a_rank(apart: Apart) -> None:
    apart.submit("killed")
    wait_for(lambda: any(loss.step >= 10 for loss in apart.losses("killed")))
    apart.kill("recovery")
    os.kill(apart.ranks_of()[1], signal.SIGKILL)  # nobody hears of it now
    apart.serve("recovery")
    for name in ("collector", "scheduler", "autoscaler", "gateway"):
        apart.kill(name)
        apart.serve(name)
    wait_for(lambda: apart.state("killed") == "SUCCEEDED", 120)
    incidents = apart.items("incidents")
    assert [(one["fault"], one["decision"], one["state"]) for one in incidents] == [
        ("RANK_KILLED", "RESTART_IN_PLACE", "RESOLVED")
    ]
    run, spans = apart.losses("killed"), proofs.read_spans(apart.launcher_dirs())
    assert {loss.step for loss in run} == set(range(1, STEPS + 1))
    for proof in (proofs.no_overlap(spans), proofs.bounded_redo(run, interval=10, damaged={})):
        assert proof.held, proof


def test_a_scheduler_that_stands_by_takes_over_from_one_that_was_killed(apart: Apart) -> None:
    first = apart.services["scheduler"]
    second = apart.serve("scheduler", f"127.0.0.1:{apart.standby_port}")
    apart.submit("taken-over")
    wait_for(lambda: apart.state("taken-over") == "RUNNING")
    with pytest.raises(ConnectionRefusedError):  # it stands by, and nobody takes it for the scheduler
        socket.create_connection(("127.0.0.1", apart.standby_port))
    first.kill()
    wait_for(lambda: apart.state("taken-over") == "SUCCEEDED", 120)
    # The one that was killed comes back and stands by in its turn.
    third = apart.serve("scheduler")
    second.terminate()
    assert second.wait(20) == 0
    wait_for(lambda: bool(apart.items("nodes")))
    assert third.poll() is None


def test_services_apart_need_a_database_that_they_can_share(tmp_path: Path) -> None:
    ended = Terminal(tmp_path).run("serve", "scheduler", "--database-url", "sqlite+aiosqlite:///state.db")
    assert ended.returncode == 23
    assert "switchgear up" in ended.stderr
