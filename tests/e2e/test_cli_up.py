"""`switchgear up` with jobs on it, killed and started again, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from terminal import RANKS, STEPS, Terminal, runs, wait_for

from switchgear.cli.demo import proofs
from switchgear.cli.state import Running, read_running
from switchgear.launcher.state import is_held


def free_port() -> int:
    """A port that was free a moment ago: `up` must come back on the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Control(Terminal):
    """A terminal in which `switchgear up` runs, with an agent that simulates two GPUs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports = free_port(), free_port()
        self.up()

    def up(self) -> None:
        grpc, http = (f"127.0.0.1:{port}" for port in self._ports)
        listen = ("--grpc", grpc, "--http", http, "--router", "127.0.0.1:0")
        self.process = self.start("up", *listen, "--node", "n1", "--sim-gpus", str(RANKS))

        def running() -> Running | None:
            assert self.process.poll() is None, self.process.communicate()[0]
            found = read_running(self.folder / "state")
            return found if found and found.pid == self.process.pid else None

        wait_for(running)
        wait_for(lambda: any(node["state"] == "HEALTHY" for node in self.ask("nodes")))

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, *arguments: str) -> Any:
        """What a command answers as JSON."""
        ended = self.run(*arguments, "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        running = read_running(self.folder / "state")
        assert running is not None
        return httpx.request(method, f"http://{running.http}{path}", json=body, timeout=10, trust_env=False)

    def submit(self, name: str) -> None:
        ended = self.run("run", "--detach", *self.training(name))
        assert ended.returncode == 0, ended.stderr

    def state(self, name: str) -> str:
        return str(self.rest("GET", f"/v1/jobs/{name}").json()["state"])

    def launcher_dirs(self) -> list[Path]:
        return [path for path in (self.folder / "state" / "agent" / "launchers").glob("*") if path.is_dir()]

    def launcher_pid(self) -> int:
        (folder,) = self.launcher_dirs()
        return int((folder / "lock").read_text())

    def ranks_of(self) -> list[int]:
        (folder,) = self.launcher_dirs()
        processes = json.loads((folder / "generation.json").read_text())["processes"]
        return [process["pid"] for process in processes][:RANKS]

    def proofs_of(self, name: str) -> list[proofs.Proof]:
        run, spans = self.losses(name), proofs.read_spans(self.launcher_dirs())
        return [
            proofs.no_overlap(spans),
            proofs.same_step_counts(run, spans),
            proofs.bounded_redo(run, interval=10, damaged={}),
        ]


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    control = Control(tmp_path)
    yield control
    for job in control.ask("jobs"):
        if job["state"] not in ("SUCCEEDED", "FAILED", "CANCELLED"):
            control.run("cancel", job["name"])
    wait_for(lambda: not any(is_held(folder) for folder in control.launcher_dirs()), 20)
    control.close()


def test_a_job_outlives_a_killed_control_plane_and_nothing_happens_twice(control: Control) -> None:
    state = control.folder / "state"
    assert [path.stat().st_mode & 0o077 for path in (state, state / "switchgear.db")] == [0, 0]
    control.submit("train")
    wait_for(lambda: any(loss.step >= 10 for loss in control.losses("train")))
    control.kill()
    seen = len(control.losses("train"))
    wait_for(lambda: len(control.losses("train")) > seen)
    assert control.run("jobs").returncode == 14
    control.up()
    wait_for(lambda: control.state("train") == "SUCCEEDED")
    assert [(loss.rank, loss.step) for loss in control.losses("train")] == [
        (rank, step) for rank in range(RANKS) for step in range(1, STEPS + 1)
    ]
    attempts = control.rest("GET", "/v1/jobs/train/attempts").json()["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["SUCCEEDED"]
    assert control.ask("incidents") == []


def test_a_rank_that_dies_while_nobody_is_in_control_is_recovered_by_the_next_one(control: Control) -> None:
    control.submit("train")
    wait_for(lambda: any(loss.step >= 15 for loss in control.losses("train")))
    control.kill()
    os.kill(control.ranks_of()[0], signal.SIGKILL)
    control.up()
    wait_for(lambda: control.state("train") == "SUCCEEDED")
    (incident,) = control.ask("incidents", "--job", "train")
    assert (incident["fault"], incident["rank"], incident["state"]) == ("RANK_KILLED", 0, "RESOLVED")
    for proof in control.proofs_of("train"):
        assert proof.held, proof


def test_a_killed_launcher_is_replaced_by_its_agent_and_the_job_goes_on(control: Control) -> None:
    control.submit("train")
    wait_for(lambda: any(loss.step >= 15 for loss in control.losses("train")))
    ranks = control.ranks_of()
    os.kill(control.launcher_pid(), signal.SIGKILL)
    wait_for(lambda: not any(map(runs, ranks)), 1.0)
    wait_for(lambda: control.state("train") == "SUCCEEDED")
    (incident,) = control.ask("incidents", "--job", "train")
    assert (incident["fault"], incident["decision"], incident["state"]) == (
        "LAUNCHER_LOST",
        "RESTART_IN_PLACE",
        "RESOLVED",
    )
    for proof in control.proofs_of("train"):
        assert proof.held, proof


def test_a_cancelled_job_leaves_no_process(control: Control) -> None:
    control.submit("train")
    wait_for(lambda: any(loss.step >= 3 for loss in control.losses("train")))
    ranks, launcher = control.ranks_of(), control.launcher_pid()
    answer = control.rest("POST", "/v1/jobs/train:cancel", {})
    assert (answer.status_code, answer.json()["state"]) == (200, "CANCELLED")
    wait_for(lambda: not any(map(runs, [*ranks, launcher])), 15)
    (node,) = control.ask("nodes")
    assert node.get("gpusAllocated", 0) == 0


def test_what_up_and_run_refuse_they_refuse_with_a_remedy(control: Control, tmp_path: Path) -> None:
    running = read_running(control.folder / "state")
    assert running is not None

    def refused(*arguments: str) -> tuple[int, str]:
        ended = control.run(*arguments)
        return ended.returncode, ended.stderr

    (tmp_path / "a.py").write_text("pass\n")
    code, said = refused("run", "--nproc-per-node", "64", "a.py")
    assert (code, "ask for less or add nodes" in said) == (10, True), said
    code, said = refused("up", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert (code, "another `switchgear up` uses" in said) == (16, True), said
    code, said = refused("up", "--state-dir", str(tmp_path / "other"), "--grpc", running.grpc, "--http", "127.0.0.1:0")
    assert (code, "choose another port" in said) == (12, True), said
    code, said = refused("up", "--state-dir", str(tmp_path / "other"), "--grpc", "127.0.0.1:0", "--http", running.http)
    assert (code, "choose another port" in said) == (12, True), said
    with sqlite3.connect(tmp_path / "other" / "switchgear.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    code, said = refused("up", "--state-dir", str(tmp_path / "other"), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert (code, "newer version of Switchgear" in said) == (13, True), said
    assert control.rest("GET", "/v1/jobs/nothing").status_code == 404


def test_up_ends_quickly_when_it_is_asked_to(control: Control) -> None:
    control.process.send_signal(signal.SIGTERM)
    output, _ = control.process.communicate(timeout=10)
    assert control.process.returncode == 0, output
    control.up()  # for the fixture, and since it must be possible
