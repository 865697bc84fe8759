"""The tables beside this file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

_FOLDER = Path(__file__).parent


def rows(name: str) -> list[Mapping[str, str]]:
    """All rows of `{name}.csv`."""
    with (_FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
