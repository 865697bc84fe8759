"""How an HTTP request becomes a message of the contract."""

from __future__ import annotations

from typing import Any

import pytest

from switchgear.core.errors import Invalid, Reason
from switchgear.gateway.bindings import Binding, bindings
from switchgear.gateway.openapi import describe
from switchgear.gateway.transcoder import build
from switchgear.v1 import fleet_service_pb2 as fleet_pb
from switchgear.v1 import job_service_pb2 as job_pb

ALL = {binding.method.name: binding for binding in bindings()}


def test_templates_become_paths_and_fields() -> None:
    def shape(binding: Binding) -> tuple[str, str, dict[str, str]]:
        return binding.verb, binding.path, dict(binding.path_fields)

    assert shape(ALL["CordonNode"]) == ("POST", "/v1/nodes/{name_0}:cordon", {"name": "nodes/{name_0}"})
    assert shape(ALL["ListAttempts"]) == ("GET", "/v1/jobs/{parent_0}/attempts", {"parent": "jobs/{parent_0}"})
    assert shape(ALL["GetJobProgress"]) == ("GET", "/v1/jobs/{name_0}/progress", {"name": "jobs/{name_0}/progress"})


def test_only_streams_that_are_meant_for_people_have_a_rest_form() -> None:
    assert {name for name in ALL if name.startswith(("Watch", "Stream", "Connect"))} == {"WatchNodeHealth"}


def test_path_query_and_body_meet_in_one_message() -> None:
    body = b'{"spec": {"argv": ["x.py"], "nprocPerNode": 2, "environment": {"A": "1"}}}'
    message = build(ALL["CreateJob"], {}, [("jobId", "a"), ("request_id", "r")], body)
    spec = job_pb.JobSpec(argv=["x.py"], nproc_per_node=2, environment={"A": "1"})
    assert message == job_pb.CreateJobRequest(job=job_pb.Job(spec=spec), job_id="a", request_id="r")


def test_the_path_wins_over_the_body() -> None:
    message = build(ALL["CordonNode"], {"name_0": "a"}, [], b'{"name": "nodes/b", "reason": "fan"}')
    assert message == fleet_pb.CordonNodeRequest(name="nodes/a", reason="fan")


def test_an_empty_body_is_an_empty_message() -> None:
    assert build(ALL["CancelJob"], {"name_0": "a"}, [], b"") == job_pb.CancelJobRequest(name="jobs/a")


def test_numbers_come_as_text_in_a_query() -> None:
    assert build(ALL["ListNodes"], {}, [("pageSize", "7")], b"") == fleet_pb.ListNodesRequest(page_size=7)


@pytest.mark.parametrize(
    ("method", "query", "body", "field"),
    [
        ("CreateJob", [], b'{"spec": {"nprocs": 2}}', "nprocs"),
        ("CreateJob", [], b'{"nprocs": 2}', "nprocs"),
        ("CreateJob", [], b'{"spec": {"nnodes": "two"}}', ""),
        ("CreateJob", [], b'{"spec": [1]}', ""),
        ("CreateJob", [], b"[1]", ""),
        ("CreateJob", [], b"{", ""),
        ("CreateJob", [], b'{"name": "a", "name": "b"}', ""),
        ("CreateJob", [], b"\xff", ""),
        ("CreateJob", [], b'{"spec":' * 5000, ""),
        ("CreateJob", [("job", "x")], b"{}", "job"),
        ("CordonNode", [("reason", "x")], b"{}", "reason"),
        ("ListNodes", [("pageSize", "many")], b"", "page_size"),
        ("ListNodes", [("pageSize", "1"), ("page_size", "2")], b"", "page_size"),
        ("ListNodes", [("size", "1")], b"", "size"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    method: str, query: list[tuple[str, str]], body: bytes, field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        build(ALL[method], {"name_0": "a"}, query, body)
    assert (caught.value.reason, caught.value.metadata["field"]) == (Reason.BODY_INVALID, field)


def test_every_reference_of_the_description_leads_somewhere() -> None:
    description = describe(ALL.values(), "1")

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*(references(item) for item in value.values()))
        return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()

    schemas = description["components"]["schemas"]
    assert references(description) == {f"#/components/schemas/{name}" for name in schemas}
    properties = schemas["switchgear.v1.JobSpec"]["properties"]
    assert properties["environment"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert properties["nprocPerNode"] == {"type": "integer", "format": "int32"}
    assert schemas["switchgear.v1.Job"]["properties"]["createTime"] == {"type": "string", "format": "date-time"}
    cordon = description["paths"]["/v1/nodes/{name_0}:cordon"]["post"]
    assert [parameter["name"] for parameter in cordon["parameters"]] == ["name_0"]
