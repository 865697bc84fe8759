"""Carries what one receiver is to be told to it, until it has it."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence

from switchgear.collector.export.answer import Answer, Verdict, backoff_s
from switchgear.collector.export.senders import HttpSender
from switchgear.collector.health import NodeHealth
from switchgear.collector.webhooks import forms, store
from switchgear.collector.webhooks.alerts import Alert, alerts_of
from switchgear.collector.webhooks.groups import Groups, Notification
from switchgear.collector.webhooks.metrics import WebhookMetrics
from switchgear.collector.webhooks.settings import Webhook
from switchgear.core.clock import Clock
from switchgear.core.errors import Unavailable
from switchgear.store.database import Database

log = logging.getLogger(__name__)

_TICK_S = 0.25
_LOG_EVERY_S = 60.0
#: Nodes in one message to Alertmanager: at some ten alerts each far below what it takes.
_NODES_MAX = 50
_HEADERS = {"Content-Type": "application/json"}


class Delivery:
    """At least once: what was told is stored behind the receiver's answer. Of what came and went while it was away nothing is told.

    own: whether this collector tells of `nodes/{node}`.
    """

    def __init__(
        self,
        webhook: Webhook,
        database: Database,
        clock: Clock,
        metrics: WebhookMetrics,
        own: Callable[[str], bool],
    ) -> None:
        """Raises Invalid for TLS files that cannot be used."""
        self._webhook, self._database, self._clock, self._metrics, self._own = webhook, database, clock, metrics, own
        self._groups = Groups(webhook.group_wait_s, webhook.repeat_s)
        self._sender = HttpSender(webhook, webhook.url_file or webhook.url, _HEADERS, clock)
        #: What is told and not stored yet.
        self._unsaved: dict[str, Sequence[Alert]] = {}
        self._tries = 0
        #: Of messages that are refused: thousands may be, for one reason.
        self._quiet_until_s = -math.inf
        #: All that is open has been seen; what was told and is not among it is over.
        self.seen_all = asyncio.Event()
        metrics.follow(webhook.label, lambda: self._groups.lag_s(clock.monotonic_s()))

    async def restore(self) -> None:
        """What was told before this collector began; once, before the first `see`. Raises what the store raises."""
        async with self._database.read() as session:
            rows = await store.told(session, self._webhook.label)
        now_s, now_unix_ns = self._clock.monotonic_s(), self._clock.unix_ns()
        for node, alerts, time_unix_ns in rows:
            if self._own(node):
                self._groups.restore(node, alerts, now_s - max(0, now_unix_ns - time_unix_ns) / 1e9)

    def see(self, health: NodeHealth) -> None:
        """The newest of a node."""
        alerts = alerts_of(health, self._webhook.severities)
        self._groups.see(health.node, alerts, self._clock.monotonic_s())

    async def run(self) -> None:
        """Until cancelled."""
        await self.seen_all.wait()
        try:
            while True:
                wait_s = _TICK_S
                try:
                    wait_s = await self._round()
                except Unavailable as error:
                    log.debug("webhook %s: %s", self._webhook.label, error)  # the database tells it itself, once
                except Exception:
                    log.exception("webhook %s; trying again", self._webhook.label)
                await asyncio.sleep(wait_s)
        finally:
            await self._sender.close()

    async def _round(self) -> float:
        """Tells what is due, some at a time; how long to wait then."""
        due = self._groups.due(self._clock.monotonic_s(), self._webhook.connections * self._nodes_max)
        for one in due:
            if not self._is_told(one):
                self._done(one)
        posts = _batches([one for one in due if self._is_told(one)], self._nodes_max)
        answers = await asyncio.gather(*(self._post(post) for post in posts))
        for post, answer in zip(posts, answers, strict=True):
            self._take(post, answer)
        wait_s = self._wait_s(answers) if due else _TICK_S
        await self._save()
        return wait_s

    @property
    def _nodes_max(self) -> int:
        return 1 if self._webhook.format == "webhook" else _NODES_MAX

    def _is_told(self, one: Notification) -> bool:
        return one.is_firing_news or (self._webhook.send_resolved and bool(one.resolved))

    async def _post(self, post: Sequence[Notification]) -> Answer:
        webhook, now = self._webhook, self._clock.unix_ns()
        if webhook.format == "alertmanager":
            body = forms.alertmanager(
                post,
                external_url=webhook.external_url,
                alerts_max=webhook.alerts_max,
                repeat_s=webhook.repeat_s,
                now_unix_ns=now,
            )
        else:
            body = forms.webhook(
                post[0],
                receiver=webhook.label,
                external_url=webhook.external_url,
                alerts_max=webhook.alerts_max,
                send_resolved=webhook.send_resolved,
                now_unix_ns=now,
            )
        return await self._sender.send(body)

    def _take(self, post: Sequence[Notification], answer: Answer) -> None:
        label = self._webhook.label
        if answer.verdict is Verdict.RETRY:
            self._metrics.posts.labels(label, "retried").inc()
            for one in post:
                self._groups.tried(one)
            return
        now_s, refused = self._clock.monotonic_s(), answer.verdict is Verdict.REFUSED
        self._metrics.posts.labels(label, "refused" if refused else "sent").inc()
        if refused and now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + _LOG_EVERY_S
            log.error("webhook %s refused a message: %s %s", label, answer.code, self._shown(answer))
        for one in post:
            alerts = len(one.firing) + (len(one.resolved) if self._webhook.send_resolved else 0)
            dropped = alerts if refused else max(0, alerts - self._webhook.alerts_max)
            self._metrics.dropped.labels(label, "refused" if refused else "truncated").inc(dropped)
            if refused:
                self._groups.refused(one, now_s)
            else:
                self._done(one)

    def _wait_s(self, answers: Sequence[Answer]) -> float:
        """Longer each time that the receiver takes nothing at all."""
        retried = [answer for answer in answers if answer.verdict is Verdict.RETRY]
        if retried and not self._tries:
            code, text = retried[0].code, self._shown(retried[0])
            log.warning("webhook %s does not take messages: %s %s", self._webhook.label, code, text)
        elif answers and not retried and self._tries:
            log.warning("webhook %s takes messages again", self._webhook.label)
        if len(retried) < len(answers):
            self._tries = 0
        if not retried:
            return 0.0
        self._tries += 1
        return max(backoff_s(self._tries, answer.retry_after_s, random.random()) for answer in retried)

    def _shown(self, answer: Answer) -> str:
        """What the receiver said, for the log. A redirect repeats the url, which is a secret when it is in a file."""
        return answer.text if self._webhook.url_file is None or answer.code[0] != "3" else "it is elsewhere"

    def _done(self, one: Notification) -> None:
        self._groups.told(one, self._clock.monotonic_s())
        self._unsaved[one.node] = one.firing

    async def _save(self) -> None:
        if not self._unsaved:
            return
        async with self._database.write() as session:
            await store.save(session, self._webhook.label, list(self._unsaved.items()), self._clock.unix_ns())
        self._unsaved.clear()


def _batches(due: Sequence[Notification], size: int) -> list[Sequence[Notification]]:
    return [due[begin : begin + size] for begin in range(0, len(due), size)]
