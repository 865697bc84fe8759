"""Composes `switchgear inference scale`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry

from switchgear.autoscaler.adapters.fetch import Fetcher
from switchgear.autoscaler.external import state
from switchgear.autoscaler.external.board import Board
from switchgear.autoscaler.external.deciding import Deciding
from switchgear.autoscaler.external.following import Edges, Follower
from switchgear.autoscaler.external.keda import SERVICE, ExternalScaler
from switchgear.autoscaler.external.looking import looker_of
from switchgear.autoscaler.external.metrics import BoardCollector, ExternalMetrics
from switchgear.autoscaler.external.settings import Service
from switchgear.core import rpc
from switchgear.core.clock import Clock
from switchgear.core.errors import FailedPrecondition, Invalid, Reason
from switchgear.core.metrics import MetricsServer
from switchgear.core.observation import Observation
from switchgear.core.process import only_one
from switchgear.core.tls import TlsFiles
from switchgear.keda import external_scaler_pb2_grpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScaleSettings:
    """listen: of the external scaler (gRPC). metrics: of `/metrics`. tls: who we are and whose clients alone may ask; None: all, on loopback.

    state_dir: of decisions and what is learned; one process holds it.
    """

    services: Sequence[Service]
    state_dir: Path
    listen: str
    metrics: str
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where it listens."""

    grpc: str
    metrics: str


@asynccontextmanager
async def running(settings: ScaleSettings, clock: Clock, registry: CollectorRegistry) -> AsyncIterator[Addresses]:
    """Scales until the block ends.

    Raises Invalid for a policy, engine or file that does not exist, FailedPrecondition when the state directory or a port is in use, or an
    address is beyond loopback without TLS.
    """
    board = Board([service.name for service in settings.services], clock)
    metrics = ExternalMetrics(registry)
    registry.register(BoardCollector(board, clock))
    server = rpc.Server(outermost=[Observation(registry)])
    external_scaler_pb2_grpc.add_ExternalScalerServicer_to_server(ExternalScaler(board), server.grpc)
    async with AsyncExitStack() as stack:
        stack.enter_context(only_one(settings.state_dir, "switchgear inference scale"))
        followers = [
            await stack.enter_async_context(follower(service, settings.state_dir, board, metrics, clock))
            for service in settings.services
        ]
        address = await server.start(settings.listen, [SERVICE], _credentials(settings.tls))
        stack.push_async_callback(server.stop)
        stack.callback(board.close)
        page = MetricsServer.of(registry, settings.metrics, settings.tls)
        stack.callback(page.close)
        async with asyncio.TaskGroup() as tasks:
            running_now = [tasks.create_task(follower.run()) for follower in followers]
            try:
                yield Addresses(address, page.address)
            finally:
                for task in running_now:
                    task.cancel()


@asynccontextmanager
async def follower(
    service: Service, state_dir: Path, board: Board, metrics: ExternalMetrics, clock: Clock
) -> AsyncIterator[Follower]:
    """Follows the service from where a process before left it, with its files in a folder of its name. Raises as `running`."""
    folder = state_dir / service.name
    folder.mkdir(parents=True, exist_ok=True)
    kept = state.load(folder / state.FILE)
    deciding = deciding_of(service, kept)
    interval_s = deciding.interval_s
    unix_s = clock.unix_ns() / 1e9
    ahead_s = 0.0
    if kept is not None:
        ahead_s = kept.now_s + max(0.0, unix_s - kept.unix_s) - clock.monotonic_s()
    files = {"token_file": service.bearer_token_file, "ca_file": service.ca_file}
    async with Fetcher(timeout_s=min(service.timeout_s, interval_s), **files) as fetcher:
        edges = Edges(board, metrics, clock, folder)
        yield Follower(deciding, looker_of(service, fetcher, interval_s), edges, interval_s=interval_s, ahead_s=ahead_s)


def deciding_of(service: Service, kept: state.State | None) -> Deciding:
    """That goes on from what was kept; without what its policy had learned, when that means nothing to it."""
    try:
        return Deciding(service, kept)
    except (Invalid, LookupError, TypeError, ValueError) as error:
        if kept is None or kept.memory is None:
            raise
        log.warning("what %s learned about %s cannot be used (%s); it begins anew", service.policy, service.name, error)
        return Deciding(service, replace(kept, memory=None))


def _credentials(files: TlsFiles | None) -> grpc.ServerCredentials | None:
    """Clients must bring a certificate of our CA."""
    if files is None or files.certificate is None or files.key is None:
        return None
    try:
        ca, certificate, key = (path.read_bytes() for path in (files.ca, files.certificate, files.key))
    except OSError as error:
        raise FailedPrecondition(
            f"cannot read {error.filename} ({error.strerror}); name PEM files, such as those of `switchgear init`",
            Reason.TLS_FILES,
        ) from error
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)
