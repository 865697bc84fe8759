"""Jobs by the files that a prolog writes for dcgm-exporter (`--hpc-job-mapping-dir`): named by GPU, one job id a line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from switchgear.agent.association.identity import Owner
from switchgear.agent.association.kubernetes import Place

_FILES_MAX = 1024
_FILE_BYTES_MAX = 4096
#: GPU index, or index and MIG GPU instance.
_NAME = re.compile(r"(\d{1,4})(?:\.(\d{1,4}))?")
_JOB = re.compile(r"[!-~]{1,128}")


def mapped_jobs(folder: Path) -> Iterator[tuple[Place, Owner]]:
    """Nothing for a folder or a file that is gone or not for us: prologs and epilogs come and go."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(_FILES_MAX), entries, strict=False)]
    except OSError:
        return
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        place = Place(int(match[1]), int(match[2]) if match[2] else None)
        try:
            with (folder / name).open("rb") as file:
                text = file.read(_FILE_BYTES_MAX).decode("ascii", "replace")
        except OSError:
            continue
        for line in text.splitlines():
            if _JOB.fullmatch(line.strip()):
                yield place, Owner(hpc_job=line.strip())
