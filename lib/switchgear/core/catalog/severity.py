"""How bad something is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """What a fault means for whoever uses its subject."""

    INFO = "INFO"
    WARNING = "WARNING"
    #: The subject cannot do its work.
    FATAL = "FATAL"


@dataclass(frozen=True, slots=True)
class Verdict:
    """action: in the words of NVIDIA's catalog where the fault is in it."""

    action: str
    severity: Severity
