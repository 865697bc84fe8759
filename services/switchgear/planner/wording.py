"""Names and amounts in sentences."""

from __future__ import annotations

from collections.abc import Sequence

_NAMED_MAX = 5


def named(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, c, d, e and 3 more`."""
    shown = list(names[:_NAMED_MAX])
    if len(names) > _NAMED_MAX:
        shown.append(f"{len(names) - _NAMED_MAX} more")
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def amount(gpu_s: float) -> str:
    """`no GPU time`, `90 GPU-seconds`, `2.5 GPU-hours`."""
    if not gpu_s:
        return "no GPU time"
    return f"{gpu_s / 3600:.3g} GPU-hours" if gpu_s >= 3600 else f"{gpu_s:.3g} GPU-seconds"


def duration(seconds: float) -> str:
    """`90 s`, `45 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def exact(value: float) -> str:
    """Without an exponent, and without zeros that say nothing."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
