"""The thread that runs the model: one iteration after the other over the batch, answers handed to the event loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, SwitchgearError, Unavailable
from switchgear.serve.batching import Batch, Finished, FinishReason
from switchgear.serve.model import Model, Sequence
from switchgear.serve.replica_metrics import ReplicaMetrics

log = logging.getLogger(__name__)

#: Iterations in a row that may fail. A device that is lost fails them all, a strange request one.
FAILURES_MAX = 3
#: One that takes longer hangs, as far as anybody can tell. The first of a large model may compile it.
ITERATION_S_MAX = 60.0
# A pause of the throttle that came late is made good for within this time, and forgotten beyond it.
_CATCH_UP_S = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """tokens_total, prompt_tokens_total, steps_total, busy_seconds_total: tokens generated, tokens of prompts read, iterations, and
    seconds in which at least one request ran, since the start. remaining_tokens: that may still be generated, at most.

    hangs: an iteration has taken longer than `ITERATION_S_MAX`.
    """

    running: int
    waiting: int
    tokens_total: int
    busy_seconds_total: float
    prompt_tokens_total: int = 0
    steps_total: int = 0
    remaining_tokens: int = 0
    hangs: bool = False


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole answer, and when it began to be worked on and had its first token, in seconds after it came here."""

    finished: Finished
    wait_s: float
    first_s: float
    e2e_s: float


@dataclass(slots=True, eq=False)
class _Request:
    sequence: Sequence
    answered: asyncio.Future[Generated]
    arrival_s: float
    begin_s: float | None = None
    first_s: float | None = None
    token_s: float | None = None


class Engine:
    """Runs the batch on a thread of its own, between `start` and `stop`; all other methods belong to the event loop.

    tokens_per_second_max: sleeps so that no more are generated in all; 0 does not. A small model then behaves like a large one
    on a slow device, and leaves the processor alone meanwhile.
    on_broken: called on the event loop when the model has failed `FAILURES_MAX` times in a row, or the thread has died; nothing is
    answered from then on.
    """

    def __init__(
        self,
        model: Model,
        batch: Batch,
        metrics: ReplicaMetrics,
        clock: Clock,
        *,
        tokens_per_second_max: float,
        on_broken: Callable[[], None],
    ) -> None:
        self._model = model
        self._batch = batch
        self._metrics = metrics
        self._clock = clock
        self._tokens_per_second_max = tokens_per_second_max
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()  # guards everything below, and the batch
        self._requests: dict[int, _Request] = {}
        self._tokens_total = 0
        self._prompt_tokens_total = 0
        self._steps_total = 0
        self._busy_seconds_total = 0.0
        self._failures = 0
        self._dead = False
        self._iteration_start_s: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the current iteration; requests that are still here are not answered."""
        self._stopped.set()
        with self._changed:
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def load(self) -> Load:
        with self._changed:
            start_s = self._iteration_start_s
            hangs = start_s is not None and self._clock.monotonic_s() - start_s > ITERATION_S_MAX
            return Load(
                self._batch.running,
                self._batch.waiting,
                self._tokens_total,
                self._busy_seconds_total,
                self._prompt_tokens_total,
                self._steps_total,
                self._batch.remaining_tokens,
                hangs,
            )

    async def generate(self, prompt: tuple[int, ...], *, max_tokens: int, temperature: float, seed: int) -> Generated:
        """The whole answer; cancelled when nobody waits for it any more.

        Raises Unavailable when too many wait or the thread has died, SwitchgearError (INTERNAL) when the model fails.
        """
        sequence = Sequence(next(self._numbers), prompt, max_tokens, temperature, seed)
        request = _Request(sequence, self._loop.create_future(), self._clock.monotonic_s())
        with self._changed:
            if self._dead:
                raise Unavailable("the model does not run any more; ask another replica", Reason.SERVER_UNREACHABLE)
            self._batch.add(sequence)
            self._requests[sequence.number] = request
            self._show()
            self._changed.notify()
        try:
            return await request.answered
        finally:
            with self._changed:
                self._requests.pop(sequence.number, None)
                if self._batch.cancel(sequence.number):
                    self._metrics.success[FinishReason.ABORT].inc()
                    self._show()

    def _run(self) -> None:
        try:
            self._iterate_until_stopped()
        except BaseException as error:  # whatever it is: without this thread nobody would ever be answered
            log.exception("the engine's thread died")
            with self._changed:
                self._dead = True
                abandoned = list(self._requests.values())
            message = f"the engine died: {type(error).__name__}; the replica's log has the cause"
            self._loop.call_soon_threadsafe(_refuse, abandoned, SwitchgearError(message, Reason.INTERNAL))
            self._loop.call_soon_threadsafe(self._on_broken)

    def _iterate_until_stopped(self) -> None:
        due_s = self._clock.monotonic_s()
        while True:
            with self._changed:
                while not (self._stopped.is_set() or (sequences := self._batch.next())):
                    self._changed.wait()
                    due_s = self._clock.monotonic_s()  # idleness earns no haste
                if self._stopped.is_set():
                    return
                self._show()
                start_s = self._iteration_start_s = self._clock.monotonic_s()
                self._begin(sequences, start_s)
            try:
                self._iterate(sequences)
            except Exception as error:
                log.exception("the model failed on a batch of %d", len(sequences))
                self._fail(f"the model failed: {type(error).__name__}; the replica's log has the cause")
            if self._tokens_per_second_max:
                due_s = max(due_s, start_s - _CATCH_UP_S) + len(sequences) / self._tokens_per_second_max
                self._stopped.wait(max(0.0, due_s - self._clock.monotonic_s()))
            with self._changed:
                self._iteration_start_s = None
                self._busy_seconds_total += self._clock.monotonic_s() - start_s

    def _begin(self, sequences: list[Sequence], now_s: float) -> None:
        for sequence in sequences:
            if (request := self._requests.get(sequence.number)) and request.begin_s is None:
                request.begin_s = now_s

    def _iterate(self, sequences: list[Sequence]) -> None:
        tokens = self._model.next_tokens(sequences)
        now_s = self._clock.monotonic_s()
        with self._changed:
            finished = self._batch.advance(sequences, tokens, self._model.end_token)
            self._failures = 0
            for sequence in sequences:
                if request := self._requests.get(sequence.number):
                    self._observe(request, now_s)
            self._tokens_total += len(sequences)
            self._steps_total += 1
            self._metrics.generation_tokens.inc(len(sequences))
            ended = [
                (request, _generated(request, end, now_s))
                for end in finished
                if (request := self._requests.get(end.sequence.number))
            ]
            for _, generated in ended:
                self._metrics.success[generated.finished.reason].inc()
                self._metrics.end_to_end.observe(generated.e2e_s)
            self._show()
        if ended:
            self._loop.call_soon_threadsafe(_answer, ended)

    def _observe(self, request: _Request, now_s: float) -> None:
        if request.token_s is None:
            request.first_s = now_s
            self._prompt_tokens_total += len(request.sequence.prompt)
            self._metrics.prompt_tokens.inc(len(request.sequence.prompt))
            self._metrics.first_token.observe(now_s - request.arrival_s)
        else:
            self._metrics.inter_token.observe(now_s - request.token_s)
        request.token_s = now_s

    def _fail(self, message: str) -> None:
        with self._changed:
            self._failures += 1
            abandoned = [self._requests[s.number] for s in self._batch.abandon() if s.number in self._requests]
            self._show()
            broken = self._failures == FAILURES_MAX
        self._loop.call_soon_threadsafe(_refuse, abandoned, SwitchgearError(message, Reason.INTERNAL))
        if broken:
            self._loop.call_soon_threadsafe(self._on_broken)

    def _show(self) -> None:
        self._metrics.running.set(self._batch.running)
        self._metrics.waiting.set(self._batch.waiting)


def _generated(request: _Request, finished: Finished, now_s: float) -> Generated:
    begin_s, first_s = (now_s if at_s is None else at_s for at_s in (request.begin_s, request.first_s))
    return Generated(finished, begin_s - request.arrival_s, first_s - request.arrival_s, now_s - request.arrival_s)


def _answer(ended: list[tuple[_Request, Generated]]) -> None:
    for request, generated in ended:
        if not request.answered.done():
            request.answered.set_result(generated)


def _refuse(requests: list[_Request], error: SwitchgearError) -> None:
    for request in requests:
        if not request.answered.done():
            request.answered.set_exception(error)
