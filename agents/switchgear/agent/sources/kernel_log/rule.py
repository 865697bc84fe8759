"""How a rule finds its event in a message: a literal that must be there, then an expression on a window around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from switchgear.agent.sources.gpu import normal_pci
from switchgear.agent.sources.kernel_log.classified import Classified, fatal_of
from switchgear.core.catalog import Severity, Verdict
from switchgear.core.catalog import kind as kind_of

#: A PCI address as kernel drivers write it, with or without domain and function.
PCI = r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
#: Code of an XID or SXid; more is none.
CODE_MAX = 2**31 - 1
#: How often a literal is looked at in one line.
OCCURRENCES_MAX = 2

Build = Callable[[re.Match[str], str], Classified | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """literal: quick to look for. before, after: the window around it, in characters, which bounds the time of `pattern`.

    build: what a match says. userspace: whether programs may tell it too; else only the kernel is believed.
    """

    literal: str
    pattern: re.Pattern[str]
    build: Build
    before: int = 96
    after: int = 200
    userspace: bool = False

    def find(self, text: str, places: Iterable[int], driver: str) -> Classified | None:
        """places: where the literal stands. driver: version of the NVIDIA driver, "" when unknown."""
        for at in places:
            window = text[max(0, at - self.before) : at + self.after]
            if (match := self.pattern.search(window)) and (found := self.build(match, driver)):
                return found
        return None


def event(kind: str, severity: Severity | None = None, /, **fields: object) -> Classified:
    """An event of this kind, as bad as the kind mostly is, or as the second argument says."""
    known = kind_of(kind)
    if known is None:
        raise KeyError(f"{kind} is not in kinds.csv")
    verdict = known.verdict if severity is None else Verdict(known.action, severity)
    return Classified(kind, verdict, fatal_of(verdict), **fields)  # type: ignore[arg-type] # checked by each builder's test


def plain(kind: str) -> Build:
    """A builder that takes the groups `pci`, `pid`, `process`, `device` of the match as they are."""

    def build(match: re.Match[str], _driver: str) -> Classified:
        return event(kind, **named(match))

    return build


def named(match: re.Match[str]) -> dict[str, object]:
    groups = match.groupdict()
    fields = dict[str, object]()
    if groups.get("pci"):
        fields["pci"] = normal_pci(groups["pci"])
    if groups.get("pid"):
        fields["pid"] = int(groups["pid"])
    for name in ("process", "device"):
        if groups.get(name):
            fields[name] = groups[name].strip()
    return fields


def rules(
    kind: str, *alternatives: tuple[str, str], before: int = 96, after: int = 200, userspace: bool = False
) -> Iterable[Rule]:
    """Rules of one kind: each a literal and an expression."""
    for literal, pattern in alternatives:
        yield Rule(literal, re.compile(pattern, re.ASCII), plain(kind), before, after, userspace)
