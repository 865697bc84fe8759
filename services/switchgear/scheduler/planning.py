"""Between the scheduler's records and the planner's values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from switchgear.planner import model as p
from switchgear.scheduler import jobs as job_life
from switchgear.scheduler.evidence import speeds, straggling
from switchgear.scheduler.model import (
    Alike,
    AttemptRecord,
    EndedRun,
    JobRecord,
    JobSpec,
    JobState,
    NodeRecord,
    PlacedNode,
    QueueRecord,
    ReservationRecord,
    Rules,
    Usage,
    Workload,
)
from switchgear.scheduler.wishes import LEVELS, TOPOLOGY_PREFIX

#: What a restart costs until it was seen: a warm zygote is quick, and loading a large checkpoint is not.
RESTART_S = 60.0


@dataclass(frozen=True, slots=True)
class _Known:
    """Of a node, beside its record."""

    obstacle: str
    levels: tuple[str, ...]
    health: float | None
    straggling: float | None
    incident: bool


class View:
    """Turns records into a snapshot of the planner. What has not changed since the last one is not made again, and equal tasks are one object."""

    def __init__(self, policy: p.Policy | None = None) -> None:
        self.policy = policy or p.Policy()
        self._nodes: dict[str, tuple[NodeRecord, _Known, p.Node]] = {}
        self._jobs: dict[str, tuple[JobRecord, frozenset[str], frozenset[str], Alike, p.Job]] = {}
        self._tasks: dict[p.Task, p.Task] = {}
        self._history: tuple[Sequence[EndedRun], tuple[p.Ended, ...]] = ((), ())
        self._attempts: Sequence[AttemptRecord] = ()
        #: Of these attempts.
        self._speeds: Mapping[Alike, Mapping[str, float]] = {}
        self._straggling: Mapping[str, float] = {}

    def snapshot(
        self,
        nodes: Mapping[str, NodeRecord],
        jobs: Iterable[JobRecord],
        rules: Rules,
        obstacles: Mapping[str, str],
        now_unix_ns: int,
    ) -> p.Snapshot:
        """obstacles: why a node takes nothing now, by name; those that are not in it are open. Jobs that have ended are left out."""
        levels = tuple(
            level for level in LEVELS if any(f"{TOPOLOGY_PREFIX}{level}" in node.all_labels for node in nodes.values())
        )
        models = frozenset(gpu.model for node in nodes.values() for gpu in node.inventory.gpus)
        self._learn(rules.attempts)
        shown = tuple(
            self._node(
                node,
                _Known(
                    obstacles.get(name, ""),
                    levels,
                    rules.health.get(name),
                    self._straggling.get(name),
                    name in rules.incidents,
                ),
            )
            for name, node in sorted(nodes.items())
        )
        pending, running = [], []
        alive = {job.name: job for job in jobs if not job.ended}
        for job in sorted(alive.values(), key=lambda job: (job.create_revision, job.name)):
            seen = self._job(job, job_life.excluded_now(job, nodes), models)
            if job.state is JobState.PENDING:
                pending.append(seen)
            elif job.placement.nodes:
                running.append(_running(job, seen, nodes, now_unix_ns))
        self._nodes = {name: self._nodes[name] for name in nodes}
        self._jobs = {name: self._jobs[name] for name in alive}
        return p.Snapshot(
            shown,
            tuple(pending),
            tuple(running),
            tuple(_queue(queue) for queue in rules.queues),
            tuple(_reservation(one) for one in rules.reservations),
            levels,
            _used(rules.usage, now_unix_ns, self.policy.half_life_s),
            self._ended(rules.history),
            self.policy,
        )

    def _learn(self, attempts: Sequence[AttemptRecord]) -> None:
        if self._attempts is not attempts:
            self._attempts, self._speeds, self._straggling = attempts, speeds(attempts), straggling(attempts)

    def _node(self, record: NodeRecord, known: _Known) -> p.Node:
        before = self._nodes.get(record.name)
        if before and _matches_alike(before[0], record) and before[1] == known:
            return before[2]
        labels = record.all_labels
        gpus = record.inventory.gpus
        node = p.Node(
            record.name,
            len(gpus),
            gpus[0].model if gpus else "",
            min((gpu.memory_bytes >> 20 for gpu in gpus), default=0),
            record.inventory.cpu_milli,
            record.inventory.memory_mib,
            labels,
            record.taints,
            tuple(labels.get(f"{TOPOLOGY_PREFIX}{level}", "") for level in known.levels),
            {position: gpu.mig_profiles for position, gpu in enumerate(gpus) if gpu.mig_profiles},
            known.obstacle,
            known.health,
            known.straggling,
            known.incident,
        )
        self._nodes[record.name] = record, known, node
        return node

    def _job(self, record: JobRecord, excluded: frozenset[str], models: frozenset[str]) -> p.Job:
        known = self._jobs.get(record.name)
        alike = known[3] if known and known[0] is record else alike_of(record.spec, record.spec.nnodes)
        measured = self._speeds.get(alike, {})
        if known and known[0] is record and known[1:3] == (excluded, models) and known[4].speeds == measured:
            return known[4]
        spec = record.spec
        task = _task(spec, models)
        job = p.Job(
            record.name,
            self._tasks.setdefault(task, task),
            record.create_time_unix_ns / 1e9,
            spec.nnodes,
            spec.nnodes_min,
            queue=spec.queue,
            user=spec.user,
            key=key_of(spec),
            priority=spec.priority,
            workload=p.Workload(spec.workload.value),
            near=tuple(p.Near(wish.level, wish.required) for wish in spec.topology),
            time_limit_s=spec.time_limit_seconds or None,
            not_before_s=spec.not_before_unix_ns / 1e9,
            preemptible=is_preemptible(spec),
            harvest=spec.harvest,
            speeds=measured,
            excluded=excluded,
            held=record.turn.held,
            after=frozenset(one.job for one in record.turn.waits_for),
        )
        self._jobs[record.name] = record, excluded, models, alike, job
        return job

    def _ended(self, history: Sequence[EndedRun]) -> tuple[p.Ended, ...]:
        if self._history[0] is not history:
            ended = tuple(
                p.Ended(
                    run.user,
                    run.key,
                    run.queue,
                    run.gpus,
                    run.seconds,
                    run.end_unix_ns / 1e9,
                    None if run.submit_unix_ns is None else run.submit_unix_ns / 1e9,
                )
                for run in history
            )
            self._history = history, ended
        return self._history[1]


def _matches_alike(before: NodeRecord, after: NodeRecord) -> bool:
    return before.inventory is after.inventory and before.labels is after.labels and before.taints is after.taints


def key_of(spec: JobSpec) -> str:
    """Name by which its run time is learned: given, or that of its program."""
    program = next((item for item in spec.argv if item != "-m"), "")
    return spec.key or PurePosixPath(program).stem


def alike_of(spec: JobSpec, nodes: int) -> Alike:
    """What tells its work from that of others, on so many nodes."""
    part = str(spec.gpu_milli) if spec.gpu_milli else spec.mig_profile
    return spec.user, key_of(spec), nodes, spec.nproc_per_node, part


def is_preemptible(spec: JobSpec) -> bool:
    """A replica answers requests, which no checkpoint brings back."""
    return spec.workload is Workload.TRAINING if spec.preemptible is None else spec.preemptible


def gpus_of(job: JobRecord) -> float:
    """GPUs that its placement holds."""
    return len(job.placement.nodes) * _task(job.spec, frozenset()).gpu_share


def seat_of(placed: PlacedNode, nodes: Mapping[str, NodeRecord]) -> p.Seat:
    """The planner counts the GPUs of a node, and an inventory may have gaps. GPUs that the node has no longer are left out."""
    node = nodes.get(placed.node)
    position = {gpu.index: at for at, gpu in enumerate(node.inventory.gpus)} if node else {}
    return p.Seat(placed.node, tuple(position[index] for index in placed.gpu_indices if index in position))


def _task(spec: JobSpec, models: frozenset[str]) -> p.Task:
    part = spec.gpu_milli or spec.mig_profile
    return p.Task(
        0 if part else spec.nproc_per_node,
        spec.gpu_milli,
        spec.mig_profile,
        spec.cpu_milli,
        spec.memory_mib,
        _models_meant(spec.gpu_models, models),
        tuple(p.Selector(one.key, frozenset(one.values), one.excludes) for one in spec.node_selectors),
        frozenset(spec.tolerations),
    )


def _models_meant(asked: Sequence[str], models: frozenset[str]) -> frozenset[str]:
    """`h100` means each model of the fleet that has this word in its name; what means none of them is kept, and fits nowhere."""
    meant: set[str] = set()
    for word in asked:
        meant |= {model for model in models if word.casefold() in model.casefold()} or {word}
    return frozenset(meant)


def _running(record: JobRecord, job: p.Job, nodes: Mapping[str, NodeRecord], now_unix_ns: int) -> p.Running:
    turn = record.turn
    return p.Running(
        job,
        tuple(seat_of(placed, nodes) for placed in record.placement.nodes),
        (now_unix_ns if turn.placed_unix_ns is None else turn.placed_unix_ns) / 1e9,
        None if turn.checkpoint_unix_ns is None else turn.checkpoint_unix_ns / 1e9,
        turn.checkpoint_interval_s,
        RESTART_S,
        turn.leaving is not None or record.state is JobState.PREEMPTED,
        turn.leaving.for_job if turn.leaving else "",
        turn.saves_when_stopped,
    )


def _queue(queue: QueueRecord) -> p.Queue:
    return p.Queue(
        queue.name, queue.parent, queue.guaranteed_gpus, queue.limit_gpus, queue.weight, lends=not queue.keeps
    )


def _reservation(one: ReservationRecord) -> p.Reservation:
    return p.Reservation(
        one.name,
        frozenset(one.nodes),
        one.start_unix_ns / 1e9,
        one.end_unix_ns / 1e9,
        frozenset(one.queues),
        frozenset(one.jobs),
    )


def decayed(gpu_s: float, time_unix_ns: int, now_unix_ns: int, half_life_s: float) -> float:
    """What is left of past use."""
    left: float = gpu_s * 0.5 ** (max(0, now_unix_ns - time_unix_ns) / 1e9 / half_life_s)
    return left


def _used(usage: Iterable[Usage], now_unix_ns: int, half_life_s: float) -> dict[tuple[str, str], float]:
    return {(one.queue, one.user): decayed(one.gpu_s, one.time_unix_ns, now_unix_ns, half_life_s) for one in usage}
