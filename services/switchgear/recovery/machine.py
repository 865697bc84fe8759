"""The recovery state machine of one job: `step(state, event, now) -> (state, effects)`.

Pure. The recovery service runs it over gRPC and a store, `switchgear run --standalone` runs it inside the launcher's process.
Every effect can be lost or repeated: a launcher that (re)connects is told again what it should do, calls to other services stay
in the outbox until they are confirmed, and generations make repeats harmless.
"""

from __future__ import annotations

import copy

from switchgear.recovery import model as m
from switchgear.recovery.diagnosis import Cause, cause_of_exit, evidence_of_exit, root_exit, shorten
from switchgear.recovery.policy import INFRASTRUCTURE, decide
from switchgear.recovery.records import Records

#: A launcher without contact stops its ranks this long after the last heartbeat that was answered ...
LEASE_S = 30.0
#: ... and recovery waits this much longer before it starts anything elsewhere.
LEASE_MARGIN_S = 5.0
#: A placed node whose launcher does not report within this time is given up; importing torch on a busy node takes most of it.
LAUNCHER_START_S = 120.0

FAILURES_MAX = 50


def step(state: m.JobState, event: m.Event, now: m.Now) -> tuple[m.JobState, list[m.Effect]]:
    """The next state, and what to do in this order after the state is stored. `state` itself is left as it was."""
    machine = _Machine(_copied(state), now)
    machine.take(event)
    return machine.state, machine.effects


def _copied(state: m.JobState) -> m.JobState:
    """As deep as the machine changes things: progress comes several times a second, a deep copy of all would cost more than the step."""
    new = copy.copy(state)
    new.slots, new.failures, new.outbox = list(state.slots), list(state.failures), list(state.outbox)
    new.bad_nodes, new.checkpoints = dict(state.bad_nodes), dict(state.checkpoints)
    new.launchers = {node: copy.copy(launcher) for node, launcher in state.launchers.items()}
    new.incident = copy.deepcopy(state.incident)
    new.attempt = copy.copy(state.attempt)
    if new.attempt:
        new.attempt.ranks = {rank: copy.copy(view) for rank, view in new.attempt.ranks.items()}
    return new


def resume(state: m.JobState, now: m.Now) -> m.JobState:
    """A state read back from the store: nobody is connected, and every lease counts from now."""
    state = copy.deepcopy(state)
    for launcher in state.launchers.values():
        launcher.connected, launcher.seen_s = False, now.monotonic_s
    return state


def productive_ns(state: m.JobState) -> int:
    """Nanoseconds in which new steps were made, up to the newest progress report."""
    return state.productive_ns + (
        _attempt_productive_ns(state.attempt) if state.attempt and not state.attempt.end_ns else 0
    )


def _attempt_productive_ns(attempt: m.Attempt) -> int:
    """From the first new step that all ranks completed to the newest step of all."""
    ranks = attempt.ranks.values()
    if not ranks or not all(rank.first_new_step_ns for rank in ranks):
        return 0
    return max(0, min(rank.step_time_ns for rank in ranks) - max(rank.first_new_step_ns for rank in ranks))


def steps_redone(state: m.JobState) -> int:
    """Steps that were made again, by all attempts so far."""
    return state.steps_redone + (
        _attempt_steps_redone(state.attempt) if state.attempt and not state.attempt.end_ns else 0
    )


def _attempt_steps_redone(attempt: m.Attempt) -> int:
    common = attempt.common_step()
    if common is None or attempt.resume_step is None:
        return 0
    return max(0, min(common, attempt.high_water_step) - attempt.resume_step)


class _Machine(Records):
    def take(self, event: m.Event) -> None:
        if isinstance(event, m.CallDone):
            self.state.outbox = [call for call in self.state.outbox if call.call_id != event.call_id]
            return
        if self.state.phase is m.Phase.ENDED:
            if isinstance(event, m.LauncherHello):
                self.effects.append(m.Finish(event.node, self.state.generation, "the job has ended"))
            return
        match event:
            case m.Placed():
                self._placed(event)
            case m.EndedOutside():
                self._ended_outside(event.reason)
            case m.LauncherHello():
                self._hello(event)
            case m.LauncherGone():
                self._gone(event)
            case m.LauncherSeen():
                self._seen(event)
            case m.RankStarted():
                self._rank_started(event)
            case m.RankExited():
                self._rank_exited(event)
            case m.Progress():
                self._progress(event)
            case m.Loaded():
                self._loaded(event)
            case m.AttemptStopped():
                self._stopped(event.node, event.generation, event.reserved_port)
            case m.StartFailed():
                self._start_failed(event)
            case m.CheckpointSeen():
                self.checkpoint_seen(event)
            case m.Checked():
                self._checked(event)
            case m.NodeSignal():
                self._node_signal(event)
            case m.Tick():
                self._tick()

    # Placement and launchers.

    def _placed(self, event: m.Placed) -> None:
        state = self.state
        if event.epoch <= state.epoch:
            return
        known = state.launchers
        state.epoch, state.slots = event.epoch, list(event.slots)
        kept = {slot.node for slot in event.slots}
        state.bad_nodes = {node: why for node, why in state.bad_nodes.items() if node in kept}
        state.launchers = {}
        for slot in event.slots:
            launcher = known.get(slot.node) if slot.launcher_epoch < event.epoch else None
            launcher = launcher or m.Launcher(stopped_generation=state.generation)
            launcher.seen_s = self.now.monotonic_s
            state.launchers[slot.node] = launcher
        if state.phase in (m.Phase.REPLACING, m.Phase.WAITING, m.Phase.CHECKING):
            state.phase = m.Phase.WAITING
            self._decide_when_stopped()  # a node that is kept may have failed while the placement was made
            self._start_when_ready()

    def _slot(self, node: str) -> m.Slot | None:
        return next((slot for slot in self.state.slots if slot.node == node), None)

    def _launcher(self, node: str, launcher_id: str = "") -> m.Launcher | None:
        launcher = self.state.launchers.get(node)
        return None if launcher is None or (launcher_id and launcher.launcher_id != launcher_id) else launcher

    def _hello(self, hello: m.LauncherHello) -> None:
        state, slot = self.state, self._slot(hello.node)
        if slot is None or hello.launcher_epoch < slot.launcher_epoch:
            # Not of this placement (any more): whatever it runs must end.
            self.effects.append(
                m.Finish(hello.node, hello.generation, "this node is no longer part of the job's placement")
            )
            return
        launcher = state.launchers[hello.node]
        launcher.connected = True
        launcher.launcher_id, launcher.reserved_port = hello.launcher_id, hello.reserved_port
        launcher.seen_s = self.now.monotonic_s
        if not hello.ranks_alive:
            launcher.stopped_generation = max(launcher.stopped_generation, hello.generation)
        elif self._current(hello.generation) is None:
            launcher.stopped_generation = hello.generation - 1
            self.effects.append(m.Stop(hello.node, hello.generation, "an older generation"))
        self._settle_attempt(hello, launcher)
        self._repeat_command(hello.node, launcher)
        self._decide_when_stopped()
        self._start_when_ready()

    def _settle_attempt(self, hello: m.LauncherHello, launcher: m.Launcher) -> None:
        """What a launcher that comes (back) says about the attempt that should run there."""
        state, attempt = self.state, self.state.attempt
        if attempt is None or attempt.end_ns or hello.generation != attempt.generation:
            if attempt and not attempt.end_ns and attempt.launcher_ids.get(hello.node) != hello.launcher_id:
                launcher.stopped_generation = max(launcher.stopped_generation, attempt.generation)
                self._launcher_lost(hello.node)
            return
        for rank, pid, started_ns in hello.ranks_alive:
            if rank in attempt.ranks:
                attempt.ranks[rank].pid, attempt.ranks[rank].started_ns = pid, started_ns
        for rank_exit in hello.exits:
            self._rank_exited(m.RankExited(hello.generation, rank_exit))
        if not hello.ranks_alive:
            if state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
                unexplained = [r for r in attempt.ranks.values() if r.node == hello.node and r.exit is None]
                if unexplained:
                    self._launcher_lost(hello.node)
            self._stopped(hello.node, hello.generation, hello.reserved_port)

    def _launcher_lost(self, node: str) -> None:
        if self.state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            clause = f"the launcher on {node} ended and took its ranks with it"
            self._fail(
                Cause(m.Fault.LAUNCHER_LOST, clause, "a new launcher reported without ranks", "launcher lost", node),
                f"a new launcher on {node} reported without ranks",
            )

    def _repeat_command(self, node: str, launcher: m.Launcher) -> None:
        """A command may have been lost with the connection: give it again. All of them are idempotent."""
        state, attempt = self.state, self.state.attempt
        match state.phase:
            case m.Phase.STOPPING if attempt and launcher.stopped_generation < attempt.generation:
                self.effects.append(m.Stop(node, attempt.generation, "the attempt has failed"))
            case m.Phase.CHECKING if state.slots and state.slots[0].node == node:
                self._send_check()
            case m.Phase.STARTING if attempt and not self._ranks_of(attempt, node)[0].started_ns:
                self._send_start(node)
            case _:
                pass

    def _gone(self, event: m.LauncherGone) -> None:
        launcher = self._launcher(event.node, event.launcher_id)
        if launcher:
            launcher.connected = False

    def _seen(self, event: m.LauncherSeen) -> None:
        launcher = self._launcher(event.node, event.launcher_id)
        if launcher:
            launcher.seen_s = self.now.monotonic_s

    def _tick(self) -> None:
        state = self.state
        if state.phase is m.Phase.REPLACING:
            return
        for slot in state.slots:
            launcher = state.launchers[slot.node]
            silent_s = self.now.monotonic_s - launcher.seen_s
            patience_s = LEASE_S + LEASE_MARGIN_S if launcher.launcher_id else LAUNCHER_START_S
            if silent_s <= patience_s or slot.node in state.bad_nodes:
                continue
            said = f"{slot.node}: no word from its launcher for {silent_s:.0f} s"
            state.bad_nodes[slot.node] = said
            # Its lease is over, so nothing of ours runs there any more.
            launcher.connected, launcher.stopped_generation = False, state.generation
            clause = f"contact with {slot.node} was lost"
            known_by = f"no word from its launcher for {silent_s:.0f} s"
            self._fail(Cause(m.Fault.NODE_LOST, clause, known_by, "node lost", slot.node), said)
            self._decide_when_stopped()

    # Starting an attempt.

    def _start_when_ready(self) -> None:
        state = self.state
        if state.phase is not m.Phase.WAITING or not state.slots:
            return
        if any(
            not (launcher.connected and launcher.stopped_generation >= state.generation)
            for launcher in state.launchers.values()
        ):
            return
        if state.spec.checkpoint_directory:
            state.phase = m.Phase.CHECKING
            self._send_check()
        else:
            self._start_attempt(None)

    def _send_check(self) -> None:
        known = tuple(c for c in self.state.checkpoints.values() if c.state is not m.CheckpointState.CORRUPT)
        self.effects.append(m.Check(self.state.slots[0].node, self.state.generation, known))

    def _checked(self, event: m.Checked) -> None:
        state = self.state
        if state.phase is not m.Phase.CHECKING or not state.slots or event.node != state.slots[0].node:
            return
        for checkpoint in event.checkpoints:
            self.keep_checkpoint(checkpoint)
        if state.incident:
            state.incident.quarantined += [path for path in event.quarantined if path not in state.incident.quarantined]
        if event.error:
            cause = Cause(
                m.Fault.START_FAILED, f"the checkpoints could not be checked: {event.error}", event.error, event.node
            )
            self._fail(cause, event.error)
            self._act(permanent=True)
            return
        good = [c for c in event.checkpoints if c.state is m.CheckpointState.VERIFIED]
        self._start_attempt(good[0] if good else None)

    def _start_attempt(self, checkpoint: m.Checkpoint | None) -> None:
        state = self.state
        state.generation += 1
        state.phase = m.Phase.STARTING
        first = state.slots[0]
        attempt = m.Attempt(
            generation=state.generation,
            state=m.AttemptState.STARTING,
            nodes=[slot.node for slot in state.slots],
            start_ns=self.now.unix_ns,
            high_water_step=state.high_water_step,
            master_address=first.address,
            master_port=state.launchers[first.node].reserved_port,
            resume_path=checkpoint.path if checkpoint else "",
            resume_step=checkpoint.step if checkpoint else 0,
            launcher_ids={node: launcher.launcher_id for node, launcher in state.launchers.items()},
        )
        per_node = state.spec.nproc_per_node
        attempt.ranks = {r: m.Rank(node=state.slots[r // per_node].node) for r in range(state.spec.world_size)}
        state.attempt = attempt
        if state.incident:
            state.incident.state = m.IncidentState.VERIFYING
            state.incident.new_generation = attempt.generation
            state.incident.resume_step = attempt.resume_step
            self.save_incident()
        self.effects.append(m.SaveAttempt(copy.deepcopy(attempt)))
        for slot in state.slots:
            self._send_start(slot.node)

    def _send_start(self, node: str) -> None:
        state = self.state
        if state.attempt is None:
            return
        node_rank = [slot.node for slot in state.slots].index(node)
        checkpoints = tuple(state.checkpoints.values())
        self.effects.append(
            m.Start(
                node, node_rank, copy.deepcopy(state.attempt), state.spec, max(0, state.generation - 1), checkpoints
            )
        )

    # News of the attempt.

    def _current(self, generation: int) -> m.Attempt | None:
        attempt = self.state.attempt
        return attempt if attempt and not attempt.end_ns and attempt.generation == generation else None

    def _ranks_of(self, attempt: m.Attempt, node: str) -> list[m.Rank]:
        return [rank for rank in attempt.ranks.values() if rank.node == node]

    def _rank_started(self, event: m.RankStarted) -> None:
        attempt = self._current(event.generation)
        if attempt is None or event.rank not in attempt.ranks:
            return
        rank = attempt.ranks[event.rank]
        rank.pid, rank.started_ns = event.pid, event.time_ns
        if all(r.started_ns for r in attempt.ranks.values()):
            self.mark("started", max(r.started_ns for r in attempt.ranks.values()))

    def _loaded(self, event: m.Loaded) -> None:
        attempt = self._current(event.generation)
        if attempt is None or event.rank not in attempt.ranks:
            return
        attempt.ranks[event.rank].loaded_ns = event.time_ns
        if event.step is not None and attempt.resume_step != event.step and self.state.incident:
            self.add_evidence(f"rank {event.rank} loaded {event.path} (step {event.step})")
        if all(r.loaded_ns for r in attempt.ranks.values()):
            self.mark("loaded", max(r.loaded_ns for r in attempt.ranks.values()))

    def _progress(self, event: m.Progress) -> None:
        state, attempt = self.state, self._current(event.generation)
        if attempt is None:
            return
        for report in event.ranks:
            rank = attempt.ranks.get(report.rank)
            if rank is None:
                continue
            rank.step, rank.step_time_ns = report.step, report.time_ns
            rank.first_step_ns = rank.first_step_ns or report.first_step_ns
            rank.first_new_step_ns = rank.first_new_step_ns or report.first_new_step_ns
        ranks = attempt.ranks.values()
        common = attempt.common_step()
        if common is not None:
            state.high_water_step = max(state.high_water_step, common)
        if state.phase is m.Phase.STARTING and all(rank.first_step_ns for rank in ranks):
            state.phase, attempt.state = m.Phase.RUNNING, m.AttemptState.RUNNING
            self.mark("first_step", max(rank.first_step_ns for rank in ranks))
            self.effects.append(m.SaveAttempt(copy.deepcopy(attempt)))
            self.set_state(m.JobOutcome.RUNNING, f"attempt {attempt.generation} runs on {', '.join(attempt.nodes)}")
        if state.incident and state.phase is m.Phase.RUNNING and all(rank.first_new_step_ns for rank in ranks):
            self.mark("first_new_step", max(rank.first_new_step_ns for rank in ranks))
            self.close_incident(m.IncidentState.RESOLVED)

    def _rank_exited(self, event: m.RankExited) -> None:
        attempt = self._current(event.generation)
        if attempt is None or event.exit.rank not in attempt.ranks:
            return
        rank = attempt.ranks[event.exit.rank]
        if rank.exit is not None:
            return
        rank.exit = event.exit
        if event.exit.step is not None:
            rank.step = event.exit.step
        if event.exit.code != 0 and not event.exit.by_us and self.state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            self._fail(cause_of_exit(event.exit), evidence_of_exit(event.exit))

    def _start_failed(self, event: m.StartFailed) -> None:
        attempt = self._current(event.generation)
        if attempt is None:
            return
        self._port(event.node, event.reserved_port)
        self.state.launchers[event.node].stopped_generation = event.generation
        clause = f"the attempt could not be started on {event.node}: {event.message}"
        self._fail(Cause(m.Fault.START_FAILED, clause, "", event.message, event.node), event.message)
        if event.permanent:
            self._act(permanent=True)
        else:
            self._decide_when_stopped()

    def _port(self, node: str, reserved_port: int) -> None:
        launcher = self._launcher(node)
        if launcher and reserved_port:
            launcher.reserved_port = reserved_port

    def _stopped(self, node: str, generation: int, reserved_port: int) -> None:
        launcher = self._launcher(node)
        if launcher is None:
            return
        self._port(node, reserved_port)
        launcher.stopped_generation = max(launcher.stopped_generation, generation)
        attempt = self._current(generation)
        if attempt and self.state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            exits = [rank.exit for rank in self._ranks_of(attempt, node)]
            if all(e is not None and e.code == 0 for e in exits):
                if all(rank.exit and rank.exit.code == 0 for rank in attempt.ranks.values()):
                    self._succeed()
                return  # this node is done; the others may still be writing their last checkpoint
            if not any(e and e.code != 0 and not e.by_us for e in exits):
                self._fail(
                    Cause(
                        m.Fault.LAUNCHER_LOST, f"the ranks on {node} were stopped by their launcher", "stopped", node
                    ),
                    f"launcher on {node}: stopped its ranks by itself (lease over, or told to end)",
                )
        self._decide_when_stopped()
        self._start_when_ready()

    # A fault, from the first sign to the decision.

    def _fail(self, cause: Cause, evidence: str) -> None:
        """Opens the incident, or adds to the open one, and stops the attempt everywhere."""
        state, attempt = self.state, self.state.attempt
        if state.incident is None:
            state.incident_count += 1
            state.incident = m.Incident(
                incident_id=f"{state.job.split('/')[-1]}-{state.incident_count}",
                job=state.job,
                state=m.IncidentState.OPEN,
                fault=cause.fault,
                failed_generation=attempt.generation if attempt else 0,
            )
            self._blame(cause)
            state.incident.timeline["detected"] = self.now.unix_ns
            self.set_state(m.JobOutcome.RECOVERING, cause.clause)
        elif state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            # A second fault before the first new step: the same incident goes on, told from the newest cause.
            state.incident.state = m.IncidentState.OPEN
            for phase in ("stopped", "decided", "started", "loaded", "first_step"):
                state.incident.timeline.pop(phase, None)
            self._blame(cause)
        self.add_evidence(evidence)
        if state.phase in (m.Phase.STARTING, m.Phase.RUNNING) and attempt:
            state.phase, attempt.state = m.Phase.STOPPING, m.AttemptState.STOPPING
            for node, launcher in state.launchers.items():
                if launcher.stopped_generation < attempt.generation:
                    self.effects.append(m.Stop(node, attempt.generation, cause.clause))
        self.save_incident()

    def _blame(self, cause: Cause) -> None:
        incident = self.state.incident
        if incident is None:
            return
        incident.fault, incident.node, incident.rank = cause.fault, cause.node, cause.rank
        incident.cause, incident.known_by = cause.clause, cause.known_by
        if cause.time_ns:
            incident.timeline.setdefault("fault", cause.time_ns)

    def _node_signal(self, event: m.NodeSignal) -> None:
        state = self.state
        if self._slot(event.node) is None or event.node in state.bad_nodes:
            return
        label = " (simulated)" if event.simulated else ""
        state.bad_nodes[event.node] = f"{event.kind}{label}: {event.evidence}"
        fault = m.Fault.GPU_LOST if event.kind == "GPU_LOST" else m.Fault.NODE_FAULT
        common = state.attempt.common_step() if state.attempt else None
        at = f" while the job was at step {common}" if common is not None else ""
        clause = f"{event.kind}{label} was reported for {event.gpu or event.node}{at}"
        # High-confidence evidence of the machine: out of service at once, the diagnosis of the job follows.
        self.call("cordon", node=event.node, reason=f"{event.kind}{label}: {event.evidence}")
        self._fail(
            Cause(
                fault, clause, f"node telemetry: {shorten(event.evidence)}", event.kind, event.node, None, event.time_ns
            ),
            f"collector: {event.evidence}",
        )
        self._decide_when_stopped()

    def _decide_when_stopped(self) -> None:
        """Once nothing of the attempt is alive, its exits are complete: find the culprit and act."""
        state, attempt = self.state, self.state.attempt
        if state.phase in (m.Phase.WAITING, m.Phase.CHECKING) and state.bad_nodes and state.incident:
            self._act()
            return
        if state.phase is not m.Phase.STOPPING or attempt is None:
            return
        if any(launcher.stopped_generation < attempt.generation for launcher in state.launchers.values()):
            return
        if (
            state.incident
            and not state.bad_nodes
            and state.incident.fault not in (m.Fault.LAUNCHER_LOST, m.Fault.START_FAILED)
        ):
            root = root_exit(rank.exit for rank in attempt.ranks.values() if rank.exit)
            if root:
                self._blame(cause_of_exit(root))
                state.incident.timeline["fault"] = root.time_ns
                self.add_evidence(evidence_of_exit(root))
        self._act()

    def _act(self, *, permanent: bool = False) -> None:
        state, attempt, incident = self.state, self.state.attempt, self.state.incident
        if incident is None:
            return
        self.mark("stopped", self.now.unix_ns)
        if attempt and not attempt.end_ns:
            self._end_attempt(m.AttemptState.FAILED, incident.cause)
            common = attempt.common_step()
            incident.failed_step = incident.failed_step if common is None else common
            root = root_exit(rank.exit for rank in attempt.ranks.values() if rank.exit)
            signature = cause_of_exit(root).signature if root else incident.fault.value
            state.failures.append(
                m.Failure(
                    incident.fault, signature, incident.failed_step, state.high_water_step > attempt.high_water_step
                )
            )
        else:
            state.failures.append(m.Failure(incident.fault, incident.fault.value, None, progressed=False))
        del state.failures[:-FAILURES_MAX]
        incident.decision, incident.decision_reason = decide(
            state.failures,
            max_restarts=state.spec.max_restarts,
            restarts_used=state.restarts_used,
            bad_nodes=sorted(state.bad_nodes),
            permanent=permanent,
        )
        incident.state = m.IncidentState.ACTING
        self.mark("decided", self.now.unix_ns)
        match incident.decision:
            case m.Decision.STOP:
                self.close_incident(m.IncidentState.ESCALATED)
                self._end(m.JobOutcome.FAILED, incident.summary)
            case m.Decision.REPLACE_NODE:
                state.phase = m.Phase.REPLACING
                self.call("replace", node=",".join(sorted(state.bad_nodes)), reason=incident.cause, epoch=state.epoch)
                self.save_incident()
            case m.Decision.RESTART_IN_PLACE:
                if incident.fault not in INFRASTRUCTURE:
                    state.restarts_used += 1
                state.phase = m.Phase.WAITING
                self.save_incident()
                self._start_when_ready()

    # Ends.

    def _end_attempt(self, end: m.AttemptState, reason: str) -> None:
        attempt = self.state.attempt
        if attempt is None or attempt.end_ns:
            return
        common = attempt.common_step()
        if common is not None:
            self.state.high_water_step = max(self.state.high_water_step, common)
        self.state.productive_ns += _attempt_productive_ns(attempt)
        self.state.steps_redone += _attempt_steps_redone(attempt)
        attempt.state, attempt.end_ns, attempt.end_reason = end, self.now.unix_ns, reason
        self.effects.append(m.SaveAttempt(copy.deepcopy(attempt)))

    def _succeed(self) -> None:
        self._end_attempt(m.AttemptState.SUCCEEDED, "all ranks ended with exit code 0")
        if self.state.incident:
            self.close_incident(m.IncidentState.RESOLVED)
        self._end(m.JobOutcome.SUCCEEDED, f"all {self.state.spec.world_size} ranks ended with exit code 0")

    def _end(self, outcome: m.JobOutcome, message: str) -> None:
        self.state.phase, self.state.end_ns, self.state.outcome = m.Phase.ENDED, self.now.unix_ns, outcome
        self.set_state(outcome, message)
        self._finish(message)

    def _ended_outside(self, reason: str) -> None:
        self._end_attempt(m.AttemptState.STOPPED, reason)
        if self.state.incident:
            self.close_incident(m.IncidentState.ESCALATED)
        self.state.phase, self.state.end_ns = m.Phase.ENDED, self.now.unix_ns
        self._finish(reason)

    def _finish(self, reason: str) -> None:
        for node in self.state.launchers:
            self.effects.append(m.Finish(node, self.state.generation, reason))
