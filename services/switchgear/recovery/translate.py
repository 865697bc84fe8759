"""Between the wire and the machine: launcher reports become events, commands and records become messages."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from switchgear.core import names, trace
from switchgear.core.errors import Invalid, Reason
from switchgear.recovery import model as m
from switchgear.recovery import tracing
from switchgear.recovery.goodput import goodput, productive_ns
from switchgear.recovery.machine import steps_redone
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import recovery_service_pb2 as pb
from switchgear.v1alpha import launcher_service_pb2 as wire

#: The newest checkpoints are the ones that a rank may load; a start command stays small.
CHECKPOINTS_IN_COMMAND_MAX = 100
#: As the wire promises: 4 KiB of stderr and 1 KiB of an exception; a path of Linux; a sentence of a launcher.
STDERR_LENGTH_MAX = 4096
EXCEPTION_LENGTH_MAX = 1024
PATH_LENGTH_MAX = 4096
#: A stack, and a frame of it, as the wire promises.
STACK_LENGTH_MAX = 8192
WHERE_LENGTH_MAX = 300
TEXT_LENGTH_MAX = 4000


def text(value: str, length_max: int = TEXT_LENGTH_MAX) -> str:
    """Text of others as it may be stored: bounded, and without NUL, which PostgreSQL does not take."""
    return value[:length_max].replace("\0", "\N{REPLACEMENT CHARACTER}")


def spec_from_proto(spec: job_pb.JobSpec) -> m.Spec:
    return m.Spec(
        nnodes=spec.nnodes,
        nproc_per_node=spec.nproc_per_node,
        max_restarts=spec.max_restarts,
        checkpoint_directory=spec.checkpoint_directory,
        inference=spec.workload == job_pb.JobSpec.INFERENCE,
        hang_seconds=spec.hang_seconds if spec.HasField("hang_seconds") else None,
        account=spec.account,
        user=spec.user,
        queue=spec.queue,
    )


def placed_from_proto(placement: job_pb.Placement) -> m.Placed:
    return m.Placed(
        placement.epoch, tuple(m.Slot(node.node, node.address, node.launcher_epoch) for node in placement.nodes)
    )


def seats_from_proto(placement: job_pb.Placement) -> m.SeatsSeen:
    return m.SeatsSeen(
        frozenset(node.node for node in placement.nodes if node.waits),
        tuple((node.node, text(node.lost)) for node in placement.nodes if node.lost),
    )


def _exit(node: str, exited: wire.RankExited) -> m.Exit:
    return m.Exit(
        rank=exited.rank,
        node=node,
        pid=exited.pid,
        time_ns=exited.time_unix_ns,
        code=exited.exit_code,
        by_us=exited.stopped_by_us,
        exception=text(exited.exception, EXCEPTION_LENGTH_MAX),
        stderr_tail=text(exited.stderr_tail[-STDERR_LENGTH_MAX:], STDERR_LENGTH_MAX),
        step=exited.step if exited.HasField("step") else None,
    )


def _checkpoint(report: wire.CheckpointReport) -> m.Checkpoint:
    known = report.state in wire.CheckpointReport.State.values()
    name = wire.CheckpointReport.State.Name(report.state) if known else ""
    if name not in m.CheckpointState.__members__:
        raise Invalid(
            f"a checkpoint's state must be one of {', '.join(m.CheckpointState)}, not {report.state}",
            Reason.BAD_FIELD,
            field="checkpoint.state",
        )
    return m.Checkpoint(
        path=text(report.path, PATH_LENGTH_MAX),
        state=m.CheckpointState(name),
        step=report.step if report.HasField("step") else None,
        size_bytes=report.size_bytes,
        digest=text(report.digest),
        damage=text(report.damage),
        commit_ns=report.commit_time_unix_ns,
    )


def _watch(watch: wire.RankWatch, now_unix_ns: int) -> m.RankWatch:
    """now_unix_ns: by the clock that the times in it are of, the node's own."""

    def age_s(since_unix_ns: int) -> float:
        # What nobody has seen has not lasted.
        return max(0, now_unix_ns - since_unix_ns) / 1e9 if since_unix_ns else 0.0

    # A newer launcher may know more of them than we do.
    processes, activities = wire.RankWatch.ProcessState.values(), wire.RankWatch.Activity.values()
    process = wire.RankWatch.ProcessState.Name(watch.process_state) if watch.process_state in processes else ""
    activity = wire.RankWatch.Activity.Name(watch.activity) if watch.activity in activities else ""
    return m.RankWatch(
        rank=watch.rank,
        idle_s=age_s(watch.progress_time_unix_ns),
        activity=m.Activity.__members__.get(activity, m.Activity.UNKNOWN),
        process=m.ProcessState.__members__.get(process, m.ProcessState.UNKNOWN),
        process_age_s=age_s(watch.process_state_since_unix_ns),
        count=watch.count,
        step_s=watch.step_seconds if watch.step_seconds > 0 else None,
        cpu_share=watch.cpu_share if watch.HasField("cpu_share") else None,
        where=text(watch.where, WHERE_LENGTH_MAX),
        stack=text(watch.stack[-STACK_LENGTH_MAX:], STACK_LENGTH_MAX),
    )


def event_from_report(node: str, launcher_id: str, report: wire.LauncherReport) -> m.Event | None:
    """The event that a report of the launcher on `node` stands for; None for a kind that this version does not know.

    Raises Invalid (BAD_FIELD) for a checkpoint in no state that we know.
    """
    generation = report.generation
    match report.WhichOneof("kind"):
        case "hello":
            hello = report.hello
            return m.LauncherHello(
                node=node,
                launcher_epoch=hello.placement_epoch,
                launcher_id=hello.launcher_id,
                generation=generation,
                reserved_port=hello.reserved_port,
                ranks_alive=tuple((rank.rank, rank.pid, rank.time_unix_ns) for rank in hello.ranks_alive),
                exits=tuple(_exit(node, exited) for exited in hello.ranks_exited),
                all_gone=hello.all_gone,
            )
        case "heartbeat":
            return m.LauncherSeen(node, launcher_id)
        case "rank_started":
            started = report.rank_started
            return m.RankStarted(node, generation, started.rank, started.pid, started.time_unix_ns)
        case "rank_exited":
            return m.RankExited(generation, _exit(node, report.rank_exited))
        case "progress":
            ranks = tuple(
                m.RankStep(
                    rank=rank.rank,
                    step=rank.step if rank.HasField("step") else None,
                    time_ns=rank.time_unix_ns,
                    first_step_ns=rank.first_step_time_unix_ns,
                    first_new_step_ns=rank.first_new_step_time_unix_ns,
                    count=rank.count,
                    checkpoint_ns=rank.checkpoint_ns,
                )
                for rank in report.progress.ranks
            )
            return m.Progress(node, generation, ranks)
        case "watch":
            watches = tuple(_watch(rank, report.time_unix_ns) for rank in report.watch.ranks)
            return m.Watched(node, generation, watches)
        case "loaded":
            loaded = report.loaded
            step = loaded.step if loaded.HasField("step") else None
            path = text(loaded.path, PATH_LENGTH_MAX)
            return m.Loaded(node, generation, loaded.rank, path, step, loaded.time_unix_ns)
        case "attempt_stopped":
            stopped = report.attempt_stopped
            return m.AttemptStopped(node, generation, stopped.reserved_port, stopped.time_unix_ns)
        case "start_failed":
            failed = report.start_failed
            return m.StartFailed(node, generation, text(failed.message), failed.permanent, failed.reserved_port)
        case "rejected":
            return m.Rejected(node, generation, report.rejected.current_generation)
        case "checkpoint":
            return m.CheckpointSeen(generation, _checkpoint(report.checkpoint))
        case "verify_result":
            result = report.verify_result
            return m.Checked(
                node=node,
                generation=generation,
                checkpoints=tuple(_checkpoint(checkpoint) for checkpoint in result.checkpoints),
                quarantined=tuple(
                    text(c.quarantine_path, PATH_LENGTH_MAX) for c in result.checkpoints if c.quarantine_path
                ),
                error=text(result.error),
            )
        case _:
            return None


def _known_steps(checkpoints: tuple[m.Checkpoint, ...]) -> list[wire.CheckpointStep]:
    newest = sorted((c for c in checkpoints if c.step is not None), key=lambda c: c.step or 0)[
        -CHECKPOINTS_IN_COMMAND_MAX:
    ]
    return [wire.CheckpointStep(path=c.path, step=c.step or 0, digest=c.digest) for c in newest]


def command_to_proto(command: m.Command) -> wire.LauncherCommand:
    match command:
        case m.Start():
            attempt, spec = command.attempt, command.spec
            start = wire.StartAttempt(
                world_size=len(attempt.ranks),
                node_rank=command.node_rank,
                nnodes=len(attempt.nodes),
                first_rank=command.node_rank * spec.nproc_per_node,
                master_address=attempt.master_address,
                master_port=attempt.master_port,
                resume_path=attempt.resume_path,
                resume_step=attempt.resume_step,
                high_water_step=attempt.high_water_step,
                restart_count=command.restart_count,
                known_steps=_known_steps(command.checkpoints),
            )
            return wire.LauncherCommand(generation=attempt.generation, start=start)
        case m.Stop():
            stop = wire.StopAttempt(reason=command.reason, grace_seconds=command.grace_s)
            return wire.LauncherCommand(generation=command.generation, stop=stop)
        case m.Check():
            verify = wire.VerifyCheckpoints(known=_known_steps(command.checkpoints), skip_digests=command.skip)
            return wire.LauncherCommand(generation=command.generation, verify=verify)
        case m.Finish():
            return wire.LauncherCommand(generation=command.generation, finish=wire.Finish(reason=command.reason))


def _time(unix_ns: int) -> Timestamp | None:
    if not unix_ns:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(unix_ns)
    return stamp


def incident_to_proto(incident: m.Incident) -> pb.Incident:
    order = sorted(incident.timeline.items(), key=lambda entry: entry[1])
    return pb.Incident(
        name=names.incident_name(incident.incident_id),
        job=incident.job,
        state=incident.state.value,
        fault=incident.fault.value,
        node=incident.node,
        rank=incident.rank,
        evidence=incident.evidence,
        decision=incident.decision.value if incident.decision else "",
        decision_reason=incident.decision_reason,
        failed_generation=incident.failed_generation,
        new_generation=incident.new_generation,
        failed_step=incident.failed_step,
        resume_step=incident.resume_step,
        steps_redone=incident.steps_redone,
        quarantined_checkpoints=incident.quarantined,
        timeline=[pb.TimelineEntry(phase=phase, time=_time(unix_ns)) for phase, unix_ns in order],
        summary=incident.summary,
        trace_id=trace.trace_id(tracing.root(incident)),
        stack=incident.stack,
    )


def attempt_to_proto(job: str, attempt: m.Attempt) -> pb.Attempt:
    return pb.Attempt(
        name=names.attempt_name(job, attempt.generation),
        generation=attempt.generation,
        state=attempt.state.value,
        world_size=len(attempt.ranks),
        nodes=attempt.nodes,
        start_time=_time(attempt.start_ns),
        end_time=_time(attempt.end_ns),
        resume_step=attempt.resume_step,
        last_step=attempt.common_step(),
        end_reason=attempt.end_reason,
    )


def checkpoint_to_proto(job: str, checkpoint_id: str, checkpoint: m.Checkpoint) -> pb.Checkpoint:
    return pb.Checkpoint(
        name=f"{job}/checkpoints/{checkpoint_id}",
        path=checkpoint.path,
        state=checkpoint.state.value,
        step=checkpoint.step,
        size_bytes=checkpoint.size_bytes,
        digest=checkpoint.digest,
        damage=checkpoint.damage,
        generation=checkpoint.generation,
        commit_time=_time(checkpoint.commit_ns),
    )


def progress_to_proto(state: m.JobState, now_unix_ns: int) -> pb.JobProgress:
    attempt = state.attempt
    ranks = attempt.ranks.items() if attempt else ()
    return pb.JobProgress(
        name=f"{state.job}/progress",
        generation=state.generation,
        step=attempt.common_step() if attempt else None,
        ranks=[pb.RankProgress(rank=number, node=rank.node, pid=rank.pid, step=rank.step) for number, rank in ranks],
        steps_productive=state.high_water_step,
        steps_redone=steps_redone(state),
        wall_seconds=max(0.0, ((state.end_ns or now_unix_ns) - state.create_ns) / 1e9),
        productive_seconds=productive_ns(state) / 1e9,
        goodput=goodput(state, now_unix_ns),
    )
