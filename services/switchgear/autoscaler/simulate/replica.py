"""A simulated replica: continuous batching with chunked prefill, as a fluid between two events.

An iteration takes `step_s + step_s_per_sequence * running`, and while a prompt is read the time of one chunk of it on top; in each
iteration every running sequence gains one token and the oldest prompt one chunk. So between two events (a request comes, a prompt is
read, a sequence ends) all rates are constant, and time goes from event to event. This linear form is what measurements of serving engines
show below the limits of memory (Sarathi-Serve, OSDI '24; Vidur, MLSys '24). The cache is reserved for prompt and answer when the
prompt begins, in order of arrival; an engine that preempts instead would start some earlier and some twice.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

#: Tokens left by rounding.
_NOTHING = 1e-6
#: What a model without tokens does in one step.
SERVICE_UNIT_S = 1e-3


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """One replica. The defaults are in the range of a 14B model on one 80 GB GPU.

    prefill_s_per_token: of the GPU, beside the rest of an iteration. chunk_tokens: of a prompt in one iteration.
    step_s, step_s_per_sequence: an iteration without prefill. sequences_max: running at once. kv_tokens: of the cache.
    in_seconds: work is seconds of service, not tokens; see `of_slots`.
    """

    prefill_s_per_token: float = 0.25e-3
    chunk_tokens: int = 512
    step_s: float = 0.02
    step_s_per_sequence: float = 1e-3
    sequences_max: int = 64
    kv_tokens: int = 250_000
    in_seconds: bool = False

    @classmethod
    def of_slots(cls, concurrency: int) -> ServiceModel:
        """Of a model without tokens, which works on so many requests at once, each as long as it takes alone: a step is `SERVICE_UNIT_S` of service."""
        return cls(0.0, 1, SERVICE_UNIT_S, 0.0, concurrency, 1 << 60, in_seconds=True)

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of an idle replica."""
        return self.chunk_tokens / (self.step_s + self.chunk_tokens * self.prefill_s_per_token)

    def prefill_s(self, input_tokens: int) -> float:
        """What a prompt takes on an idle replica."""
        return input_tokens / self.prefill_tokens_per_s


@dataclass(slots=True)
class Request:
    """begun_s: when a replica began with it; first_s: when its first token came; end_s: its last. Seconds of the trace; NaN: not yet."""

    number: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    begun_s: float = math.nan
    first_s: float = math.nan
    end_s: float = math.nan


class SimReplica:
    """A replica at `now_s`, which `advance` moves. speed: what its GPU delivers of the nominal."""

    def __init__(self, model: ServiceModel, now_s: float) -> None:
        self.model, self.now_s, self.speed = model, now_s, 1.0
        #: Prompts in order; the first is being read when the cache has room for it.
        self.prompts: deque[Request] = deque()
        self.prompt_left = 0.0
        self.reading = False
        #: Running sequences by the number of tokens that each will have been given when they end.
        self._running: list[tuple[float, int, Request]] = []
        self._tokens_each = 0.0
        self._kv_used = 0
        self.prompt_tokens_waiting = 0
        # Totals since its start.
        self.prefill_tokens = 0.0
        self.decode_tokens = 0.0
        self.busy_s = 0.0
        self.steps = 0.0

    @property
    def running(self) -> int:
        return len(self._running) + self.reading

    @property
    def waiting(self) -> int:
        return len(self.prompts) - self.reading

    @property
    def idle(self) -> bool:
        return not self.prompts and not self._running

    @property
    def kv_use(self) -> float:
        return min(1.0, self._kv_used / self.model.kv_tokens)

    @property
    def backlog_s(self) -> float:
        """Work that it has, in seconds of its own: prompts to be read, and what sequences take of an iteration."""
        model = self.model
        return (
            self.prompt_tokens_waiting * model.prefill_s_per_token
            + (len(self._running) + len(self.prompts))
            * (model.step_s_per_sequence + model.step_s / model.sequences_max)
        ) / max(self.speed, 1e-3)

    @property
    def remaining_tokens(self) -> int:
        left = sum(end - self._tokens_each for end, _, _ in self._running)
        return int(left + sum(request.output_tokens for request in self.prompts))

    def add(self, request: Request) -> None:
        """A request comes; the replica must have been advanced to now."""
        self.prompts.append(request)
        self.prompt_tokens_waiting += request.input_tokens
        self._begin()

    def next_event_s(self) -> float:
        """When its next prompt is read or its next sequence ends, if nothing comes; infinity when it is idle or dead."""
        step_s = self._step_s()
        if math.isinf(step_s):
            return math.inf
        soonest = math.inf
        if self.reading:
            soonest = self.prompt_left / self.model.chunk_tokens * step_s
        if self._running:
            soonest = min(soonest, max(0.0, self._running[0][0] - self._tokens_each) * step_s)
        return self.now_s + soonest

    def advance(self, now_s: float) -> list[Request]:
        """Goes on to `now_s`, at most its next event; returns what ended."""
        passed = now_s - self.now_s
        self.now_s = now_s
        if passed > 0 and (self.reading or self._running):
            step_s = self._step_s()
            if not math.isinf(step_s):
                self._work(passed, passed / step_s)
        if self.reading and self.prompt_left <= _NOTHING:
            self._prompt_read()
        ended = []
        while self._running and self._running[0][0] - self._tokens_each <= _NOTHING:
            request = heapq.heappop(self._running)[2]
            request.end_s = now_s
            self._kv_used -= request.input_tokens + request.output_tokens
            ended.append(request)
        if not self.reading:
            self._begin()
        return ended

    def _work(self, passed_s: float, steps: float) -> None:
        self.busy_s += passed_s
        self.steps += steps
        self._tokens_each += steps
        self.decode_tokens += steps * len(self._running)
        if self.reading:
            done = min(self.prompt_left, steps * self.model.chunk_tokens)
            self.prompt_left -= done
            self.prefill_tokens += done

    def _step_s(self) -> float:
        model = self.model
        if self.speed <= 0:
            return math.inf
        step_s = model.step_s + model.step_s_per_sequence * len(self._running)
        if self.reading:
            step_s += model.chunk_tokens * model.prefill_s_per_token
        return step_s / self.speed

    def _prompt_read(self) -> None:
        request = self.prompts.popleft()
        self.reading = False
        self.prompt_tokens_waiting -= request.input_tokens
        request.first_s = self.now_s
        # The end of the prompt gives the first token.
        self.decode_tokens += 1
        heapq.heappush(self._running, (self._tokens_each + request.output_tokens - 1, request.number, request))

    def _begin(self) -> None:
        """The next prompt, if the batch and the cache have room. A request larger than the cache runs alone."""
        if self.reading or not self.prompts or len(self._running) >= self.model.sequences_max:
            return
        request = self.prompts[0]
        needed = request.input_tokens + request.output_tokens
        if self._kv_used and self._kv_used + needed > self.model.kv_tokens:
            return
        self._kv_used += needed
        request.begun_s = self.now_s
        self.reading, self.prompt_left = True, float(request.input_tokens)
