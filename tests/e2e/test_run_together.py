"""`switchgear run` as two nodes of one job that meet at an address, without a server: real processes on one machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import TRAIN
from prometheus_stack import free_port
from terminal import Terminal, wait_for

from switchgear.access import pki
from switchgear.cli.demo import proofs


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    yield terminal
    terminal.close()


class Pair:
    """Two nodes with a rank each; the first one keeps the job together."""

    def __init__(self, terminal: Terminal, *given: str) -> None:
        self._terminal, self._given = terminal, given
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.nodes = [self._start(0), self._start(1)]

    def _start(self, node_rank: int) -> subprocess.Popen[str]:
        place = ("--nnodes", "2", "--rdzv-endpoint", self.endpoint, "--node-rank", str(node_rank), "--rdzv-id", "pair")
        return self._terminal.start("run", *place, *self._given)

    def kill(self, node_rank: int) -> None:
        """Kills the node's launcher and starts it again."""
        self.nodes[node_rank].kill()
        self.nodes[node_rank].communicate()
        self.nodes[node_rank] = self._start(node_rank)

    def folder(self, node_rank: int) -> Path:
        (found,) = (self._terminal.folder / "state" / "standalone").glob(f"pair@*r{node_rank}")
        return found

    def rank_pid(self, node_rank: int) -> int:
        return self._terminal.rank_pids(self.folder(node_rank).name)[0]

    def ends(self) -> list[str]:
        """What both have printed, when the job has ended well."""
        said = [node.communicate(timeout=60)[0] for node in self.nodes]
        assert [node.returncode for node in self.nodes] == [0, 0], said
        return said


def test_a_killed_rank_of_the_second_node_costs_both_one_restart_and_never_runs_twice(terminal: Terminal) -> None:
    checkpoints = terminal.folder / "checkpoints"
    checkpoints.mkdir()
    pair = Pair(terminal, "--checkpoint-dir", str(checkpoints), "train.py", "40", "0.03")
    wait_for(lambda: list(checkpoints.glob("step-*.pt")))
    os.kill(pair.rank_pid(1), signal.SIGKILL)
    first, second = pair.ends()
    assert re.search(r"Rank 1 on nodes/\S+-r1 was killed by SIGKILL after step \d+ .* restarted in place", first), first
    assert ("[rank 0] done 40" in first, "[rank 1] done 40" in second) == (True, True)
    spans = proofs.read_spans([pair.folder(0), pair.folder(1)])
    assert sorted((span.generation, span.rank) for span in spans) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert proofs.no_overlap(spans).held


def test_each_node_may_be_killed_and_started_again_and_generations_go_on(terminal: Terminal, bare_python: str) -> None:
    """Also the one that keeps the job together, although it stores nothing."""
    script = """
import os, time
generation, rank = os.environ["SWITCHGEAR_GENERATION"], os.environ["RANK"]
open(f"up-{generation}-{rank}", "w").close()
if generation == "3":
    print("end of", generation)
else:
    time.sleep(60)
"""
    (terminal.folder / "wait.py").write_text(script)
    pair = Pair(terminal, "--python", bare_python, "wait.py")
    for generation, killed in ((1, 1), (2, 0)):
        wait_for(lambda: len(list(terminal.folder.glob(f"up-{generation}-*"))) == 2)  # noqa: B023  # called before the next round
        ranks = [pair.rank_pid(0), pair.rank_pid(1)]
        pair.kill(killed)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))  # noqa: B023
    assert all(f"[rank {rank}] end of 3" in said for rank, said in enumerate(pair.ends()))


def test_the_end_of_the_node_that_keeps_the_job_together_ends_all_with_time_to_save(
    terminal: Terminal, bare_python: str
) -> None:
    """A script that nothing was imported for: only the launchers are looked at."""
    script = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved')))\n"
    (terminal.folder / "wait.py").write_text(f"{script}print('up')\ntime.sleep(60)\n")
    given = ("--nnodes", "1:2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--python", bare_python)
    keeper, other = (terminal.start("run", *given, "--node-rank", rank, "wait.py") for rank in "01")
    for run in (keeper, other):
        out = run.stdout
        assert out is not None
        wait_for(lambda: "up" in out.readline())  # noqa: B023  # called before the next round
    keeper.send_signal(signal.SIGTERM)
    said = [run.communicate(timeout=30)[0] for run in (keeper, other)]
    assert (keeper.returncode, other.returncode) == (143, 1), said
    assert all("saved" in text for text in said), said
    assert "was stopped" in said[1]


def test_a_node_of_another_job_or_with_other_numbers_is_refused(terminal: Terminal, bare_python: str) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    script = ("--python", bare_python, "train.py", "1", "0")
    first = terminal.start("run", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-id", "a", *script)
    assert first.stdout is not None
    wait_for(lambda: "1 of 2 nodes" in first.stdout.readline())  # type: ignore[union-attr]
    other = terminal.run("run", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-id", "b", *script)
    assert (other.returncode, "the same --rdzv-id" in other.stderr) == (2, True), other.stderr
    more = terminal.run("run", "--nnodes", "3", "--rdzv-endpoint", endpoint, "--rdzv-id", "a", *script)
    assert "begun with nnodes 2, not 3" in more.stderr


def test_beyond_loopback_nodes_need_certificates(terminal: Terminal) -> None:
    ended = terminal.run("run", "--nnodes", "2", "--rdzv-endpoint", "192.0.2.1:29400", "train.py")
    assert (ended.returncode, "SWITCHGEAR_TLS_CERTIFICATE" in ended.stderr) == (18, True), ended.stderr


def test_with_certificates_nodes_meet_over_tls_and_nobody_else_comes_in(terminal: Terminal, bare_python: str) -> None:
    pki.create(terminal.folder / "pki", ["localhost"], time.time_ns())
    files = pki.Pki(terminal.folder / "pki").tls_files
    (terminal.folder / "hello.py").write_text("import os\nprint('rank', os.environ['RANK'], 'is here')\n")
    given = ("--python", bare_python, "--rdzv-conf", "join_timeout=20", "hello.py")
    plain = dict(terminal.environment)
    terminal.environment |= files.environment()
    pair = Pair(terminal, *given)
    said = pair.ends()
    assert all(f"[rank {rank}] rank {rank} is here" in text for rank, text in enumerate(said)), said
    keeper = terminal.start("run", "--nnodes", "2", "--rdzv-endpoint", pair.endpoint, "--node-rank", "0", *given)
    assert keeper.stdout is not None
    wait_for(lambda: "1 of 2 nodes" in keeper.stdout.readline())  # type: ignore[union-attr]
    terminal.environment = plain
    stranger = ("--nnodes", "2", "--rdzv-endpoint", pair.endpoint, "--node-rank", "1", "--rdzv-conf", "join_timeout=1")
    ended = terminal.run("run", *stranger, "--python", bare_python, "hello.py")
    assert (ended.returncode, "nobody has answered" in ended.stderr) == (14, True), ended.stderr


def test_when_too_few_nodes_come_the_run_ends_and_says_how_many(terminal: Terminal, bare_python: str) -> None:
    place = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-conf", "join_timeout=1")
    ended = terminal.run("run", *place, "--python", bare_python, "train.py", "1", "0")
    assert (ended.returncode, "1 of 2 nodes are here after 1 s" in ended.stderr) == (1, True), ended.stderr
