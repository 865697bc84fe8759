"""The recovery state machine of one job: `step(state, event, now) -> (state, effects)`.

Pure. The recovery service runs it over gRPC and a store, `switchgear run --standalone` runs it inside the launcher's process.
Every effect can be lost or repeated: a launcher that (re)connects is told again what it should do, calls to other services stay
in the outbox until they are confirmed, and generations make repeats harmless.
"""

from __future__ import annotations

import copy
from dataclasses import replace

from switchgear.recovery import model as m
from switchgear.recovery.diagnosis import Cause, cause_of_exit, evidence_of_exit
from switchgear.recovery.faults import LAUNCHER_START_S, attempt_steps_redone
from switchgear.recovery.ledger import book
from switchgear.recovery.values import LEASE_MARGIN_S, LEASE_S
from switchgear.recovery.watching import ENDED_LOUDLY_S, Watching

__all__ = ["LAUNCHER_START_S", "LEASE_MARGIN_S", "LEASE_S", "resume", "step", "steps_redone"]


def step(state: m.JobState, event: m.Event, now: m.Now) -> tuple[m.JobState, list[m.Effect]]:
    """The next state, and what to do in this order after the state is stored. `state` itself is left as it was."""
    machine = _Machine(_copied(state), now)
    machine.take(event)
    if machine.state.phase is not state.phase:
        machine.state.phase_since_s, machine.state.check_again_s = now.monotonic_s, None
    machine.state.ledger = book(state, machine.effects, machine.state, now)
    return machine.state, machine.effects


def _copied(state: m.JobState) -> m.JobState:
    """As deep as the machine changes things: progress comes several times a second, a deep copy of all would cost more than the step."""
    new = copy.copy(state)
    new.slots, new.failures, new.outbox = list(state.slots), list(state.failures), list(state.outbox)
    new.bad_nodes, new.checkpoints = dict(state.bad_nodes), dict(state.checkpoints)
    new.uncordoned, new.skipped = list(state.uncordoned), list(state.skipped)
    new.launchers = {node: copy.copy(launcher) for node, launcher in state.launchers.items()}
    new.incident = copy.deepcopy(state.incident)
    new.attempt = copy.copy(state.attempt)
    if new.attempt:
        new.attempt.ranks = dict(new.attempt.ranks)  # whoever changes a rank gets a copy of it: see `_rank`
    return new


def resume(state: m.JobState, now: m.Now) -> m.JobState:
    """A state read back from the store: nobody is connected, and every lease counts from now."""
    state = copy.deepcopy(state)
    if state.phase is m.Phase.CHECKING:
        state.phase = m.Phase.WAITING  # asked again when all are back
    state.phase_since_s, state.ledger.monotonic_s = now.monotonic_s, None
    for launcher in state.launchers.values():
        launcher.connected, launcher.seen_s = False, now.monotonic_s
        launcher.gone_s, launcher.agent_gone = None, False
    return state


def steps_redone(state: m.JobState) -> int:
    """Steps that were made again, by all attempts so far."""
    return state.steps_redone + (
        attempt_steps_redone(state.attempt) if state.attempt and not state.attempt.end_ns else 0
    )


#: Checkpoints that cannot be read are asked for again this often, and for so long, before the job is given up.
CHECK_RETRY_S = 5.0
CHECK_RETRY_S_MAX = 300.0


class _Machine(Watching):
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
            case m.Vacate():
                self.vacate(event.reason, for_others=event.for_others)
            case m.EndedOutside():
                self.ended_outside(event.reason)
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
            case m.Watched():
                self.watched(event)
            case m.Loaded():
                self._loaded(event)
            case m.AttemptStopped():
                self._stopped(event.node, event.generation, event.reserved_port)
            case m.StartFailed():
                self._start_failed(event)
            case m.Rejected():
                self._rejected(event)
            case m.CheckpointSeen():
                self.checkpoint_seen(event)
            case m.Checked():
                self._checked(event)
            case m.NodeSignal():
                self.node_signal(event)
            case m.SeatsSeen():
                self.seats_seen(event)
            case m.ContactKnown():
                self.contact_known(event)
            case m.Tick():
                self.state.modes = event.modes or self.state.modes
                self.tick()
                self.judge()
                self.look_for_lost_nodes()
                self._check_again()
        self.give_up_lost_nodes()
        self._run_when_started()
        self.decide_when_stopped()
        self.leave_when_stopped()
        self._start_when_ready()

    # Placement and launchers.

    def _placed(self, event: m.Placed) -> None:
        state = self.state
        if event.epoch <= state.epoch:
            return
        known = state.launchers
        state.epoch, state.slots = event.epoch, list(event.slots)
        kept = {slot.node for slot in event.slots}
        for node in sorted(known.keys() - kept):
            self.effects.append(m.Finish(node, state.generation, "this node is no longer part of the job's placement"))
        state.bad_nodes = {node: why for node, why in state.bad_nodes.items() if node in kept}
        state.uncordoned = [node for node in state.uncordoned if node in kept]
        state.launchers = {}
        for slot in event.slots:
            launcher = known.get(slot.node) if slot.launcher_epoch < event.epoch else None
            launcher = launcher or m.Launcher(stopped_generation=state.generation)
            launcher.seen_s = self.now.monotonic_s
            state.launchers[slot.node] = launcher
        if state.phase in (m.Phase.REPLACING, m.Phase.WAITING, m.Phase.CHECKING):
            state.phase = m.Phase.WAITING
            self.fewer_nodes()

    def _launcher(self, node: str, launcher_id: str = "") -> m.Launcher | None:
        launcher = self.state.launchers.get(node)
        return None if launcher is None or (launcher_id and launcher.launcher_id != launcher_id) else launcher

    def _hello(self, hello: m.LauncherHello) -> None:
        state, slot = self.state, self.slot(hello.node)
        if slot is None or hello.launcher_epoch < slot.launcher_epoch:
            # Not of this placement (any more): whatever it runs must end.
            self.effects.append(
                m.Finish(hello.node, hello.generation, "this node is no longer part of the job's placement")
            )
            return
        launcher = state.launchers[hello.node]
        launcher.connected, launcher.gone_s, launcher.agent_gone, launcher.missed = True, None, False, ""
        launcher.fell_silent = False
        launcher.launcher_id, launcher.reserved_port = hello.launcher_id, hello.reserved_port
        launcher.seen_s = self.now.monotonic_s
        launcher.seen_generation = max(launcher.seen_generation, hello.generation)
        older = self._current(hello.generation) is None
        if hello.ranks_alive or not hello.all_gone:
            # Also when it had been given up: what it says counts.
            launcher.stopped_generation = min(launcher.stopped_generation, hello.generation - 1)
            if older:
                self.effects.append(m.Stop(hello.node, hello.generation, "an older generation"))
        elif older:
            launcher.stopped_generation = max(launcher.stopped_generation, hello.generation)
        phase = state.phase
        self._settle_attempt(hello, launcher)
        if state.phase is phase:
            self._repeat_command(hello.node, launcher)

    def _settle_attempt(self, hello: m.LauncherHello, launcher: m.Launcher) -> None:
        """What a launcher that comes (back) says about the attempt that should run there."""
        attempt = self.state.attempt
        if attempt is None or attempt.end_ns or hello.generation != attempt.generation:
            joined = attempt is not None and hello.node not in attempt.nodes
            if (
                attempt
                and not attempt.end_ns
                and not joined
                and attempt.launcher_ids.get(hello.node) != hello.launcher_id
            ):
                # It may have been handed the start that was meant for the one before it: stopped is what it says after a stop.
                self._launcher_lost(hello)
            return
        for number, pid, started_ns in hello.ranks_alive:
            if rank := self._rank(hello.node, attempt, number):
                rank.pid, rank.started_ns = pid, started_ns
        exited = {rank_exit.rank for rank_exit in hello.exits}
        ended = all(rank in exited or view.exit for rank, view in attempt.ranks.items() if view.node == hello.node)
        over = ended and hello.all_gone
        if over:
            launcher.stopped_generation = hello.generation
        for rank_exit in hello.exits:
            self._rank_exited(m.RankExited(hello.generation, rank_exit))
        if over:
            self._stopped(hello.node, hello.generation, hello.reserved_port)
        elif not hello.ranks_alive and not ended:
            # Ranks that it is just starting are not in a hello: stopped is what it says after a stop.
            self._launcher_lost(hello)

    def _launcher_lost(self, hello: m.LauncherHello) -> None:
        state, attempt, node = self.state, self.state.attempt, hello.node
        if attempt is None or state.phase not in (m.Phase.STARTING, m.Phase.RUNNING):
            return
        if attempt.launcher_ids.get(node) == hello.launcher_id:
            clause, known_by = (
                f"the launcher on {node} lost contact while it started its ranks",
                "it came back without them",
            )
        else:
            clause = f"the launcher on {node} ended and took its ranks with it"
            known_by = "a new launcher reported without ranks"
        self.fail(Cause(m.Fault.LAUNCHER_LOST, clause, known_by, "launcher lost", node), f"{node}: {known_by}")

    def _repeat_command(self, node: str, launcher: m.Launcher) -> None:
        """A command may have been lost with the connection: give it again. All of them are idempotent."""
        state, attempt = self.state, self.state.attempt
        match state.phase:
            case m.Phase.STOPPING if attempt and launcher.stopped_generation < attempt.generation:
                self.effects.append(m.Stop(node, attempt.generation, state.vacating or "the attempt has failed"))
            case m.Phase.CHECKING if state.slots and state.slots[0].node == node:
                self._send_check()
            case m.Phase.STARTING if attempt and not self._ranks_of(attempt, node)[0].started_ns:
                self._send_start(node, copy.deepcopy(attempt))
            case _:
                pass

    def _gone(self, event: m.LauncherGone) -> None:
        launcher = self._launcher(event.node, event.launcher_id)
        if launcher and launcher.connected:
            launcher.connected = False
            if self.now.monotonic_s - launcher.seen_s <= ENDED_LOUDLY_S:
                launcher.gone_s = self.now.monotonic_s

    def _seen(self, event: m.LauncherSeen) -> None:
        launcher = self._launcher(event.node, event.launcher_id)
        if launcher:
            launcher.seen_s = self.now.monotonic_s

    # Starting an attempt.

    def _start_when_ready(self) -> None:
        state = self.state
        if state.phase is not m.Phase.WAITING or not state.slots:
            return
        if not self._launchers_ready():
            return
        if state.spec.checkpoint_directory:
            state.phase = m.Phase.CHECKING
            self._send_check()
        else:
            self._start_attempt(None)

    def _launchers_ready(self) -> bool:
        return all(
            launcher.connected and launcher.stopped_generation >= max(self.state.generation, launcher.seen_generation)
            for launcher in self.state.launchers.values()
        )

    def _send_check(self) -> None:
        known = tuple(c for c in self.state.checkpoints.values() if c.state is not m.CheckpointState.CORRUPT)
        skip = tuple(self.state.skipped)
        self.effects.append(m.Check(self.state.slots[0].node, self.state.generation, known, skip))

    def _check_again(self) -> None:
        again_s = self.state.check_again_s
        if self.state.phase is m.Phase.CHECKING and again_s is not None and self.now.monotonic_s >= again_s:
            self.state.check_again_s = None
            self._send_check()

    def _checked(self, event: m.Checked) -> None:
        state = self.state
        if state.phase is not m.Phase.CHECKING or event.node != state.slots[0].node:
            return
        if event.generation != state.generation:
            return  # asked twice and answered late: checkpoints that were made since are not in it
        for checkpoint in event.checkpoints:
            self.keep_checkpoint(checkpoint)
        if state.incident:
            state.incident.quarantined += [path for path in event.quarantined if path not in state.incident.quarantined]
        if event.error:
            clause = f"the checkpoints could not be checked: {event.error}"
            if self.now.monotonic_s - state.phase_since_s < CHECK_RETRY_S_MAX:
                # A network file system has moments like that; to start without the checkpoints would lose all their steps.
                state.check_again_s = self.now.monotonic_s + CHECK_RETRY_S
                self.add_evidence(clause)
                return
            self._give_up(Cause(m.Fault.START_FAILED, clause, f"asked of {event.node}", event.error, event.node))
            return
        if not self._launchers_ready():
            # One has gone meanwhile, or came back with ranks: checked again when all are there.
            state.phase = m.Phase.WAITING
            return
        good = [c for c in event.checkpoints if c.state is m.CheckpointState.VERIFIED]
        # Better one that failed than to lose all steps.
        wanted = [c for c in good if c.digest not in state.skipped] or good
        self._start_attempt(wanted[0] if wanted else None)

    def _start_attempt(self, checkpoint: m.Checkpoint | None) -> None:
        state = self.state
        # A launcher remembers generations that a lost or new store does not, and refuses any that is not beyond them.
        state.generation = max(state.generation, *(one.seen_generation for one in state.launchers.values())) + 1
        state.attempts_started += 1
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
            # Without a folder that we watch, only the script knows whether it resumes, and where.
            resume_step=checkpoint.step if checkpoint else 0 if state.spec.checkpoint_directory else None,
            launcher_ids={node: launcher.launcher_id for node, launcher in state.launchers.items()},
        )
        per_node = state.spec.nproc_per_node
        attempt.ranks = {r: m.Rank(node=state.slots[r // per_node].node) for r in range(per_node * len(state.slots))}
        state.attempt, state.watches = attempt, {}
        if state.incident:
            state.incident.state = m.IncidentState.VERIFYING
            state.incident.node_again = state.incident.node in attempt.nodes
            state.incident.new_generation = attempt.generation
            state.incident.resume_step = attempt.resume_step
            self.save_incident()
        commanded = copy.deepcopy(attempt)
        self.effects.append(m.SaveAttempt(commanded))
        for slot in state.slots:
            self._send_start(slot.node, commanded)

    def _send_start(self, node: str, attempt: m.Attempt) -> None:
        state = self.state
        node_rank = [slot.node for slot in state.slots].index(node)
        checkpoints = tuple(state.checkpoints.values())
        self.effects.append(m.Start(node, node_rank, attempt, state.spec, state.attempts_started - 1, checkpoints))

    # News of the attempt.

    def _current(self, generation: int) -> m.Attempt | None:
        attempt = self.state.attempt
        return attempt if attempt and not attempt.end_ns and attempt.generation == generation else None

    def _ranks_of(self, attempt: m.Attempt, node: str) -> list[m.Rank]:
        return [rank for rank in attempt.ranks.values() if rank.node == node]

    def _rank(self, node: str, attempt: m.Attempt | None, number: int) -> m.Rank | None:
        """The rank, when it is the reporting node's own: what a node says of the ranks of others is worth nothing."""
        rank, launcher = attempt.ranks.get(number) if attempt else None, self._launcher(node)
        if rank is None:
            return None
        if attempt and rank.node == node:
            own = attempt.ranks[number] = copy.copy(rank)
            return own
        if launcher and not launcher.strayed:  # once: whoever goes on about it must not fill the log and the store
            launcher.strayed = True
            self.effects.append(m.Warn(node, f"reports about rank {number}, which {rank.node} has, are ignored"))
        return None

    def _rank_started(self, event: m.RankStarted) -> None:
        attempt = self._current(event.generation)
        rank = self._rank(event.node, attempt, event.rank)
        if attempt is None or rank is None:
            return
        rank.pid, rank.started_ns = event.pid, event.time_ns
        if all(r.started_ns for r in attempt.ranks.values()):
            self.mark("started", max(r.started_ns for r in attempt.ranks.values()))

    def _loaded(self, event: m.Loaded) -> None:
        attempt = self._current(event.generation)
        rank = self._rank(event.node, attempt, event.rank)
        if attempt is None or rank is None:
            return
        rank.loaded_ns = event.time_ns
        if event.step is not None and attempt.resume_step != event.step and self.state.incident:
            self.add_evidence(f"rank {event.rank} loaded {event.path} (step {event.step})")
        if all(r.loaded_ns for r in attempt.ranks.values()):
            self.mark("loaded", max(r.loaded_ns for r in attempt.ranks.values()))

    def _progress(self, event: m.Progress) -> None:
        state, attempt = self.state, self._current(event.generation)
        if attempt is None:
            return
        for report in event.ranks:
            rank = self._rank(event.node, attempt, report.rank)
            if rank is None:
                continue
            rank.step, rank.step_time_ns = report.step, report.time_ns
            rank.count, rank.checkpoint_ns = report.count, report.checkpoint_ns
            rank.first_step_ns = rank.first_step_ns or report.first_step_ns
            rank.first_new_step_ns = rank.first_new_step_ns or report.first_new_step_ns
            if attempt.resume_step is None and report.step is not None and report.count:
                attempt.resume_step = report.step - report.count
                if state.incident:
                    state.incident.resume_step = attempt.resume_step
        self.stepped(event.node, event.ranks)
        ranks = attempt.ranks.values()
        common = attempt.common_step()
        if common is not None:
            state.high_water_step = max(state.high_water_step, common)
        if state.phase is m.Phase.STARTING and all(rank.first_step_ns for rank in ranks):
            self.mark("first_step", max(rank.first_step_ns for rank in ranks))
            self._runs(attempt)
        if state.incident and state.phase is m.Phase.RUNNING and all(rank.first_new_step_ns for rank in ranks):
            self.mark("first_new_step", max(rank.first_new_step_ns for rank in ranks))
            self.close_incident(m.IncidentState.RESOLVED)
        elif state.incident and state.phase is m.Phase.RUNNING and common is None and self.stepped_long(attempt):
            self.close_incident(m.IncidentState.RESOLVED)

    def _run_when_started(self) -> None:
        """A replica makes no steps: it runs when its ranks do. Whether it answers requests is the autoscaler's to know."""
        state, attempt = self.state, self.state.attempt
        if not state.spec.inference or attempt is None or state.phase is not m.Phase.STARTING:
            return
        if all(rank.started_ns for rank in attempt.ranks.values()):
            self._runs(attempt)

    def _runs(self, attempt: m.Attempt) -> None:
        self.state.phase, attempt.state = m.Phase.RUNNING, m.AttemptState.RUNNING
        self.effects.append(m.SaveAttempt(copy.deepcopy(attempt)))
        self.set_state(m.JobOutcome.RUNNING, f"attempt {attempt.generation} runs on {', '.join(attempt.nodes)}")

    def _rank_exited(self, event: m.RankExited) -> None:
        rank = self._rank(event.exit.node, self._current(event.generation), event.exit.rank)
        if rank is None or rank.exit is not None:
            return
        rank.exit = replace(event.exit, made_steps=bool(rank.first_step_ns), count=rank.count)
        if event.exit.step is not None:
            rank.step = event.exit.step
        if event.exit.code != 0 and not event.exit.by_us and self.state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            self.fail(cause_of_exit(rank.exit, inference=self.state.spec.inference), evidence_of_exit(rank.exit))

    def _start_failed(self, event: m.StartFailed) -> None:
        attempt = self._current(event.generation)
        if attempt is None or event.node not in attempt.nodes:
            return
        self._port(event.node, event.reserved_port)
        clause = f"the attempt could not be started on {event.node}: {event.message}"
        cause = Cause(m.Fault.START_FAILED, clause, "", event.message, event.node)
        if event.permanent:
            self._give_up(cause)
        else:
            # Other ranks of this node may run all the same: it answers the stop when they are gone.
            self.fail(cause, event.message)

    def _rejected(self, event: m.Rejected) -> None:
        """A launcher holds a newer generation than the one that it was told of: go beyond it."""
        attempt, launcher = self._current(event.generation), self._launcher(event.node)
        if attempt is None or launcher is None or event.held <= attempt.generation:
            return  # told twice, or of an attempt that is over
        known_by = f"its launcher holds generation {event.held}"
        clause = f"{event.node} refused generation {attempt.generation}"
        cause = Cause(m.Fault.START_FAILED, clause, known_by, "generation refused", event.node)
        self.fail(cause, f"{event.node}: {known_by}")
        launcher.seen_generation = launcher.stopped_generation = event.held

    def _give_up(self, cause: Cause) -> None:
        self.fail(cause, cause.clause)
        self.blame(cause)
        self.act(permanent=True)

    def _port(self, node: str, reserved_port: int) -> None:
        launcher = self._launcher(node)
        if launcher and reserved_port:
            launcher.reserved_port = reserved_port

    def _stopped(self, node: str, generation: int, reserved_port: int) -> None:
        launcher = self._launcher(node)
        if launcher is None or generation < launcher.stopped_generation:
            return  # an old stream's last words
        self._port(node, reserved_port)
        launcher.stopped_generation = generation
        attempt = self._current(generation)
        if attempt and self.state.phase in (m.Phase.STARTING, m.Phase.RUNNING):
            exits = [rank.exit for rank in self._ranks_of(attempt, node)]
            if all(e is not None and e.code == 0 for e in exits):
                if all(rank.exit and rank.exit.code == 0 for rank in attempt.ranks.values()):
                    self.succeed()
                return  # this node is done; the others may still be writing their last checkpoint
            if not any(e and e.code != 0 and not e.by_us for e in exits):
                clause = f"the ranks on {node} were stopped by their launcher"
                known_by = "its lease was over, or it was told to end"
                self.fail(Cause(m.Fault.LAUNCHER_LOST, clause, known_by, "stopped", node), f"{clause}: {known_by}")
