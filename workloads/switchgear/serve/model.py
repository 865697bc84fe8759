"""What a program must bring to be served: a model that knows the next token of each sequence of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, eq=False)
class Sequence:
    """One request while it is generated. temperature: 0 takes the most likely token."""

    number: int
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int
    generated: list[int] = field(default_factory=list)

    def tokens(self, last: int) -> list[int]:
        """The newest `last` tokens of prompt and answer, or as many as there are."""
        return [*self.prompt[-last:], *self.generated[-last:]][-last:]

    def uniform(self) -> float:
        """The random number in [0, 1) that draws the next token.

        It depends on the seed and the place alone, so that an answer does not depend on the replica nor on who else is in the batch.
        """
        digest = hashlib.blake2b(f"{self.seed}/{len(self.generated)}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float has


class Model(Protocol):
    """Used by one thread at a time."""

    #: Ends an answer when it is generated; None: answers end at `max_tokens`.
    end_token: int | None

    def encode(self, text: str) -> list[int]:
        """Tokens of the text, at least one."""

    def decode(self, tokens: Items[int]) -> str: ...

    def next_tokens(self, sequences: Items[Sequence]) -> list[int]:
        """The next token of each. For temperature 0 it must not depend on the other sequences of the batch."""
