"""Bearer tokens: from a header to a person."""

from __future__ import annotations

import asyncio

from switchgear.access import secret, store
from switchgear.access.model import Token
from switchgear.core.clock import Clock
from switchgear.core.errors import Reason, Unauthenticated
from switchgear.core.identity import Identity, Kind
from switchgear.store.database import Database

#: A revoked token is refused everywhere within this.
FRESH_S = 1.0
#: Between two reads of the table, also while somebody tries one unknown token after another.
_SPACING_S = 0.05


class People:
    """Knows the holders of all tokens; the table (at most `store.TOKENS_MAX` rows) is kept in memory for FRESH_S."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._tokens: dict[str, Token] = {}
        self._read_s = float("-inf")
        self._reading = asyncio.Lock()

    async def holder(self, authorization: str) -> Identity:
        """Whose token the value of an `authorization` header is.

        Raises Unauthenticated when it is no `Bearer` token, or one that is unknown, expired or revoked.
        """
        scheme, _, value = authorization.strip().partition(" ")
        parsed = secret.parse(secret.BEARER, value.strip())
        if scheme.lower() != "bearer" or parsed is None:
            raise _refused("the token has not the form of one; send `authorization: Bearer sgt_…`")
        token_id, digest = parsed
        token = await self._find(token_id)
        if token is None or not secret.same(token.digest, digest):
            raise _refused("the token is unknown; ask an admin for one (`switchgear tokens create`)")
        if token.revoke_time_unix_ns is not None:
            raise _refused("the token was revoked; ask an admin for another (`switchgear tokens create`)")
        if token.expire_time_unix_ns <= self._clock.unix_ns():
            raise _refused("the token has expired; ask an admin for another (`switchgear tokens create`)")
        return Identity(Kind.USER, token.user, token.role)

    async def _find(self, token_id: str) -> Token | None:
        """From memory while that is fresh. A token that is not there may be new: then a read that begins now decides."""
        asked_s = self._clock.monotonic_s()
        if asked_s - self._read_s < FRESH_S and (token := self._tokens.get(token_id)):
            return token
        async with self._reading:
            if self._read_s <= asked_s:
                if (wait_s := self._read_s + _SPACING_S - asked_s) > 0:
                    await asyncio.sleep(wait_s)
                began_s = self._clock.monotonic_s()
                async with self._database.read() as session:
                    tokens = await store.tokens_before(session, None, store.TOKENS_MAX)
                self._tokens = {token.token_id: token for token in tokens}
                self._read_s = began_s
        return self._tokens.get(token_id)


def _refused(message: str) -> Unauthenticated:
    return Unauthenticated(message, Reason.UNAUTHENTICATED)
