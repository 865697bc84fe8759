"""What a process composes: services that register on one gRPC server and then run until they are cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from switchgear.core import rpc
from switchgear.core.tls import TlsFiles


@dataclass(frozen=True, slots=True)
class Endpoints:
    """gRPC addresses (host:port) of the services; all the same when they share a process."""

    collector: str
    scheduler: str
    recovery: str
    autoscaler: str
    gateway: str
    #: How to prove who we are to them; None: plain gRPC, which they speak on loopback only.
    tls: TlsFiles | None = None

    @classmethod
    def all_at(cls, address: str, tls: TlsFiles | None = None) -> Endpoints:
        return cls(address, address, address, address, address, tls)

    def channel(self, service: str) -> grpc.aio.Channel:
        """A channel to one of the services, by its field's name."""
        return rpc.channel(getattr(self, service), self.tls)


class Service(Protocol):
    """One of the control plane's services, as `main.py` of each builds it."""

    #: Full names of the gRPC services that `register` adds, for health and reflection.
    service_names: Sequence[str]

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; called before the server starts."""

    async def run(self, endpoints: Endpoints) -> None:
        """Runs the loops until cancelled; called after the server has started. May be started again after a crash."""
