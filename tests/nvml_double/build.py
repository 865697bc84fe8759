"""Builds the double: `libnvidia-ml.so.1` out of the C beside this file and the header of the package nvidia-nvml-dev.

Each function of the header that the C does not have gets a stub which answers NVML_ERROR_NOT_SUPPORTED, as a driver
does for what a GPU lacks. A library is built once for its content and kept under `build/nvml_double/<hash>/`.

`python tests/nvml_double/build.py [--without FUNCTION ...]` prints the folder that belongs into LD_LIBRARY_PATH.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

SOURCES = Path(__file__).parent
CACHE = SOURCES.parents[1] / "build/nvml_double"
_SONAME = "libnvidia-ml.so.1"
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-pthread", "-Wno-deprecated-declarations")
_FUNCTION = re.compile(r"nvmlReturn_t\s+DECLDIR\s+(\w+)\s*\(\s*(\w+)")


class Unbuildable(Exception):
    """Why the double cannot be built on this machine, and what to install."""


def build(without: Collection[str] = ()) -> Path:
    """Folder with the library, for LD_LIBRARY_PATH of a process that is not started yet.

    without: functions that the library does not export, as an older driver's. Raises Unbuildable.
    """
    compiler, header = shutil.which("gcc"), _header()
    if compiler is None:
        raise Unbuildable("there is no gcc; install the packages gcc and libc6-dev to run this test")
    parts = sorted(path for path in SOURCES.iterdir() if path.suffix in {".c", ".h"} or path == Path(__file__))
    content = b"\0".join(
        [*(path.read_bytes() for path in parts), header.read_bytes(), *sorted(map(str.encode, without))]
    )
    folder = CACHE / hashlib.sha256(content).hexdigest()[:16]
    if (folder / _SONAME).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _compile(compiler, header, Path(scratch), without)
        # Whoever builds the same at the same time has built the same.
        (Path(scratch) / _SONAME).replace(folder / _SONAME)
    return folder


def _header() -> Path:
    """nvml.h of the installed package, wherever it keeps it."""
    try:
        files = metadata.files("nvidia-nvml-dev") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvml.h":
            return Path(str(file.locate()))
    raise Unbuildable("there is no nvml.h; install the package nvidia-nvml-dev from PyPI to run this test")


def _compile(compiler: str, header: Path, scratch: Path, without: Collection[str]) -> None:
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header.read_text(), flags=re.DOTALL)
    takes = dict(_FUNCTION.findall(text))
    if unknown := set(without) - set(takes):
        raise ValueError(f"{', '.join(sorted(unknown))}: nvml.h has no such function")
    names = list(takes)
    (scratch / "functions.h").write_text(
        "\n".join(f"#define FN_{name} {number}" for number, name in enumerate(names))
        + f"\n#define FN_COUNT {len(names)}\n#define FUNCTION_NAMES "
        + ", ".join(f'"{name}"' for name in names)
        + "\n"
    )
    # Weak: the double's own functions take their place. A function without a device passes none.
    (scratch / "stubs.c").write_text(
        "extern int unsupported(int function, void *device);\n"
        + "\n".join(
            f"__attribute__((weak)) int {name}(void *device) "
            f"{{ return unsupported({number}, {'device' if takes[name] == 'nvmlDevice_t' else '((void)device, (void *)0)'}); }}"
            for number, name in enumerate(names)
        )
    )
    hidden = "".join(f" {name};" for name in sorted(without))
    (scratch / "exports").write_text(f"{{ global: nvml*; local:{hidden} *; }};\n")
    command = [compiler, *_FLAGS, "-I", str(scratch), "-I", str(header.parent), f"-Wl,-soname,{_SONAME}"]
    command += [f"-Wl,--version-script={scratch / 'exports'}", "-o", str(scratch / _SONAME)]
    command += [*map(str, sorted(SOURCES.glob("*.c"))), str(scratch / "stubs.c"), "-lm"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"the double does not compile:\n{ended.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--without", nargs="*", default=(), metavar="FUNCTION")
    sys.stdout.write(f"{build(parser.parse_args().without)}\n")
