"""What stands before a kernel message, in each form in which it reaches us: /dev/kmsg, dmesg with any of its stamps, syslog, journald.

Every expression is anchored and bounded, so that no text takes long.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DAY_S = 86_400
#: More layers than any real line has: syslog around dmesg around a record.
_LAYERS_MAX = 5

_RECORD = re.compile(r"(?P<priority>\d{1,4}),\d{1,20},(?P<us>\d{1,18}),[^;]{0,80};")
_LEVEL = re.compile(
    r"(?P<facility>kern|user|mail|daemon|auth|syslog|lpr|news|uucp|cron|authpriv|ftp|local[0-7]) {0,6}: ?"
    r"(?:emerg|alert|crit|err|warn|notice|info|debug) {0,6}: ?"
)
_UPTIME = re.compile(r"\[ {0,12}(?P<s>\d{1,12}\.\d{1,9})\](?: ?\[ {0,8}[TC]\d{1,10}\])? ?")
# Of dmesg --human, which tells the time once a minute; or left out by whoever quotes.
_RELATIVE = re.compile(r"\[(?:[A-Z][a-z]{2} ?\d{1,2} \d\d:\d\d| {0,8}\+\d{1,6}\.\d{1,6}|\.\.\.)\] ?")
# Of dmesg --raw and of what the firmware kept of a panic.
_PRIORITY = re.compile(r"<(?P<priority>\d{1,4})>")
_REPEATED = re.compile(r"message repeated \d{1,9} times: \[ ?")
_CLOCK = r"(?P<h>\d\d):(?P<m>\d\d):(?P<sec>\d\d)"
_DATE = re.compile(rf"\[[A-Z][a-z]{{2}} [A-Z][a-z]{{2}} {{1,2}}\d{{1,2}} {_CLOCK} \d{{4}}\] ?")
_MANAGER = re.compile(rf"\[[A-Z][a-z]{{2}} \d{{1,2}} \d{{4}} {_CLOCK}\] (?=\[)")
_ISO = re.compile(
    rf"(?:[A-Z][a-z]{{2}} )?\d{{4}}-\d\d-\d\d[T ]{_CLOCK}(?P<fraction>[.,]\d{{1,9}})?(?:Z|[+-]\d\d:?\d\d| [A-Z]{{2,5}})? "
)
_SYSLOG = re.compile(rf"[A-Z][a-z]{{2}} {{1,2}}\d{{1,2}} {_CLOCK}(?P<fraction>\.\d{{1,9}})? ")
_UNIX = re.compile(r"(?P<s>\d{9,10}\.\d{6}) ")
# RFC 5424: stamp, host, program, its id, kind of message, data.
_FRAME = re.compile(
    rf"<\d{{1,3}}>1 \d{{4}}-\d\d-\d\dT{_CLOCK}(?P<fraction>\.\d{{1,9}})?(?:Z|[+-]\d\d:\d\d) [^\s]{{1,255}} "
    r"(?P<program>[^\s]{1,48}) [^\s]{1,128} [^\s]{1,32} (?:-|\[[^\]]{0,512}\]) ?"
)
_KERNEL = re.compile(r"(?:[^\s:\[\]]{1,255} )?kernel(?:\[\d{1,10}\])?: ?")
# Only behind a stamp that syslog or journald writes: without one it looks like a kernel message of a driver and its device.
_PROGRAM = re.compile(r"[^\s:]{1,255} (?P<program>[A-Za-z][\w.@/-]{0,63})(?:\[\d{1,10}\])?: ?")


@dataclass(frozen=True, slots=True)
class Line:
    """text: the message alone. form: names the layers before it; lines of one log have the same. at_s: the stamp in seconds, of the
    boot or of the day, or None. program: who wrote it, "" for the kernel.
    """

    text: str
    form: str
    at_s: float | None
    program: str = ""


def split(line: str) -> Line:
    """Never raises, whatever the text is."""
    at_s: float | None = None
    form = program = ""
    position = 0
    for _ in range(_LAYERS_MAX):
        layer = _layer(line, position, form)
        if layer is None:
            break
        name, end, stamp_s, wrote = layer
        position, form = end, form + name
        at_s = stamp_s if stamp_s is not None else at_s
        program = program or wrote
    return Line(line[position:], form, at_s, program)


def _layer(line: str, position: int, form: str) -> tuple[str, int, float | None, str] | None:
    """Name, end, stamp and program of the layer at `position`."""
    if match := _UPTIME.match(line, position):
        return "u", match.end(), float(match["s"]), ""
    if match := None if form else _FRAME.match(line, position):
        return "f", match.end(), _of_day_s(match), "" if match["program"] == "kernel" else match["program"]
    if match := None if form else _RECORD.match(line, position) or _PRIORITY.match(line, position):
        # Facility 0 is the kernel; programs may write into the ring too.
        us = match.groupdict().get("us")
        return "r", match.end(), int(us) / 1e6 if us else None, "" if int(match["priority"]) >> 3 == 0 else "user"
    if match := _KERNEL.match(line, position):
        return "k", match.end(), None, ""
    if (match := _LEVEL.match(line, position)) and not form:
        return "l", match.end(), None, "" if match["facility"] == "kern" else match["facility"]
    if match := _RELATIVE.match(line, position):
        return "h", match.end(), None, ""
    if match := _REPEATED.match(line, position):
        return "", match.end(), None, ""
    for name, pattern in (("d", _DATE), ("m", _MANAGER), ("i", _ISO), ("s", _SYSLOG), ("x", _UNIX)):
        if match := pattern.match(line, position):
            end, program = match.end(), "nv-fabricmanager" if name == "m" else ""
            # dmesg writes the fraction behind a comma, and neither host nor program.
            if (name in "sx" or (name == "i" and not (match["fraction"] or "").startswith(","))) and "l" not in form:
                wrote = None if _KERNEL.match(line, end) else _PROGRAM.match(line, end)
                end, program = (wrote.end(), wrote["program"]) if wrote else (end, "")
            return name, end, _of_day_s(match), program
    return None


def _of_day_s(match: re.Match[str]) -> float:
    groups = match.groupdict()
    if "s" in groups:
        return float(groups["s"]) % _DAY_S
    fraction = float("0." + groups["fraction"][1:]) if groups.get("fraction") else 0.0
    return (int(match["h"]) * 3600 + int(match["m"]) * 60 + int(match["sec"])) % _DAY_S + fraction
