"""Network interfaces and drivers' statistics, from files laid out as the kernel does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from node_tree import NodeTree, Told, by_name, infiniband, network

from switchgear.agent.events import Finding
from switchgear.agent.readings import Kind
from switchgear.agent.sources.counter_gate import CounterGate
from switchgear.agent.sources.ethtool import STATISTICS_MAX, EthtoolSocket, EthtoolSource, chosen, metric_name
from switchgear.agent.sources.link_speed import SpeedWatch
from switchgear.agent.sources.links import LOST_S
from switchgear.agent.sources.network import INTERFACES_MAX, InterfaceSource
from switchgear.agent.sources.protocols import ProtocolSource

ADDRESS = "0000:9a:00.1"


@pytest.fixture
def tree(tmp_path: Path) -> NodeTree:
    return NodeTree(tmp_path / "machine")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    told = Told(tmp_path)
    yield told
    told.close()


def test_interfaces_have_traffic_state_and_speed_in_bytes(tree: NodeTree, told: Told) -> None:
    tree.interface("eth0", ADDRESS)
    tree.interface("veth12ab")
    readings = by_name([*network(tree, told).sample(), *InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample()])
    assert readings["node_network_receive_bytes_total{'device': 'eth0'}"].value == 5
    assert readings["node_network_transmit_drop_total{'device': 'eth0'}"].value == 6
    assert readings["node_network_up{'device': 'eth0'}"].value == 1
    assert readings["node_network_carrier_changes_total{'device': 'eth0'}"].value == 2
    assert readings["node_network_speed_bytes{'device': 'eth0'}"].value == 50e9
    assert readings["node_network_mtu_bytes{'device': 'eth0'}"].value == 9000
    assert not any("veth" in name for name in readings)


def test_what_an_interface_does_not_tell_is_unknown_and_not_zero(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("ib0", speed="-1")
    (folder / "carrier_changes").unlink()
    readings = by_name([*network(tree, told).sample(), *InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample()])
    speed = readings["node_network_speed_bytes{'device': 'ib0'}"]
    changes = readings["node_network_carrier_changes_total{'device': 'ib0'}"]
    assert (speed.value, speed.reason) == (None, "no link speed")
    assert (changes.value, changes.reason) == (None, "carrier_changes: No such file or directory")


def test_interfaces_without_end_are_bounded(tree: NodeTree, told: Told) -> None:
    for index in range(INTERFACES_MAX + 9):
        tree.interface(f"gre{index}")
    devices = {dict(reading.key.labels)["device"] for reading in network(tree, told).sample()}
    assert len(devices) == INTERFACES_MAX


def test_a_bond_counts_its_members_and_those_that_work(tree: NodeTree, told: Told) -> None:
    bond = tree.interface("bond0")
    tree.write(bond, {"bonding/slaves": "eth0 eth1", "lower_eth0/bonding_slave/mii_status": "up"})
    tree.write(bond, {"lower_eth1/bonding_slave/mii_status": "down"})
    (tree.sysfs / "class/net/bonding_masters").write_text("bond0\n")
    readings = by_name(InterfaceSource(SpeedWatch(told.events), tree.sysfs).sample())
    assert readings["node_bonding_slaves{'master': 'bond0'}"].value == 2
    assert readings["node_bonding_active{'master': 'bond0'}"].value == 1


def test_a_nic_that_loses_its_link_is_told_and_cleared(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(4):
        source.sample()
        told.clock.advance(1)
    [event] = told.new()
    assert (event.source, event.kind, event.pci) == ("network", "LINK_DOWN", "0000:9a:00")
    (folder / "operstate").write_text("up\n")
    source.sample()
    assert told.kinds() == ["LINK_UP"]


def test_a_carrier_that_is_gone_before_the_kernel_says_down_is_no_bounce(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS, carrier="1")
    source = network(tree, told)
    source.sample()
    tree.write(folder, {"carrier": "0", "carrier_down_count": "2"})
    for _ in range(4):
        source.sample()
        told.clock.advance(1)
    assert told.kinds() == ["LINK_DOWN"]
    tree.write(folder, {"carrier": "1"})
    source.sample()
    tree.write(folder, {"carrier_down_count": "3"})
    source.sample()
    assert told.kinds() == ["LINK_UP", "LINK_BOUNCED"]


@pytest.mark.parametrize("kind", ["NET_LINK_DOWN", "NET_LINK_LOST_CARRIER"])
def test_what_the_kernel_log_says_of_a_watched_link_is_not_told_beside_it(
    tree: NodeTree, told: Told, kind: str
) -> None:
    tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    for device in ("eth2", "eth9"):
        told.events.tell("kernel_log", Finding(kind, f"{device}: Link down", detail={"device": device}))
    assert [event.detail["device"] for event in told.new()] == ["eth9"]


@pytest.mark.parametrize(
    "files", [{"type": "32"}, {"phys_port_name": "pf0vf3"}, {"phys_port_name": "c1pf0sf88"}, {"address": ""}]
)
def test_links_that_say_nothing_about_a_port_of_the_machine_are_not_told(
    tree: NodeTree, told: Told, files: dict[str, str]
) -> None:
    """IPoIB over a port that tells itself, representors, and what has no device."""
    folder = tree.interface("eth2", files.pop("address", ADDRESS), **files)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(9):
        source.sample()
        told.clock.advance(1)
    assert told.kinds() == []


def test_a_virtual_function_is_told_by_its_physical_one(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    (tree.pci_device(ADDRESS) / "physfn").mkdir()
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    told.clock.advance(9)
    source.sample()
    assert told.kinds() == []


def test_a_nic_that_leaves_the_bus_is_lost_and_one_that_moves_to_a_container_is_not(tree: NodeTree, told: Told) -> None:
    tree.interface("eth2", ADDRESS)
    tree.interface("eth3", "0000:1b:00.0")
    source = network(tree, told)
    source.sample()
    tree.remove_interface("eth2")
    tree.remove_device(ADDRESS)
    tree.remove_interface("eth3")
    for _ in range(3):
        source.sample()
        told.clock.advance(LOST_S)
    assert [(event.kind, event.pci) for event in told.new()] == [("NIC_LOST", "0000:9a:00")]


def test_a_device_that_answers_with_ones_only_is_off_the_bus(tree: NodeTree, told: Told) -> None:
    tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    tree.remove_interface("eth2")
    (tree.pci_device(ADDRESS) / "config").write_bytes(b"\xff" * 64)
    source.sample()
    told.clock.advance(LOST_S + 1)
    source.sample()
    assert told.kinds() == ["NIC_LOST"]


def test_a_restart_of_the_agent_replays_nothing_and_knows_what_was_there(tree: NodeTree, told: Told) -> None:
    folder = tree.interface("eth2", ADDRESS)
    source = network(tree, told)
    source.sample()
    (folder / "operstate").write_text("down\n")
    for _ in range(3):
        source.sample()
        told.clock.advance(2)
    assert told.kinds() == ["LINK_DOWN"]
    told.restart()
    source = network(tree, told)
    for _ in range(9):
        source.sample()
        told.clock.advance(2)
    assert told.kinds() == []
    tree.remove_interface("eth2")
    tree.remove_device(ADDRESS)
    for _ in range(2):
        source.sample()
        told.clock.advance(LOST_S)
    assert told.kinds() == ["NIC_LOST"]


def test_a_port_that_comes_back_slower_than_it_was_is_told_and_cleared(tree: NodeTree, told: Told) -> None:
    folder, port = tree.interface("eth2", ADDRESS), tree.port("mlx5_0", "0000:1b:00.0")
    tree.interface("ib0", "0000:1b:00.0", type="32")
    _, slow = infiniband(tree, told)
    interfaces = InterfaceSource(SpeedWatch(told.events), tree.sysfs)

    def look(times: int) -> list[tuple[str, str]]:
        for _ in range(times):
            interfaces.sample()
            slow.sample()
        return [(event.kind, event.text) for event in told.new()]

    assert look(3) == []
    (folder / "speed").write_text("200000\n")
    tree.write(port, {"rate": "200 Gb/sec (2X NDR)"})
    assert look(1) == []
    assert look(9) == [
        ("LINK_SLOW", "eth2 runs at 200 Gbit/s, and ran at 400 Gbit/s since the boot"),
        ("LINK_SLOW", "mlx5_0/1 runs at 200 Gbit/s, and ran at 400 Gbit/s since the boot"),
    ]
    (folder / "speed").write_text("-1\n")
    tree.write(port, {"phys_state": "2: Polling", "rate": "10 Gb/sec (4X SDR)"})
    assert look(9) == []
    (folder / "speed").write_text("400000\n")
    assert look(9) == [("LINK_FULL_SPEED", "eth2 is back at 400 Gbit/s")]


def test_what_was_told_of_a_speed_is_known_after_a_restart_and_a_boot_begins_anew(told: Told) -> None:
    def look(speed_bytes: float) -> list[str]:
        for _ in range(3):
            watch.see("eth2", ADDRESS, speed_bytes)
        return told.kinds()

    watch = SpeedWatch(told.events)
    assert look(50e9) == []
    told.restart()
    watch = SpeedWatch(told.events)
    assert look(25e9) == ["LINK_SLOW"]
    told.restart()
    watch = SpeedWatch(told.events)
    assert look(25e9) == []
    assert look(50e9) == ["LINK_FULL_SPEED"]
    told.restart(boot="boot-2")
    watch = SpeedWatch(told.events)
    assert look(25e9) == []


@pytest.mark.parametrize(
    ("statistic", "metric"),
    [
        ("rx_discards_phy", "node_ethtool_received_discards_phy"),
        ("rx_prio3_pause", "node_ethtool_received_prio3_pause"),
        ("tx_errors", "node_ethtool_transmitted_errors_total"),
        ("port.rx_crc_errors", "node_ethtool_port_received_crc_errors"),
        ("module_high_temp", "node_ethtool_module_high_temp"),
        ("_Foo-bar", "node_ethtool_foo_bar"),
    ],
)
def test_statistics_of_drivers_have_node_exporters_names(statistic: str, metric: str) -> None:
    assert metric_name(statistic) == metric


def test_what_tells_of_errors_and_congestion_is_kept_for_the_port_first_and_not_for_single_queues() -> None:
    port = ("rx_crc_errors_phy", "rx_out_of_buffer", "tx_pause_ctrl_phy", "link_down_events_phy", "rx_bytes_phy")
    priorities = [f"rx_prio{number}_{what}" for number in range(8) for what in ("pause", "discards", "pause_duration")]
    queues = ("rx0_drops", "rx_queue_3_drops", "tx-0.errors", "ch5_arm_err", "[4]: tx_dropped", "rx_errors.2")
    others = ("rx_packets", "tx_interrupts", "rx_prio0_bytes", "bytes_transferred")
    statistics = [*priorities, *queues, *others, *port]
    kept = [statistics[index] for index in chosen(statistics).values()]
    assert kept[: len(port)] == list(port)
    assert kept[len(port) :] == [name for name in priorities if "duration" not in name]
    assert len(chosen([f"a{'b' * number}_errors" for number in range(200)])) == STATISTICS_MAX


def test_the_kernel_answers_our_ethtool_questions() -> None:
    """On any interface of this machine whose driver says who it is."""
    ethtool = EthtoolSocket()
    try:
        for path in Path("/sys/class/net").iterdir():
            try:
                driver, count = ethtool.driver(path.name), ethtool.count(path.name)
                names, values = ethtool.strings(path.name, count), ethtool.values(path.name, count)
            except OSError:
                continue
            assert driver.driver
            assert len(names) == len(values) == count
            assert all(name.isprintable() and name for name in names)
            return
    finally:
        ethtool.close()
    pytest.skip("no interface here whose driver has statistics")


def test_statistics_are_asked_of_physical_interfaces_alone(tree: NodeTree, told: Told) -> None:
    tree.interface("lo")
    assert EthtoolSource(CounterGate(told.events), told.clock, tree.sysfs).sample() == []


def test_retransmits_and_timeouts_of_tcp_are_told_under_node_exporters_names(tree: NodeTree) -> None:
    tree.write(
        tree.procfs / "net",
        {
            "snmp": "Tcp: RtoMin RetransSegs CurrEstab\nTcp: 200 31 4\nUdp: InErrors\nUdp: 2",
            "netstat": "TcpExt: Other TCPTimeouts\nTcpExt: 1 38\nMPTcpExt: A\nMPTcpExt: 1",
        },
    )
    readings = {reading.key.metric: reading for reading in ProtocolSource(tree.procfs).sample()}
    assert {name: reading.value for name, reading in readings.items()} == {
        "node_netstat_Tcp_RetransSegs": 31,
        "node_netstat_Tcp_CurrEstab": 4,
        "node_netstat_Udp_InErrors": 2,
        "node_netstat_TcpExt_TCPTimeouts": 38,
    }
    assert readings["node_netstat_Tcp_CurrEstab"].key.kind is Kind.GAUGE
