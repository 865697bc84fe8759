"""Every flag of the installed torchrun is known by name, and does what the table says."""

from __future__ import annotations

import argparse
import os
import re
import signal
from pathlib import Path

import pytest

from switchgear.cli import devices, run_options
from switchgear.cli.main import parser
from switchgear.cli.torchrun_flags import FLAGS, ignored
from switchgear.core.errors import Invalid
from switchgear.launcher.logs import STREAMS

DOCS = Path(__file__).parents[2] / "docs" / "torchrun.md"


@pytest.fixture(scope="module")
def torchrun() -> argparse.ArgumentParser:
    run = pytest.importorskip("torch.distributed.run")
    made: argparse.ArgumentParser = run.get_args_parser()
    return made


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()


def ours(*given: str) -> argparse.Namespace:
    return parser("run").parse_args(["run", *given])


def test_the_table_has_every_flag_of_torchrun_and_no_other(torchrun: argparse.ArgumentParser) -> None:
    theirs = {
        option: (action.dest, action.nargs == 0)
        for action in torchrun._actions
        for option in action.option_strings
        if action.dest != "help"
    }
    assert theirs == {
        option: (flag.field, not flag.metavar)
        for flag in FLAGS
        for option in (flag.short, flag.name, f"--{flag.field}")
        if option
    }


def test_the_docs_have_the_same_table() -> None:
    rows = re.findall(r"^\| `(--[a-z-]+)`(?:, `(-\w)`)? \| (\w+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert rows == [(flag.name, flag.short, flag.fate.value, flag.why) for flag in FLAGS]


@pytest.mark.parametrize(
    "line",
    [
        "--nproc-per-node 2 train.py --lr 1",
        "--nproc_per_node=2 train.py --lr=1 --nnodes 3 -m",
        "--standalone --nnodes=1 -- train.py -- --lr 1",
        "--nnodes 1:4 --rdzv_backend c10d --rdzv-endpoint a:1 --rdzv_id 7 --max_restarts 3 -m pkg.train --standalone",
        "-r 3 -t 0:1,1:2 --local_ranks_filter 0,1 --log_dir logs --no-python train.py",
        "--role x --node_rank 1 --master_addr h --master_port 1234 --start_method fork --monitor_interval 5.0 train.py",
    ],
)
def test_a_command_line_is_read_as_torchrun_reads_it(torchrun: argparse.ArgumentParser, line: str) -> None:
    theirs, mine = vars(torchrun.parse_args(line.split())), vars(ours(*line.split()))
    assert (mine["script"], mine["arguments"]) == (theirs["training_script"], theirs["training_script_args"])
    given = {flag.field for flag in FLAGS if mine[flag.field] not in (None, False)}
    assert {name: str(mine[name]) for name in given} == {name: str(theirs[name]) for name in given}


def test_variables_of_torchrun_stand_for_flags_that_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PET_NNODES": "2:3",
        "PET_NPROC_PER_NODE": "4",
        "PET_MODULE": "1",
        "PET_STANDALONE": "0",
    }.items():
        monkeypatch.setenv(name, value)
    args = ours("--nproc-per-node", "8", "package.train")
    spec = run_options.job_spec(args, run_options.ranks(args))  # type: ignore[arg-type]
    assert (spec.nnodes, spec.nnodes_min, spec.nproc_per_node, args.standalone) == (3, 2, 8, False)
    assert list(spec.argv) == ["-m", "package.train"]


def test_flags_of_the_job_reach_its_specification() -> None:
    given = (
        "--preload numpy --preload a.b --hang-timeout off --role actor --virtual-local-rank --rdzv-id Run/1 train.py 5"
    )
    spec = run_options.job_spec(ours(*given.split()), 2)
    assert (list(spec.preload), spec.HasField("hang_seconds"), spec.hang_seconds) == (["numpy", "a.b"], True, 0)
    assert (spec.role, spec.virtual_local_rank, list(spec.argv)) == ("actor", True, ["train.py", "5"])
    assert dict(spec.environment) == {"TORCHELASTIC_RUN_ID": "Run/1"}
    plain = run_options.job_spec(ours("train.py"), 1)
    assert (plain.HasField("hang_seconds"), plain.nnodes_min, plain.max_restarts) == (False, 0, 3)


def test_run_path_wins_over_no_python() -> None:
    assert not run_options.job_spec(ours("--run-path", "--no-python", "train.py"), 1).no_python
    assert run_options.job_spec(ours("--no-python", "sh", "-c", "true"), 1).no_python


def test_only_what_was_given_and_changes_nothing_is_told_as_ignored() -> None:
    assert ignored(ours("train.py")) == []
    args = ours("--monitor-interval", "1", "--numa-binding", "node", "--role", "x", "train.py")
    assert ignored(args) == ["--monitor-interval", "--numa-binding"]


@pytest.mark.parametrize(
    ("given", "host", "port", "node_rank", "hosts"),
    [
        ("--rdzv-endpoint gpu-01", "gpu-01", 29400, None, None),
        ("--rdzv-endpoint gpu-01:5 --rdzv-backend c10d", "gpu-01", 5, None, None),
        ("--node-rank 1 --master-addr gpu-01", "gpu-01", 29500, 1, False),
        ("--node-rank 0 --master-addr gpu-01 --master-port 7", "gpu-01", 7, 0, True),
        ("--rdzv-endpoint gpu-01:5 --rdzv-conf is_host=1,last_call_timeout=2", "gpu-01", 5, None, True),
    ],
)
def test_nodes_meet_where_torchrun_would_have_them_meet(
    given: str, host: str, port: int, node_rank: int | None, hosts: bool | None
) -> None:
    meeting = run_options.rendezvous(ours(*given.split(), "train.py"))
    assert meeting is not None
    assert (meeting.host, meeting.port, meeting.node_rank, meeting.hosts) == (host, port, node_rank, hosts)


def test_without_a_place_to_meet_there_is_none() -> None:
    assert run_options.rendezvous(ours("--nnodes", "2", "train.py")) is None


def test_what_the_terminal_shows_is_read_as_torchrun_reads_it() -> None:
    rule = run_options.echo(ours("-r", "3", "-t", "0:1,1:2", "train.py"))
    assert [rule.streams(rank) for rank in range(3)] == [STREAMS[:1], STREAMS[1:], ()]
    assert run_options.echo(ours("--local-ranks-filter", "1", "train.py")).streams(0) == ()


def test_signals_and_the_time_that_ranks_get() -> None:
    stopping = run_options.stopping(ours("train.py"), {})
    assert (signal.SIGTERM in stopping.signals, stopping.grace_s) == (True, 30)
    args = ours("--signals-to-handle", "SIGUSR1", "train.py")
    stopping = run_options.stopping(args, {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"})
    assert (stopping.signals, stopping.grace_s) == ((signal.SIGUSR1,), 7)


@pytest.mark.parametrize(
    ("read", "given", "remedy"),
    [
        (run_options.nodes, "--nnodes 4:2", "fewest nodes come first"),
        (run_options.nodes, "--nnodes many", "must be a number"),
        (run_options.ranks, "--nproc-per-node xpu", "auto, gpu or cpu"),
        (run_options.rendezvous, "--rdzv-backend etcd-v2", "write c10d"),
        (run_options.rendezvous, "--rdzv-endpoint a:1 --rdzv-conf join_timeout", "KEY=VALUE"),
        (run_options.rendezvous, "--rdzv-endpoint a:1 --rdzv-conf join_timeout=soon", "must be a number"),
        (run_options.echo, "--tee 4", "0, 1, 2 or 3"),
        (run_options.echo, "--local-ranks-filter first", "must be a number"),
        (lambda args: run_options.stopping(args, {}), "--signals-to-handle SIGKILL", "no signal that can be handled"),
        (lambda args: run_options.stopping(args, {}), "--shutdown-timeout nan", "must be a number"),
        (lambda args: run_options.job_spec(args, 1), "--hang-timeout never", "or off"),
        (lambda args: run_options.job_spec(args, 1), "-m --no-python", "leave one of them away"),
        (lambda args: run_options.job_spec(args, 1), "--max-restarts -1", "must be a number of 0"),
    ],
)
def test_a_wrong_value_is_told_with_its_flag_and_the_remedy(read: object, given: str, remedy: str) -> None:
    assert callable(read)
    with pytest.raises(Invalid) as error:
        read(ours(*given.split(), "train.py"))
    assert remedy in error.value.message
    assert "--" in error.value.message


def test_ranks_are_counted_without_torch() -> None:
    def four() -> int:
        return 4

    processors = len(os.sched_getaffinity(0))
    assert [devices.ranks_here(word, {}, four) for word in ("auto", "gpu", "cpu")] == [4, 4, processors]
    seen = {"0,2": 2, "": 0, "1,9,0": 1, "GPU-ab,-1": 1, "3": 1}
    assert {text: devices.visible_gpus({"CUDA_VISIBLE_DEVICES": text}, four) for text in seen} == seen
    assert devices.ranks_here("auto", {"CUDA_VISIBLE_DEVICES": ""}, four) == processors
    with pytest.raises(Invalid, match="no NVIDIA GPU"):
        devices.ranks_here("gpu", {"CUDA_VISIBLE_DEVICES": ""}, four)
