"""Compiles the contract into `build/proto` when the distribution is built or installed in editable form.

Run it by hand with `python proto/build.py` where grpcio-tools and mypy-protobuf are installed; otherwise an install does it
in its isolated build environment.
"""

from __future__ import annotations

import importlib.resources
import shutil
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # by hand, without hatchling
    BuildHookInterface = object  # type: ignore[assignment,misc]


def compile_protos(root: Path) -> None:
    """Writes `*_pb2.py`, `*_pb2_grpc.py` and their stubs for every proto below `root/proto/switchgear`.

    Raises RuntimeError when protoc refuses a file; its message names the line.
    """
    import google.api
    from grpc_tools import protoc

    source, target = root / "proto", root / "build" / "proto"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    files = sorted(str(path.relative_to(source)) for path in (source / "switchgear").rglob("*.proto"))
    googleapis = Path(next(iter(google.api.__path__))).parents[1]
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    plugin = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    found = shutil.which("protoc-gen-mypy_grpc") or str(plugin)
    arguments = [
        "protoc",
        f"-I{source}",
        f"-I{googleapis}",
        f"-I{well_known}",
        f"--plugin=protoc-gen-mypy_grpc={found}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_grpc_out=quiet:{target}",
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc refused the contract; its message is above")
    for version in (path for path in (target / "switchgear").iterdir() if path.is_dir()):
        (version / "__init__.py").write_text("")
        (version / "py.typed").write_text("")


class ProtoBuildHook(BuildHookInterface):  # type: ignore[misc,type-arg,unused-ignore]
    """Hatchling calls this before it collects files."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        if self.target_name == "wheel":
            compile_protos(Path(self.root))


if __name__ == "__main__":
    compile_protos(Path(__file__).resolve().parents[1])
