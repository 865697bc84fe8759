"""What a service promises for a request, how long one took, and whether that kept it. Pure."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

#: Bounds of the buckets of times: each is a tenth above the one before, so a time is known to 10 %. The first ends at 1 ms.
BUCKET_GROWTH = 1.1
FIRST_BUCKET_S = 1e-3
#: Some 1,000 s: longer than a request may be held and worked on.
BUCKET_MAX = 145

#: In an answer of a replica: what only it knows.
TOOK_HEADER = "x-switchgear-took"
_HEADER_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Promise:
    """None: no such limit. ttft_s grows by `ttft_prefill_factor` times what the request's own prompt takes on an idle replica.

    tpot_s: end-to-end at most the limit to first token, or `e2e_s` where that has none, plus this for each generated token.
    wait_s: until a replica works on it. prefill_tokens_per_s: None: not known, and prompts are taken to cost nothing.
    """

    ttft_s: float | None = None
    ttft_prefill_factor: float = 0.0
    tpot_s: float | None = None
    e2e_s: float | None = None
    wait_s: float | None = None
    prefill_tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Took:
    """One answered request: seconds from its arrival until a replica worked on it, its first token and the whole answer, and its tokens.

    What the replica does not tell is None.
    """

    e2e_s: float
    wait_s: float | None = None
    first_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def per_token_s(self) -> float | None:
        """Between two tokens, on average."""
        if self.first_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return max(0.0, self.e2e_s - self.first_s) / (self.output_tokens - 1)

    def later(self, seconds: float, e2e_s: float) -> Took:
        """The same as somebody sees it who had the request that much earlier."""
        return replace(
            self,
            e2e_s=e2e_s,
            wait_s=None if self.wait_s is None else self.wait_s + seconds,
            first_s=None if self.first_s is None else self.first_s + seconds,
        )

    def header(self) -> str:
        """As a replica sends it."""
        return f"{self.e2e_s:.6f} {self.wait_s:.6f} {self.first_s:.6f} {self.input_tokens} {self.output_tokens}"


def took_from_header(value: str, e2e_s: float) -> Took:
    """What a replica told; of one that tells nothing, or nonsense, only that it took `e2e_s`."""
    try:
        whole, wait, first, input_tokens, output_tokens = value[:_HEADER_LENGTH_MAX].split(" ")
        took = Took(float(whole), float(wait), float(first), int(input_tokens), int(output_tokens))
    except ValueError:
        return Took(e2e_s)
    times = (took.wait_s or 0.0, took.first_s or 0.0, took.e2e_s)
    sound = all(0 <= one <= two for one, two in zip((0.0, *times), (*times, e2e_s), strict=True))
    return took if sound and 0 <= int(input_tokens) < 2**31 and 0 <= int(output_tokens) < 2**31 else Took(e2e_s)


def keeps(promise: Promise, took: Took) -> bool:
    """Whether it is within every limit that can be judged."""
    limit_s = math.inf if promise.e2e_s is None else promise.e2e_s
    if took.e2e_s > limit_s:
        return False
    if promise.wait_s is not None and took.wait_s is not None and took.wait_s > promise.wait_s:
        return False
    if promise.ttft_s is not None:
        own_s = (took.input_tokens or 0) / promise.prefill_tokens_per_s if promise.prefill_tokens_per_s else 0.0
        limit_s = promise.ttft_s + promise.ttft_prefill_factor * own_s
        if took.first_s is not None and took.first_s > limit_s:
            return False
    if promise.tpot_s is None or took.output_tokens is None:
        return True
    return took.e2e_s <= limit_s + promise.tpot_s * took.output_tokens


def bucket(seconds: float) -> int:
    """The number of the bucket of a time; its upper bound is `FIRST_BUCKET_S * BUCKET_GROWTH ** number`."""
    if seconds <= FIRST_BUCKET_S:
        return 0
    return min(BUCKET_MAX, math.ceil(math.log(seconds / FIRST_BUCKET_S) / math.log(BUCKET_GROWTH) - 1e-9))


@dataclass(slots=True)
class Tally:
    """Totals of a service since the router started.

    completed: answered whole; their input_tokens and output_tokens as replicas counted them, estimated_tokens as the router did.
    kept, broken: requests within the promise, and not: also those that failed, or that clients gave up too late.
    The counters: completed requests by the bucket of their time; what is not known is in none.
    """

    completed: int = 0
    input_tokens: int = 0
    estimated_tokens: int = 0
    output_tokens: int = 0
    kept: int = 0
    broken: int = 0
    ttft: Counter[int] = field(default_factory=Counter)
    tpot: Counter[int] = field(default_factory=Counter)
    e2e: Counter[int] = field(default_factory=Counter)
    wait: Counter[int] = field(default_factory=Counter)

    def answered(self, took: Took, promise: Promise, estimated_tokens: int) -> None:
        """Books a whole answer."""
        self.completed += 1
        if took.input_tokens is not None:
            self.input_tokens += took.input_tokens
            self.estimated_tokens += estimated_tokens
        self.output_tokens += took.output_tokens or 0
        kept = keeps(promise, took)
        self.kept += kept
        self.broken += not kept
        times = (
            (self.ttft, took.first_s),
            (self.tpot, took.per_token_s),
            (self.e2e, took.e2e_s),
            (self.wait, took.wait_s),
        )
        for counter, seconds in times:
            if seconds is not None:
                counter[bucket(seconds)] += 1
