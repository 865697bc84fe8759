"""An inference service as text: load above the line, what the autoscaler makes of it below.

service min=0 max=3 capacity=40 delay=30 start=8 batch=4     replicas do `capacity` tokens/s and take `start` seconds to start
at 10s load 50                                               requests of 20 tokens arrive evenly, in tokens/s
at 60s kill replica 2
at 70s routers silent | routers back
run 200s
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from switchgear.autoscaler import replicas as life
from switchgear.autoscaler.meter import Meter
from switchgear.autoscaler.model import (
    InFlight,
    JobEnd,
    JobView,
    Load,
    ReplicaRecord,
    ReplicaState,
    RouterReport,
    ServiceRecord,
    ServiceReport,
    ServiceSpec,
    Totals,
    World,
)
from switchgear.autoscaler.observe import observe, starts
from switchgear.autoscaler.plan import Verdict, judge
from switchgear.autoscaler.scaling import Scaling
from switchgear.core.modes import Mode

LINE = "----"
TICK_S = 0.5
REQUEST_TOKENS, PROMPT_TOKENS = 20, 10
START_NS = 1_700_000_000_000_000_000
NAME = "inferenceServices/chat"
_SERVICE = re.compile(r"service min=(\d+) max=(\d+) capacity=(\d+) delay=(\d+) start=(\d+) batch=(\d+)")
_AT = re.compile(r"at ([\d.]+)s (.+)")


@dataclass
class _Process:
    """A replica's process. work: tokens left of each request in it, the batch first."""

    ready_s: float
    work: list[float] = field(default_factory=list)
    done: float = 0.0
    read: int = 0
    steps: float = 0.0
    busy_s: float = 0.0


@dataclass
class Serving:
    """One service, one router, and replicas that do what they are told."""

    service: ServiceRecord
    capacity: float
    start_s: float
    batch: int
    now_s: float = 0.0
    load: float = 0.0
    silent: bool = False
    replicas: dict[str, ReplicaRecord] = field(default_factory=dict)
    jobs: dict[str, JobView] = field(default_factory=dict)
    processes: dict[str, _Process] = field(default_factory=dict)
    held: list[float] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    scaling: Scaling = field(default_factory=lambda: Scaling(NAME, None, 0.0, START_NS / 1e9))
    arrived: float = 0.0
    completed: int = 0
    transcript: list[str] = field(default_factory=list)

    def tick(self) -> None:
        self.now_s += TICK_S
        self._arrive()
        self._serve()
        self._report()
        self._pass()

    def kill(self, number: int) -> None:
        """What was in it is sent again, to others."""
        name = f"{NAME}/replicas/{number}"
        self.held += self.processes.pop(name).work
        self.meter.replica_gone(name)
        one = self.replicas[name]
        self.jobs[one.job] = replace(self.jobs[one.job], end=JobEnd.FAILED, message="killed")

    def _arrive(self) -> None:
        before = self.arrived // REQUEST_TOKENS
        self.arrived += self.load * TICK_S
        self.held += [REQUEST_TOKENS] * int(self.arrived // REQUEST_TOKENS - before)
        routed = [one.name for one in self.replicas.values() if one.state is ReplicaState.READY]
        open_to = [name for name in routed if name in self.processes]  # others refuse the connection
        while self.held and open_to:
            name = min(open_to, key=lambda name: len(self.processes[name].work))
            self.processes[name].work.append(self.held.pop(0))

    def _serve(self) -> None:
        for process in self.processes.values():
            if not process.work:
                continue
            each = self.capacity * TICK_S / len(process.work[: self.batch])
            process.work = [left - each if place < self.batch else left for place, left in enumerate(process.work)]
            process.done += each * len(process.work[: self.batch])
            process.steps += each
            process.busy_s += TICK_S
            before = len(process.work)
            process.work = [left for left in process.work if left > 1e-9]
            self.completed += before - len(process.work)
            process.read += PROMPT_TOKENS * (before - len(process.work))

    def _report(self) -> None:
        for name, process in self.processes.items():
            if process.ready_s <= self.now_s:
                running = min(self.batch, len(process.work))
                waiting = len(process.work) - running
                load = Load(
                    name, "h:1", True, running, waiting, int(process.done), process.busy_s, process.read,
                    int(process.steps), int(sum(process.work)), self.batch,
                )  # fmt: skip
                self.meter.replica(NAME, name, load)
        if not self.silent:
            arrived = int(self.arrived // REQUEST_TOKENS)
            report = ServiceReport(
                held_requests=len(self.held),
                held_tokens=(PROMPT_TOKENS + REQUEST_TOKENS) * len(self.held),
                held_input_tokens=PROMPT_TOKENS * len(self.held),
                in_flight={
                    name: InFlight(len(process.work), REQUEST_TOKENS * len(process.work))
                    for name, process in self.processes.items()
                    if process.work
                },
                totals=Totals(
                    requests=arrived,
                    tokens=arrived * (PROMPT_TOKENS + REQUEST_TOKENS),
                    input_tokens=arrived * PROMPT_TOKENS,
                    estimated_tokens=self.completed * PROMPT_TOKENS,
                    completed=self.completed,
                    completed_input_tokens=self.completed * PROMPT_TOKENS,
                    completed_output_tokens=self.completed * REQUEST_TOKENS,
                ),
            )
            self.meter.router("router", RouterReport(int(self.now_s / TICK_S), {NAME: report}), self.now_s)

    def _pass(self) -> None:
        world = World(
            now_unix_ns=START_NS + int(self.now_s * 1e9),
            jobs=dict(self.jobs),
            loads=self.meter.loads(),
            routers=self.meter.routers(),
        )
        stored = list(self.replicas.values())
        self._decide(stored, world.now_unix_ns)
        verdict = Verdict(self.scaling.decision) if self.scaling.decision else None
        plan = judge(self.service, stored, world, verdict=verdict, mode=Mode.ACT)
        if plan.service.decision != self.service.decision:
            self._tell("service", plan.service.decision)
        self.service = plan.service
        for replica in plan.replicas:
            before = self.replicas.get(replica.name)
            if before is None or before.state is not replica.state:
                self._tell(f"replica {replica.number}", f"{replica.state}: {replica.message}")
            self.replicas[replica.name] = replica
        wanted = life.effects(self.service, self.replicas.values(), world)
        for replica in wanted.create:
            self.jobs[replica.job] = JobView(replica.name, node="nodes/a")
            self.processes[replica.name] = _Process(self.now_s + self.start_s)
        for job in wanted.cancel:
            name = self.jobs[job].replica
            assert not self.processes.pop(name).work, f"{name} was ended with requests in it"
            self.meter.replica_gone(name)
            self.jobs[job] = replace(self.jobs[job], end=JobEnd.CANCELLED)

    def _decide(self, stored: list[ReplicaRecord], now_unix_ns: int) -> None:
        wanting = self.service.desired == 0 and self.meter.held(NAME) > 0
        if not self.scaling.due(self.now_s, urgent=wanting):
            return
        started = starts(stored, self.scaling.known_starts)
        self.scaling.known_starts = started.known
        seen = observe(
            self.service,
            stored,
            self.meter.take(NAME, self.now_s),
            interval_s=self.scaling.interval_s(self.now_s),
            now_unix_ns=now_unix_ns,
            started=started,
            nodes={},
        )
        self.scaling.decide(self.now_s, seen, mode="ACT", begins=False)

    def _tell(self, who: str, what: str) -> None:
        self.transcript.append(f"{self.now_s:6.1f}s  {who:<10} {what}")


def play(script: str) -> list[str]:
    """The transcript. Raises ValueError for a line that says nothing."""
    lines = [line.strip() for line in script.splitlines() if line.strip() and not line.startswith("#")]
    found = _SERVICE.fullmatch(lines[0])
    if not found:
        raise ValueError(f"a scenario begins with its service, not with: {lines[0]}")
    low, high, capacity, delay, start_s, batch = map(int, found.groups())
    spec = ServiceSpec(
        ("serve.py",), "/w", min_replicas=low, max_replicas=high, tokens_per_s=capacity, scale_down_delay_s=delay
    )
    serving = Serving(ServiceRecord(NAME, spec, START_NS, low), capacity, start_s, batch)
    for line in lines[1:]:
        if run := re.fullmatch(r"run ([\d.]+)s", line):
            _until(serving, serving.now_s + float(run[1]))
        elif at := _AT.fullmatch(line):
            _until(serving, float(at[1]))
            _happen(serving, at[2])
        else:
            raise ValueError(f"not a line of a scenario: {line}")
    return serving.transcript


def _until(serving: Serving, time_s: float) -> None:
    while serving.now_s < time_s:
        serving.tick()


def _happen(serving: Serving, what: str) -> None:
    if load := re.fullmatch(r"load ([\d.]+)", what):
        serving.load = float(load[1])
    elif kill := re.fullmatch(r"kill replica (\d+)", what):
        serving.kill(int(kill[1]))
    elif what in ("routers silent", "routers back"):
        serving.silent = what == "routers silent"
    else:
        raise ValueError(f"not an event of a scenario: {what}")
