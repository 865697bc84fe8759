"""What the machine makes of ranks that make no step, and of nodes that fall away; the verdicts themselves are in `hang`.

A node that is lost is replaced before its launcher's lease is over when nothing on it can complete another step (docs/adr/0010).
"""

from __future__ import annotations

from dataclasses import replace

from switchgear.recovery import model as m
from switchgear.recovery.diagnosis import blames_peer
from switchgear.recovery.faults import Faults
from switchgear.recovery.hang import HEARD_S_MAX, stall

#: A launcher whose connection broke has so long to come back: it tries after 0.1 s, and again within a second.
GONE_S = 1.0
#: A connection that ends so soon after its last heartbeat was closed or reset. One that had fallen silent was given up by the keepalive,
#: after 5 s at the earliest: that says nothing about the node, and its lease is waited for.
ENDED_LOUDLY_S = 4.0
#: Steps that all ranks must have made together before we trust that none goes on without the others.
TOGETHER_STEPS_MIN = 3
#: Reports of two nodes may be so much apart in time.
REPORTS_APART_S = 0.25
#: As the wire promises of a stack.
STACK_LENGTH_MAX = 8192
_IN_ATTEMPT = (m.Phase.STARTING, m.Phase.RUNNING)


class Watching(Faults):
    def watched(self, event: m.Watched) -> None:
        state, attempt = self.state, self.state.attempt
        if attempt is None or event.generation != attempt.generation or state.phase not in _IN_ATTEMPT:
            return
        kept = {n: watch for n, watch in state.watches.items() if attempt.ranks[n].node != event.node}
        for watch in event.ranks:
            rank = attempt.ranks.get(watch.rank)
            if rank and rank.node == event.node:
                kept[watch.rank] = replace(watch, heard_s=self.now.monotonic_s)
        state.watches = kept
        self.judge()

    def judge(self) -> None:
        """Ends an attempt that will not go on by itself."""
        state, attempt = self.state, self.state.attempt
        if attempt is None or state.phase not in _IN_ATTEMPT:
            return
        # What those that are gone said last may have ended since.
        found = stall(
            attempt.ranks,
            {n: watch for n, watch in state.watches.items() if self._reached(attempt.ranks[n].node)},
            self.now,
            # Replicas wait for requests.
            hang_seconds=0 if state.spec.inference else state.spec.hang_seconds,
            makes_steps=self.makes_steps(attempt),
            resume_step=attempt.resume_step,
            # An incident is open until there is a new step.
            failures=state.failures if state.incident else (),
            first_step_s=state.first_step_s,
        )
        if found is None:
            return
        cause, attempt.doubted_s, attempt.hang = found.cause, found.doubted_s, found.hang
        if cause.fault is m.Fault.RANK_BLOCKED:
            why = f"{cause.clause} ({cause.known_by})"
            state.bad_nodes[cause.node] = why
            self.fail_with_node(cause, found.evidence[0], why)
        else:
            self.fail(cause, found.evidence[0])
        for line in found.evidence:
            self.add_evidence(line)
        if state.incident:
            state.incident.stack = found.stack[-STACK_LENGTH_MAX:]
        self.save_incident()

    def _reached(self, node: str) -> bool:
        launcher = self.state.launchers.get(node)
        return launcher is not None and launcher.connected

    def stepped(self, node: str, ranks: tuple[m.RankStep, ...]) -> None:
        """A report of progress: ranks that go on are not watched, and none may be behind further than time explains."""
        state, attempt = self.state, self.state.attempt
        going = {r.rank for r in ranks if (watch := state.watches.get(r.rank)) and r.count > watch.count}
        if going:
            state.watches = {number: watch for number, watch in state.watches.items() if number not in going}
        if attempt and state.phase is m.Phase.STARTING and all(r.first_step_ns for r in attempt.ranks.values()):
            took_ns = [r.first_step_ns - r.started_ns for r in attempt.ranks.values() if r.started_ns]
            if took_ns:
                state.first_step_s = max(state.first_step_s or 0.0, max(took_ns) / 1e9)
        if attempt is None or attempt.drifted or not ranks:
            return
        fewest = min(report.count for report in ranks)
        for rank in attempt.ranks.values():
            lasted_s = (rank.step_time_ns - rank.first_step_ns) / 1e9 if rank.first_step_ns else 0.0
            apart_s = 0.0 if rank.node == node else REPORTS_APART_S
            steps_meanwhile = apart_s * rank.count / lasted_s if lasted_s > 0 else 0.0
            if fewest + 1 + steps_meanwhile < rank.count:
                attempt.drifted = True
                apart = f"is {fewest} steps into the attempt and a rank on {rank.node} {rank.count}, further than ranks that need each other"
                self.effects.append(
                    m.Warn(node, f"a rank {apart}: whatever node is lost, its lease will be waited for")
                )
                return

    # A node that falls away.

    def look_for_lost_nodes(self) -> None:
        """Asks about launchers that are gone and do not come back."""
        for node, launcher in self._absent():
            if not launcher.agent_gone and (len(self.state.slots) > 1 or self._runs_nothing(launcher)):
                self.effects.append(m.AskContact(node))

    def contact_known(self, event: m.ContactKnown) -> None:
        for node, launcher in self._absent():
            if node == event.node:
                launcher.agent_gone = not event.connected

    def give_up_lost_nodes(self) -> None:
        """Those on which nothing of ours can complete another step, although their leases may still run."""
        state, attempt = self.state, self.state.attempt
        if state.phase in (m.Phase.REPLACING, m.Phase.ENDED):
            return
        for node, launcher in self._absent():
            if not launcher.agent_gone or node in state.bad_nodes:
                continue
            gone_s = self.now.monotonic_s - (launcher.gone_s or 0.0)
            known_by = "the connections of its launcher and of its agent ended"
            if self._runs_nothing(launcher):
                self.lose_node(node, f"{known_by}, and nothing of the job runs there", gone_s)
            elif attempt and not attempt.end_ns:
                launcher.missed = launcher.missed or self._missed(attempt, node)
                known_by = f"{known_by}; {launcher.missed}"
                if launcher.missed and self._confirmed(attempt, node):
                    self.lose_node(node, known_by, gone_s)
                elif launcher.missed and state.phase in _IN_ATTEMPT:
                    self.fail(self.lost(node, known_by, gone_s), f"{node}: {known_by}")

    def _absent(self) -> list[tuple[str, m.Launcher]]:
        return [
            (node, launcher)
            for node, launcher in self.state.launchers.items()
            if launcher.gone_s is not None and self.now.monotonic_s - launcher.gone_s >= GONE_S
        ]

    def _runs_nothing(self, launcher: m.Launcher) -> bool:
        return launcher.stopped_generation >= max(self.state.generation, launcher.seen_generation)

    def _confirmed(self, attempt: m.Attempt, node: str) -> bool:
        """A launcher elsewhere that can be reached has ended its ranks."""
        return any(
            launcher.connected and launcher.stopped_generation >= attempt.generation
            for other, launcher in self.state.launchers.items()
            if other != node
        )

    def _missed(self, attempt: m.Attempt, node: str) -> str:
        """How ranks elsewhere show that they need those of the node for each step; empty when they do not.

        Nodes whose launchers cannot be reached are no witnesses: those of a partition would vouch for each other.
        """
        if attempt.drifted or min(rank.count for rank in attempt.ranks.values()) < TOGETHER_STEPS_MIN:
            return ""
        for number, rank in attempt.ranks.items():
            if rank.node == node or not self._reached(rank.node):
                continue
            if rank.exit and not rank.exit.by_us and blames_peer(rank.exit):
                return f"rank {number} on {rank.node} lost its connection to a peer"
            watch = self.state.watches.get(number)
            fresh = watch and self.now.monotonic_s - watch.heard_s <= HEARD_S_MAX
            if watch and fresh and watch.activity is m.Activity.COLLECTIVE:
                return f"rank {number} on {rank.node} waits in a collective operation"
        return ""
