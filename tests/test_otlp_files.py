"""Files of OTLP JSON lines: what the collector and the SDK write is read, line by line, whatever else is in them."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifle_otel.errors import UsageError
from trifle_otel.otlp import files as otlp_files
from trifle_otel.otlp.files import OtlpFile
from trifle_otel.span_data import SpanData, SpanEvent

# As the collector's file exporter writes it: an empty parent, numbers as texts, fields that are zero left out.
COLLECTOR = (
    b'{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"checkout"}}]},'
    b'"scopeSpans":[{"scope":{"name":"net/http","version":"0.62.0"},"spans":[{"traceId":"5b8efff798038103d269b633813fc60c",'
    b'"spanId":"eee19b7ec3c1b174","parentSpanId":"","flags":257,"name":"GET /pay","kind":2,'
    b'"startTimeUnixNano":"1544712660000000001","endTimeUnixNano":"1544712661000000002","attributes":['
    b'{"key":"http.response.status_code","value":{"intValue":"500"}},'
    b'{"key":"tags","value":{"arrayValue":{"values":[{"stringValue":"a"},{"boolValue":true},{"doubleValue":0.5}]}}}],'
    b'"droppedAttributesCount":1,"events":[{"timeUnixNano":"1544712660300000000","name":"exception",'
    b'"attributes":[{"key":"exception.type","value":{"stringValue":"Timeout"}}]}],'
    b'"status":{"message":"upstream","code":2}}]}],"schemaUrl":"https://opentelemetry.io/schemas/1.37.0"}]}\n'
)
EXPECTED = SpanData(
    trace_id="5b8efff798038103d269b633813fc60c",
    span_id="eee19b7ec3c1b174",
    parent_id=None,
    name="GET /pay",
    start_ns=1544712660000000001,
    end_ns=1544712661000000002,
    remote=False,
    kind="SERVER",
    attributes={"http.response.status_code": 500, "tags": ["a", True, 0.5]},
    events=[SpanEvent("exception", 1544712660300000000, {"exception.type": "Timeout"})],
    status="ERROR",
    description="upstream",
    scope="net/http",
    resource={"service.name": "checkout"},
    dropped_attributes=1,
)


def line(*names: str, trace: str = "1" * 32) -> bytes:
    """A line with spans of these names."""
    spans = [{"traceId": trace, "spanId": f"{at:016x}", "name": name} for at, name in enumerate(names, 1)]
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}).encode() + b"\n"


def no_damage(number: int, why: str) -> None:
    """What a file without damage calls."""
    pytest.fail(f"line {number}: {why}")


Read = Callable[..., tuple[list[str], list[tuple[int, str]]]]


@pytest.fixture
def read(own_folder: Path) -> Read:
    """Writes a file and reads it: the names of its spans, and what was damaged."""

    def read_file(data: bytes) -> tuple[list[str], list[tuple[int, str]]]:
        path = own_folder / "spans.jsonl"
        path.write_bytes(data)
        damaged: list[tuple[int, str]] = []
        with OtlpFile(str(path), lambda number, why: damaged.append((number, why))) as file:
            names = [span.name for spans in file for span in spans]
            assert file.damaged_lines <= len(damaged)
            assert file.position <= len(data)
        return names, damaged

    return read_file


def test_a_line_of_the_collector_is_read(own_folder: Path) -> None:
    """All that the file exporter writes of a span comes back."""
    Path("traces.json").write_bytes(COLLECTOR * 2)
    with OtlpFile("traces.json", no_damage) as file:
        assert list(file) == [[EXPECTED], [EXPECTED]]
        assert file.position == 2 * len(COLLECTOR)
    assert (file.damaged_lines, file.refused_spans) == (0, 0)


def test_a_file_of_the_sdk_is_read(own_folder: Path) -> None:
    """What the exporter `otlp_json_file` of the SDK has written is read as the spans that it was given."""
    module = pytest.importorskip("opentelemetry.exporter.otlp.json.file.trace_exporter")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(module.FileSpanExporter("sdk.jsonl")))
    tracer = provider.get_tracer("a library")
    with (
        tracer.start_as_current_span("outer", attributes={"number": 7, "list": [1.5, 2.5]}) as outer,
        tracer.start_as_current_span("inner é") as inner,
    ):
        inner.add_event("an event", {"k": b"\0\1"}, timestamp=1_700_000_000_000_000_000)
    provider.shutdown()

    with OtlpFile("sdk.jsonl", no_damage) as file:
        found = {span.name: span for spans in file for span in spans}
    context = outer.get_span_context()
    assert found["outer"].trace_id == found["inner é"].trace_id == f"{context.trace_id:032x}"
    assert found["inner é"].parent_id == found["outer"].span_id == f"{context.span_id:016x}"
    assert found["outer"].parent_id is None
    assert found["outer"].attributes == {"number": 7, "list": [1.5, 2.5]}
    assert found["inner é"].events == [SpanEvent("an event", 1_700_000_000_000_000_000, {"k": b"\0\1"})]
    assert found["outer"].scope == "a library"
    assert found["outer"].start_ns <= found["inner é"].start_ns <= found["inner é"].end_ns <= found["outer"].end_ns


def test_damaged_lines_are_named_and_left_out(read: Read) -> None:
    """Whatever a line holds, those around it are read, and it is named by its number and what is wrong."""
    bad = [
        b"{",
        b"null",
        b"[]",
        b"7",
        b'{"foo":1}',
        b'{"resourceSpans":7}',
        b"\xff\xfe",
        b'{"resourceSpans":[{}',
        b'""',
    ]
    data = line("first") + b"".join(each + b"\n" + line(f"after {at}") for at, each in enumerate(bad)) + b"\n \n"
    names, damaged = read(data)
    assert names == ["first", *(f"after {at}" for at in range(len(bad)))]
    assert [number for number, _ in damaged] == list(range(2, 2 + 2 * len(bad), 2))
    assert all(why for _, why in damaged)


def test_a_file_that_ends_in_a_line_is_read_to_there(read: Read) -> None:
    """A file that is still written, or was cut, gives its whole lines; the rest is named."""
    names, damaged = read(line("a") + line("b")[:-20])
    assert names == ["a"]
    assert [number for number, _ in damaged] == [2]
    assert read(line("a") + line("b").rstrip()) == (["a", "b"], [])
    assert read(b"") == ([], [])


def test_other_signals_are_left_out(read: Read) -> None:
    """Lines of logs and metrics are neither spans nor damage; empty requests too."""
    data = b'{"resourceLogs":[{"scopeLogs":[]}]}\n{"resourceMetrics":[]}\n{"resourceSpans":[]}\n' + line("a")
    assert read(data) == (["a"], [])


def test_spans_without_ids_are_refused(read: Read) -> None:
    """A span whose ids are missing, too short or zero is left out and counted; others of its line are kept."""
    spans = [
        {"traceId": trace, "spanId": own, "name": name}
        for trace, own, name in [
            ("1" * 32, "2" * 16, "good"),
            ("1" * 32, "", "no id"),
            ("1" * 30, "2" * 16, "short"),
            ("0" * 32, "2" * 16, "zero"),
        ]
    ]
    request = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    names, damaged = read(json.dumps(request).encode())
    assert names == ["good"]
    assert damaged == [(1, "3 spans have no valid ids")]


def test_a_line_without_end_does_not_fill_the_memory(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that is longer than allowed is passed over, piece by piece."""
    monkeypatch.setattr(otlp_files, "MAX_LINE", 500)
    monkeypatch.setattr(otlp_files, "_STEP", 100)
    names, damaged = read(line("a") + b"x" * 5_000 + b"\n" + line("b") + b"y" * 5_000)
    assert names == ["a", "b"]
    assert damaged == [(2, "it is longer than 500 bytes"), (4, "it is longer than 500 bytes")]


def test_gzip_is_unpacked(read: Read) -> None:
    """A file that was packed is read as it was; of one that is cut, what can be unpacked."""
    plain = b"".join(line(f"span {at}", trace=f"{at + 1:032x}") for at in range(2_000))
    packed = gzip.compress(plain)
    assert read(packed) == ([f"span {at}" for at in range(2_000)], [])
    names, damaged = read(packed[: len(packed) // 2])
    assert names == [f"span {at}" for at in range(len(names))]
    assert 100 < len(names) < 2_000
    assert damaged[0][0] == len(names) + 1
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 0xFF
    assert read(bytes(broken))[1]


def test_a_byte_order_mark_is_no_damage(read: Read) -> None:
    """Editors of Windows put one at the beginning, and end lines with two characters."""
    assert read(b"\xef\xbb\xbf" + line("a").replace(b"\n", b"\r\n") + line("b")) == (["a", "b"], [])


@pytest.mark.parametrize("start", [b"\x28\xb5\x2f\xfd", b"\0\0\1\7\x28\xb5\x2f\xfd"])
def test_zstd_is_named(own_folder: Path, start: bytes) -> None:
    """What the collector has compressed is said to be that, instead of being one long damaged line."""
    Path("packed").write_bytes(start + b"\1\2\3")
    with pytest.raises(UsageError, match="zstd"):
        OtlpFile("packed", no_damage)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_standard_input_is_a_file(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` is read, plain or packed, and left open."""
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(pack(line("a")))))
    monkeypatch.setattr(sys, "stdin", stream)
    with OtlpFile("-", no_damage) as file:
        assert [span.name for spans in file for span in spans] == ["a"]
        assert file.position == len(pack(line("a")))
    assert not stream.closed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_a_file(pack: Callable[[bytes], bytes], own_folder: Path) -> None:
    """What another program writes is read as it comes, plain or packed: `import <(zcat …)`."""
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_bytes, args=[pack(line("a") + line("b"))])
    writer.start()
    with OtlpFile("pipe", no_damage) as file:
        assert [span.name for spans in file for span in spans] == ["a", "b"]
        assert file.position > 0
    writer.join()


def test_a_file_that_is_not_there_raises() -> None:
    """Whoever names it is told by the system's own error."""
    with pytest.raises(FileNotFoundError):
        OtlpFile("nowhere.jsonl", no_damage)


JSON_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["resourceSpans", "scopeSpans", "spans", "traceId", "name", "x"]), inner)
    ),
    max_leaves=8,
)


@given(st.lists(JSON_VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), max_size=8))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_line_ends_the_reading(read: Read, lines: list[bytes]) -> None:
    """Whatever lines come before, a good one at the end is read."""
    names, _ = read(b"\n".join([*lines, line("last")]))
    assert names[-1:] == ["last"]
