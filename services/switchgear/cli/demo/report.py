"""The closing report of the demo, as values, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from switchgear.cli.demo.faults import Injected
from switchgear.cli.demo.proofs import Proof
from switchgear.v1 import recovery_service_pb2 as recovery


@dataclass(frozen=True, slots=True)
class FaultReport:
    """One injected fault and what became of it. Seconds count from the injection."""

    fault: str
    injected: str
    detect_s: float
    first_step_s: float
    first_new_step_s: float
    steps_redone: int
    decision: str
    why: str
    summary: str
    quarantined: list[str]
    bound_s: float | None

    @property
    def held(self) -> bool:
        return self.bound_s is None or self.first_step_s <= self.bound_s


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """gpu_seconds: by bucket of the ledger. account: the same in words, line by line."""

    faults: list[FaultReport]
    steps: int
    ranks: int
    goodput: float
    wall_s: float
    gpu_seconds: dict[str, float]
    account: list[str]
    proofs: list[Proof]

    @property
    def held(self) -> bool:
        return all(proof.held for proof in self.proofs) and all(fault.held for fault in self.faults)


@dataclass(frozen=True, slots=True)
class ServingReport:
    """requests, lost, retried: of the load generator; lost is what got no whole and right answer. Seconds.

    scaled: number of ready replicas, with the second at which it changed. decisions: what the autoscaler said, in order.
    """

    requests: int
    lost: int
    latency_s_p50: float
    latency_s_p95: float
    first_answer_s: float
    scaled: list[tuple[float, int]]
    decisions: list[str]
    killed: str
    proofs: list[Proof]

    @property
    def held(self) -> bool:
        return all(proof.held for proof in self.proofs)


@dataclass(frozen=True, slots=True)
class Report:
    """killed: processes of the control plane that were killed and came back."""

    training: TrainingReport
    serving: ServingReport
    killed: list[str]
    demo_s: float

    @property
    def held(self) -> bool:
        return self.training.held and self.serving.held


def fault_report(injected: Injected, incident: recovery.Incident, bound_s: float | None) -> FaultReport:
    """bound_s: what the first step may take at most; None: no promise."""
    times = {entry.phase: entry.time.ToNanoseconds() for entry in incident.timeline}

    def since(phase: str) -> float:
        return (times[phase] - injected.time_ns) / 1e9

    return FaultReport(
        fault=injected.name,
        injected=injected.what,
        detect_s=since("detected"),
        first_step_s=since("first_step"),
        first_new_step_s=since("first_new_step"),
        steps_redone=incident.steps_redone,
        decision=incident.decision,
        why=incident.decision_reason,
        summary=incident.summary,
        quarantined=list(incident.quarantined_checkpoints),
        bound_s=bound_s,
    )


def as_json(report: Report) -> dict[str, Any]:
    return {"held": report.held, "gpus": "simulated", **asdict(report)}


def as_text(report: Report) -> str:
    """For the terminal."""
    training, serving = report.training, report.serving
    lines = [
        "",
        "What was broken, and what came of it (seconds since the fault; GPUs are simulated, the training is real)",
    ]
    lines += _table(
        ("fault", "detected", "first step", "first new step", "steps redone", "decision"),
        [
            (
                fault.fault,
                f"{fault.detect_s:.2f} s",
                f"{fault.first_step_s:.2f} s" + ("" if fault.held else f" (more than {fault.bound_s:g} s!)"),
                f"{fault.first_new_step_s:.2f} s",
                str(fault.steps_redone),
                fault.decision,
            )
            for fault in training.faults
        ],
    )
    lines.append("")
    lines += [f"- {fault.summary}" for fault in training.faults]
    lines += [
        "",
        *training.account,
        "",
        "Then the model was served (the replicas are throttled, to be as slow as a loaded GPU)",
        (
            f"  {serving.requests} requests, {serving.lost} lost; latency p50 {serving.latency_s_p50:.2f} s, p95 {serving.latency_s_p95:.2f} s; "
            f"the first, held until a replica ran: {serving.first_answer_s:.1f} s"
        ),
        "  ready replicas: " + " → ".join(f"{count} (at {at_s:.0f} s)" for at_s, count in serving.scaled),
        f"  {serving.killed}",
    ]
    lines += [f"  - {decision}" for decision in serving.decisions]
    if report.killed:
        lines += ["", f"Killed with SIGKILL and started again by the demo: {', '.join(report.killed)}"]
    lines += ["", "Proofs"]
    every = [*training.proofs, *serving.proofs]
    lines += [f"  {'held  ' if proof.held else 'FAILED'}  {proof.claim}: {proof.detail}" for proof in every]
    verdict = "All proofs held." if report.held else "NOT all proofs held."
    lines += ["", f"{verdict} The demo took {report.demo_s:.0f} s."]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
