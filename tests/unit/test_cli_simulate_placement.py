"""`switchgear simulate placement`: what it prints, and what it says about lists that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from switchgear.cli.main import main
from switchgear.cli.simulate.placement import policies_of, seeds_of
from switchgear.core.errors import Invalid
from switchgear.planner.model import Task
from switchgear.planner.simulate.openb import tasks_of

NODES = "sn,cpu_milli,memory_mib,gpu,model\n" + "".join(f"n{at},64000,262144,4,A10\n" for at in range(6))
PODS = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n"
    "a,4000,1024,1,500,,LS\nb,8000,2048,1,1000,A10|T4,LS\nc,16000,4096,2,1000,,BE\nd,2000,512,0,0,,BE\n"
)


def command(folder: Path, *options: str, nodes: str = NODES, pods: str = PODS) -> list[str]:
    (folder / "nodes.csv").write_text(nodes)
    (folder / "pods.csv").write_text(pods)
    lists = ["--nodes", str(folder / "nodes.csv"), "--pods", str(folder / "pods.csv")]
    return ["simulate", "placement", *lists, *options]


def test_one_policy_tells_means_and_each_seed_as_json_and_progress_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "--policy", "switchgear", "--seeds", "42-44", "--load", "1.3", "--json")) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["policy"] == "switchgear"
    assert list(told["allocated_pct"]) == ["100", "130"]
    assert list(told["per_seed"]) == ["42", "43", "44"]
    mean = sum(at["130"] for at in told["per_seed"].values()) / 3
    assert told["allocated_pct"]["130"] == pytest.approx(mean, abs=0.01)
    assert "seed 44" in printed.err
    assert "3 of 3" in printed.err


def test_several_policies_make_a_table_and_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, "--policy", "all", "--seeds", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["POLICY", "ALLOCATED_AT_100_PCT", "ALLOCATED_AT_130_PCT", "DECISIONS_PER_S"]
    assert [line.split()[0] for line in lines[1:]] == ["switchgear", "fgd", "best-fit", "random"]
    assert main(command(tmp_path, "--policy", "fgd,random", "--seeds", "1", "--load", "0.5", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["policy"], list(one["allocated_pct"])) for one in told["policies"]] == [
        ("fgd", ["50"]),
        ("random", ["50"]),
    ]


def test_pods_are_read_as_tasks() -> None:
    share, bound, two, none, again = tasks_of((PODS + "e,4000,1024,1,500,,LS\n").splitlines(keepends=True), "pods.csv")
    assert share == Task(gpu_milli=500, cpu_milli=4000, memory_mib=1024)
    assert again is share
    assert bound == Task(gpus=1, cpu_milli=8000, memory_mib=2048, gpu_models=frozenset({"A10", "T4"}))
    assert two.gpus == 2
    assert none.gpu_share == 0
    (whole,) = tasks_of(["cpu_milli,memory_mib,num_gpu,gpu_milli\n", "1,1,1,\n"], "pods.csv")
    assert whole.gpus == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"nodes": NODES.replace("n3,64000", "n3,many")},
            "nodes.csv, line 5: cpu_milli is 'many'; give a whole number",
        ),
        ({"nodes": NODES.replace("n3,", "n2,")}, "nodes.csv, line 5: sn is 'n2'; give each node a name of its own"),
        ({"nodes": NODES.replace(",4,", ",400,")}, "line 2: gpu is '400'; give a whole number from 0 to 64"),
        ({"nodes": NODES.replace(",4,", ",0,")}, "lists no node with GPUs"),
        ({"nodes": NODES.replace("gpu,model", "gpus,model")}, "nodes.csv has no column gpu; its first line"),
        ({"nodes": ""}, "has no column sn, cpu_milli"),
        ({"pods": PODS.replace("1,500", "1,1500")}, "pods.csv, line 2: gpu_milli is '1500'"),
        ({"pods": PODS.replace("c,16000", "c,-1")}, "pods.csv, line 4: cpu_milli is '-1'"),
        ({"pods": PODS + "e,1,1\n"}, "pods.csv, line 6: num_gpu is ''"),
        ({"pods": PODS.replace(",1,", ",0,").replace(",2,", ",0,")}, "lists no pod that asks for GPUs"),
        ({"pods": PODS + '"' + "x" * 200_000}, "this is no CSV"),
    ],
)
def test_a_list_that_is_wrong_is_refused_with_its_line(
    changed: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "--json", **changed)) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert "error" in json.loads(printed.out)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path)
    (tmp_path / "pods.csv").write_bytes(b"\xff\xfe\x00")
    assert main(arguments) == 2
    assert "this is no CSV" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "code"), [(["simulate"], 2), (["simulate", "foo"], 2), (["simulate", "--help"], 0)])
def test_half_a_command_says_which_there_are(given: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == code
    told = "".join(capsys.readouterr())
    assert "placement" in told
    assert "whatif" in told
    assert "incidents" not in told


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path)
    (tmp_path / "nodes.csv").unlink()
    assert main(arguments) == 22
    assert "nodes.csv" in capsys.readouterr().err


@pytest.mark.parametrize("load", ["0", "-1", "nan", "inf", "11"])
def test_a_load_out_of_bounds_is_refused(load: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tmp_path, f"--load={load}")) == 2
    assert "--load" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["", "a", "5-4", "1-", "-1", "1-2-3", "0-1000", "1.5", "99999999999"])
def test_seeds_that_are_none_are_refused(seeds: str) -> None:
    with pytest.raises(Invalid, match="--seeds"):
        seeds_of(seeds)


def test_seeds_and_policies_are_read() -> None:
    assert list(seeds_of("42-44")) == [42, 43, 44]
    assert list(seeds_of("7")) == [7]
    assert policies_of("fgd,fgd,random") == ("fgd", "random")
    with pytest.raises(Invalid, match="there is no policy 'best'; there are switchgear, fgd, best-fit, random"):
        policies_of("best")
