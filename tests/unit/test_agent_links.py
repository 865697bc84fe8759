"""What the states of a port tell, with a clock by hand."""

from __future__ import annotations

from pathlib import Path

from switchgear.agent.sources import counter_gate, filesystems, link_speed, links
from switchgear.agent.sources.links import BOOT_S, DOWN_S, DOWN_WHILE_FLAPPING_S, FLAPS, LOST_S, STABLE_S, Link, Links
from switchgear.core.catalog.kinds import KINDS, NODE_KINDS, kind

ADDRESS = "0000:9a:00.1"


class Wire:
    """One port, `eth2`, looked at once a second."""

    def __init__(self, state: str = "", *, downs: int | None = None, boot: str = "boot-1") -> None:
        self.links = Links(boot, state)
        self.now_s = 1000.0
        self.downs = downs

    def look(self, *seen: Link, gone: bool = False, seconds: float = 1) -> list[str]:
        """The kinds that are told while it stays so for these seconds."""
        kinds = list[str]()
        for _ in range(int(seconds)):
            self.now_s += 1
            kinds += [finding.kind for finding in self.links.look(seen, {"eth2"} if gone else set(), self.now_s)]
        return kinds

    def up(self, seconds: float = 1) -> list[str]:
        return self.look(Link("eth2", True, downs=self.downs, address=ADDRESS, state="up"), seconds=seconds)

    def down(self, seconds: float = 1, *, off: bool = False) -> list[str]:
        return self.look(Link("eth2", False, off, self.downs, ADDRESS, "down"), seconds=seconds)

    def bounce(self) -> list[str]:
        return [*self.down(1), *self.up(1)]


def test_a_port_that_goes_down_is_told_once_after_a_moment_and_cleared_when_it_is_up() -> None:
    wire = Wire()
    assert wire.up(10) == []
    assert wire.down(DOWN_S) == []
    assert wire.down(100) == [links.DOWN]
    assert wire.up(10) == [links.UP]


def test_a_driver_that_stops_counting_hides_no_flap() -> None:
    wire = Wire(downs=0)
    wire.up()
    for wire.downs in (5, 10):  # between two looks
        wire.up(STABLE_S + 1)
    wire.downs = None
    wire.up(STABLE_S + 1)
    assert links.FLAPPING in [kind for _ in range(FLAPS) for kind in wire.bounce()]


def test_the_event_names_the_port_its_device_and_the_state() -> None:
    wire = Wire()
    wire.up()
    wire.down(2)
    finding = next(wire.links.look([Link("eth2", False, address=ADDRESS, state="lowerlayerdown")], (), wire.now_s + 1))
    assert (finding.kind, finding.pci) == (links.DOWN, "0000:9a:00")
    assert finding.text == "eth2 is down (lowerlayerdown)"
    assert finding.detail == {"link": "eth2", "state": "lowerlayerdown"}


def test_a_port_that_never_was_up_raises_nothing() -> None:
    assert Wire().down(1000) == []


def test_a_port_that_an_administrator_took_down_raises_nothing_and_its_way_up_neither() -> None:
    wire = Wire(downs=0)
    wire.up()
    wire.downs = 1
    assert wire.down(1000, off=True) == []
    assert wire.up(1000) == []


def test_what_cannot_be_read_says_nothing_about_the_port() -> None:
    wire = Wire()
    wire.up()
    assert wire.look(Link("eth2", None, address=ADDRESS), seconds=1000) == []
    assert wire.up() == []


def test_a_down_between_two_looks_is_told_by_the_drivers_count() -> None:
    wire = Wire(downs=7)
    wire.up()
    wire.downs = 8
    assert wire.up(5) == [links.BOUNCED]


def test_a_count_that_runs_ahead_of_the_state_is_one_down() -> None:
    wire = Wire(downs=0)
    wire.up()
    wire.downs = 1
    told = [*wire.up(), *wire.down(), *wire.up()]
    assert links.FLAPPING not in told
    wire.downs = 2
    assert links.FLAPPING not in wire.bounce()


def test_a_count_that_starts_anew_with_the_driver_is_no_down() -> None:
    wire = Wire(downs=40)
    wire.up()
    wire.downs = 0
    assert wire.up(10) == []


def test_a_port_that_goes_up_and_down_is_flapping_until_it_has_been_quiet() -> None:
    wire = Wire()
    wire.up()
    told = [kind for _ in range(FLAPS) for kind in wire.bounce()]
    assert told.count(links.FLAPPING) == 1
    assert [kind for _ in range(50) for kind in wire.bounce()] == []
    assert wire.up(STABLE_S - 2) == []
    assert wire.up(3) == [links.STABLE]
    assert wire.bounce() == [links.BOUNCED]


def test_a_flapping_port_that_stays_down_is_told_as_down_as_well() -> None:
    wire = Wire()
    wire.up()
    for _ in range(FLAPS):
        wire.bounce()
    assert wire.down(DOWN_WHILE_FLAPPING_S) == []
    assert wire.down(2) == [links.DOWN]
    assert wire.up() == [links.UP]


def test_flaps_that_are_far_apart_are_not_flapping() -> None:
    wire = Wire()
    wire.up()
    assert [kind for _ in range(10) for kind in [*wire.bounce(), *wire.up(400)]] == [links.BOUNCED] * 10


def test_a_port_whose_device_left_the_bus_is_lost_and_found_again() -> None:
    wire = Wire()
    wire.up()
    assert wire.look(gone=True, seconds=LOST_S) == []
    assert wire.look(gone=True, seconds=100) == [links.LOST]
    assert wire.up() == [links.FOUND]


def test_reloading_a_driver_is_no_loss() -> None:
    wire = Wire()
    wire.up()
    assert wire.look(gone=True, seconds=LOST_S / 2) == []
    assert wire.up(10) == []


def test_a_port_that_was_moved_to_a_container_is_not_lost_and_clears_what_was_told() -> None:
    wire = Wire()
    wire.up()
    assert wire.look(seconds=LOST_S * 2) == []
    assert wire.up() == []
    assert wire.down(10) == [links.DOWN]
    assert wire.look(seconds=LOST_S * 2) == [links.UNWATCHED]


def test_a_restart_tells_nothing_twice_and_clears_what_is_mended() -> None:
    before = Wire()
    before.up()
    before.down(10)
    state = before.links.state()
    assert Wire(state).down(100) == []
    assert Wire(state).up(10) == [links.UP]
    assert Wire(state).look(gone=True, seconds=LOST_S + 2) == [links.LOST]


def test_a_restart_keeps_a_port_flapping_until_it_is_quiet() -> None:
    before = Wire()
    before.up()
    for _ in range(FLAPS):
        before.bounce()
    after = Wire(before.links.state())
    assert after.up(STABLE_S) == []
    assert after.up(2) == [links.STABLE]


def test_a_port_that_was_there_before_the_restart_is_missed_after_it() -> None:
    before = Wire()
    before.up()
    assert Wire(before.links.state()).look(gone=True, seconds=LOST_S + 2) == [links.LOST]


def test_after_a_boot_ports_have_time_to_come_up_and_are_missed_when_they_do_not() -> None:
    before = Wire()
    before.up()
    state = before.links.state()
    booted = Wire(state, boot="boot-2")
    assert [*booted.down(BOOT_S / 2), *booted.up(10)] == []
    assert booted.down(3) == [links.DOWN]
    assert Wire(state, boot="boot-2").down(BOOT_S + 1) == [links.DOWN]
    missing = Wire(state, boot="boot-2")
    assert missing.look(gone=True, seconds=BOOT_S) == []
    assert missing.look(gone=True, seconds=1) == [links.LOST]


def test_a_boot_that_mends_a_port_clears_it() -> None:
    before = Wire()
    before.up()
    before.down(10)
    after = Wire(before.links.state(), boot="boot-2")
    assert [*after.down(60), *after.up()] == [links.UP]


def test_a_damaged_state_counts_as_none() -> None:
    for state in ("{", "[]", "7", '["boot-1",7]', '["boot-1",{"eth2":7}]', '["boot-1",{"eth2":["","",0,1]}]'):
        assert Wire(state).down(100) == []


def test_ports_beyond_the_bound_are_left_out() -> None:
    crowd = [Link(f"eth{index}", True) for index in range(links.PORTS_MAX * 2)]
    watched = Links("boot-1")
    assert list(watched.look(crowd, (), 0)) == []
    assert len(watched.missing([])) == links.PORTS_MAX


def test_each_finding_belongs_to_the_state_at_its_moment() -> None:
    watched = Links("boot-1")
    pair = [Link("a", True), Link("b", True)]
    list(watched.look(pair, (), 0))
    down = [Link("a", False), Link("b", False)]
    list(watched.look(down, (), 1))
    states = [watched.state().count(links.DOWN) for _ in watched.look(down, (), 10)]
    assert states == [1, 2]


def test_every_kind_that_the_sources_tell_is_in_the_catalog_and_nothing_else() -> None:
    told = {links.DOWN, links.UP, links.BOUNCED, links.FLAPPING, links.STABLE, links.LOST, links.FOUND, links.UNWATCHED}
    told |= {link_speed.SLOW, link_speed.FULL_SPEED, counter_gate.RESTRICTED, filesystems.HANGS, filesystems.ANSWERS}
    assert set(NODE_KINDS) == told
    assert not told & set(KINDS)
    assert kind(links.LOST) is not None


def test_the_documentation_has_every_kind_with_its_severity_and_meaning() -> None:
    text = (Path(__file__).parents[2] / "docs/host-telemetry.md").read_text()
    rows = [f"| `{name}` | {found.severity} | {found.meaning} |" for name in NODE_KINDS if (found := kind(name))]
    assert [row for row in rows if row not in text] == []
