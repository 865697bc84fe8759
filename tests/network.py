"""Machines of a test's own: network namespaces on one bridge, whose links can be cut in several ways.

Needs root and iproute2. SWITCHGEAR_REQUIRE_SERVICES=1 turns their absence from a skip into a failure.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

_TOOLS = ("ip", "ss")
#: Nobody has this address: frames to it are lost without a word.
_NOWHERE = "02:00:00:00:00:01"
DEVICE = "eth0"
#: For benchmarks of networks (RFC 2544), so it is nobody's network.
_PREFIX = "198.18.9"


class Machine:
    """A network namespace with one address of its own and loopback."""

    def __init__(self, namespace: str, address: str, device: str) -> None:
        self.namespace, self.address, self.device = namespace, address, device

    def command(self, *arguments: str) -> list[str]:
        """That command, run on this machine."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def lose_frames_to(self, other: Machine) -> None:
        """From now on what this one sends there is lost, and nobody is told; the other direction stays."""
        self._ip("neigh", "replace", other.address, "lladdr", _NOWHERE, "dev", self.device, "nud", "permanent")

    def find_again(self, other: Machine) -> None:
        self._ip("neigh", "del", other.address, "dev", self.device)

    def refuse(self, other: Machine) -> None:
        """Whoever here connects there is told at once that it cannot be reached."""
        self._ip("route", "add", "unreachable", f"{other.address}/32")

    def allow(self, other: Machine) -> None:
        self._ip("route", "del", "unreachable", f"{other.address}/32")

    def reset(self, other: Machine) -> None:
        """Ends all connections to there with a reset, as a firewall or a machine that starts anew does."""
        _run(*self.command("ss", "-K", "-t", "dst", other.address))
        left = _run(*self.command("ss", "-H", "-t", "-n", "state", "established", "dst", other.address))
        assert not left, f"this kernel cannot end connections (CONFIG_INET_DIAG_DESTROY): {left}"

    def _ip(self, *arguments: str) -> None:
        _run("ip", "-n", self.namespace, *arguments)


class Network:
    """machines: the first one has the bridge; links of the others can be unplugged."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.machines = machines

    def unplug(self, machine: Machine) -> None:
        """What it sends and what is sent to it is lost, and nobody is told."""
        self._port(machine, "down")

    def plug_in(self, machine: Machine) -> None:
        self._port(machine, "up")

    def _port(self, machine: Machine, state: str) -> None:
        _run("ip", "-n", self.machines[0].namespace, "link", "set", _port(self.machines.index(machine)), state)


@contextmanager
def network(count: int) -> Iterator[Network]:
    """So many machines that reach each other and nothing else."""
    _require()
    tag = f"sg{secrets.token_hex(3)}"
    machines = [
        Machine(f"{tag}-{index}", f"{_PREFIX}.{index + 1}", DEVICE if index else "bridge") for index in range(count)
    ]
    hub = machines[0]
    made = list[Machine]()
    try:
        for machine in machines:
            _run("ip", "netns", "add", machine.namespace)
            made.append(machine)
            _run("ip", "-n", machine.namespace, "link", "set", "lo", "up")
        _run("ip", "-n", hub.namespace, "link", "add", hub.device, "type", "bridge")
        for index, machine in enumerate(machines[1:], 1):
            port, peer = ("name", _port(index), "netns", hub.namespace), ("name", DEVICE, "netns", machine.namespace)
            _run("ip", "link", "add", *port, "type", "veth", "peer", *peer)
            _run("ip", "-n", hub.namespace, "link", "set", _port(index), "master", hub.device, "up")
        for machine in machines:
            _run("ip", "-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", machine.device)
            _run("ip", "-n", machine.namespace, "link", "set", machine.device, "up")
        for machine in machines[1:]:
            _wait_until_up(machine)
        yield Network(machines)
    finally:
        for machine in made:
            _run("ip", "netns", "del", machine.namespace)


def _wait_until_up(machine: Machine) -> None:
    """A busy kernel takes up to seconds to say that a carrier that is there is there."""
    deadline_s = time.monotonic() + 20
    while " UP " not in _run("ip", "-n", machine.namespace, "-br", "link", "show", machine.device):
        assert time.monotonic() < deadline_s, f"{machine.device} does not come up"
        time.sleep(0.02)


def _port(index: int) -> str:
    return f"port{index}"


def _run(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
    return ended.stdout


def _require() -> None:
    if missing := [tool for tool in _TOOLS if not shutil.which(tool)]:
        reason = f"no {' and no '.join(missing)} here; install iproute2 to run this test"
    elif os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode:
        reason = "network namespaces need root; run this test as root, for example in a container of its own"
    else:
        return
    if os.environ.get("SWITCHGEAR_REQUIRE_SERVICES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
