"""An inference server for one model, with OpenAI's completions API and vLLM's metrics: `run` is all that a script needs.

It serves alone when started by hand. As a replica of an inference service it registers at the autoscaler, whose router then
sends it requests.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from opentelemetry.trace import SpanKind
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from switchgear.core import metrics, names, trace
from switchgear.core.clock import Clock, SystemClock
from switchgear.core.errors import FailedPrecondition, NotFound, Reason, SwitchgearError, Unavailable
from switchgear.core.process import until_signal
from switchgear.core.tls import TlsFiles
from switchgear.serve import completions, http
from switchgear.serve.batching import Batch
from switchgear.serve.engine import Engine
from switchgear.serve.model import Model
from switchgear.serve.promise import TOOK_HEADER, Took
from switchgear.serve.registration import Registration
from switchgear.serve.replica_metrics import ReplicaMetrics
from switchgear.v1alpha import serving_service_pb2 as pb

log = logging.getLogger(__name__)

#: In a request: the replica that is meant. Another process may have got the address of one that ended.
REPLICA_HEADER = "x-switchgear-replica"
#: Connections beyond the requests that may be here: scrapes, health checks, and clients between two requests.
_CONNECTIONS_BESIDE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """model: the name that requests must ask for. address: HOST:PORT to listen on, port 0 takes a free one.

    running_max, waiting_max: requests of one iteration of the model, and those that may wait for their turn. max_tokens_max: a request
    may ask for no more. tokens_per_second_max: no more are generated in all; 0: as many as the model makes.
    replica, autoscaler: `inferenceServices/*/replicas/*` and HOST:PORT where it registers; empty: it serves alone.
    tls: the node's certificate; then only clients with a certificate of the same CA are served.
    grace_s: how long requests in flight may take after SIGTERM.
    """

    model: str
    address: str = "127.0.0.1:0"
    running_max: int = 4
    waiting_max: int = 256
    max_tokens_max: int = 1024
    tokens_per_second_max: float = 0.0
    replica: str = ""
    autoscaler: str = ""
    tls: TlsFiles | None = None
    grace_s: float = 30.0


def settings(
    environment: Mapping[str, str],
    *,
    model: str = "model",
    running_max: int = 4,
    waiting_max: int = 256,
    tokens_per_second_max: float = 0.0,
    address: str = "127.0.0.1:0",
) -> ReplicaSettings:
    """What a script is told by its command line, and by the environment when it runs as a replica.

    model, address: used when it serves alone; a replica has its service's name and its node's address.
    Raises Invalid when SWITCHGEAR_REPLICA is no replica's name.
    """
    replica = environment.get("SWITCHGEAR_REPLICA", "")
    if replica:
        model, _ = names.parse(replica, "inferenceServices/*/replicas/*")
        address = f"{environment.get('SWITCHGEAR_NODE_ADDRESS') or '127.0.0.1'}:0"
    return ReplicaSettings(
        model=model,
        address=address,
        running_max=running_max,
        waiting_max=waiting_max,
        tokens_per_second_max=tokens_per_second_max,
        replica=replica,
        autoscaler=environment.get("SWITCHGEAR_AUTOSCALER", ""),
        tls=TlsFiles.from_environment(environment),
    )


def run(load_model: Callable[[], Model], settings: ReplicaSettings) -> None:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight and returns.

    load_model: called once, on another thread; meanwhile `/health` says that the replica is not ready.
    Raises what `load_model` raises, SystemExit(1) when the model is broken, FailedPrecondition when it cannot listen.
    """
    trace.configure("replica")
    asyncio.run(until_signal(_run(load_model, settings)))


async def _run(load_model: Callable[[], Model], settings: ReplicaSettings) -> None:
    async with serving(load_model, settings) as replica:
        print(f"serving {settings.model} at {replica.address}", flush=True)  # noqa: T201 - for who started it by hand
        await replica.ended()


@asynccontextmanager
async def serving(load_model: Callable[[], Model], settings: ReplicaSettings) -> AsyncIterator[Replica]:
    """Serves until the block ends; as `run`, inside a running event loop. The model may still be loading."""
    replica = Replica(settings, SystemClock())
    try:
        async with http.listening(
            replica.app(),
            settings.address,
            tls=settings.tls,
            client_certificates=True,
            # An answer needs a connection; a request beyond the batch's bound is refused by the batch, with a reason.
            connections_max=settings.running_max + settings.waiting_max + _CONNECTIONS_BESIDE,
            grace_s=settings.grace_s,
        ) as address:
            replica.start(address, load_model)
            yield replica
    finally:
        # After the last answer: until then the engine is needed, and the autoscaler wants to see the load.
        await replica.stop()


class Replica:
    """One model behind HTTP. address: where it listens, once it does."""

    def __init__(self, settings: ReplicaSettings, clock: Clock) -> None:
        self.address = ""
        self._settings = settings
        self._clock = clock
        self._registry = metrics.new_registry("replica")
        self._metrics = ReplicaMetrics(self._registry, settings.model)
        self._model: Model | None = None
        self._engine: Engine | None = None
        self._broken = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def app(self) -> Starlette:
        """What it answers."""
        return Starlette(
            routes=[
                Route(completions.PATH, self._completions, methods=["POST"]),
                Route("/health", self._health),
                Route("/metrics", self._show_metrics),
            ]
        )

    def start(self, address: str, load_model: Callable[[], Model]) -> None:
        """Loads the model and registers. address: where `app` is served."""
        self.address = address
        self._work = asyncio.create_task(self._serve(load_model))

    async def ended(self) -> None:
        """Returns when the autoscaler has no use for this replica; raises what ended it otherwise."""
        if self._work is not None:
            await asyncio.wait({self._work})  # not awaited itself: who is cancelled here lets it finish its requests
            self._work.result()

    async def stop(self) -> None:
        """Ends registration and engine."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop()

    async def _serve(self, load_model: Callable[[], Model]) -> None:
        registration = Registration(
            self._settings.autoscaler,
            self._settings.tls,
            replica=self._settings.replica,
            address=self.address,
            load=self._load,
            clock=self._clock,
        )
        tasks: set[asyncio.Task[object]] = {asyncio.create_task(self._broken.wait())}
        if self._settings.replica and self._settings.autoscaler:
            tasks.add(asyncio.create_task(registration.run()))
        try:
            self._model = await asyncio.to_thread(load_model)
            batch = Batch(running_max=self._settings.running_max, waiting_max=self._settings.waiting_max)
            self._engine = Engine(
                self._model,
                batch,
                self._metrics,
                self._clock,
                tokens_per_second_max=self._settings.tokens_per_second_max,
                on_broken=self._broken.set,
            )
            self._engine.start()
            registration.changed.set()
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if self._broken.is_set():
                raise SwitchgearError("the model failed again and again; the log has the cause", Reason.INTERNAL)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _load(self) -> pb.ReplicaLoad:
        if self._engine is None:
            return pb.ReplicaLoad(ready=False)
        load = self._engine.load()
        return pb.ReplicaLoad(
            ready=not self._broken.is_set() and not load.hangs,
            running_requests=load.running,
            waiting_requests=load.waiting,
            tokens_total=load.tokens_total,
            busy_seconds_total=load.busy_seconds_total,
            prompt_tokens_total=load.prompt_tokens_total,
            steps_total=load.steps_total,
            remaining_tokens=load.remaining_tokens,
            sequences_max=self._settings.running_max,
        )

    async def _completions(self, request: Request) -> Response:
        try:
            parent = request.headers.get(trace.HEADER, "")
            with trace.span("completions", parent=parent, kind=SpanKind.SERVER):
                return await self._complete(request)
        except SwitchgearError as error:
            return http.error_response(error)
        except http.ClientGoneError:
            return Response(status_code=http.CLIENT_GONE)

    async def _complete(self, request: Request) -> Response:
        self._check_meant(request)
        body = await http.read_body(request)
        asked = completions.parse(body, max_tokens_max=self._settings.max_tokens_max)
        if asked.model != self._settings.model:
            raise NotFound(
                asked.model, f"model {asked.model[:100]!r} is not served here; ask for {self._settings.model!r}"
            )
        if self._engine is None or self._model is None:
            raise Unavailable("the model is being loaded; try again in a moment", Reason.SERVER_UNREACHABLE)
        prompt = tuple(self._model.encode(asked.prompt))
        generating = self._engine.generate(
            prompt,
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=random.getrandbits(63) if asked.seed is None else asked.seed,
        )
        answered = await http.unless_gone(request, generating)
        finished = answered.finished
        generated = finished.sequence.generated
        took = Took(answered.e2e_s, answered.wait_s, answered.first_s, len(prompt), len(generated))
        return JSONResponse(
            completions.answer(
                identity=uuid.uuid4().hex,
                model=asked.model,
                created_unix_s=self._clock.unix_ns() // 1_000_000_000,
                text=self._model.decode(generated),
                finish_reason=finished.reason,
                prompt_tokens=len(prompt),
                tokens=len(generated),
            ),
            headers={TOOK_HEADER: took.header()},
        )

    def _check_meant(self, request: Request) -> None:
        meant = request.headers.get(REPLICA_HEADER, self._settings.replica)
        if meant != self._settings.replica:
            raise FailedPrecondition(
                f"this is {self._settings.replica or 'no replica'}, not {meant[:200]}; read the routing table again",
                Reason.NOT_FOUND,
            )

    async def _health(self, _: Request) -> Response:
        ready = self._load().ready
        return PlainTextResponse("ok" if ready else "not ready", 200 if ready else 503)

    async def _show_metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
