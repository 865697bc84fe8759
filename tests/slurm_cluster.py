"""A real Slurm of a test's own: munged, slurmctld and four slurmd with eight GPUs each, all on 127.0.0.1.

Needs root and Debian's packages slurm-wlm, slurmrestd and munge. SWITCHGEAR_REQUIRE_SERVICES=1 turns their absence from a skip into a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from terminal import wait_for

from switchgear.core.process import stat_fields

NODES = ("n1", "n2", "n3", "n4")
GPUS = 8
_PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "slurmrestd": "slurmrestd"}
#: In the environment of each slurmd, and so of its slurmstepd, which says nowhere else whose they are.
_MARK = "SLURM_TEST_NODE"
_START_TIMEOUT_S = 60

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/s
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=1
JobRequeue=1
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdSpoolDir={folder}/spool/%n
SlurmdPidFile={folder}/run/%n.pid
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=small Nodes=n1 MaxTime=10 State=UP
{extra}
"""


class SlurmCluster:
    """Starts when it is made and ends with `close`, which leaves no process and no file.

    extra: more lines of slurm.conf; a setting that is there already is replaced.
    """

    def __init__(self, extra: str = "") -> None:
        _require()
        # Short, since Unix sockets are in it, and open to the user munge, which a test's own folder is not.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-test-"))
        self.configuration = self.folder / "slurm.conf"
        #: What a program needs in its environment to speak to this Slurm.
        self.environment = {"SLURM_CONF": str(self.configuration)}
        #: The same Slurm for programs that give up at once when nobody answers, not after nine seconds.
        self.impatient_configuration = self.folder / "impatient.conf"
        self.takes_tokens = any(Path("/usr/lib").glob("*/slurm*/auth_jwt.so"))
        self._extra = extra
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self._lay_out()
            self._start_munge()
            self.start_controller()
            for node in NODES:
                self.start_node(node)
            wait_for(lambda: set(self.node_states().values()) == {"idle"}, _START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def command(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Standard output of a command of Slurm, or of any program that is to speak to this Slurm, without blanks around it."""
        done = subprocess.run(
            arguments,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=self.folder,
            env={**os.environ, **self.environment, **(environment or {})},
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> int:
        """Id of a new batch job. script: what bash runs; its output goes to `slurm-ID.out` in the cluster's folder."""
        return int(self.command("sbatch", "--parsable", *options, stdin=f"#!/bin/bash\n{script}\n").partition(";")[0])

    def job_state(self, job: int) -> str:
        """In squeue's words, for example RUNNING."""
        return self.command("squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}")

    def node_states(self) -> dict[str, str]:
        """In sinfo's words by node, for example idle or down*."""
        lines = self.command("sinfo", "--noheader", "--Node", "--format=%N %t", "--partition=gpu").splitlines()
        return {fields[0]: fields[1] for fields in map(str.split, lines)}

    def start_controller(self) -> None:
        self._start("slurmctld", ["slurmctld", "-D"])
        wait_for(lambda: "UP" in self.command("scontrol", "ping", check=False), _START_TIMEOUT_S)

    def stop_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it has ended; jobs and slurmd go on."""
        self._end("slurmctld", number)

    def pause_controller(self) -> None:
        """Connections are taken, and no request is read until `continue_controller`."""
        self._processes["slurmctld"].send_signal(signal.SIGSTOP)

    def continue_controller(self) -> None:
        self._processes["slurmctld"].send_signal(signal.SIGCONT)

    def stop_munge(self) -> None:
        """Nobody can prove from now on who it is."""
        self._end("munged", signal.SIGTERM)

    def start_node(self, name: str) -> None:
        self._start(name, ["slurmd", "-D", "-N", name], {_MARK: self._mark(name)})

    def kill_node(self, name: str, *, jobs: bool = True) -> None:
        """SIGKILL for its slurmd, as when the machine is lost. jobs: and for all that runs there; else it runs on, unseen."""
        self._end(name, signal.SIGKILL)
        if jobs:
            _kill(self.processes_on(name))

    def kill_jobs_on(self, name: str) -> None:
        """SIGKILL for slurmstepd and processes of all jobs there; the slurmd stays."""
        _kill(self.processes_on(name))

    def processes_on(self, name: str) -> list[int]:
        """Pids of slurmstepd and of all that the jobs there have started."""
        slurmd = self._processes.get(name)
        return [pid for pid in self._of_jobs([name]) if slurmd is None or pid != slurmd.pid]

    def mend(self) -> None:
        """All daemons run, all nodes are idle, and no job is left: what the next test expects."""
        if not self._runs("munged"):
            self._start_munge()
        if self._runs("slurmctld"):
            self.continue_controller()
        else:
            self.start_controller()
            self.command("scontrol", "reconfigure")  # else it takes seconds until it looks for the nodes
        self.command("scancel", "--user=root", check=False)
        for name in NODES:
            if not self._runs(name):
                _kill(self.processes_on(name))
                self.start_node(name)
        for name in NODES:
            self.command("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        wait_for(self._is_idle, _START_TIMEOUT_S)

    def start_rest(self, *, impatient: bool = False) -> str:
        """Address of a slurmrestd that does as root what root asks of it; of one user alone it would be, in earnest."""
        name = "impatient-slurmrestd" if impatient else "slurmrestd"
        path = self.folder / "run" / name
        if name not in self._processes:
            self._start_rest(name, ["-a", "rest_auth/local", f"unix:{path}"], impatient=impatient)
            wait_for(path.exists, _START_TIMEOUT_S)
        return f"unix:{path}"

    def start_rest_with_tokens(self) -> str:
        """Address of a slurmrestd over HTTP, which wants a token (`token`)."""
        if not self.takes_tokens:
            _missing("slurmrestd takes no tokens here; install the package slurm-wlm-jwt-plugin to run this test")
        (port,) = _free_ports(1)
        self._start_rest("slurmrestd-jwt", ["-a", "rest_auth/jwt", f"127.0.0.1:{port}"], {"SLURM_JWT": "daemon"})
        wait_for(lambda: _listens(port), _START_TIMEOUT_S)
        return f"http://127.0.0.1:{port}"

    def token(self, user: str) -> str:
        """As `scontrol token` writes it."""
        return self.command("scontrol", "token", "lifespan=600", f"username={user}")

    def logs(self) -> str:
        """The last words of each daemon, for the message of a test that fails."""
        files = sorted((self.folder / "log").glob("*"))
        return "".join(f"\n--- {file.name}\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def close(self) -> None:
        for name in self._processes:
            self._end(name, signal.SIGKILL)
        _kill(self._of_jobs(NODES))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _lay_out(self) -> None:
        self.folder.chmod(0o711)
        for name in ("state", "spool", "log", "run", "dev", "munge"):
            (self.folder / name).mkdir()
        for index in range(GPUS):
            # Like /dev/null. Slurm tells a job nothing of its GPUs (CUDA_VISIBLE_DEVICES) when these are plain files.
            os.mknod(self.folder / f"dev/nvidia{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (self.folder / "gres.conf").write_text(f"Name=gpu Type=h100 File={self.folder}/dev/nvidia[0-{GPUS - 1}]\n")
        port, *ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={own} CPUs=8 Boards=1 SocketsPerBoard=1 "
            f"CoresPerSocket=8 ThreadsPerCore=1 RealMemory=4000 Gres=gpu:h100:{GPUS}"
            for node, own in zip(NODES, ports, strict=True)
        )
        lines = _CONFIGURATION.format(
            host=host, port=port, folder=self.folder, nodes=nodes, extra=self._extra
        ).splitlines()
        if self.takes_tokens:
            key = self.folder / "jwt.key"
            key.write_bytes(os.urandom(32))
            key.chmod(0o600)
            lines += ["AuthAltTypes=auth/jwt", f"AuthAltParameters=jwt_key={key}"]
        self.configuration.write_text(_last_of_each(lines))
        self.impatient_configuration.write_text(_last_of_each([*lines, "MessageTimeout=1"]))

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        folder.chmod(0o711)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        as_munge = ["setpriv", "--reuid", "munge", "--regid", "munge", "--clear-groups"]
        files = {"key-file": "key", "socket": "s", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        # In the foreground, so that it is our child; it complains when it cannot lock its memory, and works.
        self._start("munged", [*as_munge, "munged", "--foreground", "--force", *options])
        wait_for((folder / "s").exists, _START_TIMEOUT_S)

    def _start_rest(
        self,
        name: str,
        options: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        impatient: bool = False,
    ) -> None:
        conf = self.impatient_configuration if impatient else self.configuration
        own = {"SLURM_CONF": str(conf), "SLURMRESTD_SECURITY": "disable_user_check"}
        # Without -s it wants a slurmdbd.
        self._start(name, ["slurmrestd", "-s", "openapi/v0.0.38", *options], {**own, **(environment or {})})

    def _start(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        with (self.folder / "log" / name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **self.environment, **(environment or {})},
            )

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes[name]
        process.send_signal(number)
        process.wait(30)

    def _runs(self, name: str) -> bool:
        return self._processes[name].poll() is None

    def _is_idle(self) -> bool:
        return not self.command("squeue", "--noheader") and set(self.node_states().values()) == {"idle"}

    def _mark(self, node: str) -> str:
        return f"{self.folder}/{node}"

    def _of_jobs(self, nodes: Iterable[str]) -> list[int]:
        """Pids of slurmstepd (and slurmd) of these nodes, their descendants, and what has been orphaned below them."""
        marks = {f"{_MARK}={self._mark(node)}".encode() for node in nodes}
        names = {f"SLURMD_NODENAME={node}".encode() for node in nodes}
        conf = f"SLURM_CONF={self.configuration}".encode()
        parents: dict[int, int] = {}
        found: set[int] = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = set((entry / "environ").read_bytes().split(b"\0"))
                fields = stat_fields(int(entry.name))
            except OSError:
                continue  # it has ended
            if fields is None or fields[0] in "ZX":
                continue
            parents[int(entry.name)] = int(fields[1])
            if environment & marks or (conf in environment and environment & names):
                found.add(int(entry.name))
        while below := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
            found |= below
        return sorted(found)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _free_ports(count: int) -> list[int]:
    """Held all at once while they are chosen, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _last_of_each(lines: Sequence[str]) -> str:
    """slurm.conf takes a setting once; a line for a node or a partition may come often."""
    kept = {
        (line if line.startswith(("NodeName=", "PartitionName=")) else line.partition("=")[0]): line for line in lines
    }
    return "\n".join(kept.values()) + "\n"


def _require() -> None:
    missing = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if not missing and os.geteuid() == 0:
        return
    _missing(
        f"a real Slurm is needed; install the packages {' '.join(missing)} to run this test"
        if missing
        else "a real Slurm of our own runs jobs as root; run this test as root"
    )


def _missing(reason: str) -> None:
    if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
