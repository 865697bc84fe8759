from __future__ import annotations

from switchgear.core.reconnect import HOPS_MAX, Homing


def test_an_agent_goes_where_it_is_sent_and_home_when_nobody_is_there() -> None:
    homing = Homing("home:1")
    homing.lost()
    assert homing.address == "home:1"
    homing.redirected("other:1")
    assert homing.address == "other:1"
    homing.lost()
    assert homing.address == "home:1"
    homing.lost()  # home is away as well: the other may be back first
    assert homing.address == "other:1"


def test_collectors_that_send_an_agent_to_each_other_do_not_keep_it_on_the_road() -> None:
    homing = Homing("home:1")
    for hop in range(HOPS_MAX):
        homing.redirected(f"c{hop}:1")
        assert homing.address == f"c{hop}:1"
    homing.redirected("again:1")
    assert homing.address == "home:1"
