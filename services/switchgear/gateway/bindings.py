"""The REST surface, read off the contract: each method with a `google.api.http` option is one binding."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message

from switchgear.v1 import (
    access_service_pb2,
    autoscaler_service_pb2,
    fleet_service_pb2,
    job_service_pb2,
    policy_service_pb2,
    recovery_service_pb2,
    signal_service_pb2,
)
from switchgear.v1alpha import health_service_pb2, planner_service_pb2, telemetry_service_pb2

#: Files with REST methods, and which endpoint serves them.
CONTRACT: tuple[tuple[FileDescriptor, str], ...] = (
    (fleet_service_pb2.DESCRIPTOR, "scheduler"),
    (job_service_pb2.DESCRIPTOR, "scheduler"),
    (planner_service_pb2.DESCRIPTOR, "scheduler"),
    (recovery_service_pb2.DESCRIPTOR, "recovery"),
    (signal_service_pb2.DESCRIPTOR, "collector"),
    (telemetry_service_pb2.DESCRIPTOR, "collector"),
    (health_service_pb2.DESCRIPTOR, "collector"),
    (autoscaler_service_pb2.DESCRIPTOR, "autoscaler"),
    (policy_service_pb2.DESCRIPTOR, "gateway"),
    (access_service_pb2.DESCRIPTOR, "gateway"),
)

#: `{name=nodes/*}` or `{name}`, as in https://google.aip.dev/127.
_VARIABLE = re.compile(r"\{(?P<field>\w+)(?:=(?P<pattern>[^{}]+))?\}")
_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Binding:
    """One REST method."""

    method: MethodDescriptor
    #: Which of `Endpoints` serves it.
    endpoint: str
    #: GET, POST, …
    verb: str
    #: Path for the router, with one placeholder for each star of the template: `/v1/nodes/{name_0}:cordon`.
    path: str
    #: Field of the request -> its value with the same placeholders: `{"name": "nodes/{name_0}"}`.
    path_fields: Mapping[str, str]
    #: `*` = the body is the request, a name = the body is that field, empty = there is no body.
    body: str

    @property
    def grpc_path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    @property
    def request_type(self) -> type[Message]:
        return message_factory.GetMessageClass(self.method.input_type)

    @property
    def response_type(self) -> type[Message]:
        return message_factory.GetMessageClass(self.method.output_type)

    @property
    def query_fields(self) -> dict[str, FieldDescriptor]:
        """Fields of the request that neither path nor body hold and whose JSON is one value, by both of their names."""
        if self.body == "*":
            return {}
        request: Descriptor = self.method.input_type
        free = [field for field in request.fields if field.name not in self.path_fields and field.name != self.body]
        return {name: field for field in free if _is_value(field) for name in (field.name, field.json_name)}


def bindings() -> Iterator[Binding]:
    """All REST methods of the contract. One that streams its answers does it from a `revision` on, which each answer has."""
    for file, endpoint in CONTRACT:
        for service in file.services_by_name.values():
            for method in service.methods:
                options = method.GetOptions()
                if not options.HasExtension(annotations_pb2.http):
                    continue
                rule = options.Extensions[annotations_pb2.http]
                verb = next(verb for verb in _VERBS if rule.HasField(verb))
                path, path_fields = _router_path(getattr(rule, verb))
                yield Binding(method, endpoint, verb.upper(), path, path_fields, rule.body)


def _is_value(field: FieldDescriptor) -> bool:
    return field.message_type is None or field.message_type.full_name == "google.protobuf.Timestamp"


def _router_path(template: str) -> tuple[str, dict[str, str]]:
    fields: dict[str, str] = {}

    def placeholders(variable: re.Match[str]) -> str:
        field = variable["field"]
        parts = (variable["pattern"] or "*").split("*")
        value = parts[0] + "".join(f"{{{field}_{star}}}{part}" for star, part in enumerate(parts[1:]))
        fields[field] = value
        return value

    return _VARIABLE.sub(placeholders, template), fields
