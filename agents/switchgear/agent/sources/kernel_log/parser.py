"""Findings of a kernel log that is being followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from switchgear.agent.events import Finding
from switchgear.agent.sources.kernel_log.blocks import Blocks
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.classify import LINE_CHARS_MAX, classify_message
from switchgear.agent.sources.kernel_log.prefix import split
from switchgear.core.catalog import GPU_LOST, Severity

#: A fault is told once a second, however often the kernel does.
FOLD_S = 1.0
#: What asks for nothing is told once a minute: a counter that may not be read makes the kernel complain at each sample.
QUIET_FOLD_S = 60.0
#: As many lines within a second are no longer the lines of one event but a storm, whose count is told.
STORM_LINES_MIN = 16
#: Bound of remembered events; more devices x codes than one second can bring.
FOLDED_MAX = 1024
TEXT_BYTES_MAX = 2048

_Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Told:
    text: str
    at_s: float
    now_s: float


@dataclass(slots=True)
class _Fold:
    """What came of one fault in its second. at_s: of the first line, by the kernel's clock where it stamps lines."""

    at_s: float
    now_s: float
    lasts_s: float
    folded: int = 0
    last: tuple[str, Classified] | None = None


class KernelLogParser:
    """Fed line by line; it remembers what it needs to see several lines as the one event that they are.

    driver_version: of the NVIDIA driver, "" when unknown.
    """

    def __init__(self, driver_version: str = "") -> None:
        self.driver_version = driver_version
        self._blocks = Blocks[_Told]()
        self._folds: dict[_Key, _Fold] = {}

    @property
    def holding(self) -> bool:
        """Whether lines were read of which it is not yet known what they are: a cursor behind them would lose them."""
        return self._blocks.held is not None

    @property
    def pending(self) -> bool:
        """Whether `due` may have something to tell later, though no line comes."""
        return self.holding or any(fold.folded for fold in self._folds.values())

    def feed(self, line: str, now_s: float) -> Sequence[Finding]:
        """What is known with this line: mostly nothing, seldom more than one finding.

        now_s: when the line was read, in seconds; used for a line without the kernel's own stamp.
        """
        # A NUL is no text to databases.
        line = line.replace("\0", "\N{REPLACEMENT CHARACTER}")
        message = split(line[:LINE_CHARS_MAX])
        found = classify_message(message, self.driver_version)
        told = _Told(line, message.at_s if message.at_s is not None else now_s, now_s)
        return self._findings(self._blocks.add(told, message, found, now_s))

    def due(self, now_s: float) -> Sequence[Finding]:
        """What is known because nothing more came: call it now and then."""
        findings = self._findings(self._blocks.due(now_s))
        for key, fold in list(self._folds.items()):
            if now_s - fold.now_s >= fold.lasts_s:
                del self._folds[key]
                if fold.folded >= STORM_LINES_MIN and fold.last is not None:
                    findings.append(_finding(*fold.last, fold.folded))
        return findings

    def _findings(self, events: Sequence[tuple[_Told, Classified]]) -> list[Finding]:
        findings = list[Finding]()
        for told, found in events:
            key = _key(found)
            fold = self._folds.get(key)
            # A stamp before the first one means that the machine booted meanwhile.
            if fold is not None and fold.at_s <= told.at_s < fold.at_s + fold.lasts_s:
                fold.folded += 1
                fold.last = (told.text, found)
                continue
            if len(self._folds) >= FOLDED_MAX:
                del self._folds[next(iter(self._folds))]
            quiet = found.code is None and found.verdict.severity is Severity.INFO
            self._folds[key] = _Fold(told.at_s, told.now_s, QUIET_FOLD_S if quiet else FOLD_S)
            findings.append(_finding(told.text, found, fold.folded + 1 if fold is not None else 1))
        return findings


def _key(found: Classified) -> _Key:
    if found.code == GPU_LOST:
        # It is told in other words too.
        return GPU_LOST, found.pci
    # Lines of raw detail of an SXid follow without a link number, so the link cannot tell them apart.
    link = found.link if found.kind != "SXID" else None
    return found.kind, found.code, found.pci, found.mig_gpu_instance, link, found.device


def _finding(text: str, found: Classified, lines: int) -> Finding:
    """lines: how many of it there were since it was told last."""
    detail = found.detail()
    if lines >= STORM_LINES_MIN:
        detail["count"] = str(lines)
    verbatim = text.strip().encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore")
    return Finding(found.kind, verbatim, code=found.code, pci=found.pci, detail=detail)
