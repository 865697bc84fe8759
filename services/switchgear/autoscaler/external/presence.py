"""Which of the listed replicas serve, which are still on their way, and of which nobody can tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from switchgear.autoscaler.adapters.scrape import Reading

#: Within this, or three cold starts, a replica that is listed answers for the first time; weights of hundreds of gigabytes need most of it.
GRACE_S = 600.0


@dataclass(frozen=True, slots=True)
class NoPage:
    """why: for people. off: nothing listens there, which is more than no answer."""

    why: str
    off: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a service.

    found: what came of each listed replica, by name. certain: whether what is listed ought to answer. trouble: why the list may be wrong;
    `found` is then of the list before. gateway: of what holds requests; None: there is none.
    """

    found: Mapping[str, Reading | NoPage]
    certain: bool = True
    trouble: str = ""
    gateway: Reading | NoPage | None = None


class Presence:
    """Remembers of each listed replica since when it is listed and whether it has answered; one that is listed no more is forgotten, but
    that it is gone is known for a while.

    answered: those that had, before a restart.
    """

    def __init__(self, grace_s: float = GRACE_S, answered: Iterable[str] = ()) -> None:
        self._grace_s = grace_s
        self._first_s: float | None = None
        self._listed_s: dict[str, float] = {}
        self._answered = set(answered)
        self._had = bool(self._answered)
        #: When one that had answered went and fewer than desired were left.
        self._missed_s: float | None = None
        #: Since when nobody has answered although somebody should.
        self._empty_s: float | None = None

    @property
    def answered(self) -> tuple[str, ...]:
        return tuple(sorted(self._answered))

    @property
    def misses(self) -> bool:
        """Whether one that nobody asked to go is gone, and not replaced: it may serve on, off the list, and without it less seems to come."""
        return self._missed_s is not None

    def listed_s(self, name: str) -> float:
        """Since when the replica is listed."""
        return self._listed_s[name]

    def unseen(self, now_s: float, look: Look, desired: int) -> tuple[dict[str, str], str]:
        """Replicas that ought to tell and do not, each with the reason; and why the service as a whole is not seen, or "".

        A replica that has never answered is starting, for a while, where nothing listens or it came after us; one of a fixed list is off, as long as others
        answer. When none answers, none of them counts as taken away.
        """
        found = look.found
        self._first_s = now_s if self._first_s is None else self._first_s
        self._listed_s = {name: self._listed_s.get(name, now_s) for name in found}
        pages = {name for name, one in found.items() if isinstance(one, Reading)}
        before = frozenset(self._answered)
        self._answered = (self._answered | pages) & set(found)
        missing = {name: one for name, one in found.items() if isinstance(one, NoPage)}
        told = {
            name: why
            for name, one in missing.items()
            if (why := self._why(now_s, name, one, look.certain, bool(pages)))
        }
        self._answered -= {name for name in missing if name not in told}
        self._miss(now_s, gone=not before <= self._answered, fewer=len(pages) + len(told) < desired)
        if pages or desired == 0:
            self._had, self._empty_s = bool(pages), None
            return told, ""
        return told, "" if told else self._none(now_s, look.certain and bool(missing))

    def _miss(self, now_s: float, *, gone: bool, fewer: bool) -> None:
        if gone and fewer:
            self._missed_s = now_s
        elif not fewer or (self._missed_s is not None and now_s - self._missed_s > self._grace_s):
            self._missed_s = None

    def _why(self, now_s: float, name: str, one: NoPage, certain: bool, others: bool) -> str:
        if not one.off and not self._came(name):
            return one.why
        if name in self._answered:
            return "" if not certain and others else one.why
        age_s = now_s - self._listed_s[name]
        if certain and age_s > self._grace_s:
            return f"has never answered in the {age_s:.0f} s since it is listed: {one.why}"
        return ""

    def _came(self, name: str) -> bool:
        """Whether it is listed since a later look than our first, and has never answered: a pod whose engine loads answers with an error, or
        Prometheus cannot scrape it. Of what was there before us nobody knows whether it serves.
        """
        return name not in self._answered and self._listed_s[name] > (self._first_s or 0.0)

    def _none(self, now_s: float, listed: bool) -> str:
        """Why it is not seen that nobody answers; empty: replicas that were asked for may be on their way."""
        if self._empty_s is None:
            self._empty_s = now_s
        if self._had:
            return "no replica is left of those that answered"
        if listed:
            return "none of the listed replicas has answered yet"
        if now_s - self._empty_s > self._grace_s:
            return f"no replica has answered for {now_s - self._empty_s:.0f} s"
        return ""
