"""The OpenAPI schema of a message of the contract, as Kubernetes takes it for a custom resource."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from nextem.v1 import plan_pb2

Schema = dict[str, Any]

MOST_ITEMS = 64
MOST_CHARACTERS = 1024
"""Bounds of lists and texts: the API server wants to know what a rule may cost."""

_INT32, _UINT32 = (-(1 << 31), (1 << 31) - 1), (0, (1 << 32) - 1)
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: _INT32,
    FieldDescriptor.CPPTYPE_UINT32: _UINT32,
    FieldDescriptor.CPPTYPE_INT64: None,
    FieldDescriptor.CPPTYPE_UINT64: None,
}
_DEEPEST = 2
_STRUCT = "google.protobuf.Struct"
_MESSAGE = re.compile(r"^(?:message|enum) (\w+) {")
_FIELD = re.compile(r"^ +(?:repeated )?[\w.<>, ]+ (\w+) = \d+;\s*// (.*)$")


def schema_of(
    message: Descriptor, refine: Mapping[str, Schema], stack: Sequence[str] = (), told: str = ""
) -> Schema:
    """Of ``message`` in its JSON form; what ``refine`` has by a message's full name is put into it.

    A message within itself is unrolled once, and there without the field that leads to it again: a schema of
    Kubernetes cannot refer to itself. ``told`` describes it.
    """
    if message.full_name == _STRUCT:
        return _described({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, told)
    stack = (*stack, message.full_name)
    comments = _comments(message)
    properties = {
        field.json_name: _field(field, refine, stack, comments.get(field.name, ""))
        for field in message.fields
        if field.message_type is None or stack.count(field.message_type.full_name) < _DEEPEST
    }
    schema: Schema = _described({"type": "object"}, told)
    schema["properties"] = properties
    rules = [_one_of(group.fields) for group in message.oneofs]
    more = dict(refine.get(message.full_name, {}))
    for name, limits in more.pop("properties", {}).items():
        properties[name] |= limits
    schema |= more
    if rules:
        schema["x-kubernetes-validations"] = rules + schema.get("x-kubernetes-validations", [])
    return schema


def _field(field: FieldDescriptor, refine: Mapping[str, Schema], stack: Sequence[str], told: str) -> Schema:
    if not field.is_repeated:
        return _single(field, refine, stack, told)
    items = _single(field, refine, stack, "")
    schema = _described({"type": "array", "maxItems": MOST_ITEMS}, told)
    schema["items"] = items
    if field.message_type is not None and "name" in field.message_type.fields_by_name and _is_key(field):
        schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        items.setdefault("required", ["name"])
    return schema


def _is_key(field: FieldDescriptor) -> bool:
    """Whether the name must be unique in the list; one analysis may run twice with other parameters."""
    return bool(field.message_type is not plan_pb2.Analysis.DESCRIPTOR)


def _single(field: FieldDescriptor, refine: Mapping[str, Schema], stack: Sequence[str], told: str) -> Schema:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            assert isinstance(field.message_type, Descriptor)
            return schema_of(field.message_type, refine, stack, told)
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return _described({"type": "string", "enum": list(field.enum_type.values_by_name)}, told)
        case FieldDescriptor.CPPTYPE_BOOL:
            return _described({"type": "boolean"}, told)
        case FieldDescriptor.CPPTYPE_STRING:
            return _described({"type": "string", "maxLength": MOST_CHARACTERS}, told)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return _described({"type": "number"}, told)
        case kind if kind in _INTEGERS:
            schema = _described({"type": "integer", "format": "int64"}, told)
            if bounds := _INTEGERS[kind]:
                schema |= {"minimum": bounds[0], "maximum": bounds[1]}
            return schema
    raise NotImplementedError(f"no schema for {field.full_name}")


def _one_of(fields: Sequence[FieldDescriptor]) -> Schema:
    """Exactly one of a oneof's fields."""
    names = [field.json_name for field in fields]
    given = ", ".join(f"has(self.{name})" for name in names)
    return {
        "rule": f"[{given}].filter(given, given).size() == 1",
        "message": f"exactly one of {', '.join(names)} must be given",
    }


def _described(schema: Schema, told: str) -> Schema:
    return {"description": told, **schema} if told else schema


def _comments(message: Descriptor) -> dict[str, str]:
    """The comments beside the fields in the .proto file, by field; generated code does not have them."""
    source = Path(plan_pb2.__file__).parent / Path(message.file.name).name
    found: dict[str, str] = {}
    inside = ""
    for line in source.read_text().splitlines():
        if opened := _MESSAGE.match(line):
            inside = opened[1]
        elif inside == message.name and (field := _FIELD.match(line)):
            found[field[1]] = field[2]
    return found
