"""The batch script that is a launcher, and how it is submitted."""

from __future__ import annotations

import shlex

from google.protobuf import json_format

from switchgear.core.service import Endpoints
from switchgear.scheduler.engines.slurm.keys import Key, comment_of, name_of
from switchgear.scheduler.engines.slurm.settings import SlurmSettings
from switchgear.scheduler.model import JobSpec, WantedLauncher
from switchgear.scheduler.translate import spec_to_proto
from switchgear.slurm.model import SlurmNode, Submission

#: As EX_CANTCREAT of sysexits.h.
EXIT_NO_FOLDER = 73
#: Folders of launchers that have ended which stay on a node, as an agent keeps them: what the last days' said may be asked for.
FOLDERS_MAX = 200


def unfit(spec: JobSpec) -> str:
    """Why Slurm cannot be asked for what the job needs; empty when it can."""
    if spec.gpu_milli or spec.mig_profile:
        return "Switchgear asks Slurm for whole GPUs only; submit it without a share of one"
    return ""


def submission(launcher: WantedLauncher, key: Key, node: SlurmNode, settings: SlurmSettings) -> Submission:
    """A job of one task on that node. Without a wish for CPUs and memory it gets as large a share of the node as of its GPUs: ranks that
    are bound to the one CPU that is Slurm's default would starve."""
    spec, gpus = launcher.spec, len(launcher.gpu_indices)
    share, whole = (gpus / node.gpus.count, gpus == node.gpus.count) if node.gpus.count else (0.0, False)
    memory_mib = spec.memory_mib or (0 if whole else int(node.memory_mib * share) or None)
    tls = settings.tls.environment() if settings.tls else {}
    return Submission(
        name=name_of(key, settings.cluster),
        comment=comment_of(key, settings.cluster),
        nodes=(node.name,),
        cpus_per_task=-(-spec.cpu_milli // 1000) or max(1, int(node.cpus * share)),
        gpus_per_node=gpus,
        memory_per_node_mib=memory_mib,
        partition=spec.partition or ",".join(settings.partitions),
        account=spec.account,
        qos=spec.qos,
        time_limit_s=int(spec.time_limit_seconds) or None,
        dependency="singleton",
        output="/dev/null",
        environment={**settings.environment, **tls},
    )


def script(launcher: WantedLauncher, key: Key, node: SlurmNode, settings: SlurmSettings, endpoints: Endpoints) -> str:
    """Writes the job's specification into the launcher's folder and becomes the launcher, so that what Slurm signals reaches it."""
    folder = settings.folder(key)
    spec = json_format.MessageToJson(spec_to_proto(launcher.spec), indent=None)
    address = node.address or node.hostname
    arguments = (
        *("--job", key.job, "--placement-epoch", str(key.epoch), "--node", key.node, "--address", address),
        *("--recovery", endpoints.recovery, "--autoscaler", endpoints.autoscaler),
        *("--spec", "/dev/fd/3", "--state-dir", str(folder), "--trace-parent", launcher.trace_parent),
    )
    place = shlex.quote(str(folder))
    # The specification is one line, and no line of JSON reads like the end of it. Its environment may hold secrets, so no file of it is
    # left; what ranks write is as the user's own umask says.
    return (
        "#!/bin/sh\n"
        # Whatever it is told to export, sbatch hands on the token by which it asked.
        "unset SLURM_JWT\n"
        f"mkdir -p {place} && cd {place} || exit {EXIT_NO_FOLDER}\n"
        f"(umask 077 && rm -f spec.json && cat >spec.json) <<'SPEC' || exit {EXIT_NO_FOLDER}\n{spec}\nSPEC\n"
        "exec 3<spec.json && rm spec.json\n"
        # The newest first, and none in which a launcher runs; other nodes may have theirs beside them.
        f"ls -dt ../*@{key.node_id} | tail -n +{FOLDERS_MAX + 1} | while read -r old; do\n"
        '    flock --nonblock "$old/lock" rm -rf "$old"\n'
        "done 3<&- 2>/dev/null\n"
        f"exec {shlex.join((*settings.command, *arguments))} >>launcher.log 2>&1\n"
    )
