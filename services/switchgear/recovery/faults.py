"""A fault, from its first sign over the decision to the end of its incident or of the job."""

from __future__ import annotations

import copy

from switchgear.core.modes import Mode
from switchgear.recovery import model as m
from switchgear.recovery.diagnosis import Cause, root_cause, shorten, withheld
from switchgear.recovery.goodput import stepping_ns
from switchgear.recovery.policy import FAILURES_MAX, Case, decide, restarts_refilled
from switchgear.recovery.records import Records
from switchgear.recovery.table import INFRASTRUCTURE, NO_SPARE, OF_A_NODE

#: A placed node whose launcher does not report within this time is given up; importing torch on a busy node takes most of it.
LAUNCHER_START_S = 120.0
#: A job on fewer nodes than it asked for does without more for so long after one that it was given did not report.
GROW_RETRY_S = 3600.0
#: What an attempt may take to end after its SIGKILL, or as long as the lease and its margin: nothing of ours computes any more then.
STOP_S_MAX = 60.0
#: What ranks get between SIGTERM and SIGKILL when others are to have their nodes: a script that saves on SIGTERM has done it by then.
VACATE_GRACE_S = 20.0
#: A kill that the kernel holds back takes effect before another instruction of the program; so long is given to the node's other ranks.
BLOCKED_STOP_S = 5.0
#: What one look for the newest good checkpoint may take: some hundred gigabytes, read at 0.5 GB/s.
CHECK_S_MAX = 1800.0
#: An attempt whose steps have no number has made progress when it made steps for so long; where none are seen, when it lasted so long.
PROGRESS_UNKNOWN_S = 60.0

#: Told by a launcher outright; the exits of other ranks are consequences.
_EXPLAINED = OF_A_NODE | {m.Fault.LAUNCHER_LOST, m.Fault.START_FAILED, m.Fault.RANK_STOPPED, m.Fault.RANK_HUNG}
_RESTARTS = (m.Decision.RESTART_IN_PLACE, m.Decision.ROLL_BACK, m.Decision.REPLACE_NODE)
#: An attempt is rolled back once for a fault; what is older than so many is gone by then.
SKIPPED_MAX = 10
_IN_ATTEMPT = (m.Phase.STARTING, m.Phase.RUNNING)


def attempt_steps_redone(attempt: m.Attempt) -> int:
    common = attempt.last_step()
    if common is None or attempt.resume_step is None:
        return 0
    return max(0, min(common, attempt.high_water_step) - attempt.resume_step)


def _saves(attempt: m.Attempt) -> bool:
    return any(rank.checkpoint_ns for rank in attempt.ranks.values())


class Faults(Records):
    """What the machine does about faults. Starting again is the machine's own business: here it ends with phase WAITING."""

    def fail(self, cause: Cause, evidence: str) -> None:
        """Opens the incident, or adds to the open one, and stops the attempt everywhere."""
        state, attempt, incident = self.state, self.state.attempt, self.state.incident
        if incident is None:
            state.incident_count += 1
            state.incident = m.Incident(
                incident_id=f"{state.job.split('/')[-1]}-{state.incident_count}",
                job=state.job,
                state=m.IncidentState.OPEN,
                fault=cause.fault,
                failed_generation=attempt.generation if attempt else 0,
            )
            self.blame(cause)
            state.incident.timeline["detected"] = self.now.unix_ns
            self.set_state(m.JobOutcome.RECOVERING, cause.clause)
        elif state.phase in _IN_ATTEMPT:
            # A second fault before the first new step: the same incident goes on, told from the newest cause.
            incident.state = m.IncidentState.OPEN
            incident.decision, incident.decision_reason = None, ""
            incident.new_generation, incident.resume_step = 0, None
            for phase in ("stopped", "decided", "started", "loaded", "first_step"):
                incident.timeline.pop(phase, None)
            self.blame(cause)
            self.set_state(m.JobOutcome.RECOVERING, cause.clause)
        elif cause.fault in OF_A_NODE and incident.fault not in OF_A_NODE:
            self.blame(cause)
        self.add_evidence(evidence)
        if state.phase in _IN_ATTEMPT and attempt:
            state.phase, attempt.state = m.Phase.STOPPING, m.AttemptState.STOPPING
            for node, launcher in state.launchers.items():
                if launcher.stopped_generation < attempt.generation:
                    self.effects.append(m.Stop(node, attempt.generation, cause.clause))
        self.save_incident()

    def blame(self, cause: Cause) -> None:
        incident = self.state.incident
        if incident is None:
            return
        incident.fault, incident.node, incident.rank = cause.fault, cause.node, cause.rank
        incident.cause, incident.known_by, incident.signature = cause.clause, cause.known_by, cause.signature
        if cause.time_ns:
            # The cost counts from the first sign; a witness may have ended before the culprit was seen to.
            incident.timeline["fault"] = min(cause.time_ns, incident.timeline.get("fault", cause.time_ns))

    def node_signal(self, event: m.NodeSignal) -> None:
        state = self.state
        if self.slot(event.node) is None or event.node in state.bad_nodes:
            return
        label = " (simulated)" if event.simulated else ""
        state.bad_nodes[event.node] = f"{event.kind}{label}: {event.evidence}"
        fault = m.Fault.GPU_LOST if event.kind == "GPU_LOST" else m.Fault.NODE_FAULT
        common = state.attempt.common_step() if state.attempt else None
        at = f" while the job was at step {common}" if common is not None else ""
        clause = f"{event.kind}{label} was reported for {event.gpu or event.node}{at}"
        # High-confidence evidence of the machine: out of service at once, the diagnosis of the job follows.
        known_by = f"node telemetry: {shorten(event.evidence)}"
        cause = Cause(fault, clause, known_by, event.kind, event.node, None, event.time_ns)
        self.fail_with_node(cause, f"collector: {event.evidence}", state.bad_nodes[event.node])

    def fail_with_node(self, cause: Cause, evidence: str, why: str) -> None:
        """Takes the node out of placement, as far as the policy may, and stops the attempt."""
        mode = self.state.modes.cordon
        if mode is Mode.ACT:
            self.call("cordon", node=cause.node, reason=why)
        elif cause.node not in self.state.uncordoned:
            self.state.uncordoned.append(cause.node)
        self.fail(cause, evidence)
        if mode is Mode.ADVISE:
            self.add_evidence(f"advice: cordon {cause.node}, which policy recovery.cordon may not (mode ADVISE): {why}")
            self.save_incident()

    def seats_seen(self, event: m.SeatsSeen) -> None:
        for node, reason in event.taken:
            if self.slot(node) is not None and node not in self.state.bad_nodes:
                self.state.bad_nodes[node] = reason
                self.fail(self.lost(node, reason, 0), f"engine: {reason}")
        for node, launcher in self.state.launchers.items():
            if launcher.queued and node not in event.queued:
                launcher.seen_s = self.now.monotonic_s  # from now on it starts
            launcher.queued = node in event.queued

    def tick(self) -> None:
        """Gives up the nodes whose launchers have been silent for longer than anything of ours can run there."""
        state = self.state
        if state.phase is m.Phase.REPLACING:
            return
        self._give_up_stuck_nodes()
        for node, launcher in state.launchers.items():
            if launcher.queued and not launcher.launcher_id:
                continue
            silent_s = self.now.monotonic_s - launcher.seen_s
            patience_s = state.timing.silence_s_max if launcher.launcher_id else LAUNCHER_START_S
            given_up = node in state.bad_nodes and launcher.stopped_generation >= state.generation
            if silent_s <= patience_s or given_up:
                continue
            launcher.fell_silent = True
            self.lose_node(node, f"no word from its launcher for {silent_s:.0f} s", silent_s)

    def lose_node(self, node: str, known_by: str, since_s: float) -> None:
        """Nothing of ours makes another step there; the job goes on without it."""
        state, launcher = self.state, self.state.launchers[node]
        state.bad_nodes.setdefault(node, f"{node}: {known_by}")
        self.fail(self.lost(node, known_by, since_s), state.bad_nodes[node])
        launcher.connected, launcher.stopped_generation = False, state.generation
        if not launcher.launcher_id:
            state.grow_after_ns = self.now.unix_ns + round(GROW_RETRY_S * 1e9)

    def lost(self, node: str, known_by: str, since_s: float) -> Cause:
        time_ns = self.now.unix_ns - round(since_s * 1e9)
        return Cause(m.Fault.NODE_LOST, f"contact with {node} was lost", known_by, "node lost", node, None, time_ns)

    def _give_up_stuck_nodes(self) -> None:
        """A launcher that answers, but not what it was asked for: a process in state D, a file system that hangs."""
        state, waited_s = self.state, self.now.monotonic_s - self.state.phase_since_s
        stop_s_max = max(STOP_S_MAX, state.timing.silence_s_max)
        if state.phase is m.Phase.STOPPING and state.attempt and waited_s > stop_s_max:
            generation, said = state.attempt.generation, f"its processes outlive SIGKILL for {waited_s:.0f} s"
            stuck = [node for node, launcher in state.launchers.items() if launcher.stopped_generation < generation]
        elif (blocked := self._blocked_node()) and waited_s > BLOCKED_STOP_S:
            stuck, said = [blocked], f"the kill of its blocked ranks has waited for {waited_s:.0f} s"
        elif state.phase is m.Phase.CHECKING and waited_s > CHECK_S_MAX and state.slots:
            stuck, said = (
                [state.slots[0].node],
                f"it has not answered for {waited_s:.0f} s whether the checkpoints are good",
            )
        else:
            return
        for node in stuck:
            if node in state.bad_nodes:
                self.add_evidence(f"{node}: {said}")
            else:
                state.bad_nodes[node] = f"{node}: {said}"
                cause = Cause(m.Fault.NODE_FAULT, f"{node} is stuck", said, "node stuck", node)
                self.fail_with_node(cause, state.bad_nodes[node], said)
            # The kill waits for them at the kernel's door: they will not run another instruction of their own.
            state.launchers[node].stopped_generation = state.generation

    def _blocked_node(self) -> str:
        """A node of which only ranks are left that the kernel holds: its other ranks have ended."""
        state, attempt, incident = self.state, self.state.attempt, self.state.incident
        if state.phase is not m.Phase.STOPPING or attempt is None or incident is None:
            return ""
        launcher = state.launchers.get(incident.node)
        if incident.fault is not m.Fault.RANK_BLOCKED or launcher is None or not launcher.connected:
            return ""
        return incident.node if launcher.stopped_generation < attempt.generation else ""

    def decide_when_stopped(self) -> None:
        """Once nothing of the attempt is alive, its exits are complete: find the culprit and act."""
        state, attempt, incident = self.state, self.state.attempt, self.state.incident
        if incident is None:
            return
        if state.phase in (m.Phase.WAITING, m.Phase.CHECKING) and state.bad_nodes:
            self.act()
            return
        if state.phase is not m.Phase.STOPPING or attempt is None:
            return
        if self._is_leaving() or any(
            launcher.stopped_generation < attempt.generation for launcher in state.launchers.values()
        ):
            return
        if self.all_done(attempt):
            self.succeed()  # whatever came in between, the job is done
            return
        if incident.fault not in _EXPLAINED and (found := root_cause(attempt.ranks, inference=state.spec.inference)):
            self.blame(found[0])
            self.add_evidence(found[1])
        self.act()

    def all_done(self, attempt: m.Attempt) -> bool:
        """All ranks ended well. One that was asked to leave, and does so, has not done its work."""
        exits = [rank.exit for rank in attempt.ranks.values()]
        return all(e is not None and e.code == 0 and not (self.state.vacating and e.by_us) for e in exits)

    def vacate(self, reason: str, *, for_others: bool) -> None:
        """Begins to leave the nodes; `leave_when_stopped` goes on."""
        state, attempt = self.state, self.state.attempt
        if state.vacating or state.phase is m.Phase.REPLACING:
            return  # asked for a placement: the answer is the queue
        state.vacating = reason
        state.preemptions += for_others
        if state.phase in _IN_ATTEMPT and attempt:
            state.phase, attempt.state = m.Phase.STOPPING, m.AttemptState.STOPPING
            for node, launcher in state.launchers.items():
                if launcher.stopped_generation < attempt.generation:
                    self.effects.append(m.Stop(node, attempt.generation, reason, VACATE_GRACE_S))

    def _is_leaving(self) -> bool:
        """The attempt is being stopped for others alone: an incident that waits for its first new step goes on waiting."""
        state = self.state
        if not state.vacating or state.phase is not m.Phase.STOPPING:
            return False
        return state.incident is None or state.incident.state is m.IncidentState.VERIFYING

    def leave_when_stopped(self) -> None:
        """Once nothing of the attempt is alive, gives the nodes back. A fault meanwhile is dealt with first, as far as it goes."""
        state, attempt = self.state, self.state.attempt
        if not state.vacating:
            return
        if self._is_leaving() and attempt:
            if any(launcher.stopped_generation < attempt.generation for launcher in state.launchers.values()):
                return
            if self.all_done(attempt):
                self.succeed()
                return
            self.end_attempt(m.AttemptState.STOPPED, state.vacating)
            state.phase = m.Phase.WAITING
        if state.phase in (m.Phase.WAITING, m.Phase.CHECKING):
            self._replace([slot.node for slot in state.slots], state.vacating)

    def act(self, *, permanent: bool = False) -> None:
        """Decides about the open incident and begins to do so. permanent: no restart can help."""
        state, incident = self.state, self.state.incident
        if incident is None:
            return
        self.mark("stopped", self.now.unix_ns)
        bad_nodes = sorted(state.bad_nodes)
        if self._count_failure(incident) or permanent or state.spec.inference or not state.spec.replaceable:
            incident.decision, incident.decision_reason = decide(self._case(bad_nodes, permanent=permanent))
        else:
            # No attempt was made since the last decision, so nothing speaks against the job.
            incident.decision = m.Decision.REPLACE_NODE
            incident.decision_reason = f"fatal evidence against {', '.join(bad_nodes)}"
        incident.state, incident.node_again = m.IncidentState.ACTING, False
        self.mark("decided", self.now.unix_ns)
        if incident.decision in _RESTARTS and state.modes.restart is not Mode.ACT:
            incident.decision_reason = withheld(incident, state.modes.restart)
            self.close_incident(m.IncidentState.ESCALATED)
            self.end(m.JobOutcome.FAILED, incident.summary)
            return
        match incident.decision:
            case m.Decision.STOP:
                self.close_incident(m.IncidentState.ESCALATED)
                self.end(m.JobOutcome.FAILED, incident.summary)
            case m.Decision.REPLACE_REPLICA:
                self.close_incident(m.IncidentState.RESOLVED)
                self.end(m.JobOutcome.FAILED, incident.summary)
            case m.Decision.REPLACE_NODE:
                self._replace(bad_nodes or [incident.node], incident.cause)
                self.save_incident()
            case m.Decision.RESTART_IN_PLACE | m.Decision.ROLL_BACK:
                if incident.decision is m.Decision.ROLL_BACK:
                    self._skip_checkpoint()
                if incident.fault not in INFRASTRUCTURE:
                    state.restarts_used += 1
                if len(state.slots) < state.spec.nnodes and self.now.unix_ns >= state.grow_after_ns:
                    self._replace([], incident.cause)  # nodes that were missing may be free by now
                else:
                    state.phase = m.Phase.WAITING
                self.save_incident()

    def fewer_nodes(self) -> None:
        """The scheduler had no other node for one that went."""
        state, incident = self.state, self.state.incident
        if incident and incident.decision is m.Decision.REPLACE_NODE and len(state.slots) < state.spec.nnodes:
            incident.decision = NO_SPARE.decision
            incident.decision_reason += (
                f"; no other is free, and the job may go on with {len(state.slots)} of {state.spec.nnodes}"
            )
            self.save_incident()

    def _case(self, bad_nodes: list[str], *, permanent: bool) -> Case:
        state = self.state
        state.restarts_used, state.refilled_ns = restarts_refilled(
            state.restarts_used, state.refilled_ns, stepping_ns(state)
        )
        return Case(state.spec, state.failures, state.restarts_used, bad_nodes, permanent, self._has_older())

    def _has_older(self) -> bool:
        """Whether a checkpoint is known that may be good and is older than the one that the attempt was to start from."""
        attempt = self.state.attempt
        if attempt is None or not attempt.resume_step:
            return False
        usable = (m.CheckpointState.COMMITTED, m.CheckpointState.VERIFIED)
        return any(
            c.state in usable
            and c.step is not None
            and c.step < attempt.resume_step
            and c.digest not in self.state.skipped
            for c in self.state.checkpoints.values()
        )

    def _skip_checkpoint(self) -> None:
        attempt = self.state.attempt
        loaded = self.state.checkpoints.get(attempt.resume_path) if attempt else None
        if loaded and loaded.digest:
            self.state.skipped = [*self.state.skipped, loaded.digest][-SKIPPED_MAX:]

    def _count_failure(self, incident: m.Incident) -> bool:
        """Remembers what failed; False when it was only a node that failed between two attempts."""
        state, attempt = self.state, self.state.attempt
        if attempt and not attempt.end_ns:
            step = attempt.last_step()
            self.end_attempt(m.AttemptState.FAILED, incident.cause)
            incident.failed_step = max((s for s in (step, incident.failed_step) if s is not None), default=None)
            # One rank that has completed a step is proof enough: the others, whose word may be lost, took part in it.
            steps = [rank.step for rank in attempt.ranks.values() if rank.step is not None]
            if steps:
                progressed = any(step > attempt.high_water_step for step in steps)
            else:  # a script whose steps cannot be known
                lasted_s = (self.now.unix_ns - attempt.start_ns) / 1e9
                lasted = not self.makes_steps(attempt) and lasted_s > PROGRESS_UNKNOWN_S
                saved = any(c.generation == attempt.generation for c in state.checkpoints.values())
                progressed = saved or lasted or self.stepped_long(attempt) or self._went_further(attempt)
            self._remember(incident, step, progressed=progressed, attempt=attempt)
        elif incident.fault is m.Fault.NODE_LOST and any(state.launchers[n].fell_silent for n in state.bad_nodes):
            # Launchers that fall silent everywhere (a firewall, a broken image) must not take one node after another for ever.
            self._remember(incident, None, progressed=False)
        else:
            return False
        return True

    def makes_steps(self, attempt: m.Attempt) -> bool:
        """A step of this job was ever seen."""
        return (
            any(rank.first_step_ns for rank in attempt.ranks.values())
            or self.state.high_water_step > 0
            or any(failure.made_steps for failure in self.state.failures)
        )

    def stepped_long(self, attempt: m.Attempt) -> bool:
        """It went on making steps for so long that some of them are taken for new, though they have no number."""
        return all(
            rank.first_step_ns and rank.step_time_ns - rank.first_step_ns > PROGRESS_UNKNOWN_S * 1e9
            for rank in attempt.ranks.values()
        )

    def _went_further(self, attempt: m.Attempt) -> bool:
        """By the number of its steps, beside that of the last attempt that made any: whoever goes on from the same place and meets the
        same thing makes as many, or fewer the first time. One that made fewer and wrote checkpoints went on from elsewhere."""
        count = attempt.last_count()
        before = next((failure.count for failure in reversed(self.state.failures) if failure.count), 0)
        return count > before or (0 < count < before and _saves(attempt))

    def _remember(
        self, incident: m.Incident, step: int | None, *, progressed: bool, attempt: m.Attempt | None = None
    ) -> None:
        """attempt: the one that has failed; None: it fell between two."""
        last = self.state.attempt
        failure = m.Failure(
            incident.fault,
            incident.signature,
            step,
            progressed,
            made_steps=attempt is not None and any(rank.first_step_ns for rank in attempt.ranks.values()),
            node=incident.node,
            rank=incident.rank,
            time_ns=self.now.unix_ns,
            resume_path=last.resume_path if last else "",
            doubted_s=last.doubted_s if last and incident.fault is m.Fault.RANK_HUNG else None,
            hang=last.hang if last and incident.fault is m.Fault.RANK_HUNG else None,
            count=attempt.last_count() if attempt else 0,
            saved=attempt is not None and _saves(attempt),
        )
        self.state.failures.append(failure)
        del self.state.failures[:-FAILURES_MAX]

    def _replace(self, bad_nodes: list[str], reason: str) -> None:
        """Asks for a placement without these nodes.

        They are no longer ours from here on: the evidence has been told, and when the scheduler hands one of them out again, it
        has been mended. What is learnt from now on about the nodes that stay counts against the next placement.
        """
        state = self.state
        state.phase, state.vacating = m.Phase.REPLACING, ""
        avoid = tuple(node for node in bad_nodes if node in state.uncordoned)
        silent = tuple(node for node in bad_nodes if (one := state.launchers.get(node)) and one.is_lost)
        self.call("replace", node=",".join(bad_nodes), reason=reason, epoch=state.epoch, avoid=avoid, lost=silent)
        for node in bad_nodes:
            self.effects.append(m.Finish(node, state.generation, "this node is no longer part of the job's placement"))
        state.bad_nodes, state.uncordoned = {}, []
        state.slots = [slot for slot in state.slots if slot.node not in bad_nodes]
        state.launchers = {node: launcher for node, launcher in state.launchers.items() if node not in bad_nodes}

    # Ends.

    def end_attempt(self, end: m.AttemptState, reason: str) -> None:
        attempt = self.state.attempt
        if attempt is None or attempt.end_ns:
            return
        common = attempt.last_step()
        if common is not None:
            self.state.high_water_step = max(self.state.high_water_step, common)
        self.state.steps_redone += attempt_steps_redone(attempt)
        attempt.state, attempt.end_ns, attempt.end_reason = end, self.now.unix_ns, reason
        self.effects.append(m.SaveAttempt(copy.deepcopy(attempt)))

    def succeed(self) -> None:
        self.end_attempt(m.AttemptState.SUCCEEDED, "all ranks ended with exit code 0")
        self.close_incident(m.IncidentState.RESOLVED)
        self.end(
            m.JobOutcome.SUCCEEDED,
            f"all {len(self.state.attempt.ranks) if self.state.attempt else 0} ranks ended with exit code 0",
        )

    def end(self, outcome: m.JobOutcome, message: str) -> None:
        self.state.phase, self.state.end_ns, self.state.outcome = m.Phase.ENDED, self.now.unix_ns, outcome
        self.set_state(outcome, message)
        self._finish(message)

    def ended_outside(self, reason: str) -> None:
        self.end_attempt(m.AttemptState.STOPPED, reason)
        if self.state.incident:
            self.state.incident.decision, self.state.incident.decision_reason = m.Decision.STOP, reason
            self.close_incident(m.IncidentState.ESCALATED)
        self.state.phase, self.state.end_ns = m.Phase.ENDED, self.now.unix_ns
        self._finish(reason)

    def _finish(self, reason: str) -> None:
        for node in self.state.launchers:
            self.effects.append(m.Finish(node, self.state.generation, reason))
