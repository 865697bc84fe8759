"""The OpenAPI description of the REST surface, from the same descriptors that make it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from switchgear.gateway.bindings import Binding

Json: TypeAlias = dict[str, Any]

_F = FieldDescriptor
#: Canonical proto3 JSON: 64-bit integers are strings.
_SCALARS: dict[int, Json] = {
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    _F.TYPE_INT32: {"type": "integer", "format": "int32"},
    _F.TYPE_SINT32: {"type": "integer", "format": "int32"},
    _F.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0},
    _F.TYPE_INT64: {"type": "string", "format": "int64"},
    _F.TYPE_UINT64: {"type": "string", "format": "uint64"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "format": "byte"},
}
_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "integer"},
                "status": {"type": "string"},
                "message": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}


def describe(bindings: Iterable[Binding], version: str) -> Json:
    """OpenAPI 3.1 of these methods."""
    schemas: dict[str, Json] = {"Error": _ERROR}
    paths: dict[str, Json] = {}
    for binding in bindings:
        paths.setdefault(binding.path, {})[binding.verb.lower()] = _operation(binding, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Switchgear", "version": version},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(binding: Binding, schemas: dict[str, Json]) -> Json:
    stars = [part.partition("}")[0] for part in binding.path.split("{")[1:]]
    query = {field.name: field for field in binding.query_fields.values()}
    media = "text/event-stream" if binding.method.server_streaming else "application/json"
    operation: Json = {
        "operationId": binding.method.name,
        "tags": [binding.method.containing_service.name],
        "parameters": [
            *({"name": star, "in": "path", "required": True, "schema": {"type": "string"}} for star in stars),
            *({"name": f.json_name, "in": "query", "schema": _field(f, schemas)} for f in query.values()),
        ],
        "responses": {
            "200": {"description": "OK", "content": {media: {"schema": _message(binding.method.output_type, schemas)}}},
            "default": {"description": "Error", "content": _json({"$ref": "#/components/schemas/Error"})},
        },
    }
    if binding.body:
        request: Descriptor = binding.method.input_type
        body = None if binding.body == "*" else request.fields_by_name[binding.body].message_type
        operation["requestBody"] = {"required": True, "content": _json(_message(body or request, schemas))}
    return operation


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _message(message: Descriptor, schemas: dict[str, Json]) -> Json:
    if message.full_name == "google.protobuf.Timestamp":
        return {"type": "string", "format": "date-time"}
    if message.full_name not in schemas:
        schema: Json = {"type": "object", "properties": {}}
        schemas[message.full_name] = schema  # before its fields: a message may hold its own kind
        schema["properties"].update({field.json_name: _field(field, schemas) for field in message.fields})
    return {"$ref": f"#/components/schemas/{message.full_name}"}


def _field(field: FieldDescriptor, schemas: dict[str, Json]) -> Json:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _field(field.message_type.fields_by_name["value"], schemas)}
    if field.message_type is not None:
        one = _message(field.message_type, schemas)
    elif field.enum_type is not None:
        one = {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    else:
        one = _SCALARS[field.type]
    return {"type": "array", "items": one} if field.is_repeated else one
