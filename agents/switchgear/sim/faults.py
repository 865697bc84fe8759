"""Faults of simulated hardware: the words that ask for one, and what a history of them means at a given time. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from switchgear.core.errors import Invalid, Reason

FOREVER_S = float("inf")
LOST = "GPU is lost"
XID_LOST = 79
#: Bound of a script, and of what one state directory remembers.
FAULTS_MAX = 10_000

SYNTAX = """\
  gpu N xid CODE [link L]              the driver reports CODE; 79 loses the GPU
  gpu N ecc-storm rate R [for T]       R corrected memory errors a second
  gpu N thermal-throttle [for T]       hot, slowed down, with the reasons shown
  gpu N nvlink-errors link L rate R [for T]
  gpu N slow clock MHZ [for T]         the clock stays low, nothing says why
  gpu N hang [for T]                   driver calls about it do not return
  gpu N vanish                         gone from the bus
  gpu N mend                           ends all of its faults
  nic N link-flap times K [for T]      K times down for T (default 2s) and up again
  nvswitch N sxid CODE [fatal] link L
Times are 500ms, 30s, 5m or 1h; without `for` a fault lasts until the GPU is mended."""


class FaultKind(Enum):
    XID = "xid"
    ECC_STORM = "ecc-storm"
    THERMAL_THROTTLE = "thermal-throttle"
    NVLINK_ERRORS = "nvlink-errors"
    SLOW = "slow"
    HANG = "hang"
    VANISH = "vanish"
    MEND = "mend"
    LINK_FLAP = "link-flap"
    SXID = "sxid"

    @property
    def has_values(self) -> bool:
        """Whether a GPU with it still answers, and says something else than without it."""
        return self in (self.ECC_STORM, self.THERMAL_THROTTLE, self.NVLINK_ERRORS, self.SLOW)


@dataclass(frozen=True, slots=True)
class Fault:
    """target: index of the GPU, network interface or NVSwitch. code: of an XID or SXid. rate: events a second.

    times: how often a link goes down. for_s: how long it lasts, of a link flap how long the link is down. text: the words for it.
    """

    text: str
    kind: FaultKind
    target: int
    code: int = 0
    rate: float = 0.0
    link: int = 0
    clock_mhz: int = 0
    times: int = 1
    fatal: bool = False
    for_s: float = FOREVER_S


@dataclass(frozen=True, slots=True)
class Scheduled:
    """at_s: seconds after the start of the simulation."""

    at_s: float
    fault: Fault

    def later(self, by_s: float) -> Scheduled:
        return replace(self, at_s=self.at_s + by_s)


_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_OWNERS = _GPU, _NIC, _SWITCH = "gpu", "nic", "nvswitch"
#: Who can have it, the words that must follow, and the words that may.
_GRAMMAR: Mapping[FaultKind, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    FaultKind.XID: (_GPU, (), ("link",)),
    FaultKind.ECC_STORM: (_GPU, ("rate",), ("for",)),
    FaultKind.THERMAL_THROTTLE: (_GPU, (), ("for",)),
    FaultKind.NVLINK_ERRORS: (_GPU, ("link", "rate"), ("for",)),
    FaultKind.SLOW: (_GPU, ("clock",), ("for",)),
    FaultKind.HANG: (_GPU, (), ("for",)),
    FaultKind.VANISH: (_GPU, (), ()),
    FaultKind.MEND: (_GPU, (), ()),
    FaultKind.LINK_FLAP: (_NIC, ("times",), ("for",)),
    FaultKind.SXID: (_SWITCH, ("link",), ("fatal",)),
}
_CODED = {FaultKind.XID: ("XID", 9_999), FaultKind.SXID: ("SXid", 99_999)}
#: Greatest values that mean something.
_RATE_MAX, _LINK_MAX, _CLOCK_MAX, _TIMES_MAX = 1e6, 127, 10_000, 100
_FLAP_S = 2.0
#: A whole number of events is not one less for the want of a nanosecond.
_ROUNDING = 1e-6
_HELP = "all faults: switchgear inject --help"


def parse_fault(text: str) -> Fault:
    """The fault that `SYNTAX` describes in these words. Raises Invalid with what to write instead."""
    words = iter(text.split())
    who = next(words, "")
    if who not in _OWNERS:
        raise _invalid(
            f"a fault begins with {', '.join(_OWNERS)}, not with {who[:40] or 'nothing'}: gpu 3 xid 79 ({_HELP})"
        )
    target = _whole(next(words, ""), "index", 0, 999)
    try:
        kind = FaultKind(word := next(words, ""))
    except ValueError:
        known = ", ".join(kind.value for kind in FaultKind)
        raise _invalid(f"{word[:40] or 'nothing'} is no fault; use one of {known} ({_HELP})") from None
    owner, needed, allowed = _GRAMMAR[kind]
    if who != owner:
        raise _invalid(f"{kind.value} is a fault of a {owner}: write `{owner} N {kind.value} …`")
    fault = Fault(text, kind, target)
    if kind in _CODED:
        name, highest = _CODED[kind]
        fault = replace(fault, code=_whole(next(words, ""), name, 1, highest))
    if kind is FaultKind.LINK_FLAP:
        fault = replace(fault, for_s=_FLAP_S)
    given = set[str]()
    for word in words:
        if word not in (*needed, *allowed) or word in given:
            raise _invalid(f"`{word[:40]}` does not belong behind {kind.value} ({_HELP})")
        given.add(word)
        fault = _OPTIONS[word](fault, words)
    if missing := [word for word in needed if word not in given]:
        raise _invalid(f"{kind.value} needs `{missing[0]} VALUE` ({_HELP})")
    return fault


def parse_script(text: str) -> list[Scheduled]:
    """The faults of a script: lines `at TIME FAULT`, `#` begins a comment; in order of time.

    Raises Invalid with the number of the line.
    """
    found = list[Scheduled]()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split(maxsplit=2)
        if not words:
            continue
        try:
            if words[0] != "at" or len(words) < 3:
                raise _invalid("a line is `at TIME FAULT`, for example: at 12s gpu 3 xid 79")
            found.append(Scheduled(seconds_of(words[1]), parse_fault(words[2])))
        except Invalid as error:
            raise _invalid(f"line {number}: {error}") from None
    if len(found) > FAULTS_MAX:
        raise _invalid(f"{len(found)} faults are more than the {FAULTS_MAX} that a simulation keeps; write fewer")
    return sorted(found, key=lambda scheduled: scheduled.at_s)


def _option(field: str, read: Callable[[str], object]) -> Callable[[Fault, Iterator[str]], Fault]:
    return lambda fault, words: replace(fault, **{field: read(next(words, ""))})  # type: ignore[arg-type]


def _whole(word: str, name: str, lowest: int, highest: int) -> int:
    # At most so many digits as a sensible number has: int() of megabytes of them takes minutes.
    if not (word.isascii() and word.isdigit() and len(word) <= 9 and lowest <= int(word) <= highest):
        shown = word[:20] or "nothing"
        raise _invalid(f"{name} {shown} is not a number from {lowest} to {highest}", field=name.lower())
    return int(word)


def seconds_of(word: str) -> float:
    """What `500ms`, `30s`, `5m` or `1h` is. Raises Invalid for anything else."""
    match = _DURATION.fullmatch(word[:20])
    if match is None:
        raise _invalid(f"{word[:20] or 'nothing'} is not a time; write 500ms, 30s, 5m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def _rate(word: str) -> float:
    return float(_whole(word, "rate", 1, int(_RATE_MAX)))


_OPTIONS: Mapping[str, Callable[[Fault, Iterator[str]], Fault]] = {
    "rate": _option("rate", _rate),
    "link": _option("link", lambda word: _whole(word, "link", 0, _LINK_MAX)),
    "clock": _option("clock_mhz", lambda word: _whole(word, "clock", 1, _CLOCK_MAX)),
    "times": _option("times", lambda word: _whole(word, "times", 1, _TIMES_MAX)),
    "for": _option("for_s", seconds_of),
    "fatal": lambda fault, _words: replace(fault, fatal=True),
}


def _invalid(message: str, field: str = "fault") -> Invalid:
    return Invalid(message, Reason.BAD_FIELD, field=field)


@dataclass(frozen=True, slots=True)
class Span:
    """A fault with the times between which it holds, in seconds after the start of the simulation."""

    fault: Fault
    start_s: float
    end_s: float

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s

    def lasted_s(self, at_s: float) -> float:
        """How long it has held until then."""
        return max(0.0, min(at_s, self.end_s) - self.start_s)


class History:
    """The faults of one GPU. All questions are answered from the faults and the time alone."""

    def __init__(self, scheduled: Iterable[Scheduled] = ()) -> None:
        self.spans: list[Span] = []
        for item in scheduled:
            self.add(item)

    def add(self, scheduled: Scheduled) -> None:
        """Faults are added in any order of time; mending ends only what began before it."""
        start_s, fault = scheduled.at_s, scheduled.fault
        if fault.kind is FaultKind.MEND:
            self.spans = [
                replace(span, end_s=min(span.end_s, start_s)) if span.start_s <= start_s else span
                for span in self.spans
            ]
        self.spans.append(Span(fault, start_s, start_s + fault.for_s))

    def of(self, kind: FaultKind) -> list[Span]:
        return [span for span in self.spans if span.fault.kind is kind]

    def holds(self, kind: FaultKind, at_s: float) -> bool:
        return any(span.holds(at_s) for span in self.of(kind))

    def lost(self, at_s: float) -> bool:
        return self.holds(FaultKind.VANISH, at_s) or any(
            span.fault.code == XID_LOST and span.holds(at_s) for span in self.of(FaultKind.XID)
        )

    def hangs(self, at_s: float) -> bool:
        return self.holds(FaultKind.HANG, at_s)

    def count(self, kind: FaultKind, at_s: float, link: int | None = None) -> int:
        """Events of an ECC storm or of NVLink errors until then, on one link or on all."""
        return sum(
            int(span.fault.rate * span.lasted_s(at_s) + _ROUNDING)
            for span in self.of(kind)
            if link is None or span.fault.link == link
        )

    def lasted_s(self, kind: FaultKind, at_s: float) -> float:
        return sum(span.lasted_s(at_s) for span in self.of(kind))
