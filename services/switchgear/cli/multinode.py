"""`switchgear run` on several machines without a server: this one's part in the job, and the rendezvous where that is its task."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.json_format import MessageToJson

from switchgear.cli import exits
from switchgear.cli.output import tell
from switchgear.cli.rendezvous import Rendezvous
from switchgear.cli.run_options import Rendezvous as Meeting
from switchgear.cli.run_options import Stopping
from switchgear.cli.slurm.ride import Ride
from switchgear.cli.standalone import SPEC_FILE, forget_old
from switchgear.cli.state import default_state_dir
from switchgear.cli.stop_signals import StopSignal
from switchgear.core import names, rpc
from switchgear.core.clock import SystemClock
from switchgear.core.errors import FailedPrecondition, Reason, Unavailable
from switchgear.core.tls import TlsFiles
from switchgear.launcher.lease import Lease
from switchgear.launcher.logs import EchoRule
from switchgear.launcher.main import stay_connected
from switchgear.launcher.settings import LauncherSettings
from switchgear.launcher.spans import Spans
from switchgear.launcher.state import is_held
from switchgear.launcher.supervisor import Supervisor
from switchgear.v1.job_service_pb2 import Job, JobSpec
from switchgear.v1alpha import rendezvous_service_pb2 as pb
from switchgear.v1alpha import rendezvous_service_pb2_grpc as pb_grpc

RETRY_S = 0.5
#: Nodes that are started together do not come in order; a silence that is shorter than this is not told.
PATIENCE_S = 3.0
#: How long the last reports may take to leave.
LAST_WORDS_S = 1.0
#: Runs of one job on one machine, each a node of its own.
PLACES_MAX = 64


@dataclass(frozen=True, slots=True)
class Lender:
    """The engine that the nodes are lent from.

    begin: begins the run, on the node that keeps the job together. orphaned: told on the others, again and again, for how many seconds
    that node has not answered.
    """

    begin: Callable[[], Awaitable[Ride]]
    orphaned: Callable[[float], Awaitable[None]]


async def run(
    name: str, spec: JobSpec, meeting: Meeting, echo: EchoRule, stopping: Stopping, *, lender: Lender | None = None
) -> int:
    """Takes part in the job until it ends; returns the exit code, after a signal 128 and its number.

    lender: None: nodes come by themselves.
    Raises FailedPrecondition when the address is beyond loopback and there are no certificates, its port is in use, or the job has
    no place for this node; Unavailable when nobody answers there in time.
    """
    stop = StopSignal(stopping)
    code = await stop.watch(_take_part(name, spec, meeting, echo, stop, lender=lender))
    if code is None:
        print(f"{names.job_name(name)} was stopped on this node", file=sys.stderr)
        return stop.exit_code
    return code


async def _take_part(
    name: str, spec: JobSpec, meeting: Meeting, echo: EchoRule, stop: StopSignal, *, lender: Lender | None
) -> int:
    tls = _tls(meeting.host)
    job, endpoint = names.job_name(name), f"{meeting.host}:{meeting.port}"
    async with AsyncExitStack() as stack:
        kept: asyncio.Task[None] | None = None
        ride: Ride | None = None
        member = _Member(job, name, spec, meeting, tls=tls, echo=echo, lender=lender)
        grace_s = 0.0
        try:
            await member.start()  # its imports run while the others come
            if meeting.hosts or (meeting.hosts is None and is_here(meeting.host)):
                ride = await lender.begin() if lender else None
                place = Rendezvous(
                    job,
                    meeting.run_id or name,
                    spec,
                    SystemClock(),
                    generation=member.generation,
                    last_call_s=meeting.last_call_s,
                    join_timeout_s=meeting.join_timeout_s,
                    allocation=ride,
                )
                try:
                    server = await place.serve(endpoint, None if tls is None else _server_credentials(tls))
                except FailedPrecondition as error:
                    # Another run on this machine keeps the job together.
                    if error.reason is not Reason.ADDRESS_IN_USE or meeting.hosts:
                        raise
                else:
                    stack.push_async_callback(server.stop)
                    kept = asyncio.create_task(place.run())
                    stack.push_async_callback(_cancelled, kept)
                    if ride:
                        watching = asyncio.create_task(ride.watch(place))
                        stack.push_async_callback(_cancelled, watching)
            code = await member.run()
            grace_s = stop.grace_s if member.cancelled else 0.0
        except asyncio.CancelledError:
            grace_s = stop.grace_s
            if kept is not None:
                if ride:
                    await ride.vacate(place, grace_s)
                await _cancelled(kept)  # before ranks end here: else they would be started again
            raise
        finally:
            await member.close(grace_s, stop.for_ranks)
            if ride:
                await ride.closed(place.nodes)
        if kept is not None:
            await kept
            # The job may have gone on, or ended well, without this node.
            code = _exit_code(place.ended) if place.ended else code
        return code


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class _Member:
    """This node: a supervisor of its ranks, and where it is told what to do."""

    def __init__(
        self,
        job: str,
        name: str,
        spec: JobSpec,
        meeting: Meeting,
        *,
        tls: TlsFiles | None,
        echo: EchoRule,
        lender: Lender | None,
    ) -> None:
        self._job, self._meeting, self._tls, self._lender = job, meeting, tls, lender
        self._endpoint = f"{meeting.host}:{meeting.port}"
        folder, node = _folder_and_node(job, meeting)
        forget_old(folder.parent, f"*@{meeting.node}" if meeting.node else "*")
        if not spec.log_directory:
            spec.log_directory = str(folder / "logs")
        self._request = pb.JoinRequest(
            run_id=meeting.run_id or name,
            node=node,
            address=meeting.local_address or _own_address(meeting.host, meeting.port),
            nproc_per_node=spec.nproc_per_node,
            nnodes_min=spec.nnodes_min,
            nnodes=spec.nnodes,
            node_rank=meeting.node_rank,
        )
        self._settings = LauncherSettings(
            job=job,
            node=node,
            placement_epoch=0,  # it is of whatever placement has this node
            address=self._request.address,
            gpu_indices=None,
            spec=spec,
            state_dir=folder,
            echo=echo,
            lease=Lease(),
        )
        self._supervisor = Supervisor(self._settings)
        (folder / SPEC_FILE).write_text(MessageToJson(spec))  # for `switchgear logs`
        self._connection: asyncio.Task[None] | None = None
        self._told = ""
        #: The job was ended by a signal to the node that keeps it together.
        self.cancelled = False

    async def start(self) -> None:
        """Ends what an earlier run left here and begins the imports. Raises FailedPrecondition as `Supervisor.start` does."""
        await self._supervisor.start()

    @property
    def generation(self) -> int:
        """Newest that this node has accepted, once it is started."""
        return self._supervisor.generation

    async def run(self) -> int:
        """The exit code, once the job has ended or has no place for this node any more; `close` follows."""
        following = asyncio.create_task(self._follow())
        finished = asyncio.create_task(self._supervisor.finished.wait())
        try:
            await asyncio.wait((following, finished), return_when=asyncio.FIRST_COMPLETED)
            # The end of the job is told on both ways.
            await asyncio.wait((following,), timeout=LAST_WORDS_S if finished.done() else None)
            if following.done():
                return following.result()
            tell(
                f"switchgear: {self._job} goes on without this node, which it had given up; start it again to join anew"
            )
            return exits.JOB_FAILED
        finally:
            for task in (following, finished):
                task.cancel()
            await asyncio.gather(following, finished, return_exceptions=True)

    async def close(self, grace_s: float, number: int) -> None:
        """Ends the ranks, by signal `number` first when there is a grace, and lets their last reports leave."""
        await self._supervisor.close(grace_s, number)
        if self._connection is not None:
            await asyncio.wait((self._connection,), timeout=LAST_WORDS_S)
            await _cancelled(self._connection)

    async def _follow(self) -> int:
        heard_s = time.monotonic()
        async with rpc.channel(self._endpoint, self._tls) as channel:
            stub = pb_grpc.RendezvousServiceStub(channel)
            while True:
                self._request.generation = self.generation
                try:
                    async for response in stub.Join(self._request):  # type: ignore[attr-defined]  # the asynchronous stub
                        heard_s = time.monotonic()
                        code = self._take(response)
                        if code is not None:
                            return code
                except grpc.aio.AioRpcError as rpc_error:
                    error = rpc.from_rpc_error(rpc_error)
                    if isinstance(error, FailedPrecondition):
                        raise error from rpc_error
                silent_s = time.monotonic() - heard_s
                if self._lender and not self._meeting.hosts:
                    await self._lender.orphaned(silent_s)
                if silent_s > PATIENCE_S:
                    self._tell(
                        f"nobody answers at {self._endpoint}; ranks go on for their lease, and this node tries again"
                    )
                if silent_s > self._meeting.join_timeout_s:
                    raise Unavailable(
                        f"nobody has answered at {self._endpoint} for {self._meeting.join_timeout_s:g} s; start `switchgear run` on that "
                        "machine too, with the same SWITCHGEAR_TLS_CA if any, or name another with --rdzv-endpoint",
                        Reason.SERVER_UNREACHABLE,
                        address=self._endpoint,
                    )
                await asyncio.sleep(RETRY_S)

    def _take(self, response: pb.JoinResponse) -> int | None:
        if response.job != self._job:
            raise FailedPrecondition(
                f"the job at {self._endpoint} is {response.job}, not {self._job}; give all nodes the same --rdzv-id or --name",
                Reason.BAD_FIELD,
                job=response.job,
            )
        if response.said:
            self._tell(response.said)
        if response.ended:
            self.cancelled = response.ended == Job.CANCELLED
            return _exit_code(response)
        if response.placement_epoch and (self._connection is None or self._connection.done()):
            spans = Spans(self._settings, "", time.time_ns(), SystemClock())
            self._connection = asyncio.create_task(
                stay_connected(self._supervisor, spans, self._endpoint, self._meeting.join_timeout_s)
            )
        elif response.joined:
            self._tell(f"{response.joined} of {response.nnodes} nodes are at {self._endpoint}")
        return None

    def _tell(self, line: str) -> None:
        if line != self._told:
            try:
                tell(f"switchgear: {line}")
            except BrokenPipeError:
                pass  # whoever listened is gone, as srun with the first node of a job; the job is not
        self._told = line


def _exit_code(ended: pb.JoinResponse) -> int:
    if ended.continues:
        return exits.CONTINUES
    return exits.OK if ended.ended == Job.SUCCEEDED else exits.JOB_FAILED


def _tls(host: str) -> TlsFiles | None:
    """Raises FailedPrecondition (INSECURE_BIND) when the host is beyond loopback and this node has no certificate."""
    tls = TlsFiles.from_environment(os.environ)
    if tls is not None and tls.certificate and tls.key:
        return tls
    if rpc.is_loopback(host):
        return None
    raise FailedPrecondition(
        f"nodes that meet at {host} need certificates, since each runs what it is told there; make them once with `switchgear init "
        f"--state-dir DIR --host {host}`, and on every node set SWITCHGEAR_TLS_CA=DIR/pki/ca.crt, "
        "SWITCHGEAR_TLS_CERTIFICATE=DIR/pki/service.crt and SWITCHGEAR_TLS_KEY=DIR/pki/service.key",
        Reason.INSECURE_BIND,
        host=host,
    )


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    ca, certificate, key = (path.read_bytes() for path in (tls.ca, tls.certificate, tls.key) if path)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)


def is_here(host: str) -> bool:
    """Whether the address is one of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _own_address(host: str, port: int) -> str:
    """The address from which this machine reaches the other one. Raises Unavailable when its name is not known here."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise Unavailable(
            f"cannot find {host} ({error.strerror}); write a name or address of one machine of the job as --rdzv-endpoint",
            Reason.SERVER_UNREACHABLE,
            address=host,
        ) from error


def _folder_and_node(job: str, meeting: Meeting) -> tuple[Path, str]:
    """Where this run keeps its state, and its node's name: a run that is started again finds those of the one before."""
    base, node_rank = default_state_dir() / "standalone", meeting.node_rank
    if meeting.node:
        return base / f"{job.rpartition('/')[2]}@{meeting.node}", names.node_name(meeting.node)
    host = names.to_id(socket.gethostname())[:50].rstrip(".-")
    for place in range(1, PLACES_MAX + 1):
        part = f"r{node_rank}" if node_rank is not None else str(place)
        node = host if part == "1" else f"{host}-{part}"
        folder = base / f"{job.rpartition('/')[2]}@{node}"
        if node_rank is not None or not is_held(folder):
            return folder, names.node_name(node)
    raise FailedPrecondition(
        f"{PLACES_MAX} runs of {job} are on this machine already", Reason.JOB_ALREADY_RUNNING, job=job
    )
