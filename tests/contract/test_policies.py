"""Modes of policies: in the store, over gRPC, and what recovery does with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from recovery_plane import refusal, running, until

from switchgear.cli.policies import configured_policies
from switchgear.core import rpc
from switchgear.core.clock import ManualClock
from switchgear.core.errors import Invalid, NotFound, Reason
from switchgear.core.modes import Mode
from switchgear.gateway.front_door import build
from switchgear.recovery import main as recovery
from switchgear.store.database import Database
from switchgear.store.policies import CORDON, FRESH_S, POLICIES, RESTART, PolicyModes
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb
from switchgear.v1 import policy_service_pb2 as pb
from switchgear.v1 import policy_service_pb2_grpc as pb_grpc
from switchgear.v1 import recovery_service_pb2 as recovery_pb


async def set_mode(database: Database, policy: str, mode: Mode | None) -> None:
    async with database.write() as session:
        await PolicyModes(database).set(session, policy, mode, actor="user:eve", now_unix_ns=1)


async def test_what_was_set_wins_over_the_configuration_and_that_over_the_default(database: Database) -> None:
    def modes() -> PolicyModes:
        return PolicyModes(database, {CORDON: Mode.ADVISE})

    assert (await modes().of(CORDON), await modes().of(RESTART)) == (Mode.ADVISE, Mode.ACT)
    await set_mode(database, CORDON, Mode.OBSERVE)
    assert await modes().of(CORDON) is Mode.OBSERVE
    await set_mode(database, CORDON, None)
    assert await modes().of(CORDON) is Mode.ADVISE


async def test_every_process_follows_a_change_within_a_second(database: Database) -> None:
    clock = ManualClock()
    elsewhere = PolicyModes(database, clock=clock)
    assert await elsewhere.of(RESTART) is Mode.ACT
    await set_mode(database, RESTART, Mode.ADVISE)
    clock.advance(FRESH_S)
    assert await elsewhere.of(RESTART) is Mode.ADVISE


async def test_there_are_only_the_policies_that_there_are(database: Database) -> None:
    with pytest.raises(Invalid, match=r"recovery\.cordon"):
        PolicyModes(database, {"recovery.reboot": Mode.ACT})
    with pytest.raises(NotFound):
        await PolicyModes(database).of("recovery.reboot")


@pytest.mark.parametrize(
    ("given", "environment", "configured"),
    [
        ([], {"SWITCHGEAR_POLICY_RECOVERY_CORDON": "advise", "HOME": "/"}, {CORDON: Mode.ADVISE}),
        (["recovery.cordon=ACT"], {"SWITCHGEAR_POLICY_RECOVERY_CORDON": "advise"}, {CORDON: Mode.ACT}),
    ],
)
def test_a_process_is_configured_by_its_environment_and_its_flags(
    given: list[str], environment: dict[str, str], configured: Mapping[str, Mode]
) -> None:
    assert configured_policies(given, environment) == configured


@pytest.mark.parametrize("given", ["recovery.cordon", "recovery.cordon=never", "=act=act"])
def test_a_mode_that_is_none_is_refused_with_the_form_to_write(given: str) -> None:
    with pytest.raises(Invalid, match="NAME=MODE"):
        configured_policies([given], {})


@asynccontextmanager
async def served(database: Database) -> AsyncIterator[Any]:
    server = rpc.Server()
    service = build(database, ManualClock(), PolicyModes(database, {CORDON: Mode.ADVISE}))
    service.register(server.grpc)
    address = await server.start("127.0.0.1:0", service.service_names)
    try:
        async with rpc.channel(address) as channel:
            yield pb_grpc.PolicyServiceStub(channel)
    finally:
        await server.stop(0)


async def test_policies_are_listed_set_and_given_back(database: Database) -> None:
    async with served(database) as policies:
        listed = (await policies.ListPolicies(pb.ListPoliciesRequest())).policies
        assert [policy.name for policy in listed] == [f"policies/{name}" for name in POLICIES]
        assert [(p.mode, p.default_mode, p.actor) for p in listed if p.name == "policies/recovery.cordon"] == [
            (pb.Policy.ADVISE, pb.Policy.ACT, "config")
        ]
        request = pb.SetPolicyModeRequest(name="policies/recovery.cordon", mode="OBSERVE", request_id="r")
        changed = await policies.SetPolicyMode(request)
        assert (changed.mode, changed.actor, changed.HasField("update_time")) == (pb.Policy.OBSERVE, "user:local", True)
        assert await policies.SetPolicyMode(request) == changed
        assert await policies.GetPolicy(pb.GetPolicyRequest(name="policies/recovery.cordon")) == changed
        back = await policies.SetPolicyMode(pb.SetPolicyModeRequest(name="policies/recovery.cordon"))
        assert (back.mode, back.actor, back.HasField("update_time")) == (pb.Policy.ADVISE, "config", False)


async def test_what_cannot_be_set_is_refused(database: Database) -> None:
    async with served(database) as policies:
        unknown = await refusal(policies.GetPolicy(pb.GetPolicyRequest(name="policies/recovery.reboot")))
        assert unknown.reason is Reason.NOT_FOUND
        unknown = await refusal(policies.SetPolicyMode(pb.SetPolicyModeRequest(name="policies/x", mode="ACT")))
        assert unknown.reason is Reason.NOT_FOUND
        odd = pb.SetPolicyModeRequest(name="policies/recovery.cordon", mode=9)  # type: ignore[arg-type]
        assert (await refusal(policies.SetPolicyMode(odd))).reason is Reason.BAD_FIELD


async def test_a_job_whose_restart_is_only_advised_fails_with_the_advice(database: Database, tmp_path: Path) -> None:
    await set_mode(database, RESTART, Mode.ADVISE)
    async with running(database, tmp_path) as world:
        agent = await world.agent("a")
        await world.create("train")
        launcher = await world.launcher(agent, "jobs/train")
        await launcher.has("start", 1)
        await launcher.step(1)
        await world.job("jobs/train", job_pb.Job.RUNNING)
        await launcher.exit(0, -9)
        await launcher.exit(1, -9, by_us=True)
        failed = await world.job("jobs/train", job_pb.Job.FAILED)
        assert "a restart in place is advised" in failed.message
        incident = await world.incident("jobs/train", recovery_pb.Incident.ESCALATED)
        assert incident.decision == "RESTART_IN_PLACE"


async def test_a_broken_node_that_is_not_to_be_cordoned_loses_its_job_alone(database: Database, tmp_path: Path) -> None:
    await set_mode(database, CORDON, Mode.ADVISE)
    async with running(database, tmp_path) as world:
        agents = {name: await world.agent(name) for name in "ab"}
        await world.create("train")
        launcher = await world.launcher(agents["a"], "jobs/train")
        await launcher.has("start", 1)
        await launcher.step(1)
        await world.job("jobs/train", job_pb.Job.RUNNING)
        await agents["a"].event(code=79, text="GPU has fallen off the bus")
        await (await world.launcher(agents["b"], "jobs/train")).has("start", 2)
        await world.node("nodes/a", fleet_pb.Node.HEALTHY)
        evidence = (await world.incidents("jobs/train"))[0].evidence
        assert [line for line in evidence if line.startswith("advice: cordon nodes/a")]


async def test_fatal_evidence_of_an_idle_node_is_kept_for_jobs_to_come_and_for_the_day_it_may_be_cordoned(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "REVIEW_S", 0.2)
    await set_mode(database, CORDON, Mode.ADVISE)
    async with running(database, tmp_path) as world:
        agents = {name: await world.agent(name) for name in "ab"}
        await agents["a"].event(code=79, text="GPU has fallen off the bus")
        await until(world.signals_read)
        await world.create("train")
        await (await world.launcher(agents["b"], "jobs/train")).has("start", 1)
        await world.node("nodes/a", fleet_pb.Node.HEALTHY)

        await set_mode(database, CORDON, Mode.ACT)
        await world.node("nodes/a", fleet_pb.Node.CORDONED)
        await world.fleet.UncordonNode(fleet_pb.UncordonNodeRequest(name="nodes/a", actor="user:eve"))
        await until(lambda: not world.service.fatal_nodes())
        await world.node("nodes/a", fleet_pb.Node.HEALTHY)
