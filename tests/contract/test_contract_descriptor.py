"""`switchgear.v1` may grow and may not break: what a client of the frozen contract uses is still there, under its number."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

FREEZE = runpy.run_path(str(Path(__file__).parents[2] / "proto" / "freeze.py"))
Contract = descriptor_pb2.FileDescriptorSet


def frozen_contract() -> Contract:
    return Contract.FromString(FREEZE["FROZEN"].read_bytes())


def promises(contract: Contract) -> dict[str, object]:
    """Everything that a client relies on: full name -> what must stay as it is."""
    found: dict[str, object] = {}
    for file in contract.file:
        for message in file.message_type:
            found.update(_message_promises(f"{file.package}.{message.name}", message))
        for enum in file.enum_type:
            found.update(_enum_promises(f"{file.package}.{enum.name}", enum))
        for service in file.service:
            for method in service.method:
                http = method.options.Extensions[annotations_pb2.http].SerializeToString(deterministic=True)
                streams = (method.client_streaming, method.server_streaming)
                types = (method.input_type, method.output_type)
                found[f"{file.package}.{service.name}.{method.name}"] = (types, streams, http)
    return found


def _message_promises(name: str, message: descriptor_pb2.DescriptorProto) -> Iterator[tuple[str, object]]:
    yield name, "message"
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        yield f"{name}.{field.name}", (field.number, field.type, field.label, field.type_name, oneof)
    for nested in message.nested_type:
        yield from _message_promises(f"{name}.{nested.name}", nested)
    for enum in message.enum_type:
        yield from _enum_promises(f"{name}.{enum.name}", enum)


def _enum_promises(name: str, enum: descriptor_pb2.EnumDescriptorProto) -> Iterator[tuple[str, object]]:
    for value in enum.value:
        yield f"{name}.{value.name}", value.number


def broken(old: Contract, new: Contract) -> list[str]:
    """Names that are gone or mean something else."""
    after = promises(new)
    return [name for name, promise in promises(old).items() if after.get(name) != promise]


def test_the_contract_keeps_every_promise_of_the_frozen_one() -> None:
    assert broken(frozen_contract(), FREEZE["installed_contract"]()) == []


def test_what_was_added_is_frozen_too() -> None:
    added = promises(FREEZE["installed_contract"]()).keys() - promises(frozen_contract()).keys()
    assert sorted(added) == [], "run `.venv/bin/python proto/freeze.py` and commit proto/switchgear/v1/contract.binpb"


def node(contract: Contract) -> descriptor_pb2.DescriptorProto:
    return next(m for file in contract.file for m in file.message_type if m.name == "Node")


def fleet(contract: Contract) -> descriptor_pb2.ServiceDescriptorProto:
    return next(s for file in contract.file for s in file.service if s.name == "FleetService")


def remove_field(contract: Contract) -> None:
    del node(contract).field[0]


def renumber_field(contract: Contract) -> None:
    node(contract).field[0].number = 99


def retype_field(contract: Contract) -> None:
    node(contract).field[0].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def repeat_field(contract: Contract) -> None:
    node(contract).field[0].label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def renumber_enum_value(contract: Contract) -> None:
    node(contract).enum_type[0].value[1].number = 99


def remove_method(contract: Contract) -> None:
    del fleet(contract).method[0]


def move_rest_path(contract: Contract) -> None:
    fleet(contract).method[0].options.Extensions[annotations_pb2.http].get = "/v1/elsewhere"


def remove_file(contract: Contract) -> None:
    del contract.file[0]


@pytest.mark.parametrize(
    "change",
    [
        remove_field,
        renumber_field,
        retype_field,
        repeat_field,
        renumber_enum_value,
        remove_method,
        move_rest_path,
        remove_file,
    ],
)
def test_a_breaking_change_is_noticed(change: Callable[[Contract], None]) -> None:
    changed = frozen_contract()
    change(changed)
    assert broken(frozen_contract(), changed) != []


def test_an_addition_passes() -> None:
    grown = frozen_contract()
    node(grown).field.add(name="rack", number=99, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING)
    fleet(grown).method.add(
        name="DrainNode", input_type=".switchgear.v1.GetNodeRequest", output_type=".switchgear.v1.Node"
    )
    assert broken(frozen_contract(), grown) == []
