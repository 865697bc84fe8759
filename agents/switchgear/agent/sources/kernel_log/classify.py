"""What one line says, on its own merits. Pure, and bounded in time whatever the text is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from switchgear.agent.sources.kernel_log import devices, hosts, nvidia
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.prefix import Line, split
from switchgear.agent.sources.kernel_log.rule import OCCURRENCES_MAX, Rule

#: What is longer is cut.
LINE_CHARS_MAX = 8192
#: A kernel message has at most 2 KiB (PRINTK_MESSAGE_MAX): what it says begins further in front.
_HEAD_CHARS_MAX = 2048
#: A line with more literals than that is a text about kernel logs.
_HITS_MAX = 48
_TRIED_MAX = 12

#: The first that matches counts.
RULES: Sequence[Rule] = (*nvidia.RULES, *hosts.RULES, *devices.RULES)


def _any_of(literals: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the literals; grouped by first character, which is three times as fast as one after the other."""
    by_first = defaultdict[str, list[str]](list)
    for literal in sorted(literals, reverse=True):  # a longer one before its own begin
        by_first[literal[0]].append(literal[1:])
    groups = (f"{re.escape(first)}(?:{'|'.join(map(re.escape, rest))})" for first, rest in by_first.items())
    return re.compile("|".join(groups))


_LITERALS = sorted({rule.literal for rule in RULES})
_ANY = _any_of(_LITERALS)
#: Literals that stand within a literal, and where.
_WITHIN: Mapping[str, Sequence[tuple[str, int]]] = {
    literal: [(inner, literal.index(inner)) for inner in _LITERALS if inner in literal] for literal in _LITERALS
}


def classify(line: str, driver_version: str = "") -> Classified | None:
    """The event that `line` tells, or None. driver_version: of the NVIDIA driver, decides how XIDs 144 to 150 are read."""
    return classify_message(split(line[:LINE_CHARS_MAX]), driver_version)


def classify_message(line: Line, driver_version: str = "") -> Classified | None:
    """The same for a line that has been split."""
    if line.text.isascii():
        return _classify(line.text, line.program, driver_version)
    # One byte a character: a search in wider text takes several times as long.
    text = line.text.encode(errors="replace")[:LINE_CHARS_MAX].decode("latin-1")
    found = _classify(text, line.program, driver_version)
    return found and replace(found, process=_unicode(found.process), device=_unicode(found.device))


def _classify(text: str, program: str, driver_version: str) -> Classified | None:
    places = defaultdict[str, list[int]](list)
    for match in islice(_ANY.finditer(text, 0, _HEAD_CHARS_MAX), _HITS_MAX):
        for literal, offset in _WITHIN[match[0]]:
            places[literal].append(match.start() + offset)
    if not places:
        return None
    tried = 0
    for rule in RULES:
        if rule.literal not in places or (program and not rule.userspace):
            continue
        if found := rule.find(text, places[rule.literal][:OCCURRENCES_MAX], driver_version):
            return found
        tried += 1
        if tried == _TRIED_MAX:
            break
    return None


def _unicode(latin: str) -> str:
    return latin.encode("latin-1").decode(errors="replace")
