"""Repairs protobuf whose texts are not UTF-8: SDKs and collectors that do not check theirs send such, and
protobuf's parser refuses the whole request for one of them.

Only what the parser has refused comes here, so that it need not be fast.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def mended(body: bytes) -> ExportTraceServiceRequest:
    """A request whose texts have U+FFFD in the place of bytes that are not UTF-8. Raises `DecodeError`."""
    request = ExportTraceServiceRequest()
    _copy(_lenient().FromString(body), request)
    return request


@cache
def _lenient() -> type[Message]:
    """The class of requests, with bytes for texts: on the wire they are the same."""
    pool = descriptor_pool.DescriptorPool()
    _add(ExportTraceServiceRequest.DESCRIPTOR.file, pool, set())
    name = ExportTraceServiceRequest.DESCRIPTOR.full_name
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def _add(file: FileDescriptor, pool: descriptor_pool.DescriptorPool, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add(dependency, pool, added)
    plain = FileDescriptorProto()
    file.CopyToProto(plain)
    for message in plain.message_type:
        _with_bytes(message)
    pool.Add(plain)


def _with_bytes(message: Any) -> None:
    for field in message.field:
        if field.type == FieldDescriptorProto.TYPE_STRING:
            field.type = FieldDescriptorProto.TYPE_BYTES
    for nested in message.nested_type:
        _with_bytes(nested)


def _copy(lenient: Any, strict: Any) -> None:
    """Copy all fields. The depth is bounded by what parsed it."""
    texts = {field.name for field in strict.DESCRIPTOR.fields if field.type == FieldDescriptor.TYPE_STRING}
    for field, value in lenient.ListFields():
        target = getattr(strict, field.name)
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if _repeated(value):
                for each in value:
                    _copy(each, target.add())
            else:
                target.SetInParent()
                _copy(value, target)
        elif _repeated(value):
            target.extend(_text(each) for each in value) if field.name in texts else target.extend(value)
        else:
            setattr(strict, field.name, _text(value) if field.name in texts else value)


def _repeated(value: Any) -> bool:
    return hasattr(value, "extend")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
