"""The second act of the demo: the model is served under load, from no replica to one, to two, back to one and to none."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from switchgear.cli.client import Client
from switchgear.cli.demo.proofs import Proof
from switchgear.cli.demo.report import ServingReport
from switchgear.cli.demo.stage import Stage, example, wait_for
from switchgear.cli.demo.traffic import Traffic
from switchgear.core.errors import FailedPrecondition, Reason
from switchgear.v1 import autoscaler_service_pb2 as autoscaler
from switchgear.v1 import recovery_service_pb2 as recovery

SERVICE = "inferenceServices/chat"
#: What a replica generates at most. Two cores are not two GPUs: throttled, replicas add up as those would.
TOKENS_PER_SECOND = 80.0
#: Requests a second that one replica can take, and that need a second one; a request asks for 24 tokens on average.
LOW, HIGH = 1.0, 4.0
STEP_S = 90.0
_ENDED = (autoscaler.Replica.STOPPED, autoscaler.Replica.FAILED)


@dataclass
class Serving:
    """One service on a stage. interlude: called once, under full load."""

    stage: Stage
    client: Client
    checkpoints: Path
    say: Callable[[str], None]
    interlude: Callable[[], None]
    #: The router is killed as well: requests that break with it are sent again.
    retries: int = 0
    _start_s: float = field(default_factory=time.monotonic)
    _scaled: list[tuple[float, int]] = field(default_factory=list)
    _decisions: list[str] = field(default_factory=list)

    def run(self) -> ServingReport:
        """Raises FailedPrecondition when a step does not come about in time."""
        service = autoscaler.InferenceService(spec=self._spec())
        request = autoscaler.CreateInferenceServiceRequest(
            inference_service=service, service_id=SERVICE.split("/")[1], request_id="demo"
        )
        self.client.autoscaler.CreateInferenceService(request)
        self.say(
            f"created {SERVICE}: 0 to 2 replicas of the model that was just trained; requests begin before any runs"
        )
        with Traffic(f"http://{self.stage.addresses.router}", SERVICE.split("/")[1], retries=self.retries) as traffic:
            traffic.rate = LOW
            self._until("the first replica", 1)
            first_answer_s = self._first_answer(traffic)
            self.say(
                f"the first request was held {first_answer_s:.1f} s until a replica answered it; now {HIGH:g} requests a second"
            )
            traffic.rate = HIGH
            self._until("two replicas", 2)
            self.interlude()
            killed = self._kill_replica()
            self._until("two replicas again", 2)
            self.say(f"back to {LOW:g} request a second")
            traffic.rate = LOW
            self._until("one replica", 1)
            self.say("no more requests")
            traffic.rate = 0.0
            wait_for("the last answers", lambda: traffic.quiet or None, STEP_S, self._check)
            self._until("no replica", 0)
        return self._report(traffic, first_answer_s, killed)

    def _report(self, traffic: Traffic, first_answer_s: float, killed: str) -> ServingReport:
        load = traffic.report()
        lost = "; ".join(f"{count} x {why}" for why, count in load.failures().items())
        went = [count for _, count in self._scaled]
        return ServingReport(
            requests=len(load.outcomes),
            lost=load.lost,
            latency_s_p50=load.latency_s(0.5) or 0.0,
            latency_s_p95=load.latency_s(0.95) or 0.0,
            first_answer_s=first_answer_s,
            scaled=self._scaled,
            decisions=self._decisions,
            killed=killed,
            proofs=[
                Proof(
                    "no request was lost, cut or answered wrongly",
                    load.lost == 0 and len(load.outcomes) == traffic.sent > 0,
                    f"{len(load.outcomes)} of {traffic.sent} answered" + (f"; {lost}" if lost else ""),
                ),
                Proof(
                    "replicas went from 0 to 2, one was killed and replaced, and back to 0",
                    went[0] == 0 and went[-1] == 0 and went.count(2) >= 2,
                    " → ".join(map(str, went)),
                ),
            ],
        )

    def _until(self, what: str, ready: int) -> None:
        def reached() -> bool | None:
            service, replicas = self._look()
            settled = len([r for r in replicas if r.state not in _ENDED]) == ready
            return True if service.ready_replicas == ready and settled else None

        wait_for(what, reached, STEP_S, self._check)

    def _look(self) -> tuple[autoscaler.InferenceService, list[autoscaler.Replica]]:
        """What is now; changes are noted and told."""
        time.sleep(0.1)  # a person's eye is no faster, and each look is two calls
        service = self.client.autoscaler.GetInferenceService(autoscaler.GetInferenceServiceRequest(name=SERVICE))
        if not self._scaled or self._scaled[-1][1] != service.ready_replicas:
            self._scaled.append((round(time.monotonic() - self._start_s, 1), service.ready_replicas))
            self.say(f"replicas ready: {service.ready_replicas}, wanted: {service.desired_replicas}")
        decision = f"{service.desired_replicas} wanted: {service.message}"
        if not self._decisions or self._decisions[-1].split(":")[0] != decision.split(":", maxsplit=1)[0]:
            self._decisions.append(decision)
            self.say(f"autoscaler: {decision}")
        return service, self._replicas()

    def _replicas(self) -> list[autoscaler.Replica]:
        return list(self.client.autoscaler.ListReplicas(autoscaler.ListReplicasRequest(parent=SERVICE)).replicas)

    def _first_answer(self, traffic: Traffic) -> float:
        def answered() -> float | None:
            return max((outcome.seconds for outcome in traffic.report().outcomes), default=None)

        return wait_for("the first answer", answered, STEP_S, self._check)

    def _kill_replica(self) -> str:
        """SIGKILL of the one with the most requests in it."""

        def victim() -> tuple[autoscaler.Replica, int] | None:
            ready = [r for r in self._replicas() if r.state == autoscaler.Replica.READY]
            for replica in sorted(ready, key=lambda r: -(r.running_requests + r.waiting_requests)):
                request = recovery.GetJobProgressRequest(name=f"{replica.job}/progress")
                pids = [rank.pid for rank in self.client.recovery.GetJobProgress(request).ranks if rank.pid]
                if pids:
                    return replica, pids[0]
            return None

        replica, pid = wait_for("a replica that runs", victim, STEP_S, self._check)
        os.kill(pid, signal.SIGKILL)
        told = f"SIGKILL of {replica.name} (pid {pid}) on {replica.node} with {replica.running_requests} requests in it"
        self.say(f"FAULT: {told}")

        def noticed() -> bool | None:
            self._look()
            return next((True for r in self._replicas() if r.name == replica.name and r.state in _ENDED), None)

        wait_for("the killed replica to be noticed", noticed, STEP_S, self._check)
        return told

    def _check(self) -> None:
        self.stage.check()

    def _spec(self) -> autoscaler.InferenceServiceSpec:
        folder = self.stage.folder / "chat"
        folder.mkdir()
        if not any(self.checkpoints.glob("step-*.pt")):
            raise FailedPrecondition(f"there is no checkpoint in {self.checkpoints}", Reason.INTERNAL)
        script = [str(example("serve_gpt.py")), "--checkpoint", str(self.checkpoints)]
        return autoscaler.InferenceServiceSpec(
            argv=[*script, "--tokens-per-second-max", str(TOKENS_PER_SECOND)],
            working_directory=str(folder),
            python=sys.executable,
            min_replicas=0,
            max_replicas=2,
            tokens_per_second=TOKENS_PER_SECOND,
            scale_down_delay_seconds=4,
            drain_timeout_seconds=30,
        )
