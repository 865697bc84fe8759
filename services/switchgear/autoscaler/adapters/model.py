"""What is to be known of an inference server, and how a series of its page tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Quantity(StrEnum):
    """What a policy goes by. Times are in seconds, tokens and requests are counts."""

    WAITING = "waiting"  # requests that wait in the server now
    RUNNING = "running"  # requests that it works on now
    KV_USE = "kv_use"  # of its KV cache, 0 to 1
    TTFT = "ttft"  # from arrival at the server to the first token
    TPOT = "tpot"  # for a generated token after the first
    E2E = "e2e"  # from arrival at the server to the whole answer
    QUEUE_TIME = "queue_time"  # from arrival at the server until it works on the request
    ARRIVED = "arrived"  # requests that came
    COMPLETED = "completed"  # requests that were answered
    FAILED = "failed"  # requests that ended otherwise
    PROMPT_TOKENS = "prompt_tokens"  # read so far, also of requests that still run
    GENERATED_TOKENS = "generated_tokens"  # the same of generated ones
    REQUEST_INPUT = "request_input"  # prompt tokens of completed requests alone
    REQUEST_OUTPUT = "request_output"  # generated tokens of completed requests alone
    STEPS = "steps"  # iterations of the engine, executions of a batch
    KV_TOKENS = "kv_tokens"  # that fit into the KV cache
    SEQUENCES_MAX = "sequences_max"  # that fit into a batch
    AWAKE = "awake"  # 1: works; 0: sleeps, and takes no request


class Kind(StrEnum):
    """How a series tells a quantity."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"  # or a summary, of which only the mean is used
    SUM = "sum"  # a counter of time: the mean of an interval is its growth by that of `Series.per`


class Combine(StrEnum):
    """How several series of one page make one figure."""

    SUM = "sum"
    MEAN = "mean"  # a ratio, as of caches of equal size: their sum would be more than 1


@dataclass(frozen=True, slots=True)
class Series:
    """One name under which a quantity is told.

    name: of its samples; of a histogram without `_bucket`. unit: seconds (or tokens, requests, 1) of one unit of the series.
    where: only samples whose label begins with one of the texts. without: none of those. per: of a SUM, what its growth is divided by.
    product: the value is the product of these labels' numbers (an info series). since, until: versions of the server that have it; the
    empty text: not known. less: the quantity of the same page that is contained in it and is taken off.
    """

    name: str
    kind: Kind
    unit: float = 1.0
    where: tuple[str, tuple[str, ...]] | None = None
    without: tuple[str, tuple[str, ...]] | None = None
    per: Quantity | None = None
    combine: Combine = Combine.SUM
    product: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    less: Quantity | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """Facts of one kind of inference server.

    series: of each quantity its names, the preferred one first; one that is not there is not told by this server.
    ranks: labels of which each value tells the same again (tensor and pipeline parallel ranks); all others are parts of one whole.
    mark: series, label and value that tell it from a server with the same names. version: series and label that have its version.
    lazy: a series begins with the first request that it counts, so that an idle server may lack it. front: it stands before replicas
    and tells of all of them. period_s: how often its page has anything new; 0: always. path, port: where it serves the page.
    switch_on: what makes it tell more, by quantity; under None what is needed for a page at all.
    checked: how these facts were verified.
    """

    name: str
    title: str
    series: Mapping[Quantity, tuple[Series, ...]]
    checked: str
    path: str = "/metrics"
    port: int | None = None
    ranks: tuple[str, ...] = ()
    mark: tuple[str, str, str] | None = None
    version: tuple[str, str] | None = None
    lazy: bool = False
    front: bool = False
    period_s: float = 0.0
    switch_on: Mapping[Quantity | None, str] = field(default_factory=dict)


#: What it costs to be without a quantity, one sentence each.
COST: Mapping[Quantity, str] = {
    Quantity.WAITING: "requests that queue in the server are not seen until latency suffers, so growth is noticed late",
    Quantity.RUNNING: "how full a replica is has to be guessed from rates, and a hung one cannot be told from an idle one",
    Quantity.KV_USE: "replicas that run out of KV cache are noticed by their latency alone",
    Quantity.TTFT: "the promise can only be held on end-to-end time and on what waits",
    Quantity.TPOT: "a promise per token can only be held on end-to-end time",
    Quantity.E2E: "latency cannot be watched at all when TTFT is missing too",
    Quantity.QUEUE_TIME: "time in the queue cannot be told from time at work",
    Quantity.ARRIVED: "arrivals are taken as what ended plus the growth of what is inside",
    Quantity.COMPLETED: "demand is known in tokens alone, and arrivals as the growth of what is inside",
    Quantity.FAILED: "requests that fail count as if they had never come",
    Quantity.PROMPT_TOKENS: "demand counts requests instead of work, so one long prompt weighs as much as a short one",
    Quantity.GENERATED_TOKENS: "demand counts requests instead of work, so a long answer weighs as much as a short one",
    Quantity.REQUEST_INPUT: "the size of a request is taken from all tokens read, which lags when traffic changes",
    Quantity.REQUEST_OUTPUT: "the size of an answer is taken from all tokens generated, which runs ahead in a burst",
    Quantity.STEPS: "the time of an iteration is not measured, and throttled replicas are found by their throughput alone",
    Quantity.KV_TOKENS: "how many long requests fit into a replica is learned only when it is full",
    Quantity.SEQUENCES_MAX: "how many requests fit into a batch is learned only when it is full",
    Quantity.AWAKE: "a sleeping replica counts as capacity",
}
