"""Targets: spans that anybody may send, over the network or in a file."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from trifle_otel.errors import UsageError
from trifle_otel.otlp.files import OtlpFile
from trifle_otel.otlp.spans import JSON, PROTOBUF, MalformedRequest, encoding_of, parse_request, spans_of
from trifle_otel.receiver.answers import Refused
from trifle_otel.receiver.bodies import inflated, is_compressed, looks_compressed
from trifle_otel.receiver.intake import sift

from .claims import check_spans
from .inputs import fields, text

LIMIT = 1 << 20  # bytes of a body when it is unpacked


def otlp_protobuf(data: bytes) -> None:
    """The body of a request in protobuf."""
    _request(data, PROTOBUF)


def otlp_json(data: bytes) -> None:
    """The body of a request in JSON."""
    _request(data, JSON)


def otlp_body(data: bytes) -> None:
    """A request's headers, and its body as it comes: compressed or not."""
    content_type, content_encoding, body = fields(data, 3)
    try:
        encoding_of(text(content_type))
        if is_compressed(text(content_encoding)) or looks_compressed(body):
            body = inflated(body, LIMIT)
        assert len(body) <= max(LIMIT, len(data))
        _request(body, text(content_type))
    except (Refused, MalformedRequest):
        return


def _request(body: bytes, content_type: str) -> None:
    try:
        request = parse_request(body, content_type)
    except MalformedRequest:
        return
    left, _ = sift(request)
    spans = spans_of(request)
    assert len(spans) == left
    again = spans_of(parse_request(request.SerializeToString(), PROTOBUF))  # as the journal keeps it
    assert repr(again) == repr(spans)  # NaN is not itself
    check_spans(spans)


def otlp_file(data: bytes) -> None:
    """A file of OTLP JSON lines, plain or packed."""
    path = Path(_folder().name, "spans.jsonl")
    path.write_bytes(data)
    said: list[int] = []
    try:
        with OtlpFile(str(path), lambda number, _: said.append(number)) as file:
            spans = [span for line in file for span in line]
    except UsageError:
        return
    assert len(said) >= file.damaged_lines
    check_spans(spans)


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trifle-fuzzing-")
