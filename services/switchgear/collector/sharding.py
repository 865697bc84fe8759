"""Which of several collectors takes in a node: the same answer everywhere, without anybody keeping a table."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Self

from pydantic import Field, field_validator, model_validator

from switchgear.collector.settings import Section
from switchgear.core.errors import Invalid
from switchgear.core.rpc import split_address

#: Far more than any cluster needs at thousands of nodes each; a choice costs one digest for each.
COLLECTORS_MAX = 64


class Sharding(Section):
    """`[sharding]` of the configuration file. Empty: one collector takes in all nodes.

    collectors: HOST:PORT of all of them, as agents dial them, in any order; the same list in each one's file.
    own: which of them this one is.
    """

    collectors: tuple[str, ...] = Field(default=(), max_length=COLLECTORS_MAX)
    own: str = ""

    @field_validator("collectors")
    @classmethod
    def _addresses(cls, collectors: tuple[str, ...]) -> tuple[str, ...]:
        try:
            for address in collectors:
                if split_address(address)[1] == 0:
                    raise ValueError(f"{address}: agents cannot dial port 0; name the port at which it listens")
        except Invalid as error:
            raise ValueError(error.message) from None
        if len(set(collectors)) != len(collectors):
            raise ValueError("a collector is named twice")
        return collectors

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.collectors and not self.own:
            raise ValueError("own must say which of the collectors this one is")
        if self.own and self.own not in self.collectors:
            raise ValueError(f"own = {self.own!r} is none of the collectors; write it as it is in the list")
        return self

    def elsewhere(self, node: str) -> str:
        """Address of the collector of `nodes/{node}`, or "" when it is this one."""
        found = owner(node, self.collectors) if self.collectors else ""
        return "" if found == self.own else found


def owner(node: str, collectors: Sequence[str]) -> str:
    """The collector of a node: the one whose digest with the node is greatest.

    Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): with one more of N collectors only
    about 1/(N+1) of the nodes move, all of them to the new one; with one less only its own move. Needs one collector at least.
    """
    return max(collectors, key=lambda address: (_weight(node, address), address))


def _weight(node: str, address: str) -> bytes:
    return blake2b(f"{address}\0{node}".encode(), digest_size=8).digest()
