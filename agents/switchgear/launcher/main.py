"""The launcher process: the supervisor on the wire, connected to recovery for as long as the job lives."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import psutil
from google.protobuf import json_format

from switchgear.core import log as log_setup
from switchgear.core import names, rpc, trace
from switchgear.core.clock import SystemClock
from switchgear.core.errors import Invalid, Reason, SwitchgearError
from switchgear.core.tls import TlsFiles
from switchgear.launcher.lease import Lease
from switchgear.launcher.settings import LauncherSettings
from switchgear.launcher.spans import Spans
from switchgear.launcher.supervisor import Supervisor
from switchgear.launcher.warm_zygote import WarmZygote
from switchgear.launcher.zygote import kind_of
from switchgear.v1.job_service_pb2 import JobSpec
from switchgear.v1alpha import launcher_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from switchgear.v1alpha.launcher_service_pb2_grpc import LauncherServiceAsyncStub

    _Stream = grpc.aio.StreamStreamCall[pb.LauncherReport, pb.LauncherCommand]

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
#: First and longest wait before the next connection; half of it is random, so that a cluster does not come back in step.
_BACKOFF_S = (0.1, 2.0)
#: What SIGTERM leaves the ranks; whoever stops launchers waits 10 s.
_GRACE_S = 5.0
#: A launcher that hears nothing for so long ends: its lease is over and its ranks are gone by then, and a control plane that comes
#: back after all has its agent start a new one.
_GIVE_UP_S = 900.0
#: How long the last reports may take to leave.
_LAST_WORDS_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--job", required=True, help="jobs/NAME")
    parser.add_argument("--placement-epoch", type=int, required=True)
    parser.add_argument("--node", required=True, help="nodes/NAME")
    parser.add_argument("--address", required=True, help="address of this node at which other ranks reach rank 0")
    parser.add_argument(
        "--gpu-indices",
        help="0,1,...: GPUs of this node that the job has; empty: none (default: those that the engine which started this has given it)",
    )
    parser.add_argument("--recovery", required=True, help="HOST:PORT")
    parser.add_argument("--autoscaler", default="", help="HOST:PORT; for replicas of inference services")
    parser.add_argument("--spec", type=Path, required=True, help="file with the job's JobSpec in canonical proto JSON")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder private to this job and node")
    parser.add_argument("--trace-parent", default="", help="W3C traceparent of what this launcher is started for")


def main(args: argparse.Namespace) -> int:
    log_setup.configure(component="launcher")
    trace.configure("launcher")
    return asyncio.run(run_job(args, None, round(psutil.Process().create_time() * 1e9)))


async def run_job(args: argparse.Namespace, zygote: WarmZygote | None, begun_ns: int) -> int:
    """Runs what the command line says. zygote: a warm one of the kind that the job has; None: it has to be made.

    begun_ns: when this launcher was started, or was given its job.
    """
    try:
        settings = settings_from(args)
        if zygote is not None and zygote.kind != kind_of(settings.spec, settings.python):
            await zygote.close()
            zygote = None
        return await run(settings, args.recovery, args.trace_parent, zygote, begun_ns)
    except SwitchgearError as error:
        log.error(error.message, extra={"reason": error.reason.value})
        return 1


def settings_from(args: argparse.Namespace) -> LauncherSettings:
    """Raises Invalid when a name, the GPU list or the spec file cannot be read."""
    names.parse(args.job, "jobs/*")
    names.parse(args.node, "nodes/*")
    try:
        indices = args.gpu_indices
        gpu_indices = None if indices is None else tuple(int(index) for index in indices.split(",") if index)
        spec = json_format.Parse(args.spec.read_text(encoding="utf-8"), JobSpec())
    except (OSError, ValueError, json_format.ParseError) as error:
        raise Invalid(f"cannot read the job: {error}", Reason.BAD_FIELD, spec=str(args.spec)) from error
    return LauncherSettings(
        job=args.job,
        node=args.node,
        placement_epoch=args.placement_epoch,
        address=args.address,
        gpu_indices=gpu_indices,
        spec=spec,
        state_dir=args.state_dir,
        python=sys.executable,
        # Serving goes on without the control plane: a replica writes nothing that a second one could spoil.
        lease=None if spec.workload == JobSpec.INFERENCE else Lease(),
        autoscaler=args.autoscaler,
    )


async def run(
    settings: LauncherSettings, recovery: str, trace_parent: str, zygote: WarmZygote | None, begun_ns: int
) -> int:
    """Supervises until the job has ended, and answers 0, or until SIGTERM or SIGINT, and answers 143; ranks that run then are stopped first.

    trace_parent: of what it is started for, see `core.trace`. zygote, begun_ns: as in `run_job`.
    Raises FailedPrecondition (JOB_ALREADY_RUNNING) when another launcher holds the state folder.
    """
    supervisor = Supervisor(settings, zygote=zygote)
    spans = Spans(settings, trace_parent, begun_ns, SystemClock())
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, terminated.set)
    await supervisor.start()
    patience_s = _GIVE_UP_S if settings.lease else math.inf
    connection = asyncio.create_task(stay_connected(supervisor, spans, recovery, patience_s))
    ends = [asyncio.create_task(event.wait()) for event in (supervisor.finished, terminated)]
    try:
        await asyncio.wait([*ends, connection], return_when=asyncio.FIRST_COMPLETED)
        # A request that came in the last moment may be in a replica; ranks of training have nothing to finish.
        gentle = terminated.is_set() or settings.spec.workload == JobSpec.INFERENCE
        await supervisor.close(_GRACE_S if gentle else 0)
        await asyncio.wait([connection], timeout=_LAST_WORDS_S)
    finally:
        for task in (*ends, connection):
            task.cancel()
        await asyncio.gather(*ends, connection, return_exceptions=True)
    # Slurm says of a job that never began, and was ended, that its exit code is 0: one that began has another.
    return 128 + signal.SIGTERM if terminated.is_set() and not supervisor.finished.is_set() else 0


async def stay_connected(supervisor: Supervisor, spans: Spans, recovery: str, patience_s: float) -> None:
    """Until the supervisor is closed and its last report is out, or nobody has answered for so long."""
    backoff_s = _BACKOFF_S[0]
    now = asyncio.get_running_loop().time
    heard_s = now()
    silence = ""

    def hear() -> None:
        nonlocal heard_s, silence
        heard_s, silence = now(), ""

    async with rpc.channel(recovery, TlsFiles.from_environment(os.environ)) as channel:
        stub: LauncherServiceAsyncStub = pb_grpc.LauncherServiceStub(channel)  # type: ignore[assignment]
        while now() - heard_s < patience_s:
            try:
                if await _converse(supervisor, spans, stub, hear):
                    return
                backoff_s = _BACKOFF_S[0]
                log.info("recovery closed the stream")
            except grpc.aio.AioRpcError as error:
                if silence != error.code().name:  # once an outage, not once a try
                    log.info("recovery does not answer", extra={"code": error.code().name, "details": error.details()})
                silence = error.code().name
            except Exception as error:  # whatever it is, ranks are in our care: say it and connect again
                if silence != repr(error):
                    log.exception("the conversation with recovery broke")
                silence = repr(error)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1))
            backoff_s = min(backoff_s * 2, _BACKOFF_S[1])
    log.error("recovery has not answered for %d s: this launcher ends", patience_s)


async def _converse(
    supervisor: Supervisor, spans: Spans, stub: LauncherServiceAsyncStub, hear: Callable[[], None]
) -> bool:
    """One stream from its hello to its end; whether all has been said. Raises AioRpcError when it breaks."""
    stream = stub.Connect()
    writing = asyncio.Lock()  # a stream takes one write at a time; a second one can stall it without an error
    hello = supervisor.hello()
    await stream.write(hello)
    spans.reported(hello)
    listener = asyncio.create_task(_obey(supervisor, spans, stream, hear))
    beats = asyncio.create_task(_beat(supervisor, stream, writing))
    speaker = asyncio.create_task(_speak(supervisor, spans, stream, writing))
    tasks = (listener, beats, speaker)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if speaker in done:
            beats.cancel()
            await stream.done_writing()
            # What was written has arrived once the other side ends the stream.
            await asyncio.wait([listener], timeout=_LAST_WORDS_S)
    finally:
        stream.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return speaker in done


async def _obey(supervisor: Supervisor, spans: Spans, stream: _Stream, hear: Callable[[], None]) -> None:
    async for command in stream:
        hear()
        spans.commanded(command)
        await supervisor.handle(command)


async def _beat(supervisor: Supervisor, stream: _Stream, writing: asyncio.Lock) -> None:
    while True:
        async with writing:
            await stream.write(supervisor.heartbeat())
        await asyncio.sleep(HEARTBEAT_S)


async def _speak(supervisor: Supervisor, spans: Spans, stream: _Stream, writing: asyncio.Lock) -> None:
    async for report in supervisor.reports():
        try:
            async with writing:
                await stream.write(report)
        except BaseException:
            supervisor.put_back(report)
            raise
        spans.reported(report)
