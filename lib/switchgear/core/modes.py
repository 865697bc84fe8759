"""What a policy may do with its decision."""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """The names are those of `switchgear.v1.Policy.Mode`."""

    #: Decides and counts, tells nobody.
    OBSERVE = "OBSERVE"
    #: Says what it would do where people look, and does nothing.
    ADVISE = "ADVISE"
    ACT = "ACT"
