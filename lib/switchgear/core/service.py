"""What a process composes: services that register on one gRPC server and then run until they are cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc.aio


@dataclass(frozen=True, slots=True)
class Endpoints:
    """gRPC addresses (host:port) of the services; all the same when they share a process."""

    collector: str
    scheduler: str
    recovery: str

    @classmethod
    def all_at(cls, address: str) -> Endpoints:
        return cls(collector=address, scheduler=address, recovery=address)


class Service(Protocol):
    """One of the control plane's services, as `main.py` of each builds it."""

    #: Full names of the gRPC services that `register` adds, for health and reflection.
    service_names: Sequence[str]

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; called before the server starts."""

    async def run(self, endpoints: Endpoints) -> None:
        """Runs the loops until cancelled; called after the server has started. May be started again after a crash."""
