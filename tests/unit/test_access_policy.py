"""Who may call what, for every method of the contract."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from switchgear.access.policy import Needs, denial, may, mutates, needs
from switchgear.core.identity import LOCAL, NOBODY, Identity, Kind, Role
from switchgear.gateway.bindings import CONTRACT
from switchgear.v1alpha import launcher_service_pb2, node_agent_service_pb2, placement_service_pb2, serving_service_pb2

INTERNAL = (launcher_service_pb2, node_agent_service_pb2, placement_service_pb2, serving_service_pb2)
FILES = [file for file, _ in CONTRACT] + [module.DESCRIPTOR for module in INTERNAL]
METHODS: dict[str, MethodDescriptor] = {
    f"{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}

VIEWER, OPERATOR, ADMIN = (Identity(Kind.USER, "ann", role) for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN))
NODE, SERVICE = Identity(Kind.NODE, "gpu-01"), Identity(Kind.SERVICE, "control-plane")
ROUTER, METRICS, UNKNOWN = (Identity(Kind.SERVICE, name) for name in ("router", "metrics", "of-a-later-version"))

OTLP = "opentelemetry.proto.collector.metrics.v1.MetricsService/Export"

EVERYBODY = {VIEWER, OPERATOR, ADMIN, NODE, SERVICE, ROUTER, METRICS, UNKNOWN, NOBODY}


def test_the_test_knows_every_service_of_the_contract() -> None:
    pool = descriptor_pool.Default()
    assert len(METHODS) >= 40
    assert all(pool.FindServiceByName(name.partition("/")[0]) for name in METHODS)
    assert {file.name for file in FILES} == {
        path
        for path in (f"switchgear/{version}/{name}_service.proto" for version in ("v1", "v1alpha") for name in NAMES)
        if _known(path)
    }


NAMES = (
    *("access", "autoscaler", "fleet", "job", "policy", "recovery", "signal"),
    *("health", "launcher", "node_agent", "placement", "planner", "serving", "telemetry"),
)


def _known(path: str) -> bool:
    try:
        descriptor_pool.Default().FindFileByName(path)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_has_a_rule_and_what_changes_something_is_audited(method: str) -> None:
    descriptor = METHODS[method]
    need = needs(method)
    assert need is not None
    reads = descriptor.name.startswith(("Get", "List", "Watch", "Query", "Explain", "WhatIf"))
    assert mutates(method) == (not reads and not descriptor.client_streaming)
    if need is Needs.VIEWER:
        assert reads
    if need in (Needs.NODE, Needs.SERVICE, Needs.ROUTER):
        assert descriptor.containing_service.file.package == "switchgear.v1alpha"
    assert may(LOCAL, method)
    assert may(NOBODY, method) == (need is Needs.NOTHING)


@pytest.mark.parametrize(
    ("method", "allowed"),
    [
        ("switchgear.v1.JobService/ListJobs", {VIEWER, OPERATOR, ADMIN, SERVICE}),
        ("switchgear.v1.JobService/CreateJob", {OPERATOR, ADMIN, SERVICE}),
        ("switchgear.v1.AccessService/CreateToken", {ADMIN}),
        ("switchgear.v1.AccessService/ListAuditEntries", {ADMIN}),
        ("switchgear.v1.PolicyService/SetPolicyMode", {ADMIN}),
        ("switchgear.v1.AccessService/EnrollNode", EVERYBODY),
        ("switchgear.v1alpha.TelemetryService/Stream", {NODE}),
        (OTLP, {OPERATOR, ADMIN, NODE}),
        ("switchgear.v1alpha.NodeAgentService/Connect", {NODE}),
        ("switchgear.v1alpha.LauncherService/Connect", {NODE}),
        ("switchgear.v1alpha.ServingService/ConnectReplica", {NODE}),
        ("switchgear.v1alpha.ServingService/ConnectRouter", {SERVICE, ROUTER}),
        ("switchgear.v1alpha.PlacementService/ReplaceNodes", {SERVICE}),
        ("switchgear.v1.JobService/Explode", set()),
        ("", set()),
    ],
)
def test_only_these_may(method: str, allowed: set[Identity]) -> None:
    assert {caller for caller in EVERYBODY if may(caller, method)} == allowed
    for caller in EVERYBODY - allowed:
        assert denial(caller, method)


def test_a_router_and_prometheus_may_nothing_else() -> None:
    asked = [method for method in METHODS if needs(method) is not Needs.NOTHING]
    assert [method for method in asked if may(ROUTER, method)] == ["switchgear.v1alpha.ServingService/ConnectRouter"]
    assert [method for method in asked if may(METRICS, method) or may(UNKNOWN, method)] == []


def test_samples_that_come_all_the_time_are_not_in_the_audit_log() -> None:
    assert not mutates(OTLP)


def test_even_a_local_caller_may_not_call_what_has_no_rule() -> None:
    assert not may(LOCAL, "switchgear.v1.JobService/Explode")
