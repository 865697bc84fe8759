"""A load generator that misses nothing: open loop, seeded, and each answer is checked.

    python -m switchgear.serve.load http://127.0.0.1:7090 chat --profile 30x2,60x8,30x0,30x2
    python -m switchgear.serve.load http://127.0.0.1:7090 chat --trace requests.csv.gz --seconds 600 --rate 3

Arrivals are a Poisson process whose rate follows the profile; they do not wait for answers, as users do not. Answers are greedy, so
that the same question has the same answer from any replica at any time: one that is wrong or cut differs from the others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import httpx

from switchgear.core.errors import FailedPrecondition
from switchgear.serve import api_keys, completions, load_trace
from switchgear.serve.load_trace import Row

#: Requests without an answer yet; arrivals beyond are lost, and counted so.
IN_FLIGHT_MAX = 2000
REQUESTS_MAX = 1_000_000
#: What is asked: few enough questions that each is asked often, and its answers can be compared.
_PROMPTS = (
    "def __init__(self",
    "import os\n",
    "class ",
    "    return ",
    "for i in range(",
    "if __name__ ==",
    "raise ",
    "try:\n",
)
_ERROR_LENGTH_MAX = 200
#: Kinds of failure that are kept apart; they are made of messages, which may differ without end.
_KINDS_MAX = 50


@dataclass(frozen=True, slots=True)
class Phase:
    """requests_per_second: on average; 0 is a pause."""

    seconds: float
    requests_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSettings:
    """url: of the router, or of a replica. tokens: how many a request may ask for, each as likely. timeout_s: for one answer.

    trace: recorded requests, which are sent instead of those of `phases`.

    api_key: what the router asks for; empty: nothing. ca: whom to believe over HTTPS; None: the CAs that come with httpx.
    retries: how often a request that did not reach the server, or got no answer, is sent again: for restarts of the router.
    """

    url: str
    model: str
    phases: Sequence[Phase]
    seed: int = 1
    tokens: Sequence[int] = (8, 16, 32)
    timeout_s: float = 180.0
    retries: int = 0
    api_key: str = field(default="", repr=False)
    ca: Path | None = None
    trace: Sequence[Row] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    at_s: float
    phase: int
    prompt: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """failure: empty for a whole and correct answer. seconds: from the arrival's due time to the answer."""

    arrival: Arrival
    failure: str
    seconds: float
    text: str = ""


@dataclass(slots=True)
class Report:
    """What came of all requests. wrong: answers that differ from what most got for the same question; they are lost as well."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Requests without a whole, correct answer."""
        return sum(bool(outcome.failure) for outcome in self.outcomes)

    def failures(self) -> dict[str, int]:
        """How many were lost, by why; the most frequent first."""
        return dict(Counter(outcome.failure for outcome in self.outcomes if outcome.failure).most_common(_KINDS_MAX))

    def latency_s(self, share: float, phase: int | None = None) -> float | None:
        """The latency that this share of the good answers stayed within; None without answers."""
        good = [o for o in self.outcomes if not o.failure and phase in (None, o.arrival.phase)]
        seconds = sorted(outcome.seconds for outcome in good)
        return seconds[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else None

    def to_json(self) -> dict[str, object]:
        good = [outcome for outcome in self.outcomes if not outcome.failure]
        return {
            "requests": len(self.outcomes),
            "answered": len(good),
            "lost": self.lost,
            "failures": self.failures(),
            "tokens": sum(outcome.arrival.tokens for outcome in good),
            "latency_s": {name: self.latency_s(share) for name, share in _SHARES.items()},
        }


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def schedule(settings: LoadSettings) -> list[Arrival]:
    """All arrivals in order; the same for the same settings. Raises ValueError when there are too many."""
    draw = random.Random(settings.seed)
    if settings.trace:
        return [Arrival(row.at_s, 0, draw.choice(_PROMPTS), row.output_tokens) for row in settings.trace]
    arrivals = list[Arrival]()
    begin_s = 0.0
    for number, phase in enumerate(settings.phases):
        end_s = begin_s + phase.seconds
        at_s = begin_s
        while phase.requests_per_second > 0:
            at_s += draw.expovariate(phase.requests_per_second)
            if at_s >= end_s:
                break
            if len(arrivals) == REQUESTS_MAX:
                raise ValueError(f"the profile makes more than {REQUESTS_MAX} requests; lower a rate or a duration")
            arrivals.append(Arrival(at_s, number, draw.choice(_PROMPTS), draw.choice(settings.tokens)))
        begin_s = end_s
    return arrivals


async def run(settings: LoadSettings, progress: Callable[[Report], None] = lambda _: None) -> Report:
    """Sends all requests of the schedule and waits for their answers. progress: called after each answer.

    Raises ValueError when the schedule is too long, OSError when the CA cannot be used.
    """
    report = Report()
    arrivals = schedule(settings)
    limits = httpx.Limits(max_connections=IN_FLIGHT_MAX, max_keepalive_connections=100)
    async with (
        httpx.AsyncClient(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else None,
            verify=ssl.create_default_context(cafile=settings.ca) if settings.ca else True,
            timeout=settings.timeout_s,
            limits=limits,
            trust_env=False,
        ) as client,
        asyncio.TaskGroup() as tasks,
    ):
        begin_s = time.monotonic()
        in_flight = set[asyncio.Task[None]]()

        async def ask(arrival: Arrival) -> None:
            failure, text = await _ask(client, settings, arrival)
            report.outcomes.append(Outcome(arrival, failure, time.monotonic() - begin_s - arrival.at_s, text))
            progress(report)

        for arrival in arrivals:
            await asyncio.sleep(max(0.0, begin_s + arrival.at_s - time.monotonic()))
            if len(in_flight) >= IN_FLIGHT_MAX:
                report.outcomes.append(Outcome(arrival, "not sent: too many wait for an answer already", 0.0))
                continue
            task = tasks.create_task(ask(arrival))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
    return Report(compared(report.outcomes))


async def _ask(client: httpx.AsyncClient, settings: LoadSettings, arrival: Arrival) -> tuple[str, str]:
    """Failure, or an empty one and the text."""
    body = {"model": settings.model, "prompt": arrival.prompt, "max_tokens": arrival.tokens, "temperature": 0}
    failure = ""
    for attempt in range(settings.retries + 1):
        if attempt:
            await asyncio.sleep(min(2.0, 0.2 * 2**attempt))
        try:
            response = await client.post(completions.PATH, json=body)
        except httpx.HTTPError as error:
            failure = f"{type(error).__name__} {error}".strip()[:_ERROR_LENGTH_MAX]
            continue
        if response.status_code != HTTPStatus.OK:
            return f"{response.status_code} {_message(response)}"[:_ERROR_LENGTH_MAX], ""
        return _checked(response, arrival)
    return failure, ""


def _checked(response: httpx.Response, arrival: Arrival) -> tuple[str, str]:
    try:
        answer = response.json()
        choice, usage = answer["choices"][0], answer["usage"]
        text = str(choice["text"])
        whole = choice["finish_reason"] == "stop" or usage["completion_tokens"] == arrival.tokens
    except (ValueError, LookupError, TypeError):
        return "the answer is not in OpenAI's form", ""
    return ("", text) if whole else ("the answer is cut", "")


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return response.text


def compared(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The same, with a failure for each answer that differs from what most got for the same question."""
    texts: dict[tuple[str, int], Counter[str]] = {}
    for outcome in outcomes:
        if not outcome.failure:
            texts.setdefault((outcome.arrival.prompt, outcome.arrival.tokens), Counter())[outcome.text] += 1
    usual = {question: counted.most_common(1)[0][0] for question, counted in texts.items()}

    def judged(outcome: Outcome) -> Outcome:
        if outcome.failure or outcome.text == usual[outcome.arrival.prompt, outcome.arrival.tokens]:
            return outcome
        return Outcome(outcome.arrival, "the answer differs from the others to the same question", outcome.seconds)

    return [judged(outcome) for outcome in outcomes]


def profile(text: str) -> list[Phase]:
    """`30x2,60x8`: 30 s at 2 requests a second, then 60 s at 8. Raises ValueError when it is none."""
    try:
        pairs = [part.split("x") for part in text.split(",")]
        phases = [Phase(float(seconds), float(rate)) for seconds, rate in pairs]
    except ValueError:
        raise ValueError(f"{text!r} is no profile; write SECONDSxRATE,…, for example 30x2,60x8") from None
    if not all(0 < phase.seconds < 1e6 and 0 <= phase.requests_per_second < 1e5 for phase in phases):
        raise ValueError(f"{text!r}: seconds must be positive, and rates at least 0")
    return phases


def table(report: Report, phases: Sequence[Phase]) -> str:
    """For a person: one line a phase, then what was lost and why."""
    lines = [f"{'phase':>12} {'requests':>9} {'lost':>5} {'p50 s':>7} {'p95 s':>7} {'max s':>7}"]
    for number, phase in enumerate(phases):
        mine = [outcome for outcome in report.outcomes if outcome.arrival.phase == number]
        lost = sum(bool(outcome.failure) for outcome in mine)
        latency = "".join(_column(report.latency_s(share, number)) for share in (0.5, 0.95, 1.0))
        lines.append(f"{phase.seconds:5g} s x {phase.requests_per_second:<4g} {len(mine):>9} {lost:>5}{latency}")
    lines.append(f"{len(report.outcomes)} requests, {report.lost} lost")
    lines += [f"{count:>6} x {failure}" for failure, count in report.failures().items()]
    return "\n".join(lines)


def _column(seconds: float | None) -> str:
    return f"{'-':>8}" if seconds is None else f"{seconds:>8.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the router")
    parser.add_argument("model", help="id of the inference service")
    parser.add_argument("--profile", default="30x2", metavar="SECONDSxRATE,…", help="default: %(default)s")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="CSV with t_s and output_tokens; instead of a profile"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="into which the trace is pressed (%(default)g)"
    )
    parser.add_argument(
        "--rate", type=float, default=2.0, metavar="R", help="of its requests a second, on average (%(default)g)"
    )
    parser.add_argument(
        "--tokens", type=float, default=24.0, metavar="N", help="that they ask for, on average (%(default)g)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="send again what got no answer at all")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="its first key is sent with each request")
    parser.add_argument("--tls-ca", type=Path, metavar="FILE", help="whom to believe, when the URL is https")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        phases = profile(args.profile)
        trace = list[Row]()
        if args.trace:
            trace = load_trace.fitted(
                load_trace.read(args.trace),
                seconds=args.seconds,
                requests_per_second=args.rate,
                tokens_mean=args.tokens,
                seed=args.seed,
            )
            phases = [Phase(args.seconds, args.rate)]
        settings = LoadSettings(
            url=args.url,
            model=args.model,
            phases=phases,
            seed=args.seed,
            retries=args.retries,
            api_key=api_keys.read(args.api_key_file)[0] if args.api_key_file else "",
            ca=args.tls_ca,
            trace=trace,
        )
        report = asyncio.run(run(settings))
    except OSError as error:
        parser.error(f"cannot read {error.filename or args.tls_ca} ({error.strerror})")
    except (ValueError, FailedPrecondition) as error:
        parser.error(str(error))
    print(json.dumps(report.to_json()) if args.json else table(report, phases))  # noqa: T201
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
