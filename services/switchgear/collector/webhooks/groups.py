"""When a receiver is told of a node, and what. Pure: times are passed in, in seconds of one monotonic clock.

A group is the alerts of one node. What counts is the difference between what is open and what was told: so nothing is queued, a receiver
that was away gets how things are now, and a collector that starts anew needs to know only what was told.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from switchgear.collector.webhooks.alerts import Alert

#: As Alertmanager's group_interval: a token that has expired, or a proxy that is set up anew, may be mended by then.
REFUSED_S = 300.0


@dataclass(frozen=True, slots=True)
class Notification:
    """Of one node. resolved: what was told and is no longer open. is_firing_news: something opened, or all is told again after a while."""

    node: str
    firing: tuple[Alert, ...]
    resolved: tuple[Alert, ...]
    is_firing_news: bool


@dataclass(slots=True)
class _Group:
    """due_s: when its next message is due; None while there is nothing to tell. turn: the number of the newest message that was not taken; 0 when
    the one before was."""

    open: tuple[Alert, ...] = ()
    told: tuple[Alert, ...] = ()
    told_s: float = 0.0
    due_s: float | None = None
    turn: int = 0


class Groups:
    """Of one receiver. See `settings.Webhook` for the arguments. Bounded by the nodes on which something is open or was told."""

    def __init__(self, group_wait_s: float, repeat_s: float) -> None:
        self._group_wait_s, self._repeat_s = group_wait_s, repeat_s
        self._groups: dict[str, _Group] = {}
        self._turns = 0

    def restore(self, node: str, told: Sequence[Alert], told_s: float) -> None:
        """What an earlier life had told."""
        group = self._groups[node] = _Group(told=tuple(told), told_s=told_s)
        self._schedule(node, group, told_s)

    def see(self, node: str, alerts: Sequence[Alert], now_s: float) -> None:
        """What is open on the node now."""
        group = self._groups.setdefault(node, _Group())
        before, group.open = _fingerprints(group.open), tuple(alerts)
        if group.due_s is None or before != _fingerprints(alerts):
            self._schedule(node, group, now_s)

    def due(self, now_s: float, count_max: int) -> list[Notification]:
        """What is to be told now, what was tried least of late and has waited longest first. It stays due until `told`."""
        due = (
            (group.turn, group.due_s, node)
            for node, group in self._groups.items()
            if group.due_s is not None and group.due_s <= now_s
        )
        return [self._notification(node) for *_, node in heapq.nsmallest(count_max, due)]

    def tried(self, notification: Notification) -> None:
        """The receiver has not taken it: others go first, so that one which it never takes holds none of them up."""
        if (group := self._groups.get(notification.node)) is not None:
            self._turns += 1
            group.turn = self._turns

    def refused(self, notification: Notification, now_s: float) -> None:
        """The receiver does not take it as it is: it is due again after REFUSED_S, and when something changes."""
        if (group := self._groups.get(notification.node)) is not None:
            has_changed = _fingerprints(group.open) != _fingerprints(notification.firing)
            group.due_s, group.turn = now_s + (self._group_wait_s if has_changed else REFUSED_S), 0

    def lag_s(self, now_s: float) -> float:
        """For how long what is due has waited."""
        due = [group.due_s for group in self._groups.values() if group.due_s is not None]
        return max(0.0, now_s - min(due, default=now_s))

    def told(self, notification: Notification, now_s: float) -> None:
        """The receiver has it."""
        # It is gone when what was on its way has ended meanwhile.
        group = self._groups.setdefault(notification.node, _Group())
        group.told, group.told_s, group.due_s, group.turn = notification.firing, now_s, None, 0
        self._schedule(notification.node, group, now_s)

    def _notification(self, node: str) -> Notification:
        group = self._groups[node]
        open_, told = _fingerprints(group.open), _fingerprints(group.told)
        resolved = tuple(alert for alert in group.told if alert.fingerprint not in open_)
        return Notification(
            node, group.open, resolved, is_firing_news=bool(open_) and (open_ == told or not open_ <= told)
        )

    def _schedule(self, node: str, group: _Group, now_s: float) -> None:
        if _fingerprints(group.open) != _fingerprints(group.told):
            if group.due_s is None or group.due_s > now_s + self._group_wait_s:
                group.due_s = now_s + self._group_wait_s
        elif group.open:
            group.due_s = group.told_s + self._repeat_s
        else:
            del self._groups[node]


def _fingerprints(alerts: Sequence[Alert]) -> set[str]:
    return {alert.fingerprint for alert in alerts}
