"""`switchgear nodes | jobs | incidents | checkpoints | signals`: what is, read from the control plane."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from switchgear.cli import exits
from switchgear.cli.client import Client, connect, health_of, progress_of, whole_list
from switchgear.cli.output import last, local_time, print_json, print_line, print_table
from switchgear.core import names
from switchgear.v1 import fleet_service_pb2 as fleet
from switchgear.v1 import job_service_pb2 as jobs
from switchgear.v1 import recovery_service_pb2 as recovery
from switchgear.v1 import signal_service_pb2 as signals
from switchgear.v1alpha import health_service_pb2 as health
from switchgear.v1alpha import telemetry_service_pb2 as telemetry

#: Labels that follow from the GPU's index; the table above has them and `--json` gives them all.
SAME_FOR_A_GPU = frozenset({"UUID", "device", "hostname", "modelName", "pci_bus_id", "DCGM_FI_DRIVER_VERSION"})


def qualified(value: str, collection: str) -> str:
    """`llama` and `jobs/llama` name the same job."""
    return value if value.startswith(f"{collection}/") else f"{collection}/{value}"


def add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", nargs="?", help="one node, with its GPUs and newest telemetry")


def nodes(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        if args.node:
            return _node(client, qualified(args.node, "nodes"), as_json=args.json)
        found = whole_list(client.fleet.ListNodes, fleet.ListNodesRequest(), "nodes")
    if args.json:
        print_json(found)
        return exits.OK
    print_table(
        ("NODE", "STATE", "GPUS", "ALLOCATED", "MODEL", "REASON"),
        (
            (
                last(node.name),
                fleet.Node.State.Name(node.state),
                len(node.gpus),
                f"{node.gpus_allocated} (+{node.gpus_foreign} foreign)" if node.gpus_foreign else node.gpus_allocated,
                _model(node),
                (node.reason if node.state == fleet.Node.CORDONED else "") or node.obstacle or node.reason or "-",
            )
            for node in found
        ),
        "no nodes: start an agent with `switchgear agent`, or `switchgear up`, which has one",
    )
    return exits.OK


def _model(node: fleet.Node) -> str:
    models = sorted(
        {gpu.model + (" (simulated)" if gpu.simulated and "imulated" not in gpu.model else "") for gpu in node.gpus}
    )
    return ", ".join(models) or "-"


def _node(client: Client, name: str, *, as_json: bool) -> int:
    node = client.fleet.GetNode(fleet.GetNodeRequest(name=name))
    values = client.telemetry.GetNodeTelemetry(telemetry.GetNodeTelemetryRequest(name=f"{name}/telemetry"))
    if as_json:
        print_json([node, values])
        return exits.OK
    print_line(f"{node.name}  {fleet.Node.State.Name(node.state)}  {node.reason}".rstrip())
    if found := health_of(client, name):
        verdict = health.NodeHealth.Verdict.Name(found.verdict)
        print_line(
            f"health: {verdict} since {local_time(found.since_time)}, {len(found.conditions)} open  {found.change}".rstrip()
        )
    users = users_by_gpu(values.associations)
    print_table(
        ("GPU", "MODEL", "UUID", "SIMULATED", "USED BY"),
        (
            (gpu.index, gpu.model, gpu.uuid, "yes" if gpu.simulated else "no", ", ".join(users.get(gpu.index, "-")))
            for gpu in node.gpus
        ),
        "no GPUs",
    )
    print()
    print_table(("METRIC", "VALUE", "LABELS"), telemetry_rows(values.values), "no telemetry yet")
    return exits.OK


def users_by_gpu(associations: Iterable[telemetry.Association]) -> dict[int, list[str]]:
    """Jobs, pods, and processes of which neither is known."""
    users = dict[int, list[str]]()
    for one in associations:
        known = (one.job, f"pod {one.namespace}/{one.pod}" if one.pod else "", slurm_job(one) if one.hpc_job else "")
        name = " in ".join(text for text in known if text) or f"pid {', '.join(map(str, one.pids))}"
        instance = f" (instance {one.mig_gpu_instance})" if one.HasField("mig_gpu_instance") else ""
        users.setdefault(one.gpu, []).append(name + instance)
    return users


def slurm_job(one: telemetry.Association) -> str:
    """As `squeue` names it, with whose it is: `Slurm job 16_3 (ada, chem, gpu)`."""
    slurm, name = one.slurm, one.hpc_job
    if slurm.array_job and slurm.HasField("array_task"):
        name = f"{slurm.array_job}_{slurm.array_task}"
    elif slurm.het_job and slurm.HasField("het_offset"):
        name = f"{slurm.het_job}+{slurm.het_offset}"
    whose = [text for text in (slurm.user, slurm.account, slurm.partition, slurm.qos) if text]
    return f"Slurm job {name} ({', '.join(whose)})" if whose else f"Slurm job {name}"


def telemetry_rows(values: Iterable[telemetry.SeriesValue]) -> list[tuple[str, str, str]]:
    """Metric, value and labels of each series, by metric and GPU."""
    ordered = sorted(values, key=lambda value: (value.metric, [_in_order(text) for _, text in _labels(value)]))
    return [
        (
            value.metric,
            f"{value.value:.15g} {value.unit}".rstrip()
            if value.HasField("value")
            else f"unknown: {value.unknown_reason}",
            ",".join(f"{key}={text}" for key, text in _labels(value)) or "-",
        )
        for value in ordered
    ]


def _labels(value: telemetry.SeriesValue) -> list[tuple[str, str]]:
    """Those that tell it from the others of its metric, the GPU's index first. A network interface is a device too, and no GPU's."""
    of_gpu = "gpu" in value.labels
    labels = sorted(value.labels.items(), key=lambda label: (label[0] != "gpu", label))
    return [(key, text) for key, text in labels if not (of_gpu and key in SAME_FOR_A_GPU)]


def _in_order(text: str) -> tuple[int, str]:
    """10 comes after 9."""
    return (int(text), "") if text.isdecimal() else (-1, text)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="one job, with its attempts and progress")


def jobs_command(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        if args.job:
            return _job(client, qualified(args.job, "jobs"), as_json=args.json)
        found = whole_list(client.jobs.ListJobs, jobs.ListJobsRequest(), "jobs")
    if args.json:
        print_json(found)
        return exits.OK
    # Columns that only some clusters fill are there when a job does.
    charged = [field for field in ("account", "partition", "qos") if any(getattr(job.spec, field) for job in found)]
    print_table(
        ("JOB", "STATE", "RANKS", "NODES", *map(str.upper, charged), "CREATED", "MESSAGE"),
        (
            (
                last(job.name),
                jobs.Job.State.Name(job.state),
                job.spec.nnodes * job.spec.nproc_per_node,
                ",".join(last(node.node) for node in job.placement.nodes) or "-",
                *(getattr(job.spec, field) or "-" for field in charged),
                local_time(job.create_time),
                _told(job) or "-",
            )
            for job in found
        ),
        "no jobs: submit one with `switchgear run -- train.py`",
    )
    return exits.OK


def _told(job: jobs.Job) -> str:
    """Its message, and to whom it gave its GPUs."""
    if not job.HasField("lent"):
        return job.message
    return f"{job.message} (gave {job.lent.gpus} GPUs to {job.lent.to_job} at {local_time(job.lent.since)})"


def _job(client: Client, name: str, *, as_json: bool) -> int:
    job = client.jobs.GetJob(jobs.GetJobRequest(name=name))
    messages: list[object] = [job]
    progress = progress_of(client, name)
    if progress:
        attempts = whole_list(client.recovery.ListAttempts, recovery.ListAttemptsRequest(parent=name), "attempts")
        messages += [progress, *attempts]
    if as_json:
        print_json(messages)  # type: ignore[arg-type]
        return exits.OK
    print_line(f"{job.name}  {jobs.Job.State.Name(job.state)}  {_told(job)}".rstrip())
    print_line(f"command: {' '.join(job.spec.argv)}")
    charged = [f"{field} {said}" for field in ("account", "partition", "qos") if (said := getattr(job.spec, field))]
    if charged:
        print_line(", ".join(charged))
    if progress:
        step = progress.step if progress.HasField("step") else "unknown"
        print_line(
            f"step: {step}   redone: {progress.steps_redone}   goodput: {progress.goodput:.1%} "
            f"({progress.productive_seconds:.1f} s of {progress.wall_seconds:.1f} s made new steps)"
        )
        print()
        print_table(
            ("ATTEMPT", "STATE", "NODES", "START", "END", "FROM STEP", "LAST STEP", "END REASON"),
            (
                (
                    attempt.generation,
                    recovery.Attempt.State.Name(attempt.state),
                    ",".join(last(node) for node in attempt.nodes),
                    local_time(attempt.start_time),
                    local_time(attempt.end_time),
                    attempt.resume_step if attempt.HasField("resume_step") else "unknown",
                    attempt.last_step if attempt.HasField("last_step") else "-",
                    attempt.end_reason or "-",
                )
                for attempt in attempts
            ),
            "no attempts yet",
        )
    return exits.OK


def add_incidents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("incident", nargs="?", help="one incident, with evidence and timeline")
    parser.add_argument("--job", help="only those of this job")


def incidents(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        if args.incident:
            request = recovery.GetIncidentRequest(name=qualified(args.incident, "incidents"))
            return _incident(client.recovery.GetIncident(request), as_json=args.json)
        wanted = recovery.ListIncidentsRequest(job=qualified(args.job, "jobs") if args.job else "")
        found = whole_list(client.recovery.ListIncidents, wanted, "incidents")
    if args.json:
        print_json(found)
        return exits.OK
    print_table(
        ("INCIDENT", "STATE", "FAULT", "DECISION", "SUMMARY"),
        (
            (
                last(incident.name),
                recovery.Incident.State.Name(incident.state),
                incident.fault,
                incident.decision or "-",
                incident.summary,
            )
            for incident in found
        ),
        "no incidents",
    )
    return exits.OK


def _incident(incident: recovery.Incident, *, as_json: bool) -> int:
    if as_json:
        print_json(incident)
        return exits.OK
    print_line(f"{incident.name}  {recovery.Incident.State.Name(incident.state)}  {incident.job}")
    print_line(incident.summary)
    print_line(f"decision: {incident.decision or '-'} ({incident.decision_reason or 'none yet'})")
    print("evidence:")
    for fact in incident.evidence:
        print_line(f"  {fact}")
    print("timeline:")
    start = incident.timeline[0].time.ToNanoseconds() if incident.timeline else 0
    for entry in incident.timeline:
        print_line(f"  {(entry.time.ToNanoseconds() - start) / 1e9:+8.3f} s  {entry.phase}")
    return exits.OK


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", help="the job whose checkpoints are listed")


def checkpoints(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        request = recovery.ListCheckpointsRequest(parent=names.job_name(last(args.job)))
        found = whole_list(client.recovery.ListCheckpoints, request, "checkpoints")
    if args.json:
        print_json(found)
        return exits.OK
    print_table(
        ("STEP", "STATE", "BYTES", "ATTEMPT", "PATH", "DAMAGE"),
        (
            (
                checkpoint.step if checkpoint.HasField("step") else "unknown",
                recovery.Checkpoint.State.Name(checkpoint.state),
                checkpoint.size_bytes,
                checkpoint.generation,
                checkpoint.path,
                checkpoint.damage or "-",
            )
            for checkpoint in found
        ),
        "no checkpoints seen: name their folder with `switchgear run --checkpoint-dir`",
    )
    return exits.OK


def add_signals(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", help="only those of this node")


def signals_command(args: argparse.Namespace) -> int:
    with connect(args.server) as client:
        wanted = signals.ListSignalsRequest(node=qualified(args.node, "nodes") if args.node else "")
        found = whole_list(client.signals.ListSignals, wanted, "signals")
    if args.json:
        print_json(found)
        return exits.OK
    print_table(
        ("TIME", "NODE", "GPU", "KIND", "SEVERITY", "ACTION", "SIMULATED", "EVIDENCE"),
        (
            (
                local_time(signal.time),
                last(signal.node),
                last(signal.gpu) if signal.gpu else "-",
                signal.kind,
                signals.Signal.Severity.Name(signal.severity),
                signal.action or "-",
                "yes" if signal.simulated else "no",
                signal.evidence,
            )
            for signal in found
        ),
        "no signals",
    )
    return exits.OK
