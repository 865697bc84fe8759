"""`switchgear run` as two nodes of one job that meet at an address, without a server: real processes on one machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher_world import TRAIN
from prometheus_stack import free_port
from terminal import Terminal, wait_for

from switchgear.cli.demo import proofs


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN)
    yield terminal
    terminal.close()


class Pair:
    """Two nodes with a rank each; the first one keeps the job together."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._endpoint = f"127.0.0.1:{free_port()}"
        self.first = self.start(0)
        self.second = self.start(1)

    def start(self, node_rank: int) -> subprocess.Popen[str]:
        place = ("--nnodes", "2", "--rdzv-endpoint", self._endpoint, "--node-rank", str(node_rank), "--rdzv-id", "pair")
        checkpoints = self._terminal.folder / "checkpoints"
        checkpoints.mkdir(exist_ok=True)
        return self._terminal.start(
            "run", *place, "--checkpoint-dir", str(checkpoints), "--shutdown-timeout", "2", "train.py", "60", "0.03"
        )

    def folder(self, node_rank: int) -> Path:
        (found,) = (self._terminal.folder / "state" / "standalone").glob(f"pair@*r{node_rank}")
        return found

    def rank_pid(self, node_rank: int) -> int:
        return self._terminal.rank_pids(self.folder(node_rank).name)[0]

    def wait_for_checkpoint(self) -> None:
        wait_for(lambda: list((self._terminal.folder / "checkpoints").glob("step-*.pt")))

    def wait_for_steps_of(self, generation: int) -> None:
        """Until that generation has written a checkpoint."""
        started = self.folder(0) / "logs" / str(generation)
        wait_for(started.exists)
        before = set(self._terminal.folder.glob("checkpoints/step-*.pt"))
        wait_for(lambda: set(self._terminal.folder.glob("checkpoints/step-*.pt")) - before)

    def ends(self) -> tuple[str, str]:
        """What both have printed, when the job has ended well."""
        second, _ = self.second.communicate(timeout=60)
        first, _ = self.first.communicate(timeout=60)
        assert (self.first.returncode, self.second.returncode) == (0, 0), first + second
        return first, second

    def spans(self) -> list[proofs.Span]:
        return proofs.read_spans([self.folder(0), self.folder(1)])


def test_a_killed_rank_and_then_a_killed_node_cost_a_generation_each_and_never_two_at_once(terminal: Terminal) -> None:
    pair = Pair(terminal)
    pair.wait_for_checkpoint()
    os.kill(pair.rank_pid(1), signal.SIGKILL)
    pair.wait_for_steps_of(2)
    pair.second.kill()
    pair.second.communicate()
    pair.second = pair.start(1)
    first, second = pair.ends()
    assert re.search(r"Rank 1 on nodes/\S+-r1 was killed by SIGKILL after step \d+ .* restarted in place", first)
    assert "its launcher" in first or "the launcher on nodes/" in first.lower()
    assert "[rank 0] done 60" in first
    assert "[rank 1] done 60" in second
    spans = pair.spans()
    assert sorted({span.generation for span in spans}) == [1, 2, 3]
    assert proofs.no_overlap(spans).held


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


def test_a_node_of_another_job_or_with_other_numbers_is_refused(terminal: Terminal) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    first = terminal.start("run", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-id", "a", "train.py", "1", "0")
    assert first.stdout is not None
    wait_for(lambda: "1 of 2 nodes" in first.stdout.readline())  # type: ignore[union-attr]
    other = terminal.run("run", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-id", "b", "train.py", "1", "0")
    assert (other.returncode, "the same --rdzv-id" in other.stderr) == (21, True) or other.returncode == 2, other.stderr
    more = terminal.run("run", "--nnodes", "3", "--rdzv-endpoint", endpoint, "--rdzv-id", "a", "train.py", "1", "0")
    assert "begun with nnodes 2, not 3" in more.stderr


def test_beyond_loopback_nodes_need_certificates(terminal: Terminal) -> None:
    ended = terminal.run("run", "--nnodes", "2", "--rdzv-endpoint", "192.0.2.1:29400", "train.py")
    assert (ended.returncode, "SWITCHGEAR_TLS_CERTIFICATE" in ended.stderr) == (18, True), ended.stderr


def test_when_too_few_nodes_come_the_run_ends_and_says_how_many(terminal: Terminal) -> None:
    place = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-conf", "join_timeout=1")
    ended = terminal.run("run", *place, "train.py", "1", "0")
    assert (ended.returncode, "1 of 2 nodes are here after 1 s" in ended.stderr) == (1, True), ended.stderr
