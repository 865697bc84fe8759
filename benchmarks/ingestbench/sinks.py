"""Sinks as processes of their own."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentbench.processes import free_port, listens

from ingestbench.processes import Program, running


@dataclass(frozen=True, slots=True)
class Store:
    """A running sink at HOST:PORT."""

    address: str

    def decoded(self) -> dict[str, float]:
        """What came; see `sink.decoded`."""
        with urllib.request.urlopen(f"http://{self.address}/decoded", timeout=600) as answer:
            found: dict[str, float] = json.load(answer)
        return found


@contextmanager
def sink(folder: Path, mode: str) -> Iterator[Store]:
    """mode: ok, slow or failing; see `sink`."""
    folder.mkdir(parents=True, exist_ok=True)
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "ingestbench.sink", address.partition(":")[2], mode]
    with running(Program(command, folder / f"sink-{mode}.log", lambda: listens(address))):
        yield Store(address)
