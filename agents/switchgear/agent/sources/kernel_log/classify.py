"""What one line says, on its own merits. Pure, and bounded in time whatever the text is."""

from __future__ import annotations

from collections.abc import Sequence

from switchgear.agent.sources.kernel_log import devices, hosts, nvidia
from switchgear.agent.sources.kernel_log.classified import Classified
from switchgear.agent.sources.kernel_log.prefix import Line, split
from switchgear.agent.sources.kernel_log.rule import Rule

#: The kernel's own lines end at 1 KiB or so; what is longer is cut.
LINE_CHARS_MAX = 8192
#: Rules whose literal is in the text; a line with more of them is a text about kernel logs.
_TRIED_MAX = 12

#: The first that matches counts.
_RULES: Sequence[Rule] = (*nvidia.RULES, *hosts.RULES, *devices.RULES)


def classify(line: str, driver_version: str = "") -> Classified | None:
    """The event that `line` tells, or None. driver_version: of the NVIDIA driver, decides how XIDs 144 to 150 are read."""
    return classify_message(split(line[:LINE_CHARS_MAX]), driver_version)


def classify_message(line: Line, driver_version: str = "") -> Classified | None:
    """The same for a line that has been split."""
    text, tried = line.text, 0
    for rule in _RULES:
        if rule.literal not in text:
            continue
        if line.program and not rule.userspace:
            continue
        if found := rule.find(text, driver_version):
            return found
        tried += 1
        if tried == _TRIED_MAX:
            break
    return None
