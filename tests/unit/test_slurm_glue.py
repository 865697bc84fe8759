"""What is known of a job of Slurm and from whom, which node may be drained, and how both are told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from switchgear.agent.association.identity import Owner, marks_of
from switchgear.agent.association.job_mapping import Given, mapped_jobs
from switchgear.agent.association.kubernetes import Place
from switchgear.agent.association.slurm import UNKNOWN, SlurmJob, job_id, job_of
from switchgear.agent.association.table import associate, to_proto
from switchgear.agent.doctor import judgement
from switchgear.agent.doctor.check import problem
from switchgear.cli import exits
from switchgear.cli.main import main
from switchgear.cli.show import users_by_gpu
from switchgear.cli.slurm_health import OURS, advice, reason_of, refusal, surplus
from switchgear.core.errors import NotFound
from switchgear.slurm.model import Gpus, NodeFlag, NodeState, SlurmNode
from switchgear.v1alpha import telemetry_service_pb2 as pb

GLUE = Path(__file__).parents[2] / "deploy/slurm"
ADA = {"SLURM_JOB_ID": "17", "SLURM_JOB_USER": "ada", "SLURM_JOB_ACCOUNT": "chem", "SLURM_JOB_PARTITION": "gpu"}
OF_ADA = SlurmJob("ada", "chem", "gpu")
#: As a step's second component sees it: the plain variables are those of the first.
HET = {
    **ADA,
    "SLURMD_NODENAME": "gpu07",
    "SLURM_JOB_ID_HET_GROUP_0": "17",
    "SLURM_JOB_ID_HET_GROUP_1": "18",
    "SLURM_JOB_NODELIST_HET_GROUP_0": "cpu1",
    "SLURM_JOB_NODELIST_HET_GROUP_1": "gpu[05-08]",
    "SLURM_JOB_PARTITION_HET_GROUP_0": "cpu",
    "SLURM_JOB_PARTITION_HET_GROUP_1": "gpu",
}


def environ(variables: dict[str, str]) -> bytes:
    return b"".join(f"{name}={value}\0".encode() for name, value in variables.items())


def test_a_member_of_an_array_names_the_array_and_its_number() -> None:
    variables = {**ADA, "SLURM_JOB_QOS": "high", "SLURM_ARRAY_JOB_ID": "16", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_of(variables) == SlurmJob("ada", "chem", "gpu", "high", "16", 3)


def test_a_component_is_known_by_its_node_and_has_the_id_of_the_whole() -> None:
    assert (job_id(HET), job_of(HET)) == ("17", SlurmJob("ada", "chem", "gpu", het_job="17", het_offset=1))
    first = job_of({**HET, "SLURMD_NODENAME": "cpu1"})
    assert (first.partition, first.het_offset) == ("cpu", 0)
    of_prolog = {**ADA, "SLURM_JOB_ID": "18", "SLURM_HET_JOB_ID": "17"}
    assert (job_id(of_prolog), job_of(of_prolog).het_job) == ("17", "17")


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_JOB_ID": "17", "SLURM_JOB_ACCOUNT": "a b", "SLURM_JOB_QOS": "(null)", "SLURM_JOB_USER": "x" * 129},
        {"SLURM_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "9999999999999", "SLURM_ARRAY_JOB_ID": "-1"},
        {
            "SLURM_JOB_ID": "17",
            "SLURMD_NODENAME": "a",
            "SLURM_JOB_NODELIST_HET_GROUP_0": "[1-65536" + ",1-65536" * 5000 + "]",
        },
    ],
)
def test_what_is_no_name_or_number_is_left_out(variables: dict[str, str]) -> None:
    assert job_of(variables) == UNKNOWN


def test_not_more_nodes_of_components_are_looked_at_than_clusters_have() -> None:
    lists = {f"SLURM_JOB_NODELIST_HET_GROUP_{number}": "a[1-30000]" for number in range(128)}
    assert job_of({**lists, "SLURM_JOB_NODELIST_HET_GROUP_1": "b", "SLURMD_NODENAME": "b"}).het_offset == 1
    assert job_of({**lists, "SLURM_JOB_NODELIST_HET_GROUP_2": "b", "SLURMD_NODENAME": "b"}).het_offset is None


def test_an_environment_that_names_another_job_than_the_cgroup_says_nothing() -> None:
    cgroup = "0::/system.slice/slurmstepd.scope/job_17/step_0/user/task_0\n"
    assert marks_of(cgroup, environ(ADA)).slurm == OF_ADA
    marks = marks_of(cgroup, environ({**ADA, "SLURM_JOB_ID": "18"}))
    assert (marks.hpc_job, marks.slurm) == ("17", UNKNOWN)
    assert marks_of("0::/\n", environ({"SLURM_JOB_ACCOUNT": "chem"})).slurm == UNKNOWN


def test_what_the_prolog_noted_wins_over_the_environment_and_the_rest_is_added(tmp_path: Path) -> None:
    (tmp_path / "slurm_17").write_text(
        "SLURM_JOB_ID=17\nSLURM_JOB_GPUS=0,1\nSLURM_JOB_USER=ada\nSLURM_JOB_ACCOUNT=chem\n"
    )
    (tmp_path / "slurm_18").write_text("SLURM_JOB_ID=\nSLURM_JOB_GPUS=x\nno variable\n")
    (tmp_path / ".19").write_text("SLURM_JOB_ID=19\n")
    (given,) = mapped_jobs(tmp_path)
    assert given == Given(Owner(hpc_job="17"), (Place(0), Place(1)), SlurmJob("ada", "chem"))
    marks = {5: marks_of("0::/\n", environ({**ADA, "SLURM_JOB_ACCOUNT": "forged", "SLURM_JOB_QOS": "high"}))}
    places = [(place, given.owner) for place in given.places]
    table = associate({0: [(5, None, None)]}, marks, {}, places, slurm_jobs={"17": given.slurm}, now_unix_ns=1)
    assert [(one.place.gpu, one.pids, one.slurm) for one in table] == [
        (0, (5,), SlurmJob("ada", "chem", "gpu", "high")),
        (1, (), SlurmJob("ada", "chem", "gpu", "high")),
    ]
    message = to_proto(table).associations[1]
    assert message.slurm == pb.SlurmJob(user="ada", account="chem", partition="gpu", qos="high")
    assert (
        not to_proto(associate({}, {}, {}, [(Place(0), Owner(pod="p"))], now_unix_ns=1))
        .associations[0]
        .HasField("slurm")
    )


def test_users_of_gpus_are_named_as_squeue_names_them() -> None:
    jobs = [
        pb.Association(gpu=0, hpc_job="17"),
        pb.Association(
            gpu=1, hpc_job="17", slurm=pb.SlurmJob(user="ada", account="chem", array_job="16", array_task=0)
        ),
        pb.Association(gpu=2, hpc_job="17", slurm=pb.SlurmJob(het_job="17", het_offset=1)),
        pb.Association(gpu=3, hpc_job="17", job="jobs/llama"),
    ]
    assert users_by_gpu(jobs) == {
        0: ["Slurm job 17"],
        1: ["Slurm job 16_0 (ada, chem)"],
        2: ["Slurm job 17+1"],
        3: ["jobs/llama in Slurm job 17"],
    }


def node(name: str, reason: str = "", reason_s: int | None = None, state: str = NodeState.IDLE) -> SlurmNode:
    flags = frozenset({NodeFlag.DRAIN}) if reason else frozenset[str]()
    return SlurmNode(
        name, "", name, state, flags, 8, 1000, Gpus(), Gpus(), ("gpu",), (), reason, "", reason_s, None, None, ""
    )


def test_a_tenth_of_the_nodes_is_drained_by_health_checks_and_one_at_least() -> None:
    sick, fit = f"{OURS}driver", [node(f"n{number}") for number in range(19)]
    assert refusal(fit, "n0") == ""
    assert refusal([*fit[:3], node("n4", "switchgear: cordoned [c]")], "n0") == ""
    assert "1 of 4 nodes" in refusal([*fit[:3], node("n4", sick)], "n0")
    assert refusal([*fit, node("x", sick)], "n0") == ""
    assert "2 of 21 nodes" in refusal([*fit, node("x", sick), node("y", sick)], "n0")


def test_of_nodes_that_are_drained_at_the_same_moment_the_first_stay_so() -> None:
    sick = [node("a", f"{OURS}x", 7), node("b", f"{OURS}x", 6), node("c", f"{OURS}x", 7), node("d", "new fan", 1)]
    assert surplus(sick, "b") == ""
    assert "2 of 4 nodes" in surplus(sick, "a")
    assert "2 of 4 nodes" in surplus(sick, "c")
    assert surplus(sick, "d") == "", "somebody else's"
    assert surplus([*sick, *(node(f"n{number}") for number in range(16))], "a") == ""


def test_a_node_that_is_drained_stays_as_it_is_and_one_that_slurm_lacks_is_told() -> None:
    assert refusal([node("n1", "new fan")], "n1") == "it is drained already (new fan)"
    assert refusal([node("n1", state=NodeState.DOWN)], "n1") == "it is down already (no reason given)"
    with pytest.raises(NotFound, match="--node"):
        refusal([node("n1")], "gpu-01.cluster")


def test_a_reason_is_one_line_of_bounded_length_and_can_be_typed() -> None:
    found = [problem("recovery", "the driver's\nwish", "", unfit=True), problem("x", "y" * 500, "", unfit=True)]
    reason = reason_of(found)
    assert reason.startswith("switchgear health: recovery: the driver's wish; x: yyy")
    assert len(reason) == 200
    assert advice("n1", "a'b").endswith("""reason='a'"'"'b'""")


@pytest.mark.parametrize("options", [[], ["--gpu"]])
def test_programs_read_whether_a_node_is_fit(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["slurm", "health", "--node", "n1", "--json", *options])
    told = json.loads(capsys.readouterr().out)
    assert (told["node"], told["fit"], told["reason"] == "") == ("n1", code == exits.OK, code == exits.OK)
    assert told["text"].startswith("n1 is ")


def test_what_only_costs_speed_or_safety_keeps_no_job_off() -> None:
    off = judgement.judge({"DCGM_FI_DEV_PERSISTENCE_MODE": 0, "DCGM_FI_DEV_ECC_CURRENT": 0})
    assert [check.unfit for check in off] == [False, False]
    sick = judgement.judge({"DCGM_FI_DEV_ROW_REMAP_FAILURE": 1, "switchgear_gpu_recovery_action": 1})
    assert [check.unfit for check in sick] == [True, True]


@pytest.mark.parametrize("script", sorted(GLUE.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_that_root_runs_are_plain_shell_without_complaints(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(
            ["shellcheck", "-x", script], cwd=GLUE.parents[1], capture_output=True, text=True, check=False
        )
        assert found.stdout == ""


def test_the_settings_of_the_scripts_are_those_of_the_example_and_hold_without_it() -> None:
    scripts = "".join(path.read_text() for path in GLUE.glob("*.sh"))
    defaults = dict(re.findall(r"\$\{(SWITCHGEAR\w*):?[-=]([^}]*)\}", scripts))
    del defaults["SWITCHGEAR_SLURM_SETTINGS"]  # says where the others are
    defaults.update(dict.fromkeys(re.findall(r"\$\{(SWITCHGEAR\w*)-\}", scripts), ""))
    example = re.findall(r'^#(SWITCHGEAR\w*)="?([^"\n]*)', (GLUE / "slurm.env").read_text(), re.MULTILINE)
    assert dict(example) == defaults


def test_wishes_that_slurm_has_decided_on_are_refused_inside_of_a_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"}.items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "train.py"
    script.touch()
    assert main(["run", "--account", "chem", "--qos", "high", str(script)]) == exits.USAGE
    assert "--account, --qos: Slurm has decided that for this job already" in capsys.readouterr().err
