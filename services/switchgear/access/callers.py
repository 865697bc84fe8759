"""Who makes a call: a person by token, a machine by certificate, or whoever is on this machine when there is no TLS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from switchgear.access.people import People
from switchgear.core import names
from switchgear.core.errors import Reason, SwitchgearError, Unauthenticated
from switchgear.core.identity import LOCAL, Identity, Kind

_KINDS = {"nodes": Kind.NODE, "services": Kind.SERVICE}


class Callers:
    """secure: whether there is TLS. Without it everybody is LOCAL: nothing is reachable from beyond loopback."""

    def __init__(self, people: People, *, secure: bool) -> None:
        self._people = people
        self._secure = secure

    async def identify(self, authorization: str | None, uris: Sequence[str]) -> Identity:
        """authorization: value of that header, None when there is none. uris: of the peer's verified certificate.

        A header wins over a certificate: the gateway hands on what people send it, under its own certificate.
        Raises Unauthenticated.
        """
        if not self._secure:
            return LOCAL
        if authorization is not None:
            return await self._people.holder(authorization)
        for uri in uris:
            if identity := of_uri(uri):
                return identity
        raise Unauthenticated(
            "there is no token; send `authorization: Bearer sgt_…` (the command line reads $SWITCHGEAR_TOKEN, $SWITCHGEAR_TOKEN_FILE or `token` in its state directory)",
            Reason.UNAUTHENTICATED,
        )


def of_uri(uri: str) -> Identity | None:
    """Whom a certificate names: `switchgear://nodes/gpu-01`, `switchgear://services/control-plane`; None for anything else."""
    scheme, _, name = uri.partition("://")
    collection, _, one = name.partition("/")
    if scheme != "switchgear" or collection not in _KINDS:
        return None
    try:
        return Identity(_KINDS[collection], names.check_id(one, "id"))
    except SwitchgearError:
        return None


def peer_uris(auth_context: Mapping[str, Iterable[bytes]]) -> list[str]:
    """URIs of the certificate that gRPC verified; none on a port that asks for none."""
    return [uri.decode(errors="replace") for uri in auth_context.get("peer_uri", ())]
