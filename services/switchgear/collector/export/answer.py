"""What became of a request, and when to send it again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum, auto

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 30.0
#: A target that asks for more time than this is asked again all the same: by then it may be another one.
RETRY_AFTER_S_MAX = 300.0
#: Of a target's message, in the log.
TEXT_CHARS_MAX = 200


class Verdict(Enum):
    SENT = auto()
    #: The same request may be taken later.
    RETRY = auto()
    #: It will never be taken.
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Answer:
    """code: of HTTP or gRPC, or why there is none. text: what the target said. retry_after_s: how long it wants to be left alone.

    rejected: samples that it did not take although it took the request. written: samples that it took although it refused the request.
    in_doubt: it may have taken samples although it did not say so. What it refuses is not in doubt: we believe the target.
    """

    verdict: Verdict
    code: str
    text: str = ""
    retry_after_s: float = 0.0
    rejected: int = 0
    written: int = 0
    in_doubt: bool = False

    @property
    def divisible(self) -> bool:
        """Refused for something that is in it, or for its size: a part of it may be taken."""
        return self.verdict is Verdict.REFUSED and self.code in _DIVISIBLE and not self.written

    @property
    def reason(self) -> str:
        """Why samples were refused, for metrics; stores say it in words only."""
        for pattern, reason in _REASONS:
            if pattern.search(self.text):
                return reason
        return "refused"


_DIVISIBLE = frozenset({"400", "413", "422", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
_REASONS = (
    (re.compile(r"out[ -]of[ -]order", re.IGNORECASE), "out_of_order"),
    (re.compile(r"out[ -]of[ -]bounds|too[ -](?:old|far)", re.IGNORECASE), "too_old"),
    (re.compile(r"duplicate", re.IGNORECASE), "duplicate"),
)


def of_http(code: int, text: str, headers: Mapping[str, str], now_unix_s: float, *, confirmed: bool = False) -> Answer:
    """Of a response to remote write or OTLP over HTTP: 5xx and 429 are tried again, other refusals never.

    confirmed: whether it must say how many samples were written, as that of remote write 2.0 must: stores that know only 1.0 take such a
    request for an empty one, and answer 204.
    """
    text = text[:TEXT_CHARS_MAX]
    written = headers.get("x-prometheus-remote-write-samples-written", "")
    if 200 <= code < 300:
        if confirmed and not written:
            unknown = (
                'it does not say that it wrote them, so it does not know remote write 2.0; give it protocol = "1.0"'
            )
            return Answer(Verdict.REFUSED, str(code), unknown, in_doubt=True)
        return Answer(Verdict.SENT, str(code), text)
    if code == 429 or code >= 500:
        # A proxy says 5xx too when it has lost the answer of what is behind it.
        wait_s = _retry_after_s(headers.get("retry-after", ""), now_unix_s)
        return Answer(Verdict.RETRY, str(code), text, wait_s, in_doubt=code != 429)
    if 300 <= code < 400:
        text = f"it is elsewhere: {headers.get('location', 'it does not say where')}"[:TEXT_CHARS_MAX]
    return Answer(Verdict.REFUSED, str(code), text, written=int(written[:18]) if written.isdecimal() else 0)


def backoff_s(tries: int, retry_after_s: float, jitter: float) -> float:
    """How long to wait after so many tries in vain (from 1 on), at least as long as the target asked. jitter: 0 to 1."""
    wait_s = min(BACKOFF_S_MIN * 2.0 ** min(tries - 1, 16), BACKOFF_S_MAX)
    return max(wait_s * (0.5 + jitter / 2), min(retry_after_s, RETRY_AFTER_S_MAX))


def _retry_after_s(value: str, now_unix_s: float) -> float:
    """Seconds or a date (RFC 9110); what is neither asks for nothing."""
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_unix_s)
    except (TypeError, ValueError, OverflowError):
        return 0.0
