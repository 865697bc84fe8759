"""What the collector records: `[recording]` of its configuration file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from switchgear.collector.settings import Section


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return value


Expression = Annotated[str, AfterValidator(_expression)]


class Recording(Section):
    """folder: where files go, one collector a folder; without it nothing is recorded.

    bytes_max: of all files in it; beyond it the oldest go. Ten seconds of thousands of nodes, written at once, must be little of it.
    file_minutes: how long one file is written to.
    keep, drop: regular expressions of whole names of metrics; keep: only these; drop: not these. `drop = ".*"` leaves events alone.
    """

    folder: Path | None = None
    bytes_max: int = Field(default=10 * 1024**3, ge=256 * 1024**2)
    file_minutes: float = Field(default=10.0, gt=0, le=24 * 60)
    keep: Expression = ""
    drop: Expression = ""
