"""`switchgear run --standalone` as a user meets it: real processes, no server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import RANKS, STEPS, Terminal, runs, wait_for

from switchgear.cli.demo import proofs


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path)
    yield terminal
    terminal.close()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[proofs.Loss]]:
    terminal = Terminal(tmp_path_factory.mktemp("reference"))
    process = terminal.train("reference")
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    yield terminal.losses("reference")
    terminal.close()


def test_a_killed_rank_costs_a_restart_and_nothing_else(terminal: Terminal, reference: list[proofs.Loss]) -> None:
    process = terminal.train("killed")
    wait_for(lambda: any(loss.step >= 25 for loss in terminal.losses("killed")))
    os.kill(terminal.rank_pids("killed")[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert re.search(
        r"Rank 1 on nodes/\S+ was killed by SIGKILL after step \d+ .* restarted in place from the verified checkpoint",
        output,
    )
    assert re.search(
        r"where the [\d.]+ s of 2 ranks went:\n.*  RANK_KILLED on \S+: 1 x, \d+\.\d+ s lost\n", output, re.DOTALL
    )
    run, spans = terminal.losses("killed"), proofs.read_spans([terminal.folder / "state" / "standalone" / "killed"])
    assert proofs.same_losses(run, reference, steps=STEPS, ranks=RANKS) == proofs.Proof(
        "the loss at every step equals the uninterrupted run's, bit for bit",
        True,
        f"{len(run)} losses of {RANKS} ranks over {STEPS} steps compared",
    )
    assert [span.generation for span in spans] == [1, 1, 2, 2]
    for proof in (
        proofs.no_overlap(spans),
        proofs.same_step_counts(run, spans),
        proofs.bounded_redo(run, interval=10, damaged={}),
    ):
        assert proof.held, proof


def test_a_resume_that_forgets_something_turns_the_proof_red(terminal: Terminal, reference: list[proofs.Loss]) -> None:
    process = terminal.train("broken", "--break-resume")
    wait_for(lambda: any(loss.step >= 25 for loss in terminal.losses("broken")))
    os.kill(terminal.rank_pids("broken")[0], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not proofs.same_losses(terminal.losses("broken"), reference, steps=STEPS, ranks=RANKS).held


def test_a_killed_launcher_is_started_again_by_hand_and_goes_on(
    terminal: Terminal, reference: list[proofs.Loss]
) -> None:
    process = terminal.train("launcher")
    wait_for(lambda: any(loss.step >= 25 for loss in terminal.losses("launcher")))
    ranks = terminal.rank_pids("launcher")
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(runs, ranks)), 1.0)
    process = terminal.train("launcher")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    run, spans = terminal.losses("launcher"), proofs.read_spans([terminal.folder / "state" / "standalone" / "launcher"])
    assert proofs.same_losses(run, reference, steps=STEPS, ranks=RANKS).held
    assert sorted({span.generation for span in spans}) == [1, 2]
    assert proofs.no_overlap(spans).held


def test_a_script_that_raises_at_once_is_tried_twice_and_its_error_is_told(
    terminal: Terminal, bare_python: str
) -> None:
    (terminal.folder / "bad.py").write_text('raise ValueError("bad hyperparameter")\n')
    ended = terminal.run("run", "--standalone", "--name", "bad", "--python", bare_python, "bad.py")
    assert ended.returncode == 1
    assert ended.stdout.count("[rank 0]") == 0
    assert ended.stderr.count("ValueError: bad hyperparameter\n") == 2
    assert "the job was stopped: the same error came twice before the first step" in ended.stderr
    logs = terminal.run("logs", "bad", "--attempt", "1")
    assert logs.returncode == 0
    assert "[rank 0] ValueError: bad hyperparameter" in logs.stderr


def test_a_module_gets_its_arguments_and_variables_and_its_logs_are_found(terminal: Terminal, bare_python: str) -> None:
    package = terminal.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['FLAVOUR'], os.environ['RANK'])\n"
    )
    logs = terminal.folder / "elsewhere"
    options = ("--name", "module", "--log-dir", str(logs), "--env", "FLAVOUR=sour", "--python", bare_python)
    ended = terminal.run("run", "--standalone", *options, "-m", "package.train", "--epochs", "3", "-m")
    assert (ended.returncode, ended.stdout) == (0, "[rank 0] ['--epochs', '3', '-m'] sour 0\n"), ended.stderr
    assert terminal.run("logs", "module").stdout == ended.stdout


def test_ctrl_c_stops_the_ranks(terminal: Terminal, bare_python: str) -> None:
    (terminal.folder / "sleep.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(60)\n")
    run = ("run", "--standalone", "--name", "sleep", "--python", bare_python, "sleep.py")
    process = terminal.start(*run)
    assert process.stdout is not None
    wait_for(lambda: "up" in process.stdout.readline())  # type: ignore[union-attr]
    (pid,) = terminal.rank_pids("sleep")[:1]
    second = terminal.run(*run)
    assert (second.returncode, "already runs here" in second.stderr) == (15, True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "of 1 rank went:" in output
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "remedy"),
    [
        (("run", "--standalone", "missing.py"), 11, "name a Python file that this user can read"),
        (("run", "--standalone", "."), 11, "is not a file"),
        (("run", "--standalone", "--nproc-per-node", "0", "a.py"), 2, "must be 1 or more"),
        (("run", "--standalone", "--name", "Not Good", "a.py"), 2, "lower-case letters"),
        (("run", "--standalone", "--log-dir", "a.py/logs", "a.py"), 2, "--log-dir a.py/logs: Not a directory"),
        (
            ("run", "--standalone", "--log-dir", "/proc/logs", "a.py"),
            2,
            "--log-dir /proc/logs: No such file or directory",
        ),
        (("run", "--server", "127.0.0.1:1", "a.py"), 14, "switchgear run --standalone"),
        (("jobs", "--server", "127.0.0.1:1"), 14, "switchgear up"),
        (("up", "--grpc", "0.0.0.0:0"), 18, "use 127.0.0.1"),
        (("logs", "--server", "127.0.0.1:1", "nothing"), 14, "no control plane answers"),
        (("frobnicate",), 2, "invalid choice"),
    ],
)
def test_bad_input_is_told_with_its_remedy_and_its_own_exit_code(
    terminal: Terminal, arguments: tuple[str, ...], code: int, remedy: str
) -> None:
    (terminal.folder / "a.py").write_text("pass\n")
    ended = terminal.run(*arguments)
    assert (ended.returncode, remedy in ended.stderr) == (code, True), ended.stderr
