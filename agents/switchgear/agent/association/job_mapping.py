"""Jobs by the files of a prolog (`--hpc-job-mapping-dir`).

Two forms: as for dcgm-exporter, named by GPU, with one job id a line; and `slurm_ID`, which `deploy/slurm/prolog.sh` writes, with
variables of that job.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from switchgear.agent.association.identity import Owner
from switchgear.agent.association.kubernetes import Place
from switchgear.agent.association.slurm import UNKNOWN, SlurmJob, job_id, job_of

_FILES_MAX = 1024
_FILE_BYTES_MAX = 4096
#: GPU index, or index and MIG GPU instance.
_NAME = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?")
_OF_SLURM = re.compile(r"slurm_\d{1,20}")
_INDEX = re.compile(r"\d{1,4}")
_JOB = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Given:
    """One job. places: its GPUs. slurm: what else the file says of it."""

    owner: Owner
    places: tuple[Place, ...]
    slurm: SlurmJob = UNKNOWN


def mapped_jobs(folder: Path) -> Iterator[Given]:
    """Nothing for a folder or a file that is gone or not for us: prologs and epilogs come and go."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(_FILES_MAX), entries, strict=False)]
    except OSError:
        return
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None and not _OF_SLURM.fullmatch(name):
            continue
        try:
            with (folder / name).open("rb") as file:
                lines = file.read(_FILE_BYTES_MAX).decode("ascii", "replace").splitlines()
        except OSError:
            continue
        if match is None:
            if (given := _of_slurm(lines)).owner.hpc_job:
                yield given
            continue
        place = Place(int(match[1]), int(match[2]) if match[2] else None)
        for line in lines:
            if _JOB.fullmatch(line.strip()):
                yield Given(Owner(hpc_job=line.strip()), (place,))


def _of_slurm(lines: list[str]) -> Given:
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    gpus = variables.get("SLURM_JOB_GPUS", "").split(",")
    places = tuple(Place(int(gpu)) for gpu in gpus if _INDEX.fullmatch(gpu))
    return Given(Owner(hpc_job=job_id(variables)), places, job_of(variables))
