"""A job's way through the queue over real gRPC: held, in arrays, after others, for a time, preempted; queues and reservations."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from scheduler_plane import Agent, Plane, refused, running, until

from switchgear.cli.main import main
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, Reason
from switchgear.planner.model import Job, Node, Snapshot, Task
from switchgear.planner.plan import plan
from switchgear.planner.records import snapshot_from_json
from switchgear.scheduler import decision_log
from switchgear.scheduler.decide import Planned
from switchgear.scheduler.decision_log import DecisionLog, read
from switchgear.store.database import Database
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1alpha import placement_service_pb2 as placement_pb
from switchgear.v1alpha import planner_service_pb2 as planner_pb
from switchgear.v1alpha.planner_service_pb2_grpc import PlannerServiceStub


@pytest.fixture
async def plane(database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(database, ManualClock(), tmp_path) as plane:
        yield plane


@pytest.fixture
async def sqlite_plane(sqlite_database: Database, tmp_path: Path) -> AsyncIterator[Plane]:
    async with running(sqlite_database, ManualClock(), tmp_path) as plane:
        yield plane


def spec(**fields: Any) -> job_pb.JobSpec:
    return job_pb.JobSpec(
        **{"argv": ["train.py"], "working_directory": "/work", "nnodes": 1, "nproc_per_node": 2, **fields}
    )


async def submit(plane: Plane, job_id: str, **fields: Any) -> job_pb.Job:
    request = job_pb.CreateJobRequest(job=job_pb.Job(spec=spec(**fields)), job_id=job_id)
    job: job_pb.Job = await plane.jobs.CreateJob(request)
    return job


async def move(plane: Plane, job: str, state: job_pb.Job.State) -> None:
    await plane.placement.UpdateJobState(placement_pb.UpdateJobStateRequest(job=job, state=state, message="so it is"))


async def pass_time(plane: Plane, agent: Agent, seconds: float) -> None:
    plane.clock.advance(seconds)
    await agent.heartbeat()
    await plane.node_in(agent.name, fleet_pb.Node.HEALTHY)


def planner(plane: Plane) -> Any:
    return PlannerServiceStub(plane.channel)


async def test_a_held_job_stays_in_the_queue_until_it_is_released(plane: Plane) -> None:
    await plane.agent("a")
    held = await submit(plane, "one", hold=True)
    assert (held.state, held.held) == (job_pb.Job.PENDING, "by its user")
    await submit(plane, "two", nproc_per_node=1)
    await plane.job_in("jobs/two", job_pb.Job.STARTING)
    assert (await plane.job_in("jobs/one", job_pb.Job.PENDING)).placement.epoch == 0
    error = await refused(plane.jobs.HoldJob(job_pb.HoldJobRequest(name="jobs/two")))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.JOB_RUNS)
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/two"))
    released = await plane.jobs.ReleaseJob(job_pb.ReleaseJobRequest(name="jobs/one"))
    assert released.held == ""
    await plane.job_in("jobs/one", job_pb.Job.STARTING)


async def test_an_array_is_created_whole_and_its_members_know_their_number(plane: Plane) -> None:
    await plane.agent("a")
    request = job_pb.CreateJobArrayRequest(job=job_pb.Job(spec=spec(nproc_per_node=1)), job_id="sweep", size=3)
    request.request_id = "once"
    created = await plane.jobs.CreateJobArray(request)
    assert list(created.jobs) == ["jobs/sweep-0", "jobs/sweep-1", "jobs/sweep-2"]
    assert await plane.jobs.CreateJobArray(request) == created
    job = await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/sweep-2"))
    environment = {"SWITCHGEAR_ARRAY_INDEX": "2", "SWITCHGEAR_ARRAY_SIZE": "3"}
    assert (job.spec.array, job.spec.array_index, dict(job.spec.environment)) == ("sweep", 2, environment)
    again = job_pb.CreateJobArrayRequest(job=job_pb.Job(spec=spec()), job_id="sweep", size=1001)
    assert (await refused(plane.jobs.CreateJobArray(again))).metadata["field"] == "size"
    again.size = 4  # the fourth would be new: none is created
    assert (await refused(plane.jobs.CreateJobArray(again))).reason is Reason.ALREADY_EXISTS
    assert len((await plane.jobs.ListJobs(job_pb.ListJobsRequest())).jobs) == 3


async def test_a_job_starts_after_those_that_it_depends_on_and_is_cancelled_when_they_fail(plane: Plane) -> None:
    await plane.agent("a")
    await submit(plane, "first")
    await submit(plane, "then", after=[job_pb.Dependency(job="jobs/first")], nproc_per_node=1)
    await submit(plane, "anyhow", after=[job_pb.Dependency(job="jobs/then", any_end=True)], nproc_per_node=1)
    await submit(plane, "never", after=[job_pb.Dependency(job="jobs/then")], nproc_per_node=1)
    missing = submit(plane, "lost", after=[job_pb.Dependency(job="jobs/nobody")])
    assert (await refused(missing)).code == "NOT_FOUND"
    await plane.job_in("jobs/first", job_pb.Job.STARTING)
    assert list((await plane.job_in("jobs/then", job_pb.Job.PENDING)).waits_for) == ["jobs/first"]
    await move(plane, "jobs/first", job_pb.Job.SUCCEEDED)
    assert list((await plane.job_in("jobs/then", job_pb.Job.STARTING)).waits_for) == []
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/then"))
    never = await plane.job_in("jobs/never", job_pb.Job.CANCELLED)
    assert "has SUCCEEDED, and that ended as CANCELLED" in never.message
    assert list((await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/anyhow"))).waits_for) == []


async def test_a_job_is_ended_at_its_time_limit_and_what_it_used_is_booked(plane: Plane) -> None:
    agent = await plane.agent("a")
    await submit(plane, "short", time_limit_seconds=60, user="ann", key="bert")
    await agent.obey()
    await pass_time(plane, agent, 30)
    assert (await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/short"))).state == job_pb.Job.STARTING
    await pass_time(plane, agent, 31)
    ended = await plane.job_in("jobs/short", job_pb.Job.FAILED)
    assert ended.message == "its time limit of 60 s is over"
    snapshot, _ = await live(plane)
    (run,) = snapshot.ended
    assert (run.user, run.key, run.gpus, run.seconds) == ("ann", "bert", 2.0, pytest.approx(61.0))
    assert run.submit_s == pytest.approx(run.end_s - 61.0)
    assert snapshot.used_gpu_s["", "ann"] == pytest.approx(122.0, rel=1e-3)


async def live(plane: Plane) -> Any:
    answer = await planner(plane).GetPlannerSnapshot(planner_pb.GetPlannerSnapshotRequest())
    return snapshot_from_json(zlib.decompress(answer.json_zlib))


async def preempting(plane: Plane, agent: Agent) -> job_pb.Job:
    """A job that runs, and one of a higher priority that has had it asked to leave."""
    await submit(plane, "low")
    await agent.obey()
    await move(plane, "jobs/low", job_pb.Job.RUNNING)
    start_ns = plane.clock.unix_ns()
    await pass_time(plane, agent, 700)
    # It makes a checkpoint every five minutes: the next one is worth waiting for.
    for commit_s in (300, 600):
        request = placement_pb.ReportCheckpointRequest(job="jobs/low", commit_time_unix_ns=start_ns + commit_s * 10**9)
        await plane.placement.ReportCheckpoint(request)
    await submit(plane, "high", priority=100)

    async def asked() -> bool:
        return bool((await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/low"))).HasField("leaving"))

    await until(asked)
    low: job_pb.Job = await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/low"))
    return low


async def test_a_job_of_a_lower_priority_leaves_at_its_next_checkpoint(plane: Plane) -> None:
    agent = await plane.agent("a")
    low = await preempting(plane, agent)
    assert (low.state, low.leaving.for_job) == (job_pb.Job.RUNNING, "jobs/high")
    assert low.leaving.by.ToNanoseconds() > plane.clock.unix_ns()
    await pass_time(plane, agent, 5)
    saved = placement_pb.ReportCheckpointRequest(job="jobs/low", commit_time_unix_ns=plane.clock.unix_ns())
    await plane.placement.ReportCheckpoint(saved)
    low = await plane.job_in("jobs/low", job_pb.Job.PREEMPTED)
    assert low.placement.nodes[0].node == "nodes/a"
    # What recovery says late changes nothing until the ranks are gone.
    await move(plane, "jobs/low", job_pb.Job.RUNNING)
    assert (await plane.job_in("jobs/high", job_pb.Job.PENDING)).placement.epoch == 0
    request = placement_pb.ReplaceNodesRequest(job="jobs/low", placement_epoch=1, exclude_nodes=["nodes/a"])
    low = await plane.placement.ReplaceNodes(request)
    assert (low.state, len(low.placement.nodes), low.preemptions) == (job_pb.Job.PENDING, 0, 1)
    assert (await agent.obey()).stop_launcher.job == "jobs/low"
    assert (await agent.told_to_start(1)).job == "jobs/high"
    assert (await plane.job_in("jobs/high", job_pb.Job.STARTING)).placement.nodes[0].node == "nodes/a"


async def test_a_job_leaves_when_its_time_is_over_and_stays_when_nobody_needs_its_gpus(sqlite_plane: Plane) -> None:
    plane = sqlite_plane
    agent = await plane.agent("a")
    low = await preempting(plane, agent)
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/high"))

    async def stays() -> bool:
        return not (await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/low"))).HasField("leaving")

    await until(stays)
    await submit(plane, "higher", priority=200)
    await until(lambda: _not(stays()))
    low = await plane.jobs.GetJob(job_pb.GetJobRequest(name="jobs/low"))
    await pass_time(plane, agent, (low.leaving.by.ToNanoseconds() - plane.clock.unix_ns()) / 1e9 + 1)
    await plane.job_in("jobs/low", job_pb.Job.PREEMPTED)


async def _not(answer: Any) -> bool:
    return not await answer


async def test_a_job_that_is_requeued_and_held_goes_on_later(sqlite_plane: Plane) -> None:
    plane = sqlite_plane
    agent = await plane.agent("a")
    await submit(plane, "one")
    await agent.obey()
    await move(plane, "jobs/one", job_pb.Job.RUNNING)
    await plane.jobs.RequeueJob(job_pb.RequeueJobRequest(name="jobs/one", hold=True))
    await plane.job_in("jobs/one", job_pb.Job.PREEMPTED)
    job = await plane.placement.ReplaceNodes(placement_pb.ReplaceNodesRequest(job="jobs/one", placement_epoch=1))
    assert (job.state, job.held, job.preemptions) == (job_pb.Job.PENDING, "by its user", 0)
    await agent.obey()
    await plane.jobs.ReleaseJob(job_pb.ReleaseJobRequest(name="jobs/one"))
    assert (await agent.told_to_start(2)).job == "jobs/one"


async def test_queues_are_a_tree_and_jobs_name_them(plane: Plane) -> None:
    await plane.agent("a", gpus=8)
    calls = planner(plane)
    queue = planner_pb.Queue(name="queues/lab", guaranteed_gpus=4, limit_gpus=4)
    made = await calls.CreateQueue(planner_pb.CreateQueueRequest(queue=queue, request_id="x"))
    assert made == await calls.CreateQueue(planner_pb.CreateQueueRequest(queue=queue, request_id="x"))
    assert (made.weight, made.keeps, made.used_gpus) == (1.0, False, 0.0)
    assert (await refused(calls.CreateQueue(planner_pb.CreateQueueRequest(queue=queue)))).code == "ALREADY_EXISTS"
    child = planner_pb.Queue(name="queues/vision", parent="queues/lab", guaranteed_gpus=5)
    error = await refused(calls.CreateQueue(planner_pb.CreateQueueRequest(queue=child)))
    assert "would have 5 guaranteed, and it has 4" in error.message
    child.guaranteed_gpus = 2
    await calls.CreateQueue(planner_pb.CreateQueueRequest(queue=child))
    above = planner_pb.Queue(name="queues/lab", parent="queues/vision", guaranteed_gpus=4)
    error = await refused(calls.UpdateQueue(planner_pb.UpdateQueueRequest(name="queues/lab", queue=above)))
    assert "below itself" in error.message

    assert (await refused(submit(plane, "j", queue="queues/nobody"))).code == "NOT_FOUND"
    for number in range(3):
        await submit(plane, f"j{number}", queue="queues/vision")

    async def shown() -> bool:
        lab = await calls.GetQueue(planner_pb.GetQueueRequest(name="queues/lab"))
        vision = await calls.GetQueue(planner_pb.GetQueueRequest(name="queues/vision"))
        return bool((lab.used_gpus, vision.used_gpus, vision.pending_jobs) == (4.0, 4.0, 1))

    await until(shown)
    why = await calls.ExplainJob(planner_pb.ExplainJobRequest(name="jobs/j2"))
    assert (why.causes[0].cause, why.text) == ("QUOTA", why.causes[0].text)
    # What is proposed is what would start it.
    answer = await calls.WhatIf(planner_pb.WhatIfRequest(changes=[why.changes[0].change]))
    assert list(answer.starts) == ["jobs/j2"]
    wrong = planner_pb.WhatIfRequest(changes=["make it so"])
    assert (await refused(calls.WhatIf(wrong))).code == "INVALID_ARGUMENT"
    assert (await refused(calls.ExplainJob(planner_pb.ExplainJobRequest(name="jobs/zz")))).code == "NOT_FOUND"
    error = await refused(calls.DeleteQueue(planner_pb.DeleteQueueRequest(name="queues/vision")))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", Reason.QUEUE_IN_USE)
    for number in range(3):
        await plane.jobs.CancelJob(job_pb.CancelJobRequest(name=f"jobs/j{number}"))
    for name in ("queues/vision", "queues/lab"):
        await calls.DeleteQueue(planner_pb.DeleteQueueRequest(name=name))
    assert not (await calls.ListQueues(planner_pb.ListQueuesRequest())).queues


async def test_a_reserved_node_is_kept_for_those_that_it_is_for(plane: Plane) -> None:
    await plane.agent("a")
    calls = planner(plane)
    start, end = Timestamp(), Timestamp()
    start.FromNanoseconds(plane.clock.unix_ns() - 10**9)
    end.FromNanoseconds(plane.clock.unix_ns() + 3600 * 10**9)
    one = planner_pb.Reservation(
        name="reservations/demo", nodes=["nodes/a"], start_time=start, end_time=end, jobs=["jobs/mine"], reason="demo"
    )
    made = await calls.CreateReservation(planner_pb.CreateReservationRequest(reservation=one))
    assert made == await calls.GetReservation(planner_pb.GetReservationRequest(name="reservations/demo"))
    wrong = planner_pb.Reservation(name="reservations/x", nodes=["nodes/a"], start_time=end, end_time=start)
    error = await refused(calls.CreateReservation(planner_pb.CreateReservationRequest(reservation=wrong)))
    assert error.metadata["field"] == "end_time"
    await submit(plane, "theirs")

    async def reserved() -> bool:
        why = await calls.ExplainJob(planner_pb.ExplainJobRequest(name="jobs/theirs"))
        return bool(why.causes and why.causes[0].cause == "RESERVED")

    await until(reserved)
    await submit(plane, "mine")
    await plane.job_in("jobs/mine", job_pb.Job.STARTING)
    await plane.jobs.CancelJob(job_pb.CancelJobRequest(name="jobs/mine"))
    await calls.DeleteReservation(planner_pb.DeleteReservationRequest(name="reservations/demo"))
    await plane.job_in("jobs/theirs", job_pb.Job.STARTING)


async def test_labels_and_taints_decide_who_may_be_where(plane: Plane) -> None:
    a = await plane.agent("a")
    a.node.labels["pool"] = "small"
    a.node.cpu_milli = 4000
    await a.connect()
    await plane.agent("b")
    await plane.fleet.LabelNode(
        fleet_pb.LabelNodeRequest(name="nodes/b", labels={"pool": "large"}, add_taints=["lent"])
    )
    label = fleet_pb.LabelNodeRequest(name="nodes/b", labels={"topology/aisle": "x"})
    assert "no level 'aisle'" in (await refused(plane.fleet.LabelNode(label))).message
    wants = [job_pb.NodeSelector(key="pool", values=["large"])]
    await submit(plane, "cannot", node_selectors=wants)
    await submit(plane, "can", node_selectors=wants, tolerations=["lent"])
    assert (await plane.job_in("jobs/can", job_pb.Job.STARTING)).placement.nodes[0].node == "nodes/b"
    await submit(plane, "greedy", cpu_milli=5000)
    await submit(plane, "modest", cpu_milli=4000)
    assert (await plane.job_in("jobs/modest", job_pb.Job.STARTING)).placement.nodes[0].node == "nodes/a"
    assert (await plane.job_in("jobs/cannot", job_pb.Job.PENDING)).placement.epoch == 0


async def test_a_share_of_a_gpu_leaves_the_rest_to_others(sqlite_plane: Plane) -> None:
    plane = sqlite_plane
    await plane.agent("a", gpus=1)
    for name in ("x", "y"):
        await submit(plane, name, nproc_per_node=1, gpu_milli=500)
    for name in ("x", "y"):
        job = await plane.job_in(f"jobs/{name}", job_pb.Job.STARTING)
        assert list(job.placement.nodes[0].gpu_indices) == [0]
    snapshot, now_s = await live(plane)
    assert plan(snapshot, now_s).starts == ()
    assert len(snapshot.running) == 2


async def test_what_was_decided_is_decided_again_from_the_log(
    sqlite_plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = sqlite_plane
    agent = await plane.agent("a")
    await preempting(plane, agent)
    log = tmp_path / "scheduler" / "plans"

    async def kept() -> bool:
        return log.exists() and len([*read(log)]) >= 2

    await until(kept)
    assert main(["simulate", "replay", str(log), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["starts"], told["preemptions"], told["differences"]) == (1, 1, [])
    (file,) = log.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])  # a crash in the middle of a write loses that plan
    assert len([*read(file)]) == told["plans"] - 1
    file.write_bytes(b"not a log at all")
    with pytest.raises(Invalid, match="is no log of plans"):
        [*read(file)]


def test_a_log_is_bounded_and_a_disk_that_is_full_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decision_log, "FILE_BYTES_MAX", 400)
    log = DecisionLog(tmp_path / "plans")
    snapshot = Snapshot((Node("nodes/a", 2),), (Job("jobs/x", Task(gpus=2), 0.0),))
    for second in range(40):
        log.append(Planned(snapshot, float(second), plan(snapshot, float(second))))
    files = sorted((tmp_path / "plans").iterdir())
    assert len(files) == decision_log.FILES_MAX
    assert [one.now_s for one in read(tmp_path / "plans")][-1] == 39.0
    blocked = DecisionLog(files[0])
    for second in range(2):
        blocked.append(Planned(snapshot, float(second), plan(snapshot, float(second))))
    assert len([record for record in caplog.records if "cannot be kept" in record.message]) == 1
