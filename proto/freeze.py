"""Freezes the contract: writes the descriptors of the installed `switchgear.v1` next to its protos.

Run `.venv/bin/python proto/freeze.py` after an addition to v1, and commit the result with it; `tests/contract/test_contract_descriptor.py`
fails on anything that would break a client of the frozen contract.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from google.protobuf import descriptor_pb2

import switchgear.v1

FROZEN = Path(__file__).parent / "switchgear" / "v1" / "contract.binpb"


def installed_contract() -> descriptor_pb2.FileDescriptorSet:
    """The descriptors of `switchgear.v1` as they were compiled at install time, in file order; nothing that they import."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in sorted(pkgutil.iter_modules(switchgear.v1.__path__), key=lambda found: found.name):
        if module.name.endswith("_pb2"):
            importlib.import_module(f"switchgear.v1.{module.name}").DESCRIPTOR.CopyToProto(files.file.add())
    return files


if __name__ == "__main__":
    FROZEN.write_bytes(installed_contract().SerializeToString(deterministic=True))
