"""`switchgear agent classify-log` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "switchgear.cli.main", "agent", "classify-log")
LOG = (
    b"[1.0] nothing\n"
    b"[2.0] NVRM: The NVIDIA GPU 0000:5e:00.0\n[2.0] NVRM: (PCI ID: 10de:2335) installed in this system has\n"
    b"[2.0] NVRM: fallen off the bus and is not responding to commands.\n"
    b"\xff no text\n"
    b"[3.0] NVRM: Xid (PCI:0000:5e:00): 31, pid=5, name=x, without an end"
)


def objects(*arguments: str, stdin: bytes = b"") -> list[dict[str, object]]:
    run = subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_each_line_of_stdin_or_of_a_file_has_one_object_and_a_block_one_kind(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(LOG)
    told = objects(stdin=LOG)
    assert [each["kind"] for each in told] == [None, "gpu_fallen_off_bus", None, None, None, "xid"]
    assert told == objects(str(tmp_path / "log"))
    assert " ".join(told[0]) == (
        "line kind code pci mig_gpu_instance pid process unit severity link intrinfo error_status action fatal caused_by"
    )


def test_a_file_that_is_not_there_is_named() -> None:
    run = subprocess.run([*COMMAND, "/no/such.log"], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "/no/such.log: No such file or directory; give a log that you may read" in run.stderr
