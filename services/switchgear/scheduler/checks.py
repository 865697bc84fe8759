"""How a field of a specification is refused."""

from __future__ import annotations

from switchgear.core.errors import Invalid, Reason


def check_text(field: str, text: str, bytes_max: int) -> None:
    """Raises Invalid when it is longer, or holds NUL, which PostgreSQL does not take."""
    if len(text.encode()) > bytes_max:
        raise too_large(field, f"is longer than {bytes_max} bytes; shorten it")
    if "\0" in text:
        raise bad(field, "must not contain NUL")


def check_count(field: str, value: float, low: float, high: float) -> None:
    """Raises Invalid outside of these bounds, and for NaN."""
    if not low <= value <= high:
        raise bad(field, f"must be {low:.15g} to {high:.15g}, not {value:.15g}")


def bad(field: str, problem: str) -> Invalid:
    return Invalid(f"spec.{field} {problem}", Reason.BAD_FIELD, field=f"spec.{field}")


def too_large(field: str, problem: str) -> Invalid:
    return Invalid(f"spec.{field} {problem}", Reason.LIMIT_EXCEEDED, field=f"spec.{field}")
