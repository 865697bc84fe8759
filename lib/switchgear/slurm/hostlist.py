"""Slurm's short form of many names: `gpu[01-03,7]` for gpu01, gpu02, gpu03 and gpu7 (scontrol(1), `show hostnames` and `show hostlist`)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator

from switchgear.core.errors import Invalid, Reason

#: As Slurm's own MAX_RANGE: more is a typing error, and would fill the memory.
NAMES_MAX = 65_536
#: Longer than any name of a host (RFC 1035).
NAME_MAX_CHARACTERS = 255
_NOTHING = frozenset({"", "(null)", "None", "N/A"})
_PART = re.compile(r"\[([^\[\]]*)\]|([^\[\],]+)|(,)|(.)")
_PLAIN = re.compile(r"[^\[\],]{1,255}")
_RANGE = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_NUMBERED = re.compile(r"(.*?)(\d{1,18})(\D*)", re.DOTALL | re.ASCII)


def expand(text: str) -> tuple[str, ...]:
    """The names that the short form stands for, in its order.

    Raises Invalid when it is not such a form, or stands for more than `NAMES_MAX` names.
    """
    text = text.strip()
    if text in _NOTHING:
        return ()
    if _PLAIN.fullmatch(text):
        return (text,)  # most jobs have one node
    names: list[str] = []
    for parts in _entries(text):
        if len(names) + math.prod(map(len, parts)) > NAMES_MAX:
            raise _invalid(text, f"it stands for more than {NAMES_MAX} names")
        names += map("".join, itertools.product(*parts))
    return tuple(names)


def compress(names: Iterable[str]) -> str:
    """The short form of these names, each once, sorted by their last number. No name may hold a bracket or a comma."""
    plain: list[str] = []
    numbers: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(names):
        if found := _NUMBERED.fullmatch(name):
            numbers.setdefault((found[1], found[3]), []).append(found[2])
        else:
            plain.append(name)
    for (before, after), texts in numbers.items():
        ranges = list(_ranges(texts))
        inside = ",".join(ranges)
        plain.append(f"{before}{inside if len(texts) == 1 else f'[{inside}]'}{after}")
    return ",".join(plain)


def _entries(text: str) -> Iterator[list[list[str]]]:
    """Each name of the list as its parts, of which each is all texts that may stand there."""
    parts: list[list[str]] = []
    for found in _PART.finditer(text):
        inside, plain, comma, other = found.groups()
        if comma:
            if not parts:
                raise _invalid(text, "a name is missing before a comma")
            yield parts
            parts = []
        elif other:
            raise _invalid(text, f"{other!r} has no partner")
        else:
            parts.append([plain] if inside is None else _numbers(inside, text))
            # Here already, since the text may come from anybody and a few kilobytes can stand for more than the memory holds.
            if math.prod(map(len, parts)) > NAMES_MAX or sum(len(part[-1]) for part in parts) > NAME_MAX_CHARACTERS:
                raise _invalid(
                    text, f"it stands for more than {NAMES_MAX} names, or one of over {NAME_MAX_CHARACTERS} characters"
                )
    if not parts:
        raise _invalid(text, "a name is missing at the end")
    yield parts


def _numbers(inside: str, text: str) -> list[str]:
    numbers: list[str] = []
    for each in inside.split(","):
        found = _RANGE.fullmatch(each)
        if found is None:
            raise _invalid(text, f"{each!r} is no number and no range")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first or len(numbers) + last - first >= NAMES_MAX:
            raise _invalid(text, f"the range {each!r} is empty or too long")
        numbers += (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    return numbers


def _ranges(texts: Iterable[str]) -> Iterator[str]:
    """Runs of numbers that follow each other and are written with the width of the first."""
    run: list[str] = []
    for text in sorted(texts, key=lambda text: (int(text), len(text))):
        if run and text != str(int(run[-1]) + 1).zfill(len(run[0])):
            yield _range(run)
            run = []
        run.append(text)
    if run:
        yield _range(run)


def _range(run: list[str]) -> str:
    return run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"


def _invalid(text: str, why: str) -> Invalid:
    return Invalid(
        f"{text[:200]!r} is not a list of nodes: {why[:200]}; write it as gpu[01-03,7] or gpu01,gpu02",
        Reason.BAD_FIELD,
        nodes=text[:200],
    )
