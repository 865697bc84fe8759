"""The words with which faults of a simulated fleet are asked for."""

from __future__ import annotations

import pytest

from switchgear.core.errors import Invalid
from switchgear.sim.faults import Fault
from switchgear.sim.fleet.script import FleetFault, NodeFault, NodeFaultKind, parse_fleet_script

NODES = frozenset(f"sim-{number:04}" for number in range(1, 21))


def parsed(text: str) -> list[FleetFault]:
    return parse_fleet_script(text, NODES, 8)


def test_faults_of_nodes_and_of_their_hardware_come_in_order_of_time() -> None:
    found = parsed(
        """
        at 30s node sim-0010 silent for 60s
        at 10s node sim-0007 gpu 3 xid 79        # and what the driver says
        at 40s node sim-0012 clock-skew 30s for 1m
        at 35s node sim-0011 partition
        """
    )
    assert [(fault.at_s, fault.node) for fault in found] == [
        (10, "sim-0007"),
        (30, "sim-0010"),
        (35, "sim-0011"),
        (40, "sim-0012"),
    ]
    assert isinstance(found[0].fault, Fault)
    assert found[0].fault.code == 79
    assert [fault.fault for fault in found[1:]] == [
        NodeFault(NodeFaultKind.SILENT, 60),
        NodeFault(NodeFaultKind.PARTITION),
        NodeFault(NodeFaultKind.CLOCK_SKEW, 60, 30),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("at 10s sim-0007 gpu 3 xid 79", "at TIME node NAME FAULT"),
        ("at 10s node sim-0007", "at TIME node NAME FAULT"),
        ("at soon node sim-0007 silent", "write 500ms, 30s, 5m or 1h"),
        ("at 10s node sim-0021 silent", "there is no node sim-0021; they are sim-0001 to sim-0020"),
        ("at 10s node sim-0007 gpu 8 xid 79", "has the GPUs 0 to 7"),
        ("at 10s node sim-0007 silent while 10s", "write `for T`"),
        ("at 10s node sim-0007 clock-skew", "is not a time"),
        ("at 10s node sim-0007 tired", "a fault begins with"),
    ],
)
def test_a_wrong_line_is_told_with_its_number_and_what_to_write(line: str, told: str) -> None:
    with pytest.raises(Invalid, match="line 2: ") as caught:
        parsed(f"# faults\n{line}")
    assert told in caught.value.message


def test_the_nodes_that_there_are_are_told_in_the_order_of_their_numbers() -> None:
    with pytest.raises(Invalid, match="they are sim-0009 to sim-12000"):
        parse_fleet_script("at 1s node sim-0001 silent", frozenset({"sim-9999", "sim-12000", "sim-0009"}), 8)
