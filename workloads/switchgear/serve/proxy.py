"""The router's HTTP side: takes requests, sends each to the replica that the switchboard chose, and again when that one breaks off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from switchgear.core import names, trace
from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, SwitchgearError, Unavailable
from switchgear.core.tls import TlsFiles
from switchgear.serve import completions, http
from switchgear.serve.api_keys import ApiKeys
from switchgear.serve.promise import took_from_header
from switchgear.serve.router_metrics import RouterMetrics
from switchgear.serve.switchboard import Limits, ServiceRoutes, Switchboard, Ticket, unknown_service
from switchgear.serve.upstream import Answer, Upstream

log = logging.getLogger(__name__)

#: Replicas that may break off one request. One that kills them all must not kill for ever.
TRIES_MAX = 3


class Proxy:
    """Answers `/v1/completions` for all services of the table, `/health` and, without keys, `/metrics`.

    keys: of which a client must bring one. Metrics speak of all services, so they are not for whoever may use one of them.
    changed: set when the autoscaler should hear of it at once.
    """

    def __init__(
        self,
        limits: Limits,
        registry: CollectorRegistry,
        clock: Clock,
        tls: TlsFiles | None,
        keys: ApiKeys | None = None,
    ) -> None:
        self.switchboard = Switchboard(limits)
        self.changed = asyncio.Event()
        self._limits = limits
        self._registry = registry
        self._metrics = RouterMetrics(registry)
        self._clock = clock
        self._keys = keys
        self._upstream = Upstream(tls)
        self._assigned: dict[int, asyncio.Future[None]] = {}  # done when the ticket has its replica
        self._wakes: dict[str, asyncio.TimerHandle] = {}

    def app(self) -> Starlette:
        """What it answers."""
        routes = [Route(completions.PATH, self._completions, methods=["POST"]), Route("/health", self._health)]
        if self._keys is None:
            routes.append(Route("/metrics", self._show_metrics))
        return Starlette(routes=routes)

    async def close(self) -> None:
        for wake in self._wakes.values():
            wake.cancel()
        await self._upstream.close()

    def apply(self, table: Mapping[str, ServiceRoutes]) -> None:
        """Takes the newest table of routes; held requests go where they now can.

        Raises Invalid when a name is none of a service; then the table before stays in force.
        """
        services = [names.parse(name, "inferenceServices/*")[0] for name in table]
        self.switchboard.apply(table)
        self._metrics.keep(services)
        self._upstream.listed_changed()
        for ticket in self.switchboard.strangers():
            if not self._assigned[ticket.number].done():
                self._assigned[ticket.number].set_exception(unknown_service(ticket.service))
        for name in table:
            self._dispatch(name)
        self.changed.set()

    def connected(self, yes: bool) -> None:
        """Whether tables come from the autoscaler."""
        self._metrics.connected.set(yes)

    async def _completions(self, request: Request) -> Response:
        service = ""
        try:
            if self._keys is not None:
                self._keys.require(request.headers.get("authorization"))
            body = await http.read_body(request)
            envelope = completions.read_envelope(body)
            service = f"inferenceServices/{envelope.model}"
            parent = request.headers.get(trace.HEADER, "")
            with trace.span("route", parent=parent, kind=SpanKind.SERVER, attributes={"service": envelope.model[:100]}):
                response = await self._serve(request, service, envelope, body)
        except SwitchgearError as error:
            response = http.error_response(error)
        except http.ClientGoneError:
            response = Response(status_code=http.CLIENT_GONE)
        self._metrics.answered(self._label(service), response.status_code)
        return response

    async def _serve(self, request: Request, service: str, asked: completions.Envelope, body: bytes) -> Response:
        start_s = self._clock.monotonic_s()
        ticket = self.switchboard.arrive(
            service, input_tokens=asked.input_tokens, tokens=asked.tokens, size_bytes=len(body), now_s=start_s
        )
        late = failed = answered = False
        try:
            self._hold(ticket)
            answer = await http.unless_gone(request, self._answer(ticket, body))
            if answer.status == 200:
                seconds = self._clock.monotonic_s() - start_s
                self._metrics.seconds.labels(self._label(service)).observe(seconds)
                late = self._late(service, seconds)
                self._book(ticket, answer, seconds)
            failed = answer.status >= 500
            answered = not failed
            return Response(answer.body, answer.status, media_type=answer.content_type)
        except http.ClientGoneError:
            # It may have lost patience, which is no better than a late answer.
            late = self._late(service, self._clock.monotonic_s() - start_s)
            raise
        except Unavailable:
            failed = True
            raise
        finally:
            del self._assigned[ticket.number]
            self._close(ticket, late=late, failed=failed, answered=answered)

    def _book(self, ticket: Ticket, answer: Answer, seconds: float) -> None:
        """A whole answer, as its client saw it."""
        held_s = ticket.sent_s - ticket.arrival_s
        took = took_from_header(answer.took, seconds - held_s).later(held_s, seconds)
        known = self.switchboard.services[ticket.service]
        known.tally.answered(took, known.promise, ticket.input_tokens)

    async def _answer(self, ticket: Ticket, body: bytes) -> Answer:
        tries = 0
        while True:
            await self._assignment(ticket)
            assert ticket.replica is not None  # noqa: S101 - that is what an assignment is
            outcome = await self._upstream.send(ticket.replica, body)
            if isinstance(outcome, Answer):
                return outcome
            tries += outcome.worked
            log.info("%s: %s", ticket.replica.name, outcome.why)
            if tries == TRIES_MAX:
                raise Unavailable(
                    f"{TRIES_MAX} replicas broke off this request, the last with: {outcome.why}; their logs have the cause",
                    Reason.SERVER_UNREACHABLE,
                )
            self._metrics.retries.labels(self._label(ticket.service)).inc()
            self.switchboard.send_back(ticket, self._clock.monotonic_s())
            self.switchboard.require(ticket.service)
            self._hold(ticket)

    def _hold(self, ticket: Ticket) -> None:
        self._assigned[ticket.number] = asyncio.get_running_loop().create_future()
        self._dispatch(ticket.service)
        if ticket.replica is None and len(self.switchboard.services[ticket.service].held) == 1:
            self.changed.set()

    async def _assignment(self, ticket: Ticket) -> None:
        assigned = self._assigned[ticket.number]
        if not assigned.done():
            try:
                async with asyncio.timeout(ticket.deadline_s - self._clock.monotonic_s()):
                    await assigned
            except TimeoutError:
                raise Unavailable(
                    f"no replica took this request within {self._limits.hold_s:g} s; `switchgear services` says what hinders them",
                    Reason.SERVER_UNREACHABLE,
                ) from None
        assigned.result()

    def _close(self, ticket: Ticket, *, late: bool, failed: bool, answered: bool) -> None:
        replica = ticket.replica
        self.switchboard.close(ticket, late=late, failed=failed, answered=answered)
        if replica is not None and replica.draining and not replica.in_flight:
            self.changed.set()  # what the autoscaler waits for
        self._dispatch(ticket.service)

    def _dispatch(self, service: str) -> None:
        now_s = self._clock.monotonic_s()
        for ticket in self.switchboard.dispatch(service, now_s):
            if not self._assigned[ticket.number].done():  # cancelled: its task is about to close the ticket
                self._assigned[ticket.number].set_result(None)
        if wake := self._wakes.pop(service, None):
            wake.cancel()
        wake_s = self.switchboard.wake_s(service, now_s)
        if wake_s is not None:
            loop = asyncio.get_running_loop()
            self._wakes[service] = loop.call_later(wake_s - now_s, self._dispatch, service)
        known = self.switchboard.services.get(service)
        if known is not None and known.listed:
            self._metrics.held.labels(self._label(service)).set(len(known.held))

    def _late(self, service: str, seconds: float) -> bool:
        """Books the time that a client waited; True when it was longer than the target."""
        late = seconds > self.switchboard.services[service].latency_target_s > 0
        self._metrics.late.labels(self._label(service)).inc(late)
        return late

    def _label(self, service: str) -> str:
        """Empty for what the table does not have: clients may write any name."""
        known = self.switchboard.services.get(service)
        return service.rpartition("/")[2] if known is not None and known.listed else ""

    async def _health(self, _: Request) -> Response:
        return PlainTextResponse("ok")

    async def _show_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
