"""Where Prometheus is sent to: only to the node that says so."""

from __future__ import annotations

import pytest

from switchgear.scheduler.model import Inventory
from switchgear.scheduler.translate import metrics_are_its_own, peer_host


@pytest.mark.parametrize(
    ("address", "metrics", "peer", "own"),
    [
        ("10.0.0.5", "", "ipv4:10.0.0.5:4000", True),
        ("10.0.0.5", "10.0.0.5:9100", "ipv4:10.0.0.5:4000", True),
        ("gpu-01", "https://gpu-01:9100", "ipv4:172.18.0.7:4000", True),
        ("gpu-01", "172.18.0.7:9100", "ipv6:%5B::ffff:172.18.0.7%5D:4000", True),
        ("fd00::5", "https://[fd00::5]:9100", "ipv6:%5Bfd00::5%5D:4000", True),
        ("127.0.0.1", "localhost:9100", "ipv6:%5B::1%5D:4000", True),
        ("10.0.0.5", "127.0.0.1:9100", "ipv4:127.0.0.1:4000", True),
        ("10.0.0.5", "127.0.0.1:9100", "ipv4:10.0.0.5:4000", False),
        ("127.0.0.1", "127.0.0.1:9090", "ipv4:10.0.0.5:4000", False),
        ("10.0.0.5", "https://metadata.example:80", "ipv4:10.0.0.5:4000", False),
        ("10.0.0.5", "10.0.0.6:5432", "ipv4:10.0.0.5:4000", False),
        ("127.0.0.1", "127.0.0.1:9090", "unix:/run/x", False),
    ],
)
def test_metrics_are_read_on_the_node_that_speaks_and_nowhere_else(
    address: str, metrics: str, peer: str, own: bool
) -> None:
    inventory = Inventory(address, (), "test", metrics)
    assert metrics_are_its_own(inventory, peer_host(peer)) is own
