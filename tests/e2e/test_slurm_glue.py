"""What `deploy/slurm` puts into a cluster, on a real Slurm: it tells whose GPUs are whose, drains when told to, and hurts no job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_double.fixtures import scenario_or_skip
from slurm_cluster import NODES, SlurmCluster
from terminal import wait_for

from switchgear.agent.association.identity import Owner
from switchgear.agent.association.job_mapping import mapped_jobs
from switchgear.agent.association.kubernetes import Place
from switchgear.agent.association.processes import Processes
from switchgear.agent.association.slurm import SlurmJob
from switchgear.core.metrics import ADDRESS_FILE

GLUE = Path(__file__).parents[2] / "deploy/slurm"
SWITCHGEAR = f"{sys.executable} -m switchgear.cli.main"


class Glue:
    """A Slurm with our scripts in slurm.conf, their settings, and what they wrote."""

    def __init__(self, folder: Path) -> None:
        self.settings, self.log = folder / "slurm.env", folder / "log"
        #: Each of the four nodes has a folder of its own, as if it were a machine.
        self.run = folder / "run"
        for script in ("prolog", "epilog", "health"):
            own = folder / f"{script}.d" / script
            own.parent.mkdir()
            own.write_text(f"#!/bin/sh\nexport SWITCHGEAR_SLURM_SETTINGS={self.settings}\nexec {GLUE / script}.sh\n")
            own.chmod(0o755)
        lines = [f"Prolog={folder}/prolog.d/*", f"Epilog={folder}/epilog.d/*"]
        lines.append(f"HealthCheckProgram={folder}/health.d/health")
        self.set("SWITCHGEAR_DRAIN=off")
        # It runs as slurmd starts as well, which is when these tests look.
        self.slurm = SlurmCluster(extra="\n".join([*lines, "PrologFlags=Alloc", "HealthCheckInterval=3600"]))

    def set(self, *lines: str) -> None:
        """More lines of the settings; the log begins anew."""
        self.log.write_text("")
        log, run = f'SWITCHGEAR_LOG="tee -a {self.log}"', f"SWITCHGEAR_RUN={self.run}/$SLURMD_NODENAME"
        self.settings.write_text("\n".join([f'SWITCHGEAR="{SWITCHGEAR}"', log, run, *lines, ""]))

    def check(self, node: str) -> None:
        """Slurm asks for the node's health."""
        conf = f"export SLURM_CONF={self.slurm.configuration}\n"
        if conf not in self.settings.read_text():
            self.settings.write_text(conf + self.settings.read_text())
        self.slurm.kill_node(node, jobs=False)
        self.slurm.start_node(node)

    def said(self, text: str) -> None:
        wait_for(lambda: text in self.log.read_text(), 30)

    def jobs_on(self, node: str) -> Path:
        return self.run / node / "slurm-jobs"

    def reason(self, node: str) -> str:
        return self.slurm.command("sinfo", "--noheader", "--format=%E", f"--nodes={node}", "--partition=gpu")

    def state(self, node: str) -> str:
        """Without the mark of a node that has not answered since it was resumed."""
        return self.slurm.node_states()[node].rstrip("*")


@pytest.fixture(scope="module")
def glue_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Glue]:
    glue = Glue(tmp_path_factory.mktemp("glue"))
    yield glue
    glue.slurm.close()


@pytest.fixture
def glue(glue_of_module: Glue) -> Glue:
    glue_of_module.set("SWITCHGEAR_DRAIN=off")
    glue_of_module.slurm.mend()
    shutil.rmtree(glue_of_module.run, ignore_errors=True)
    for node in NODES:
        glue_of_module.jobs_on(node).mkdir(parents=True)
    return glue_of_module


def pid_in(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text().endswith("\n"), 30)
    return int(file.read_text())


def test_the_agent_knows_the_jobs_of_batch_scripts_steps_arrays_and_components(glue: Glue) -> None:
    """By what the prolog noted, and by the processes; nothing is in the jobs for it."""
    slurm, folder = glue.slurm, glue.slurm.folder
    array = slurm.submit(
        "echo $$ >batch\nsrun sh -c 'echo $$ >step; exec sleep 60'",
        *("--array=3", "--nodelist=n1", "--gres=gpu:2", "--account=chem"),
    )
    whole = slurm.submit(
        "srun --het-group=0,1 sh -c 'echo $$ >component$SLURM_PROCID; exec sleep 60'",
        *("--nodelist=n2", "--gres=gpu:1", "--account=chem", ":", "--nodelist=n3", "--gres=gpu:3", "--account=chem"),
    )
    pids = [pid_in(folder / name) for name in ("batch", "step", "component0", "component1")]
    marks = list(Processes(dict).marks(pids).values())

    member = SlurmJob("root", "chem", "gpu", "", str(array), 3)
    # Slurm gives the last task of an array the array's own id.
    assert [(one.hpc_job, one.slurm) for one in marks[:2]] == [(str(array), member)] * 2
    components = [SlurmJob("root", "chem", "gpu", het_job=str(whole), het_offset=number) for number in (0, 1)]
    assert [(one.hpc_job, one.slurm) for one in marks[2:]] == [(str(whole), one) for one in components]

    (of_array,) = mapped_jobs(glue.jobs_on("n1"))
    assert (of_array.owner, of_array.places) == (Owner(hpc_job=str(array)), (Place(0), Place(1)))
    assert of_array.slurm == SlurmJob("root", "chem", "gpu"), "a prolog is told neither array nor QOS"
    (of_component,) = mapped_jobs(glue.jobs_on("n3"))
    assert (of_component.owner.hpc_job, len(of_component.places)) == (str(whole), 3)
    assert of_component.slurm == SlurmJob("root", "chem", "gpu", het_job=str(whole))

    slurm.command("scancel", str(array), str(whole))
    wait_for(lambda: not any(path.name.startswith("slurm_") for path in glue.run.rglob("*")), 30)


def test_whatever_is_wrong_with_our_side_jobs_run_and_their_nodes_stay(glue: Glue) -> None:
    wrong = {"n1": 'eval "if then ("', "n2": "exit 1", "n3": "rm -rf $SWITCHGEAR_RUN"}
    wrong["n4"] = "[ $SLURM_SCRIPT_CONTEXT = epilog_slurmd ] || sleep 300"
    cases = "".join(f"{node}) {what} ;;\n" for node, what in wrong.items())
    glue.set(f"case $SLURMD_NODENAME in\n{cases}esac")
    jobs = [glue.slurm.submit("echo done", f"--nodelist={node}") for node in wrong]
    wait_for(lambda: {glue.slurm.job_state(job) for job in jobs} == {"COMPLETED"}, 30)
    assert [(glue.slurm.folder / f"slurm-{job}.out").read_text() for job in jobs] == ["done\n"] * len(jobs)
    assert set(glue.slurm.node_states().values()) <= {"idle", "comp"}


def test_the_agent_finds_a_step_on_a_gpu_and_shows_whose_it_is(glue: Glue, tmp_path: Path) -> None:
    node = scenario_or_skip(tmp_path / "nvml", gpus=2)
    glue.slurm.submit(
        "srun sh -c 'echo $$ >rank; exec sleep 60'", "--nodelist=n1", "--gres=gpu:1", "--account=chem", "--array=7"
    )
    rank = pid_in(glue.slurm.folder / "rank")
    node.set(0, processes=f"{rank}:1073741824")
    state = tmp_path / "agent"
    flags = ["--node", "n1", "--state-dir", str(state), "--hpc-job-mapping-dir", str(glue.jobs_on("n1"))]
    command = [sys.executable, "-m", "switchgear.agent", *flags, "--interval", "0.2", "--server", "127.0.0.1:1"]
    agent = subprocess.Popen(command, env=node.environment, stderr=subprocess.DEVNULL)
    try:
        wait_for((state / ADDRESS_FILE).exists, 20)
        wait_for(lambda: 'hpc_account="chem"' in users_at((state / ADDRESS_FILE).read_text()), 20)
        (line,) = users_at((state / ADDRESS_FILE).read_text()).splitlines()
        assert {'gpu="0"', 'hpc_user="root"', 'hpc_partition="gpu"'} <= set(re.findall(r'\w+="\w*"', line))
    finally:
        agent.terminate()
        agent.wait(20)


def users_at(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics") as page:
        lines = page.read().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith("switchgear_gpu_user_info{"))


def test_an_unfit_node_is_told_of_by_default_and_drained_in_act_but_not_many_at_once(
    glue: Glue, tmp_path: Path
) -> None:
    node = scenario_or_skip(tmp_path, gpus=4)
    node.hang(3, "nvmlDeviceGetPowerUsage")
    double = ["LD_LIBRARY_PATH", "SWITCHGEAR_NVML_DOUBLE"]
    glue.set(
        *(f"export {name}={node.environment[name]}" for name in double),
        'SWITCHGEAR_HEALTH_OPTIONS="--gpu --deadline-s 0.5"',
        "[ $SLURMD_NODENAME = n4 ] || SWITCHGEAR_DRAIN=act",
    )
    for sick in ("n1", "n2", "n4"):
        glue.check(sick)
    glue.said("n4 is not fit for jobs; to keep them off: scontrol update nodename=n4 state=drain")
    glue.said("is not fit for jobs and drained: switchgear health: ")
    glue.said("1 of 4 nodes are drained by health checks already")
    states = {sick: glue.state(sick) for sick in ("n1", "n2", "n4")}
    assert sorted(states.values()) == ["drain", "idle", "idle"]
    assert states["n4"] == "idle"
    drained = next(sick for sick, state in states.items() if state == "drain")
    why = "GPU 3: driver calls: nvmlDeviceGetPowerUsage does not come back within 0.5 s"
    assert glue.reason(drained).startswith(f"switchgear health: {why}")

    glue.slurm.command("scontrol", "update", "nodename=n3", "state=drain", "reason=new fan")
    glue.check("n3")
    glue.said("not done: it is drained already (new fan)")
    assert glue.reason("n3") == "new fan"


def test_a_node_that_is_fit_stays_and_a_check_that_is_broken_says_nothing_about_it(glue: Glue) -> None:
    glue.set("SWITCHGEAR_DRAIN=act", "[ $SLURMD_NODENAME = n1 ] || SWITCHGEAR=/nowhere/switchgear")
    glue.check("n1")
    glue.check("n2")
    glue.said("n1 is fit for jobs")
    glue.said("/nowhere/switchgear")
    assert (glue.state("n1"), glue.state("n2")) == ("idle", "idle")


def test_who_submits_torchrun_gets_a_word_and_the_job_runs_all_the_same(glue: Glue) -> None:
    slurm = glue.slurm
    shutil.copy(GLUE / "job_submit.lua", slurm.folder)
    text = slurm.configuration.read_text()
    try:
        slurm.configuration.write_text(f"{text}JobSubmitPlugins=lua\n")
        slurm.command("scontrol", "reconfigure")

        def submit(line: str) -> tuple[int, str]:
            done = subprocess.run(
                ["sbatch", "--parsable"],
                input=f"#!/bin/sh\n{line}\n",
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
                cwd=slurm.folder,
                env={**slurm.environment, "PATH": "/usr/bin:/bin"},
            )
            return int(done.stdout), done.stderr

        job, word = submit("true torchrun train.py")
        assert "`srun switchgear run` takes torchrun's flags" in word
        assert submit("true switchgear run train.py # not torchrun")[1] == ""
        wait_for(lambda: slurm.job_state(job) == "COMPLETED", 30)
    finally:
        slurm.configuration.write_text(text)
        slurm.command("scontrol", "reconfigure")
