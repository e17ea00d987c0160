"""What the fuzzer begins with: the golden archives, spans of every kind, texts as people write them; and words.

Words are put into inputs by the fuzzer: names of fields that it would take long to find.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from trifle_otel.encoding import encode_cursor
from trifle_otel.records import Position

from .archive_targets import NAMES
from .inputs import joined
from .spool_targets import JOURNALED, SPOOLED

GOLDEN = Path(__file__).parent.parent / "golden"
LONGEST = 16_384  # bytes of a seed
REFERENCE = "01M85RBZMWKQ5T057R2XGV9YXE"
PART = (
    '[{"at":1700000000,"message":"Tracer has been initialized for a/b","state":"success","type":"text","level":0},'
    '{"at":1700000000,"message":"Load ↴","state":"success","type":"head","level":0,"ns":1700000000000000001,'
    '"span":"00f067aa0ba902b7"},'
    '{"at":1700000001,"message":"page.html","state":"success","type":"media","size":3},'
    '{"at":1700000001,"message":"Load ↵","state":"error","type":"text","level":0,"span":"00f067aa0ba902b7"},'
    '{"at":1700000001,"message":"↳ {\\"a\\":[1,null]}","state":"success","type":"raw","level":0},'
    '{"at":1700000002,"message":"Exception: boom","state":"error","type":"text","level":0}]'
).encode()
RECORD: dict[str, Any] = {
    "reference": REFERENCE,
    "key": "a/b",
    "segments": ["a", "a/b"],
    "state": "running",
    "tags": ["x:1"],
    "meta": [9, {"a": None}],
    "context": {"trace_id": "0" * 31 + "1", "span_id": "0" * 15 + "1", "service": "shop", "links": [{"trace_id": "1"}]},
    "duration": 12,
    "counters": {"states": {"success": 2}, "types": {"text": 2}, "max_level": 0},
    "length": 2,
    "parts": 1,
    "first_at": "2026-11-24T12:00:00.000001Z",
    "last_at": "2026-11-24T12:00:01.000001Z",
    "retention": 7,
    "expires_at": "2026-12-01T12:00:00.000001Z",
    "bucket_name": None,
}
ATTRIBUTES: dict[str, Any] = {
    "http.request.method": "GET",
    "http.route": "/orders/{id}",
    "url.full": "https://user:pass@host/path?q=1",
    "db.system": "postgresql",
    "db.query.text": "SELECT 1",
    "messaging.system": "celery",
    "messaging.destination.name": "orders",
    "rpc.service": "shop.Orders",
    "rpc.method": "Get",
    "faas.trigger": "timer",
    "gen_ai.request.model": "m",
    "celery.task_name": "reports.daily",
    "trifle.reference": REFERENCE,
    "trifle.archive": "file:///traces",
    "service.name": "shop",
    "number": 1,
    "real": 0.5,
    "yes": True,
    "list": [1, "a", [None]],
    "map": {"a": {"b": 1}},
}


def seeds(target: str) -> Iterator[bytes]:
    """Inputs that the fuzzer of a target begins with."""
    return _SEEDS[target]()


def words(target: str) -> Iterator[str]:
    """What inputs of a target hold."""
    if target.startswith("otlp") or target == "journal":
        yield from OTLP_FIELDS
        yield from ATTRIBUTES
    elif target in ("parts", "record", "folder", "spool"):
        yield from ("at", "message", "state", "type", "level", "size", "ns", "span", " ↴", " ↵", "↳ ", "part_row_")
        yield from ("success", "warning", "error", "text", "head", "raw", "media", "NaN", "1e999", "\\ud800", "\\u0000")
        yield from RECORD
        yield from ("trace_id", "span_id", "states", "types", "max_level", "9223372036854775808", "-1")
    else:
        yield from _WORDS.get(target, ())


OTLP_FIELDS = (
    *("resourceSpans", "resource", "attributes", "scopeSpans", "scope", "spans", "traceId", "spanId"),
    *("parentSpanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "events", "timeUnixNano"),
    *("links", "status", "code", "message", "key", "value", "stringValue", "intValue", "doubleValue"),
    *("boolValue", "bytesValue", "arrayValue", "kvlistValue", "values", "droppedAttributesCount"),
    *("droppedEventsCount", "traceState", "flags", "version", "exception", "exception.type"),
    *("exception.message", "exception.stacktrace", "STATUS_CODE_ERROR"),
)
_WORDS: Mapping[str, tuple[str, ...]] = {
    "urls": (
        *("s3://", "gs://", "az://", "file:///", "sqlite:///", "memory:", "postgresql://", "mongodb://", "grpc://"),
        *(
            "endpoint=",
            "region=",
            "path_style=",
            "bulk_delete=",
            "buckets=",
            "table=",
            "?",
            "@",
            "%00",
            "[::1]",
            "~user",
        ),
    ),
    "redaction": (
        *("password=", "Authorization: Bearer ", "Cookie: ", "api_key", "-----BEGIN PRIVATE KEY-----", "AKIA", "ghp_"),
        *("https://user:secret@host", "4111 1111 1111 1111", '"token": "', "--password ", "<password>", "&token="),
    ),
    "patterns": ("(?i)", "(?:", "\\b", "\\d", "[^a]", "{2,3}", "ſ", "K", "İ", "ı", "\\u0041", "(?P<a>", "(?=", "|"),
    "search": ("3d", "90s", "2026-01-31T12:00:00Z", "+00:00", "1.5s", "250ms"),
    "values": ("OrderedDict(", "True", "None", "1e5", "'", '"', "\\", "b'", "[{(", "nan", "..."),
    "names": ("/", "..", "\\", "data_1.json", "record.json", "artifacts", ".gz", " ", "~", "con", "\u202e"),
}


def _golden_parts() -> Iterator[bytes]:
    for path in sorted(GOLDEN.glob("**/data_*")):
        data = path.read_bytes()
        yield gzip.decompress(data) if path.suffix == ".gz" else data


def _parts() -> Iterator[bytes]:
    for number, part in enumerate([PART, b"[]", b'[{"message":null}]', *_golden_parts()]):
        yield bytes((number % 2,)) + part[:LONGEST]
    yield b"\2" + gzip.compress(PART, mtime=0)
    yield b"\2" + gzip.compress(PART, mtime=0)[:-9]


def _records() -> Iterator[bytes]:
    yield json.dumps(RECORD).encode()
    yield json.dumps({"reference": REFERENCE, "key": "a"}).encode()
    for path in sorted(GOLDEN.glob("*/*/record.json")):
        yield path.read_bytes()


def _folders() -> Iterator[bytes]:
    record = json.dumps(RECORD).encode()
    yield joined(
        f"7/a/b/{REFERENCE}".encode(), _named(NAMES, "record.json", record), _named(NAMES, "data_1.json", PART)
    )
    yield joined(f"7/a/{REFERENCE}".encode(), _named(NAMES, "data_1.json.gz", gzip.compress(PART, mtime=0)))
    yield joined(b"7/a/x", _named(NAMES, "data_1.json", PART), _named(NAMES, "artifacts/page.html", b"<p>"))


def _named(names: tuple[str, ...], name: str, contents: bytes) -> bytes:
    return bytes((names.index(name),)) + contents


def _spooled() -> Iterator[bytes]:
    record = json.dumps(RECORD).encode()
    ended = json.dumps({**RECORD, "state": "success"}).encode()
    folder = SPOOLED[0].partition("/")[0]
    for described in (record, ended):
        yield joined(
            _named(SPOOLED, f"{folder}/record.json", described),
            _named(SPOOLED, f"{folder}/data_1.json", PART),
            _named(SPOOLED, f"{folder}/journal_1.json", PART),
            _named(SPOOLED, f"{folder}/ignored.json", b"{}"),
        )
        yield joined(
            _named(SPOOLED, f"{folder}/record.json", described),
            _named(SPOOLED, f"{folder}/data_2.json", PART[:-9]),
            _named(SPOOLED, f"{folder}/journal_2.json.gz", gzip.compress(PART, mtime=0)),
            _named(SPOOLED, "rows-00000002.json", ended + b"\n" + ended[:50]),
            _named(SPOOLED, "lock", b'{"pid":1,"host":"h"}'),
        )


def _journaled() -> Iterator[bytes]:
    request = next(_protobuf())
    yield joined(
        _named(JOURNALED, "0000000001.pb", request),
        _named(JOURNALED, "0000000002.pb", request[:50]),
        _named(JOURNALED, "done-0000000003.log", b"[[1,[[0,0]]]]\n[[1,[[2,5]]],[2,[[0,1]]]]\n[[1,[["),
    )


def request() -> ExportTraceServiceRequest:
    """A request with a span of every kind of event, link, value and status."""
    made = ExportTraceServiceRequest()
    of_resource = made.resource_spans.add()
    _add(of_resource.resource.attributes, {"service.name": "shop"})
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = "trifle_otel"
    for number, parent in ((1, 0), (2, 1), (3, 9), (4, 4)):
        span = of_scope.spans.add(name=f"span {number}", kind=Span.SPAN_KIND_SERVER, flags=0x301, trace_state="a=b")
        span.trace_id, span.span_id = bytes(15) + b"\7", bytes(7) + bytes((number,))
        span.parent_span_id = bytes(7) + bytes((parent,)) if parent else b""
        span.start_time_unix_nano, span.end_time_unix_nano = 1_700_000_000 * 10**9, 1_700_000_001 * 10**9
        _add(span.attributes, ATTRIBUTES if number == 1 else {"http.request.method": "GET"})
        event = span.events.add(name="exception", time_unix_nano=1_700_000_000 * 10**9 + 5)
        _add(event.attributes, {"exception.type": "E", "exception.message": "m", "exception.stacktrace": "Traceback"})
        _add(span.links.add(trace_id=bytes(15) + b"\5", span_id=bytes(7) + b"\5").attributes, {"a": "b"})
        span.status.code, span.status.message = Status.STATUS_CODE_ERROR, "failed"
    return made


def _add(pairs: Any, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        pairs.append(KeyValue(key=key, value=_any(value)))


def _any(value: Any) -> AnyValue:
    made = AnyValue()
    if isinstance(value, bool):
        made.bool_value = value
    elif isinstance(value, int):
        made.int_value = value
    elif isinstance(value, float):
        made.double_value = value
    elif isinstance(value, str):
        made.string_value = value
    elif isinstance(value, list):
        made.array_value.values.extend(map(_any, value))
    elif isinstance(value, dict):
        _add(made.kvlist_value.values, value)
    return made


def _protobuf() -> Iterator[bytes]:
    yield request().SerializeToString()
    yield request().SerializeToString().replace(b"failed", b"\xffailed")  # no UTF-8
    yield b""


def _json() -> Iterator[bytes]:
    yield json.dumps(_as_json()).encode()
    yield b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"07","kind":"SPAN_KIND_SERVER"}]}]}]}'


def _as_json() -> Any:
    """The request in OTLP's JSON, written by hand: there is nothing of ours that the fuzzer would test itself with."""
    value = {"stringValue": "x"}
    nested = {
        "arrayValue": {"values": [value, {"kvlistValue": {"values": [{"key": "a", "value": {"intValue": "1"}}]}}]}
    }
    attributes = [{"key": name, "value": value} for name in ATTRIBUTES] + [
        {"key": "nested", "value": nested},
        {"key": "bytes", "value": {"bytesValue": "AAE="}},
        {"key": "nan", "value": {"doubleValue": "NaN"}},
        {"key": "yes", "value": {"boolValue": True}},
    ]
    times = {"startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": 1700000001000000000}
    span = {"traceId": "0" * 31 + "7", "spanId": "0" * 15 + "1", "name": "GET /", "kind": 2, **times}
    event = {"name": "exception", "timeUnixNano": "1700000000500000000", "attributes": attributes[:1]}
    more = {"attributes": attributes, "events": [event], "links": [{"traceId": "07", "spanId": "01"}]}
    child = {**span, "spanId": "0" * 15 + "2", "parentSpanId": "0" * 15 + "1"}
    spans = [{**span, **more, "status": {"code": "STATUS_CODE_ERROR", "message": "m"}}, child]
    scope = {"scope": {"name": "n", "version": "1"}, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": attributes[:2]}, "scopeSpans": [scope]}]}


def _files() -> Iterator[bytes]:
    line = json.dumps(_as_json()).encode()
    yield line + b"\n" + line[:70] + b'\n{"resourceLogs":[]}\n\n' + line
    yield gzip.compress(line + b"\n", mtime=0)
    yield b"\xef\xbb\xbf" + line


def _bodies() -> Iterator[bytes]:
    body = next(_protobuf())
    yield joined(b"application/x-protobuf", b"gzip", gzip.compress(body, mtime=0))
    yield joined(b"application/json; charset=utf-8", b"", next(_json()))
    yield joined(b"application/protobuf", b"deflate", body)


def _searches() -> Iterator[bytes]:
    cursor = encode_cursor(Position(1_700_000_000_000_001_000, REFERENCE)).encode()
    yield joined(cursor, b"3d", b"2026-01-31", b"1.5s", b"commodity/calculate", b"0" * 32)
    yield joined(cursor + b"==", b"2026-01-31T12:00:00.5+02:00", b"90s", b"100", b"/", b"")


def _texts(*texts: str) -> Callable[[], Iterator[bytes]]:
    return lambda: (text.encode() for text in texts)


_SEEDS: Mapping[str, Callable[[], Iterator[bytes]]] = {
    "parts": _parts,
    "record": _records,
    "folder": _folders,
    "search": _searches,
    "names": _texts("commodity/calculate/one", "../../etc/passwd", "/a//b/", "data_1.json", "7/a/b/x", "ünï/😀" * 80),
    "otlp_protobuf": _protobuf,
    "otlp_json": _json,
    "otlp_body": _bodies,
    "otlp_file": _files,
    "spool": _spooled,
    "journal": _journaled,
    "urls": _texts(
        "s3://a,b/prefix?endpoint=http://127.0.0.1:9000&region=eu&path_style=true&bulk_delete=false",
        "az://container/prefix?account=x",
        "file:///var/traces",
        "sqlite:////tmp/index.sqlite",
        "postgresql://user:secret@host:5432/db?table=t&buckets=a,b&sslmode=require",
        "mongodb://user:secret@host/db?collection=c",
        "memory:x",
        "./traces",
        "https://user:pass@host:4318/v1/traces",
        "[::1]:4317",
    ),
    "redaction": _texts(
        '{"password": "hunter2", "a": [1, "Bearer abcdefghijklmnop"]}',
        "Authorization: Basic dXNlcjpwYXNzd29yZA==\r\nCookie: a=b; session=0123456789abcdef",
        "postgres://user:secret@host/db?password=x&token=abc 4111 1111 1111 1111",
        "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----",
        "run --api-key=abcdef --password 'a b' <token>abc</token> {'secret_key': b'x', \"auth\": ('u', 'p')}",
    ),
    "patterns": lambda: iter(
        [
            b"\0" + joined(b"or(d|t)er [0-9]+", b"an order 12"),
            b"\1" + joined("straße|KELVIN".encode(), b"STRASSE kelvin"),
            b"\2" + joined(b'"a\\/b"', b'{"a/b": 1}'),
            b"\3" + joined("Übung".encode(), "übung\nÜBUNG".encode()),
        ]
    ),
    "values": _texts("{'a': [1, 2.5, None], 'b': Point(x=1, y='z')}", '{"a": {"b": [true, false]}}', "[" * 50, "('a',"),
}
