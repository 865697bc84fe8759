"""Builds the double: `libamd_smi.so` out of the C beside this file, with each function that the installed amdsmi looks up.

There is no header to build from without ROCm; the structures are those of amdsmi itself, which the test fills through ctypes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("amdsmi_double.c")
CACHE = SOURCE.parents[2] / "build/amdsmi_double"
_FUNCTION = re.compile(r"_libraries\['libamd_smi\.so'\]\.(\w+)")


class Unbuildable(Exception):
    """Why the double cannot be built on this machine, and what to install."""


def build() -> Path:
    """What belongs into ROCM_PATH: the folder above `lib/libamd_smi.so`. Raises Unbuildable."""
    compiler, wrapper = shutil.which("gcc"), _wrapper()
    if compiler is None:
        raise Unbuildable("there is no gcc; install the packages gcc and libc6-dev to run this test")
    content = b"\0".join(path.read_bytes() for path in (SOURCE, Path(__file__), wrapper))
    folder = CACHE / hashlib.sha256(content).hexdigest()[:16]
    if (folder / "lib/libamd_smi.so").exists():
        return folder
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        stubs, library = Path(scratch) / "stubs.c", Path(scratch) / "libamd_smi.so"
        stubs.write_text(
            "extern int double_answer(const char *, void *, void *, void *, void *);\n"
            + "\n".join(
                f"__attribute__((weak)) int {name}(void *handle, void *first, void *second, void *third) "
                f'{{ return double_answer("{name}", handle, first, second, third); }}'
                for name in sorted(set(_FUNCTION.findall(wrapper.read_text())))
            )
        )
        command = [compiler, "-std=gnu11", "-O2", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
        command += ["-o", str(library), str(SOURCE), str(stubs)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RuntimeError(f"the double does not compile:\n{ended.stderr}")
        library.replace(folder / "lib/libamd_smi.so")  # whoever builds the same at the same time has built the same
    return folder


def build_or_skip() -> Path:
    """Skips the test where the double cannot be built; a failure where SWITCHGEAR_REQUIRE_SERVICES=1 says that it must be."""
    try:
        return build()
    except Unbuildable as error:
        if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def _wrapper() -> Path:
    try:
        files = metadata.files("amdsmi") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "amdsmi_wrapper.py":
            return Path(str(file.locate()))
    raise Unbuildable("there is no amdsmi; install the package amdsmi from PyPI to run this test")
