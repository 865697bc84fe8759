"""What the NVIDIA driver writes into the kernel log: XID and SXid lines, one finding for each event.

Pure: lines and times in, findings out. The forms are those of real logs; a line that is not one of them matches nothing.
"""

from __future__ import annotations

import re

from switchgear.agent.events import Finding
from switchgear.agent.sources.gpu import normal_pci

#: The driver writes one event as several lines within milliseconds; a flood becomes one finding a second.
FOLD_S = 1.0
#: Bound of remembered events; more GPUs x codes than one second can bring.
FOLDED_MAX = 1024
TEXT_BYTES_MAX = 2048
_CODE_MAX = 2**31 - 1

_PCI = r"(?:PCI:)?(?P<pci>[0-9a-fA-F]{2,8}:[0-9a-fA-F:.]+)"
# `Xid: 79` without a device occurs; digits of a PCI address must never be taken for the code.
_XID = re.compile(rf"NVRM:\s*Xid(?:\s*\({_PCI}(?:\s+GPU-I:(?P<mig>[0-9a-fA-F]+))?\))?:\s*(?P<code>\d+)(?!\w)")
_SXID = re.compile(rf"nvswitch\d*:\s*SXid\s*\({_PCI}\):\s*(?P<code>\d+)(?!\w),?\s*(?P<rest>.*)")
_LINK = re.compile(r"\b[Ll]ink (-?\d+)")
_FALLEN = "fallen off the bus"
_GPU_FALLEN = re.compile(r"NVRM:\s*GPU (?P<pci>[0-9a-fA-F:.]+): GPU has fallen off the bus")
# The sentence of which `fallen off the bus` is the last of up to three lines.
_SENTENCE = re.compile(r"NVRM:\s*The NVIDIA GPU (?P<pci>[0-9a-fA-F:.]+)")
_SENTENCE_LINES_MAX = 3
_STAMP = re.compile(r"^\S*\s*\[\s*(\d+\.\d+)\]")
_FALLEN_XID = 79


class KernelLogParser:
    """Fed line by line; it remembers what it needs to see several lines as the one event that they are."""

    def __init__(self) -> None:
        self._first_seen_s: dict[tuple[str, ...], float] = {}
        self._sentence_pci = ""
        self._sentence_lines = 0

    def feed(self, line: str, now_s: float) -> Finding | None:
        """The finding that this line opens, or None.

        now_s: when the line was read, in seconds; used for a line without the kernel's own stamp.
        """
        stamp = _STAMP.match(line)
        at_s = float(stamp.group(1)) if stamp else now_s
        if match := _XID.search(line):
            instance = match["mig"] or ""
            return self._finding("XID", match["code"], match["pci"] or "", line, at_s, instance, _link(line))
        if match := _SXID.search(line):
            kind = "SXID_FATAL" if match["rest"].startswith("Fatal") else "SXID"
            # Lines of raw detail follow without a link number, so the link cannot tell them apart.
            return self._finding(kind, match["code"], match["pci"], line, at_s)
        if pci := self._fallen_off(line):
            return self._finding("XID", str(_FALLEN_XID), pci, line, at_s, "", "")
        return None

    def _fallen_off(self, line: str) -> str:
        if match := _GPU_FALLEN.search(line):
            return match["pci"] if normal_pci(match["pci"]) else ""
        if match := _SENTENCE.search(line):
            self._sentence_pci = match["pci"] if normal_pci(match["pci"]) else ""
            self._sentence_lines = _SENTENCE_LINES_MAX
        if not self._sentence_pci:
            return ""
        self._sentence_lines -= 1
        pci, ended = self._sentence_pci, _FALLEN in line
        if ended or self._sentence_lines == 0:
            self._sentence_pci = ""
        return pci if ended else ""

    def _finding(self, kind: str, code: str, pci: str, line: str, at_s: float, *detail: str) -> Finding | None:
        if int(code) > _CODE_MAX:
            return None
        device = normal_pci(pci)
        key = (kind[:4], code, device, *detail)
        first_s = self._first_seen_s.get(key)
        # A stamp before the first one means that the machine booted meanwhile.
        if first_s is not None and first_s <= at_s < first_s + FOLD_S:
            return None
        if len(self._first_seen_s) >= FOLDED_MAX:
            del self._first_seen_s[next(iter(self._first_seen_s))]
        self._first_seen_s[key] = at_s
        text = line.strip().encode()[:TEXT_BYTES_MAX].decode(errors="ignore")
        return Finding(kind, text, code=int(code), pci=device)


def _link(line: str) -> str:
    match = _LINK.search(line)
    return match.group(1) if match else ""
