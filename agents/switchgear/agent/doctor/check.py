"""What the doctor says: one sentence a thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """OK: seen as it should be. NOTE: not there or not seen, which may be meant so. PROBLEM: broken, or there and not seen."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """topic: what was looked at, in a word or two. remedy: what helps, "" when nothing is to be done.

    gpus: indices, () for what is the node's. unfit: no job should start on this node before it is mended.
    """

    topic: str
    state: State
    text: str
    remedy: str = ""
    gpus: tuple[int, ...] = ()
    unfit: bool = False


def ok(topic: str, text: str) -> Check:
    return Check(topic, State.OK, text)


def note(topic: str, text: str, remedy: str = "") -> Check:
    return Check(topic, State.NOTE, text, remedy)


def problem(topic: str, text: str, remedy: str, *, unfit: bool = False) -> Check:
    return Check(topic, State.PROBLEM, text, remedy, unfit=unfit)
