"""What the kernel log has told since the boot: a GPU that answers now may have been lost an hour ago."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from switchgear.agent.classify import classified
from switchgear.agent.doctor.check import Check, note, ok
from switchgear.agent.kernel_log_follower import driver_version
from switchgear.agent.sources.log_reader import KernelRing

#: More than the ring of a node holds; bounds the time that this takes to some seconds.
_LINES_MAX = 50_000
#: Different faults that are named.
_FAULTS_MAX = 8
_TOPIC = "faults"


def examine(root: Path) -> list[Check]:
    """Nothing where the ring cannot be read: that it cannot is said elsewhere."""
    try:
        # A cursor of another boot: from the oldest record on.
        ring = KernelRing("now", "before:0", root / "dev/kmsg")
    except OSError:
        return []
    try:
        return list(judge(islice((line for line, _ in ring.read()), _LINES_MAX)))
    except OSError:
        return []
    finally:
        ring.close()


def judge(lines: Iterable[str]) -> Iterator[Check]:
    """lines: of a kernel log, oldest first. Faults after which something could not do its work are named, others counted."""
    fatal, lesser = Counter[tuple[str, str]](), 0
    for event in classified(lines, driver_version()):
        if event["kind"] is None:
            continue
        if not event["fatal"]:
            lesser += 1
            continue
        code = f" {event['code']}" if event["code"] is not None else ""
        where = f" of {event['pci']}" if event["pci"] else ""
        fatal[f"{str(event['kind']).upper()}{code}{where}", str(event["action"] or "")] += 1
    for (what, action), count in fatal.most_common(_FAULTS_MAX):
        times = "once" if count == 1 else f"{count} times"
        yield note(
            _TOPIC, f"{what}, {times} since the boot", f"{action}, where it was not mended since" if action else ""
        )
    if len(fatal) > _FAULTS_MAX:
        yield note(
            _TOPIC, f"and {len(fatal) - _FAULTS_MAX} others", "`dmesg | switchgear agent classify-log` has them all"
        )
    if not fatal:
        seen = f"; {lesser} of lesser weight" if lesser else ""
        yield ok(_TOPIC, f"no fatal one in the kernel log since the boot{seen}")
