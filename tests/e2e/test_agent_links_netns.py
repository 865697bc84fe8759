"""A real link that goes down and up, on a machine of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from network import Machine, network

LOOKS_MAX = 200


class Looker:
    """A process on that machine that looks at its links when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def look(self) -> list[str]:
        """The kinds that one look tells of eth0."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return [kind for kind, link in json.loads(self._process.stdout.readline()) if link == "eth0"]

    def look_until(self, wanted: str) -> list[str]:
        """All that is told up to `wanted`. The kernel takes a moment to pass a carrier's change on."""
        told = list[str]()
        for _ in range(LOOKS_MAX):
            told += self.look()
            if wanted in told:
                return told
            time.sleep(0.02)
        raise AssertionError(f"{wanted} was not told within {LOOKS_MAX} looks, but {told}")


@contextmanager
def looker(machine: Machine, folder: Path) -> Iterator[Looker]:
    script = Path(__file__).parents[1] / "look_at_links.py"
    command = machine.command(sys.executable, str(script), str(folder))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Looker(process)


def test_a_link_that_is_pulled_is_told_down_and_up_again_and_as_flapping_when_it_is_pulled_thrice(
    tmp_path: Path,
) -> None:
    with network(2) as net, looker(net.machines[1], tmp_path) as eth0:
        machine = net.machines[1]
        for _ in range(3):
            assert eth0.look() == []
        net.unplug(machine)
        assert eth0.look_until("LINK_DOWN") == ["LINK_DOWN"]
        net.plug_in(machine)
        assert eth0.look_until("LINK_UP") == ["LINK_UP"]
        # Faster than anybody looks: the driver's own count tells.
        for _ in range(2):
            net.unplug(machine)
            net.plug_in(machine)
        assert eth0.look_until("LINK_FLAPPING")[-1] == "LINK_FLAPPING"
