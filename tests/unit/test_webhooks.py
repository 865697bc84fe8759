"""When receivers are told, and their settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from switchgear.collector.config import CollectorConfig
from switchgear.collector.webhooks import forms
from switchgear.collector.webhooks.alerts import Alert
from switchgear.collector.webhooks.groups import Groups, Notification

A, B, C = (Alert({"alertname": "GpuFault", "gpu": gpu}, {}, 0) for gpu in "012")
NODE = "nodes/n"


def told(groups: Groups, now_s: float) -> list[tuple[list[str], list[str], bool]]:
    """What is due, as GPUs firing and resolved; the receiver takes it."""
    due = groups.due(now_s, 10)
    for one in due:
        groups.told(one, now_s)
    return [
        ([a.labels["gpu"] for a in one.firing], [a.labels["gpu"] for a in one.resolved], one.is_firing_news)
        for one in due
    ]


def test_what_comes_within_the_wait_is_told_together_and_the_wait_is_not_begun_anew() -> None:
    groups = Groups(5, 3600)
    groups.see(NODE, [A], 100)
    groups.see(NODE, [A, B], 104)
    assert told(groups, 104.9) == []
    assert told(groups, 105) == [(["0", "1"], [], True)]
    assert told(groups, 106) == []


def test_what_came_and_went_within_the_wait_is_not_told() -> None:
    groups = Groups(5, 3600)
    groups.see(NODE, [A], 100)
    groups.see(NODE, [], 101)
    assert told(groups, 1e6) == []


def test_an_end_is_told_once_and_is_no_news_of_what_fires() -> None:
    groups = Groups(0, 3600)
    groups.see(NODE, [A, B], 0)
    told(groups, 0)
    groups.see(NODE, [B], 10)
    assert told(groups, 10) == [(["1"], ["0"], False)]
    groups.see(NODE, [], 20)
    assert told(groups, 20) == [([], ["1"], False)]
    assert told(groups, 1e6) == []


def test_what_stays_open_is_told_again() -> None:
    groups = Groups(0, 3600)
    groups.see(NODE, [A], 0)
    told(groups, 0)
    groups.see(NODE, [A], 1800)
    assert told(groups, 3599) == []
    assert told(groups, 3600) == [(["0"], [], True)]
    assert told(groups, 7200) == [(["0"], [], True)]


def test_what_is_not_taken_stays_due_and_becomes_how_things_are() -> None:
    groups = Groups(0, 3600)
    groups.see(NODE, [A], 0)
    assert len(groups.due(0, 10)) == 1
    assert groups.lag_s(30) == 30
    groups.see(NODE, [A, B, C], 30)
    groups.see(NODE, [C], 60)
    assert told(groups, 60) == [(["2"], [], True)]
    assert groups.lag_s(61) == 0


def test_news_that_came_while_a_message_was_on_its_way_are_told_next() -> None:
    groups = Groups(0, 3600)
    groups.see(NODE, [A], 0)
    (under_way,) = groups.due(0, 10)
    groups.see(NODE, [B], 1)
    groups.told(under_way, 2)
    assert told(groups, 2) == [(["1"], ["0"], True)]
    groups.see("nodes/m", [A], 3)
    (under_way,) = groups.due(3, 10)
    groups.see("nodes/m", [], 4)
    groups.told(under_way, 5)
    assert told(groups, 5) == [([], ["0"], False)]


def test_what_the_receiver_never_takes_lets_others_go_first() -> None:
    groups = Groups(0, 3600)
    for at_s in range(4):
        groups.see(f"nodes/{at_s}", [A], at_s)
    (poison,) = groups.due(10, 1)
    assert poison.node == "nodes/0"
    groups.tried(poison)
    rest = groups.due(11, 3)
    assert [one.node for one in rest] == ["nodes/1", "nodes/2", "nodes/3"]
    for one in rest:
        groups.told(one, 11)
    assert groups.due(12, 3) == [poison]
    assert groups.lag_s(12) == 12


def test_what_is_refused_is_told_again_later_and_at_once_when_something_changes() -> None:
    groups = Groups(2, 3600)
    groups.see(NODE, [A], 0)
    (refused,) = groups.due(2, 1)
    groups.refused(refused, 2)
    groups.see(NODE, [A], 10)  # the same fault is told again each second
    assert groups.due(301, 1) == []
    assert groups.due(302, 1) == [refused]
    groups.refused(refused, 302)
    groups.see(NODE, [A, B], 310)
    (refused,) = groups.due(312, 1)
    groups.see(NODE, [A], 313)  # while it was on its way
    groups.refused(refused, 314)
    assert told(groups, 316) == [(["0"], [], True)]
    groups.see(NODE, [], 400)
    (refused,) = groups.due(402, 1)
    groups.refused(refused, 402)
    assert told(groups, 702) == [([], ["0"], False)]
    assert told(groups, 1e6) == []


def test_what_is_over_has_not_ended_before_it_began_although_the_clock_was_set_back() -> None:
    alert = Alert({"alertname": "GpuFault", "node": "n"}, {}, 2_000_000_000)
    over = Notification(NODE, (), (alert,), is_firing_news=False)
    (told,) = json.loads(
        forms.alertmanager([over], external_url="", alerts_max=1, repeat_s=60, now_unix_ns=1_000_000_000)
    )
    assert told["endsAt"] == told["startsAt"] == "1970-01-01T00:00:02.000000Z"


def test_after_a_restart_what_was_told_is_known() -> None:
    groups = Groups(5, 3600)
    groups.restore("nodes/same", [A], -1000)
    groups.restore("nodes/mended", [A], -1000)
    groups.see("nodes/same", [A], 0)
    groups.see("nodes/mended", [], 0)
    groups.see("nodes/new", [A], 0)
    assert told(groups, 0) == [([], ["0"], False)]
    assert told(groups, 5) == [(["0"], [], True)]
    assert told(groups, 2599) == []
    assert told(groups, 2600) == [(["0"], [], True)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give url or url_file"),
        ({"url": "http://a/", "url_file": "/x", "name": "a"}, "give url or url_file"),
        ({"url_file": "/x"}, "give a name"),
        ({"url": "ftp://a/"}, "must begin with http"),
        ({"url": "http://ann:secret@a/"}, "no user or password"),
        ({"url": "http://a/", "severity_min": "info"}, "severity_min"),
        ({"url": "http://a/", "format": "alertmanager", "send_resolved": False}, "always told of ends"),
        ({"url": "http://a/", "repeat_intervall_s": 3}, "Extra inputs"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CollectorConfig.model_validate({"webhook": [settings]})


def test_two_receivers_need_two_names() -> None:
    with pytest.raises(ValidationError, match="there twice"):
        CollectorConfig.model_validate({"webhook": [{"url": "http://a/1"}, {"url": "http://a/2"}]})
