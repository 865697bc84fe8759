"""What is asked of Slurm, by its programs and by slurmrestd, against a real one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slurm_cluster import SlurmCluster

from switchgear.core.errors import (
    FailedPrecondition,
    Invalid,
    PermissionDenied,
    Reason,
    ResourceExhausted,
    SwitchgearError,
    Unavailable,
)
from switchgear.slurm import commands
from switchgear.slurm.client import Slurm
from switchgear.slurm.commands import Commands
from switchgear.slurm.model import Gpus, JobState, NodeFlag, NodeState, SlurmJob, SlurmNode, Submission
from switchgear.slurm.rest import Rest

SLEEP = "#!/bin/sh\nsleep 60\n"


@pytest.fixture(params=["commands", "rest"])
async def client(request: pytest.FixtureRequest, slurm: SlurmCluster) -> AsyncIterator[Slurm]:
    """Each way to ask."""
    if request.param == "commands":
        yield Commands(slurm_conf=str(slurm.configuration))
        return
    rest = Rest(slurm.start_rest())
    yield rest
    await rest.close()


@pytest.fixture
def programs(slurm: SlurmCluster) -> Commands:
    return Commands(slurm_conf=str(slurm.configuration))


def submission(slurm: SlurmCluster, **values: Any) -> Submission:
    return replace(Submission(name="train", working_directory=str(slurm.folder)), **values)


async def until(client: Slurm, job: int, reached: Callable[[SlurmJob], bool], timeout_s: float = 30) -> SlurmJob:
    async with asyncio.timeout(timeout_s):
        while True:
            for seen in await client.jobs([job]):
                if reached(seen):
                    return seen
            await asyncio.sleep(0.05)


async def each_way(slurm: SlurmCluster, check: Callable[[Slurm], Coroutine[Any, Any, None]]) -> None:
    """Both at once: Slurm takes its second until it starts something."""
    rest = Rest(slurm.start_rest())
    await asyncio.gather(check(Commands(slurm_conf=str(slurm.configuration))), check(rest))
    await rest.close()


async def reached(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.02)


def runs(job: SlurmJob) -> bool:
    return job.state == JobState.RUNNING


async def refused(call: Coroutine[Any, Any, object]) -> SwitchgearError:
    with pytest.raises(SwitchgearError) as caught:
        await call
    return caught.value


async def test_nodes_and_jobs_tell_their_gpus_by_index(client: Slurm, slurm: SlurmCluster) -> None:
    first = await client.submit(SLEEP, submission(slurm, nodes=("n2",), gpus_per_node=3))
    both = submission(slurm, nodes=("n2", "n3"), gpus_per_node=2, gpu_type="h100", tasks=2, time_limit_s=300)
    second = await until(client, await client.submit(SLEEP, both), runs)
    (n2,) = await client.nodes(["n2"])
    (n1,) = [node for node in await client.nodes() if node.name == "n1"]

    assert second.nodes == ("n2", "n3")
    assert second.gpus == {"n2": Gpus({"h100": 2}, (3, 4)), "n3": Gpus({"h100": 2}, (0, 1))}
    assert second.gpus_per_node.count == 2
    assert second.time_limit_s == 300
    assert second.start_s is not None
    assert second.end_s == second.start_s + 300
    assert [job.gpus["n2"].indices for job in await client.jobs([first])] == [(0, 1, 2)]
    assert (n2.state, n2.gpus.by_type, n2.gpus_used.indices) == (NodeState.MIXED, {"h100": 8}, (0, 1, 2, 3, 4))
    assert (n1.state, n1.gpus_used.count, n1.partitions) == (NodeState.IDLE, 0, ("gpu", "small"))
    assert (n1.cpus, n1.memory_mib, n1.address, n1.is_up) == (8, 4000, "127.0.0.1", True)


async def test_a_job_is_told_from_its_submission_to_its_end(
    slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_SECRET", "ours")

    async def check(client: Slurm) -> None:
        comment, output = "switchgear:a b=c", slurm.folder / f"out-{type(client).__name__}"
        asked = submission(
            slurm, name=f"{type(client).__name__}:n4", comment=comment, nodes=("n4",), account="vision",
            environment={"MODEL": "a b,c=d"}, output=str(output),
        )  # fmt: skip
        number = await client.submit("#!/bin/sh\nenv\nexit 3\n", asked)
        ended = await until(client, number, lambda job: job.has_ended)

        assert (ended.state, ended.exit_code, ended.exit_signal) == (JobState.FAILED, 3, None)
        assert (ended.name, ended.comment, ended.account) == (asked.name, comment, "vision")
        assert (ended.reason, ended.user, ended.partition) == ("NonZeroExitCode", "root", "gpu")
        assert ended.gpus == {}
        assert not ended.holds_nodes
        assert await client.jobs([number, 999_999]) == [ended]
        assert await client.jobs([999_999]) == []
        assert await client.nodes(["n9"]) == []
        environment = dict(line.split("=", 1) for line in output.read_text().splitlines())
        assert environment["MODEL"] == "a b,c=d"
        assert not {"SWITCHGEAR_SECRET", "SLURM_TIME_FORMAT", "PYTEST_CURRENT_TEST"} & environment.keys()

    await each_way(slurm, check)


async def test_a_cancelled_job_is_asked_to_end_and_lets_the_next_of_its_name_run(slurm: SlurmCluster) -> None:
    async def check(client: Slurm) -> None:
        ready = slurm.folder / f"ready-{type(client).__name__}"
        script = f'#!/bin/sh\ntrap "exit 4" TERM\ntouch {ready}\nsleep 60 & wait\n'
        asked = submission(slurm, name=type(client).__name__, dependency="singleton")
        first, second = [await client.submit(script, asked) for _ in range(2)]
        await reached(ready.exists)
        waits = (await client.jobs([second]))[0]
        ready.unlink()
        await client.cancel([first])
        ended = await until(client, first, lambda job: job.has_ended)

        assert (waits.state, waits.reason) == (JobState.PENDING, "Dependency")
        assert (ended.state, ended.exit_code) == (JobState.CANCELLED, 4)
        await client.cancel([first, 999_999])  # has ended, and never was
        await until(client, second, runs)

    await each_way(slurm, check)


async def test_a_waiting_job_starts_at_once_and_not_on_excluded_nodes(slurm: SlurmCluster) -> None:
    async def check(client: Slurm) -> None:
        job = slurm.submit("sleep 60", "--begin=now+1hour")
        await client.exclude(job, ["n1", "n2"])
        await client.start_now(job)
        started = await until(client, job, runs)

        assert started.nodes in {("n3",), ("n4",)}
        assert started.excluded_nodes == ("n1", "n2")

    await each_way(slurm, check)


async def test_a_job_is_requeued_if_its_submission_allowed_it(programs: Commands, slurm: SlurmCluster) -> None:
    first, second = [await programs.submit(SLEEP, submission(slurm, requeue=requeue)) for requeue in (True, False)]
    await until(programs, first, runs)
    await until(programs, second, runs)
    await programs.requeue(first)
    error = await refused(programs.requeue(second))
    waits = await until(programs, first, lambda job: job.state == JobState.PENDING)

    assert (waits.reason, waits.restarts, waits.nodes) == ("BeginTime", 1, ())
    assert (type(error), error.reason) == (FailedPrecondition, Reason.SLURM_REFUSED)


async def test_programs_without_json_tell_the_same(
    programs: Commands, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.command("scontrol", "update", "nodename=n4", "state=drain", "reason=fan is broken")
    failed = slurm.submit("exit 7", "--nodelist=n1")
    array = slurm.submit("sleep 60", "--array=4-6%2", "--gres=gpu:2", "--comment=a b", "--time=2-3:04")
    het = int(slurm.command("sbatch", "--parsable", "-N1", "--gres=gpu:1", ":", "-N1", "-wn3", stdin=SLEEP))
    two = slurm.submit(
        "sleep 60", "--nodes=2", "--nodelist=n2,n3", "--gres=gpu:h100:3", "--exclude=n1", "--account=vision"
    )
    begins = slurm.submit("sleep 60", "--begin=now+1hour", "--requeue")
    await until(programs, failed, lambda job: job.has_ended)
    for each in (array, het, two):
        await until(programs, each, runs)
    for name in ("squeue", "sinfo"):
        wrapper = tmp_path / name
        wrapper.write_text(f"#!/bin/sh\necho \"{name}: unrecognized option '--json'\" >&2\nexit 1\n")
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    old = Commands(slurm_conf=str(slurm.configuration))

    def in_order(jobs: Sequence[SlurmJob]) -> list[SlurmJob]:
        return sorted((job for job in jobs if job.id >= failed), key=lambda job: job.id)

    jobs = in_order(await programs.jobs())
    assert in_order(await old.jobs()) == jobs

    def as_they_are(nodes: Sequence[SlurmNode]) -> list[SlurmNode]:
        """Without what Slurm plans for them, which changes from one question to the next."""
        return [replace(node, flags=node.flags - {"PLANNED"}) for node in nodes]

    assert as_they_are(await old.nodes()) == as_they_are(await programs.nodes())
    assert [job.exit_code for job in jobs if job.id == failed] == [7]
    assert sorted((job.array_task_id or 0, job.state) for job in jobs if job.array_job_id == array) == [
        (4, "RUNNING"), (5, "RUNNING"), (6, "PENDING"),
    ]  # fmt: skip
    assert [(job.het_offset, job.nodes) for job in jobs if job.het_job_id == het][1] == (1, ("n3",))
    assert [job.reason for job in jobs if job.id == begins] == ["BeginTime"]


async def test_a_node_is_drained_with_a_reason_and_resumed(programs: Commands) -> None:
    await programs.drain("n4", "switchgear: fan 'A'\n is \"out\" of order")
    (drained,) = await programs.nodes(["n4"])
    await programs.resume("n4")
    await programs.resume("n4")
    (resumed,) = await programs.nodes(["n4"])

    assert drained.flags >= {NodeFlag.DRAIN}
    assert drained.is_drained
    assert (drained.reason, drained.reason_user) == ("switchgear: fan 'A' is \"out\" of order", "root")
    assert drained.reason_s is not None
    assert not resumed.is_drained
    assert resumed.reason == ""


async def test_an_old_slurmrestd_that_cannot_drain_says_what_to_do(slurm: SlurmCluster) -> None:
    rest = Rest(slurm.start_rest())
    errors = [await refused(rest.drain("n1", "switchgear: x")), await refused(rest.resume("n1"))]
    await rest.close()

    assert {type(error) for error in errors} == {FailedPrecondition}
    assert all("ask by Slurm's programs" in error.message for error in errors)


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"partition": "nope"}, "sinfo --summarize"),
        ({"nodes": ("n9",)}, "sinfo --Node"),
        ({"nodes": ("n1",), "gpus_per_node": 9}, "scontrol show node"),
        ({"gpu_type": "a100", "gpus_per_node": 1}, "scontrol show node"),
        ({"dependency": "afterall"}, "singleton"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_what_can_never_run_is_refused_with_the_remedy(
    client: Slurm, slurm: SlurmCluster, wrong: dict[str, Any], remedy: str
) -> None:
    error = await refused(client.submit(SLEEP, submission(slurm, **wrong)))

    assert (type(error), error.reason) == (Invalid, Reason.SLURM_REFUSED)
    assert remedy in error.message


async def test_a_script_without_interpreter_is_refused(client: Slurm, slurm: SlurmCluster) -> None:
    error = await refused(client.submit("sleep 60\n", submission(slurm)))

    assert isinstance(error, Invalid)
    assert "#!" in error.message


async def test_unknown_nodes_and_jobs_cannot_be_changed(programs: Commands) -> None:
    for call in (
        programs.drain("n9", "x"),
        programs.resume("n9"),
        programs.requeue(999_999),
        programs.start_now(999_999),
    ):
        assert isinstance(await refused(call), Invalid)


async def test_what_another_user_may_not_do_is_refused(
    programs: Commands, slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await programs.submit(SLEEP, submission(slurm))
    tmp_path.chmod(0o755)
    for name in ("scontrol", "scancel"):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec setpriv --reuid nobody --clear-groups /usr/bin/{name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    nobody = Commands(slurm_conf=str(slurm.configuration))

    for call in (nobody.drain("n1", "x"), nobody.cancel([job]), nobody.requeue(job)):
        error = await refused(call)
        assert (type(error), error.reason) == (PermissionDenied, Reason.SLURM_REFUSED)
        assert "Operator" in error.message


async def test_a_controller_that_is_away_is_said_to_be_away(slurm: SlurmCluster) -> None:
    programs, rest = Commands(slurm_conf=str(slurm.impatient_configuration)), Rest(slurm.start_rest(impatient=True))
    before = [await programs.ping(), await rest.ping()]
    slurm.stop_controller()
    calls: list[Coroutine[Any, Any, object]] = [
        programs.drain("n1", "x"), programs.resume("n1"), programs.requeue(1), programs.start_now(1),
    ]  # fmt: skip
    for client in (programs, rest):
        calls += [
            client.ping(), client.nodes(), client.jobs(), client.jobs([1]), client.cancel([1]), client.exclude(1, ["n1"]),
            client.submit(SLEEP, submission(slurm)),
        ]  # fmt: skip
    errors = await asyncio.gather(*map(refused, calls))
    await rest.close()

    assert {answer.version for answer in before} == {slurm.command("sinfo", "--version").rpartition(" ")[2]}
    assert [error.message for error in errors if error.reason != Reason.SLURM_UNREACHABLE] == []
    assert {type(error) for error in errors} == {Unavailable}


async def test_a_submission_without_answer_may_have_become_a_job(slurm: SlurmCluster, programs: Commands) -> None:
    hasty, rest = Commands(slurm_conf=str(slurm.configuration), timeout_s=1.5), Rest(slurm.start_rest(), timeout_s=1.5)
    await rest.ping()
    slurm.pause_controller()
    comments = ["switchgear:by-sbatch", "switchgear:by-slurmrestd"]
    errors = await asyncio.gather(
        refused(hasty.submit(SLEEP, submission(slurm, comment=comments[0]))),
        refused(rest.submit(SLEEP, submission(slurm, comment=comments[1]))),
    )
    slurm.continue_controller()
    await rest.close()

    assert {(type(error), error.reason) for error in errors} == {(Unavailable, Reason.SLURM_OUTCOME_UNKNOWN)}
    async with asyncio.timeout(30):
        while not {job.comment for job in await programs.jobs()} >= set(comments):  # noqa: ASYNC110 - Slurm's word
            await asyncio.sleep(0.05)


async def test_a_missing_munge_is_named(slurm: SlurmCluster) -> None:
    slurm.stop_munge()
    programs = Commands(slurm_conf=str(slurm.impatient_configuration))
    errors = await asyncio.gather(*map(refused, [programs.jobs(), programs.submit(SLEEP, submission(slurm))]))

    assert {(type(error), error.reason) for error in errors} == {(Unavailable, Reason.SLURM_UNREACHABLE)}
    assert all("munged" in error.message for error in errors)


async def test_more_output_than_the_bound_ends_the_program(programs: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "OUTPUT_MAX_BYTES", 1000)

    assert isinstance(await refused(programs.nodes()), ResourceExhausted)


async def test_missing_programs_are_named_with_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = await refused(Commands().jobs())

    assert isinstance(error, FailedPrecondition)
    assert "slurm-client" in error.message


async def test_a_token_says_who_asks(slurm: SlurmCluster, tmp_path: Path) -> None:
    address, token = slurm.start_rest_with_tokens(), tmp_path / "token"
    job = slurm.submit("sleep 60")
    rest = Rest(address, token_file=token, user="root")
    without_file = await refused(rest.ping())
    token.write_text("SLURM_JWT=nonsense")
    with_nonsense = await refused(rest.ping())
    token.write_text(slurm.token("root"))
    seen = await rest.jobs([job])
    stranger = Rest(address, token_file=token, user="nobody")
    token.write_text(slurm.token("nobody"))
    not_his = await refused(stranger.cancel([job]))
    await rest.close()
    await stranger.close()

    assert isinstance(without_file, FailedPrecondition)
    assert "scontrol token" in without_file.message
    assert "scontrol token" in with_nonsense.message
    assert [each.id for each in seen] == [job]
    assert isinstance(not_his, PermissionDenied)


async def test_nobody_at_the_address_is_no_lost_answer(slurm: SlurmCluster) -> None:
    rest = Rest(f"unix:{slurm.folder}/nobody")
    error = await refused(rest.submit(SLEEP, submission(slurm)))
    await rest.close()

    assert (type(error), error.reason) == (Unavailable, Reason.SLURM_UNREACHABLE)


@pytest.mark.parametrize("address", ["localhost:6820", "unix:socket", "ftp://here"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with pytest.raises(Invalid, match="unix:/path"):
        Rest(address)
