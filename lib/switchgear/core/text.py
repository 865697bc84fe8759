"""Text of others, made safe to show: names, messages and paths that a caller, a node or a job has chosen."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with each character that moves a cursor, ends a line or changes the direction of writing as U+FFFD.

    A terminal obeys such characters, and so does whoever reads lines; of the rest nothing changes.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
