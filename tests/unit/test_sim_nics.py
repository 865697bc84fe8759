"""Network interfaces that do not exist, as the agent's own source reads them."""

from __future__ import annotations

from pathlib import Path

from switchgear.sim.faults import parse_script
from switchgear.sim.nics import SimulatedNics
from switchgear.sim.workloads import workload


def nics(folder: Path, script: str) -> SimulatedNics:
    return SimulatedNics(2, folder, workload("training", 0).cycle, parse_script(script))


def state(made: SimulatedNics, now_s: float) -> tuple[str, int, int, int]:
    """operstate, times down, changes and bytes received of the first interface."""
    made.write(now_s)
    interface = made.sysfs / "class/net/simnic0"
    row = (made.procfs / "net/dev").read_text().splitlines()[2]
    downs, changes = (int((interface / file).read_text()) for file in ("carrier_down_count", "carrier_changes"))
    return (interface / "operstate").read_text().strip(), downs, changes, int(row.split()[1])


def test_a_flapping_link_goes_down_as_often_as_asked_and_moves_nothing_meanwhile(tmp_path: Path) -> None:
    made = nics(tmp_path, "at 10s nic 0 link-flap times 2 for 2s")
    states = [state(made, now_s) for now_s in (9.0, 10.5, 11.9, 12.5, 14.5, 30.0)]
    assert [found[:3] for found in states] == [
        ("up", 0, 0),
        ("down", 1, 1),
        ("down", 1, 1),
        ("up", 1, 2),
        ("down", 2, 3),
        ("up", 2, 4),
    ]
    moved = [found[3] for found in states]
    assert moved == sorted(moved)
    assert moved[1] == moved[2] > 0
    assert moved[5] > moved[4] > moved[2]


def test_the_other_interface_does_not_notice(tmp_path: Path) -> None:
    made = nics(tmp_path, "at 0s nic 0 link-flap times 1 for 1h")
    made.write(5.0)
    assert (made.sysfs / "class/net/simnic1/operstate").read_text().strip() == "up"


def test_a_restart_finds_its_files_and_goes_on(tmp_path: Path) -> None:
    state(nics(tmp_path, ""), 100.0)
    again = nics(tmp_path, "at 101s nic 0 link-flap times 1 for 1h")
    assert state(again, 102.0)[:2] == ("down", 1)
