"""The loss of a node: a control plane, two nodes and a spare one, all on this machine."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from faultbench.contenders import Contender
from faultbench.measured import Bar, Measured, Row, at_most, each
from faultbench.runs import SCRIPT, STEPS_BEFORE, TIMEOUT_S, Book, NotInTimeError, end, family, send
from switchgear.cli.client import connect
from switchgear.cli.demo.stage import NODES, Stage, wait_for
from switchgear.v1 import fleet_service_pb2 as fleet

JOB = "bench"
NODES_OF_JOB = 2
#: T and its margin: the shortest margin that recovery takes, and a lease that fits it. Their defaults, 30 s and 5 s, shift the figure.
LEASE_S = 3.0
LEASE_MARGIN_S = 3.0
BACK_S_MAX = 3.0
LIMIT_S = 60.0
#: Its zygote imports torch at low priority.
WARM_S_MAX = 40.0


def start(stage: Stage) -> None:
    """The control plane and its nodes, until a job can be placed. Raises FailedPrecondition."""
    stage.start_control()
    stage.start_agents()
    with connect(stage.addresses.grpc) as client:

        def healthy() -> bool | None:
            nodes = client.fleet.ListNodes(fleet.ListNodesRequest()).nodes
            return True if sum(node.state == fleet.Node.HEALTHY for node in nodes) == len(NODES) else None

        wait_for("healthy nodes", healthy, TIMEOUT_S, stage.check)


class Cluster(Book):
    """The job on two of three nodes. Use as a context manager: it leaves no process and no file."""

    def __init__(self, ranks: int) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="switchgear-bench-"))
        super().__init__(self._place / "job", ranks)
        self.folder.mkdir()
        self.stage = Stage(self._place / "stage")
        self.lost: list[psutil.Process] = []

    def __enter__(self) -> Cluster:
        os.environ["SWITCHGEAR_LEASE_SECONDS"] = f"{LEASE_S:g}"
        os.environ["SWITCHGEAR_LEASE_MARGIN_SECONDS"] = f"{LEASE_MARGIN_S:g}"
        try:
            start(self.stage)
            self._submit()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self.lost)
        self.stage.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def _submit(self) -> None:
        where = ["--server", self.stage.addresses.grpc, "--detach", "--name", JOB]
        shape = ["--nnodes", str(NODES_OF_JOB), "--nproc-per-node", str(self.ranks // NODES_OF_JOB)]
        command = [sys.executable, "-m", "switchgear.cli.main", "run", *where, *shape, "--env", "OMP_NUM_THREADS=1"]
        script = ["--checkpoint-dir", str(self.folder), "--", str(SCRIPT), str(self.folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run([*command, *script], env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise NotInTimeError(f"the job was not taken: {ended.stderr[-2000:]}")

    def wait(self, what: str, reached: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
        """Raises NotInTimeError."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline:
                raise NotInTimeError(f"no {what}: {(self._place / 'stage' / 'up.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def node_of(self, pid: int) -> str:
        """The node whose launcher has started that process."""
        for node in NODES:
            path = self.stage.agent_dir(node) / "launchers" / JOB / "generation.json"
            if path.exists() and pid in [process["pid"] for process in json.loads(path.read_text())["processes"]]:
                return node
        raise NotInTimeError(f"no launcher has written down process {pid}")

    def spare(self) -> str:
        used = {self.node_of(rank[-1].pid) for rank in self.lines()}
        return next(node for node in NODES if node not in used)

    def everything_on(self, node: str) -> list[psutil.Process]:
        """Agent, launchers, zygotes, ranks, and what they have started."""
        roots = [self.stage.pids()[node]]
        roots += [int((path / "lock").read_text()) for path in (self.stage.agent_dir(node) / "launchers").glob("*")]
        found = {pid: psutil.Process(pid) for pid in roots if psutil.pid_exists(pid)}
        for root in roots:
            found.update({process.pid: process for process in family(root)})
        return list(found.values())

    def wait_for_warm_spare(self) -> bool:
        """Until the spare node's standby launcher has its zygote ready: it has worked, and rests. False when none comes in time."""
        agent = self.stage.pids()[self.spare()]

        def worked_s() -> float:
            try:
                standbys = [one for one in family(agent) if "--standby" in one.cmdline()]
                return sum(zygote.cpu_times().user for one in standbys for zygote in one.children(recursive=True))
            except psutil.NoSuchProcess:
                return 0.0

        deadline, last_s = time.monotonic() + WARM_S_MAX, 0.0
        while time.monotonic() < deadline:
            now_s = worked_s()
            if now_s and now_s == last_s:
                return True
            last_s = now_s
            time.sleep(1.0)
        return False

    def until_first_step_ns(self, old: set[int]) -> float:
        """Infinite when it does not come in time."""
        try:
            self.wait("step after the fault", lambda: self.first_step_ns(old), LIMIT_S)
        except NotInTimeError:
            return math.inf
        return self.first_step_ns(old) or math.inf


def lose_node(number: signal.Signals, ranks: int) -> Measured:
    """All processes of the node of the last rank get that signal at one moment."""
    with Cluster(ranks) as cluster:
        cluster.wait(f"{STEPS_BEFORE} steps", cluster.steady)
        warm = cluster.wait_for_warm_spare()
        old, before = cluster.pids(), cluster.generations()
        cluster.lost = cluster.everything_on(cluster.node_of(cluster.lines()[-1][-1].pid))
        fault_ns = time.time_ns()
        send([process.pid for process in cluster.lost], number)
        first_ns = cluster.until_first_step_ns(old)
        spent = cluster.generations() - before
        # A node that was only asleep must not make one more step.
        send([process.pid for process in cluster.lost], signal.SIGCONT)
        time.sleep(1.0)
        facts = {"warm": warm, "generations": spent, "overlap_s": round(cluster.overlap_s(old), 2)}
        return Measured((first_ns - fault_ns) / 1e9, facts)


def node(contender: Contender, ranks: int) -> Measured:  # noqa: ARG001  # only ours has such nodes
    return lose_node(signal.SIGKILL, ranks)


def silent(contender: Contender, ranks: int) -> Measured:  # noqa: ARG001  # the same
    return lose_node(signal.SIGSTOP, ranks)


def judge_node(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    return _judge(rounds, medians, BACK_S_MAX)


def judge_silent(rounds: Sequence[Measured], medians: Mapping[str, float]) -> Sequence[Bar]:
    return _judge(rounds, medians, LEASE_S + LEASE_MARGIN_S + BACK_S_MAX)


def _judge(rounds: Sequence[Measured], medians: Mapping[str, float], bar_s: float) -> Sequence[Bar]:
    return (
        at_most("first step", medians["switchgear"], bar_s),
        each("one generation spent", rounds, "generations", 1),
        each("no overlap of generations", rounds, "overlap_s", 0.0),
    )


_SILENT = f"every process of a node stopped, T = {LEASE_S:g} s, margin {LEASE_MARGIN_S:g} s, with a warm spare"
CLUSTER_ROWS = (
    Row("node", "every process of a node killed, with a warm spare", "to the first step", node, judge_node, 0, (35, 0)),
    Row("silent", _SILENT, "to the first step", silent, judge_silent, 0, (42, 0)),
)
