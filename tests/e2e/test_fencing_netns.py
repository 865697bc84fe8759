"""Nodes that are cut off from their control plane, on a network of the test's own: no step of two generations at once.

Each fault hits two jobs. `solo` has one rank: nothing but its lease keeps the part that was cut off from training on. `pair` trains on
two nodes. All machines share one clock, so the times of their steps can be compared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from network import DEVICE, Machine, Network, network
from step_trainer import STEPS_ENDLESS, TRAIN_FOLDER, Step, lay_out, read_steps
from terminal import SWITCHGEAR, Terminal, wait_for

from switchgear.cli.demo import proofs
from switchgear.cli.state import read_running
from switchgear.core.process import is_alive
from switchgear.launcher.state import is_held

LEASE_S = 3.0
MARGIN_S = 3.0
#: What a look at the lease and a SIGKILL may take on a busy machine.
KILL_S = 0.5
NODES = 4
JOBS = {"solo": 1, "pair": 2}


class Cluster(Terminal):
    """A control plane with TLS on one machine and an agent with two simulated GPUs on each of the others."""

    def __init__(self, folder: Path, net: Network) -> None:
        super().__init__(folder)
        self.net = net
        self.plane, *machines = net.machines
        self.nodes = {f"n{index}": machine for index, machine in enumerate(machines, 1)}
        lay_out(folder)

    def on(self, machine: Machine, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        with (self.folder / "log").open("a") as log:
            process = subprocess.Popen(
                machine.command(*SWITCHGEAR, *arguments),
                cwd=self.folder,
                env=self.environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._started.append(process)
        return process

    def ask(self, *arguments: str) -> Any:
        ended = subprocess.run(
            self.plane.command(*SWITCHGEAR, *arguments, "--json"),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    def up(self) -> None:
        self.run("init", "--host", self.plane.address)
        beyond = ("--grpc", f"{self.plane.address}:7070", "--machines", f"{self.plane.address}:7071")
        loopback = [part for flag in ("--http", "--metrics", "--router") for part in (flag, "127.0.0.1:0")]
        timing = ("--lease-seconds", str(LEASE_S), "--lease-margin-seconds", str(MARGIN_S))
        up = self.on(self.plane, "up", *beyond, *loopback, *timing)
        wait_for(lambda: (found := read_running(self.folder / "state")) and found.pid == up.pid)
        for name, machine in self.nodes.items():
            token = self.ask("join-token", "--node", name)["joinToken"]
            own = ("--node", name, "--address", machine.address, "--state-dir", str(self.folder / name))
            self.on(machine, "agent", *own, "--sim-gpus", "2", "--join", token, NODE=name)
        wait_for(lambda: len(self.ask("nodes")) == NODES)

    def submit(self, job: str, how: str) -> None:
        checkpoints = self.folder / job / "checkpoints"
        checkpoints.mkdir(parents=True)
        options = ["--name", job, "--nnodes", str(JOBS[job]), "--checkpoint-dir", str(checkpoints)]
        options += ["--env", f"GLOO_SOCKET_IFNAME={DEVICE}", "--env", f"PYTHONPATH={TRAIN_FOLDER}"]
        if how == "plain":
            options += ["--python", str(self.folder / "bare" / "bin" / "python")]
        script = ("train.py", str(self.folder / f"{job}.jsonl"), str(STEPS_ENDLESS), how)
        ended = self.on(self.plane, "run", "--detach", *options, "--", *script)
        assert ended.wait(60) == 0, (self.folder / "log").read_text()[-2000:]

    def steps(self, job: str) -> list[Step]:
        return read_steps(self.folder / f"{job}.jsonl")

    def generation(self, job: str) -> int:
        return max((step.generation for step in self.steps(job)), default=0)

    def node_of(self, job: str) -> str:
        return next(step.node for step in reversed(self.steps(job)) if step.rank == 0)

    def goes_on(self, job: str) -> None:
        """Waits for steps of all its ranks that begin from now on, in its newest generation."""
        now_ns = time.monotonic_ns()

        def there() -> bool:
            newest = self.generation(job)
            return {s.rank for s in self.steps(job) if s.generation == newest and s.begin_ns > now_ns} == set(
                range(JOBS[job])
            )

        wait_for(there)

    def begins_anew(self, job: str, generation: int) -> None:
        wait_for(lambda: self.generation(job) > generation)

    def launcher_dirs(self, job: str) -> list[Path]:
        return [path for name in self.nodes if (path := self.folder / name / "launchers" / job).is_dir()]

    def end(self) -> None:
        for job in JOBS:
            self.on(self.plane, "cancel", job).wait(60)
        wait_for(lambda: not any(is_held(folder) for job in JOBS for folder in self.launcher_dirs(job)), 30)

    def close(self) -> None:
        super().close()
        # Launchers outlive their agents, and of a job that was not cancelled they do so for long.
        for file in self.folder.glob("n*/launchers/*/agent.json"):
            state = json.loads(file.read_text())
            if state["pid"] and is_alive(state["pid"], state["start_ticks"]):
                os.kill(state["pid"], signal.SIGKILL)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with network(1 + NODES) as net:
        cluster = Cluster(tmp_path, net)
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.close()


def silent(cluster: Cluster, node: Machine) -> Callable[[], None]:
    """Unplugged."""
    cluster.net.unplug(node)
    return lambda: cluster.net.plug_in(node)


def loud(cluster: Cluster, node: Machine) -> Callable[[], None]:
    """Cut off from the control plane alone, which both sides are told at once."""
    plane = cluster.plane
    node.refuse(plane)
    plane.reset(node)
    node.reset(plane)
    return lambda: node.allow(plane)


def deaf(cluster: Cluster, node: Machine) -> Callable[[], None]:
    """The control plane hears the node, and not the other way round."""
    cluster.plane.lose_frames_to(node)
    return lambda: cluster.plane.find_again(node)


def mute(cluster: Cluster, node: Machine) -> Callable[[], None]:
    """The node hears the control plane, and not the other way round."""
    node.lose_frames_to(cluster.plane)
    return lambda: node.find_again(cluster.plane)


@pytest.mark.parametrize(
    ("how", "cuts"),
    [
        pytest.param("plain", (silent, loud), id="both-ways"),
        pytest.param("plain", (deaf, mute), id="one-way", marks=pytest.mark.slow),
        pytest.param("torch", (silent, loud), id="torch", marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
    ],
)
def test_a_node_that_is_cut_off_stops_before_its_job_goes_on_elsewhere(
    cluster: Cluster, how: str, cuts: tuple[Callable[[Cluster, Machine], Callable[[], None]], ...]
) -> None:
    for job in JOBS:
        cluster.submit(job, how)
    for job in JOBS:
        cluster.goes_on(job)
    victim = cluster.nodes[cluster.node_of("solo")]
    heal = cuts[0](cluster, victim)
    time.sleep(LEASE_S / 3)
    heal()
    for job in JOBS:
        cluster.goes_on(job)
        assert cluster.generation(job) == 1, "a gap shorter than the lease costs nothing"

    heals = []
    for cut in cuts:
        before = {job: cluster.generation(job) for job in JOBS}
        name = cluster.node_of("solo")
        hit = [job for job in JOBS if name in {s.node for s in cluster.steps(job) if s.generation == before[job]}]
        cut_ns = time.monotonic_ns()
        heals.append(cut(cluster, cluster.nodes[name]))
        for job in hit:
            cluster.begins_anew(job, before[job])
        _stopped_in_time(cluster.steps("solo"), before["solo"], cut_ns)
        for job in JOBS:
            cluster.goes_on(job)
    for heal in heals:
        heal()
    cluster.end()
    assert cluster.generation("solo") == 1 + len(cuts)
    incidents = cluster.ask("incidents")
    assert {incident["fault"] for incident in incidents} == {"NODE_LOST"}
    for job in JOBS:
        proof = proofs.no_overlap(proofs.read_spans(cluster.launcher_dirs(job)))
        assert proof.held, (job, proof)


def _stopped_in_time(steps: list[Step], generation: int, cut_ns: int) -> None:
    """The part that was cut off ends with its lease; the next one begins a margin later."""
    ended_ns = max(step.end_ns for step in steps if step.generation == generation)
    begun_ns = min(step.begin_ns for step in steps if step.generation > generation)
    assert (ended_ns - cut_ns) / 1e9 < LEASE_S + KILL_S
    assert (begun_ns - ended_ns) / 1e9 > MARGIN_S - KILL_S
