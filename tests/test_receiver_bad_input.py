"""What clients get wrong, by accident or on purpose: refused or repaired by OTLP's rules, never a crash."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("h11", reason="needs the extra `receiver`")
pytest.importorskip("cyclopts", reason="needs the extra `cli`")

import grpc
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiving import (
    EXPORT,
    JSON,
    PROTOBUF,
    SECOND,
    START,
    Answer,
    archived,
    body_of,
    call,
    gzipped,
    json_of,
    left_over,
    messages,
    post,
    process,
    records_in,
    request_of,
    running,
    span_of,
    trace_of,
)

from trifle_otel.runtime import runtime

MIB = 1 << 20


def still_works(receiver: Any) -> None:
    """It takes a good request all the same."""
    assert post(receiver.http_port, body_of(trace_of(99))).status == 200


def refused(answer: Answer, status: int, said: str) -> None:
    """It is OTLP's status message in the encoding of the request, and is not to be sent again."""
    assert answer.status == status
    assert "retry-after" not in answer.headers
    if answer.headers["content-type"] == JSON:
        message = json.loads(answer.body)["message"]
    else:
        message = Status.FromString(answer.body).message
    assert said in message


# --- Bodies


def test_malformed_protobuf_is_bad_data() -> None:
    """400 with a `BadRequest` that says what is wrong; INVALID_ARGUMENT over gRPC."""
    with running() as receiver:
        for body in (b"\xff", b"\x0a\x05abc", b"{}", b"\x1f\x8b\x08"):
            answer = post(receiver.http_port, body)
            refused(answer, 400, "protobuf")
            detail = BadRequest()
            assert Status.FromString(answer.body).details[0].Unpack(detail)
            assert detail.field_violations[0].description
            with pytest.raises(grpc.RpcError) as caught:
                call(receiver.grpc_port, body)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        still_works(receiver)


def test_malformed_json_is_bad_data() -> None:
    """400, in JSON."""
    with running() as receiver:
        for body in (b"", b"{", b"[]", b'{"resourceSpans": 1}', b"\xff", b'{"a":' * 5000):
            answer = post(receiver.http_port, body, JSON)
            refused(answer, 400, "")
            assert json.loads(answer.body)["code"] == 3
        still_works(receiver)


def test_other_content_types_are_not_taken() -> None:
    """415, which names what is taken."""
    with running() as receiver:
        for kind in ("", "text/plain", "application/xml", "application/json; charset=latin-1"):
            refused(post(receiver.http_port, json_of(1), kind), 415, PROTOBUF)


def test_other_compressions_are_not_taken() -> None:
    """415, which names what is taken."""
    with running() as receiver:
        refused(post(receiver.http_port, json_of(1), JSON, content_encoding="br"), 415, "gzip")
        assert post(receiver.http_port, json_of(1), JSON, content_encoding="identity").status == 200


def test_damaged_compression_is_bad_data() -> None:
    """What is cut, goes on behind its end, or is not compressed at all."""
    good = gzip.compress(b"{}")
    with running() as receiver:
        for body in (b"plain", good[:-3], good + b"more", b"", zlib.compress(b"{}", 6)[2:]):
            refused(post(receiver.http_port, body, JSON, content_encoding="gzip"), 400, "compressed")


def test_large_bodies_are_refused_before_they_are_read() -> None:
    """413 by the length that is announced, or once there is more than that: in chunks, compressed, over gRPC."""
    with running(max_body=1 << 16) as receiver:
        large = bytes(1 << 17)
        refused(post(receiver.http_port, large), 413, "65,536")
        refused(post(receiver.http_port, iter([large])), 413, "65,536")
        refused(post(receiver.http_port, gzipped(large), content_encoding="gzip"), 413, "65,536")
        refused(post(receiver.http_port, zlib.compress(large), content_encoding="deflate"), 413, "65,536")
        for compression in (None, grpc.Compression.Gzip, grpc.Compression.Deflate):
            with pytest.raises(grpc.RpcError) as caught:
                call(receiver.grpc_port, large, compression)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "retryinfo" not in str(caught.value.trailing_metadata())
        still_works(receiver)
    assert len(archived()) == 1


def test_a_body_of_exactly_the_limit_is_taken() -> None:
    """Plain and compressed."""
    body = body_of(trace_of(1, 40))
    with running(max_body=len(body)) as receiver:
        assert post(receiver.http_port, body).status == 200
        assert post(receiver.http_port, gzipped(body), content_encoding="gzip").status == 200
        call(receiver.grpc_port, body)


def test_bodies_of_100_mb_and_bombs_take_no_memory() -> None:
    """Plain and compressed to a thousandth, over HTTP and gRPC, by the peak of a process that gets them all."""
    chunk = bytes(MIB)
    bomb = zlib.compress(bytes(100 * MIB), 1)
    assert len(bomb) < MIB
    with process() as receiver:
        before = receiver.peak
        for _ in range(2):
            refused(post_unread(receiver.http_port, 100 * MIB, chunk), 413, "20,971,520")
            refused(post(receiver.http_port, bomb, content_encoding="deflate"), 413, "20,971,520")
            with pytest.raises(grpc.RpcError):
                call(receiver.grpc_port, bomb, None)  # as it is: the receiver is told nothing of compression
            with pytest.raises(grpc.RpcError):
                call(receiver.grpc_port, chunk * 100)
        assert receiver.peak - before < 120
        assert receiver.end()[0] == 0


def post_unread(port: int, length: int, chunk: bytes) -> Answer:
    """Announce a body, and send it until the answer comes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("POST", "/v1/traces")
    connection.putheader("content-type", PROTOBUF)
    connection.putheader("content-length", str(length))
    connection.endheaders()
    try:
        for _ in range(length // len(chunk)):
            connection.send(chunk)
    except OSError:  # it has answered, and reads no more
        pass
    answer = Answer(connection.getresponse())
    connection.close()
    return answer


def test_too_many_bodies_at_a_time_are_told_to_come_back() -> None:
    """What is being received is bounded over all connections, however slowly they send."""
    with running(max_body=1 << 16) as receiver:
        slow = []
        for _ in range(4):
            connection = socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10)
            connection.sendall(head_of(1 << 16) + bytes((1 << 16) - 1))
            slow.append(connection)
        answer = post(receiver.http_port, bytes(1000))
        while answer.status != 429:
            answer = post(receiver.http_port, bytes(1000))
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        for connection in slow:
            connection.close()
        while post(receiver.http_port, body_of(trace_of(1))).status != 200:
            pass


def head_of(length: int, kind: str = PROTOBUF) -> bytes:
    """A request's head."""
    lines = ["POST /v1/traces HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode()


# --- Clients that stall, and what is no HTTP


STALLS = {
    "before anything": b"",
    "in the first line": b"POST /v1/tra",
    "in the headers": b"POST /v1/traces HTTP/1.1\r\nHost: x\r\n",
    "before the body": head_of(100),
    "in the body": head_of(100) + b"half",
    "in a chunk": head_of(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"ff\r\nhalf",
}


def test_clients_that_stall_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is closed in time, with an answer where a request had begun, and others are served meanwhile."""
    monkeypatch.setattr("trifle_otel.receiver.over_http.IDLE", 0.2)
    with running(read_timeout=0.2) as receiver:
        stalled = {}
        for where, sent in STALLS.items():
            stalled[where] = socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10)
            stalled[where].sendall(sent)
        still_works(receiver)
        for where, connection in stalled.items():
            answer = b"".join(iter(lambda connection=connection: connection.recv(4096), b""))  # type: ignore[misc]
            connection.close()
            assert answer.startswith(b"HTTP/1.1 503 ") == bool(STALLS[where]), where
            assert (b"retry-after: 1\r\n" in answer.lower()) == bool(STALLS[where]), where
        still_works(receiver)


def test_a_client_that_sends_byte_by_byte_is_let_go() -> None:
    """It never waits long between two bytes, but a request has to come in time as a whole."""
    with running(read_timeout=0.1) as receiver:
        ended = threading.Event()
        with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10) as slow:
            slow.sendall(head_of(1 << 20))

            def read() -> None:
                slow.recv(4096)
                ended.set()

            reader = threading.Thread(target=read)
            reader.start()
            sent = 0
            while not ended.wait(0.02) and sent < 1000:
                try:
                    slow.sendall(b"x")
                except OSError:
                    break
                sent += 1
            reader.join(10)
        assert 10 < sent < 200
        still_works(receiver)


def test_calls_that_stall_are_let_go() -> None:
    """A client that calls over gRPC and sends nothing holds up nobody, and is told that it was too slow."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait(20)
        yield from ()

    with running(read_timeout=0.3) as receiver, grpc.insecure_channel(f"127.0.0.1:{receiver.grpc_port}") as channel:
        export: Any = channel.stream_unary(EXPORT)
        stalled: list[Any] = [export.future(nothing(), timeout=20) for _ in range(20)]
        call(receiver.grpc_port, body_of(trace_of(1)))
        for each in stalled:
            assert each.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        never.set()
    assert len(archived()) == 1


GARBAGE = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"POST /v1/traces\r\n\r\n",
    "a wrong length": head_of(5).replace(b": 5", b": five"),
    "two lengths": head_of(5).replace(b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 6"),
    "length and chunks": head_of(5).replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked") + b"zz\r\n",
    "a NUL in a header": head_of(5).replace(b"Host: x", b"Host: x\0"),
    "endless headers": b"POST /v1/traces HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    "an endless line": b"POST /" + b"a" * 100_000,
}


def test_what_is_no_http_is_refused() -> None:
    """With a status of 4xx, and the end of the connection."""
    with running() as receiver:
        for what, sent in GARBAGE.items():
            with socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10) as connection:
                connection.sendall(sent)
                assert connection.recv(4096).startswith(b"HTTP/1.1 4"), what
        still_works(receiver)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.lists(st.binary(max_size=60) | st.sampled_from([head_of(3), b"\r\n\r\n", b"abc", head_of(0)]), max_size=5)
)
def test_any_bytes_end_nothing(own_receiver: Any, data: list[bytes]) -> None:
    """Whatever is sent to it, it closes the connection in the end, and serves the next."""
    with socket.create_connection(("127.0.0.1", own_receiver.http_port), timeout=10) as connection:
        try:
            for each in data:
                connection.sendall(each)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
        except ConnectionError:
            pass
    assert post(own_receiver.http_port, b"").status == 200


@pytest.fixture
def own_receiver() -> Iterator[Any]:
    """A receiver for all examples of a property."""
    with running(read_timeout=2) as receiver:
        yield receiver


def test_clients_that_go_away_end_nothing() -> None:
    """In the middle of what they send, or before they read the answer, by a reset."""
    with running() as receiver:
        for sent in (b"", b"POST", head_of(1000), head_of(1000) + b"x" * 500, head_of(0), head_of(0) * 50):
            connection = socket.create_connection(("127.0.0.1", receiver.http_port), timeout=10)
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        still_works(receiver)
    assert len(archived()) == 1


# --- Spans


def test_spans_without_ids_are_refused_and_counted() -> None:
    """In a partial success that says how many and why; the others are archived."""
    odd = [
        span_of(1, 2, trace_id=b""),
        span_of(1, 3, span_id=b""),
        span_of(1, 4, trace_id=bytes(16)),
        span_of(1, 5, span_id=bytes(8)),
        span_of(1, 6, trace_id=b"short"),
        span_of(1, 7, span_id=b"much too long"),
    ]
    with running() as receiver:
        answer = post(receiver.http_port, body_of([*odd, *trace_of(1)]))
        assert (answer.status, answer.rejected) == (200, 6)
        assert b"trace id" in answer.body
        success = call(receiver.grpc_port, body_of([*odd, *trace_of(2)])).partial_success
        assert (success.rejected_spans, "span id" in success.error_message) == (6, True)
        assert runtime().troubles.counts["spans were refused: they have no valid ids"] == 12
        only_odd = post(receiver.http_port, body_of(odd))
        assert (only_odd.status, only_odd.rejected) == (200, 6)
    found = archived()
    assert set(found) == {f"{1:032x}", f"{2:032x}"}
    assert not any("step 4" in message for record in found.values() for message in messages(record))
    assert left_over() == []


def archive_of(*spans: Any, **changes: Any) -> dict[str, Any]:
    """What becomes of these spans, of a request with a good trace too, which must be archived."""
    with running(**changes) as receiver:
        assert post(receiver.http_port, body_of([*spans, *trace_of(98)])).status == 200
    with running(**changes):  # nothing of it is left, or stops the next receiver
        pass
    found = archived()
    assert found.pop(f"{98:032x}").finished
    return found


def test_parents_in_a_cycle_are_archived_or_refused() -> None:
    """Two spans that are each other's parents, and one that is its own, beside a good root of the same trace."""
    spans = [span_of(1, 2, 3), span_of(1, 3, 2), span_of(1, 4, 4), *trace_of(1, 1)]
    with running(wait=0.2) as receiver:
        assert post(receiver.http_port, body_of(spans)).status == 200
        assert eventually(lambda: not left_over())
    records = records_in()
    assert all(record.finished for record in records)
    text = " ".join(message for record in records for message in messages(record))
    for number in (2, 3, 4):
        assert f"step {number}" in text


def test_negative_durations_are_repaired() -> None:
    """A span that ends before it starts is archived, and lasts no less than nothing."""
    (record,) = archive_of(
        span_of(1, 2, 1, end_time_unix_nano=START - SECOND), span_of(1, 1, end_time_unix_nano=START - SECOND)
    ).values()
    assert record.duration >= 0
    assert record.finished


def test_far_times_are_archived() -> None:
    """From 1970, or from centuries ahead: found again, and nothing breaks."""
    last = 2**64 - 1
    spans = []
    for trace, (start, end) in enumerate(
        [(0, 0), (1, 2), (0, last), (last, last), (2**63, 2**63 + 5), (START, last)], 1
    ):
        spans.append(span_of(trace, 2, 1, start_time_unix_nano=end, end_time_unix_nano=start))
        spans.append(span_of(trace, 1, start_time_unix_nano=start, end_time_unix_nano=end))
    found = archive_of(*spans)
    assert len(found) == 6
    for record in found.values():
        assert any("step 2" in message for message in messages(record))
        assert record.duration >= 0


def test_very_many_events_are_archived() -> None:
    """A span of 30,000 events has as many lines."""
    root = span_of(1, 1)
    for number in range(30_000):
        root.events.add(name="e", time_unix_nano=START + number)
    (record,) = archive_of(root).values()
    assert record.length >= 30_000


@pytest.mark.slow
def test_a_million_events_are_archived() -> None:
    """As many as fit into a body, in requests of the usual limit."""
    root = span_of(1, 1)
    for number in range(1_000_000):
        root.events.add(time_unix_nano=START + number)
    with running(max_body=64 * MIB) as receiver:
        assert post(receiver.http_port, body_of([root])).status == 200
        assert eventually(lambda: not left_over(), 60)
    (record,) = archived().values()
    assert record.length >= 1_000_000


def test_texts_that_are_not_utf_8_are_repaired() -> None:
    """Over HTTP and gRPC; the rest of the request is archived as it is."""
    with running() as receiver:
        for trace, send in (
            (1, lambda body: post(receiver.http_port, body)),
            (2, lambda body: call(receiver.grpc_port, body)),
        ):
            body = body_of([span_of(trace, 2, 1, name="before"), span_of(trace, 1)]).replace(b"before", b"be\xff\xc3re")
            assert send(body)
    found = archived()
    assert len(found) == 2
    for record in found.values():
        assert any("be\ufffd\ufffdre" in message for message in messages(record))


def test_deep_and_odd_values_are_archived() -> None:
    """Values in values in values, NUL and newlines in texts, names that are empty, huge, or lead out of the archive."""
    deep = span_of(1, 2, 1, name="")
    value = deep.attributes.add(key="deep").value
    for _ in range(20):
        value = value.array_value.values.add()
    value.string_value = "bottom"
    deep.attributes.add(key="").value.string_value = "a\0b\nc"
    deep.attributes.add(key="nan").value.double_value = float("nan")
    deep.attributes.add(key="bytes").value.bytes_value = bytes(range(256))
    deep.events.add(name="")
    huge = span_of(1, 3, 1, name="x" * 100_000)
    (record,) = archive_of(deep, huge, span_of(1, 1, name="../../etc/passwd\0")).values()
    assert ".." not in record.key.split("/")


def test_enumerations_of_tomorrow_are_taken() -> None:
    """Numbers that are not known yet."""
    found = archive_of(span_of(1, 1, kind=-1, flags=0xFFFFFC00), span_of(2, 1, kind=77))
    assert all(record.finished for record in found.values())
    assert len(found) == 2


def test_the_same_ids_in_one_request_are_archived_once() -> None:
    """A span that comes several times, with other contents too."""
    (record,) = archive_of(*trace_of(1), *trace_of(1), span_of(1, 2, 1, name="another")).values()
    assert record.finished


spans = st.lists(
    st.builds(
        span_of,
        trace=st.integers(1, 2),
        number=st.integers(1, 5),
        parent=st.none() | st.integers(0, 6),
        name=st.sampled_from(["", "a", "GET /x"]),
        kind=st.integers(0, 6),
        start_time_unix_nano=st.sampled_from([0, START, 2**64 - 1]),
        end_time_unix_nano=st.sampled_from([0, START, 2**64 - 1]),
        flags=st.sampled_from([0, 0x100, 0x300]),
    ),
    max_size=8,
)


@settings(max_examples=15, deadline=None)
@given(requests=st.lists(spans, max_size=3))
def test_whatever_spans_come_the_journal_is_empty_in_the_end(requests: list[list[Any]]) -> None:
    """Each span is archived or refused, whatever it says of its parents and times; none is kept for ever."""
    import tempfile

    from trifle_otel import configuration

    with tempfile.TemporaryDirectory() as folder, running(archive=folder, settle=0.01, wait=0.05) as receiver:
        for request in requests:
            assert post(receiver.http_port, request_of(request).SerializeToString()).status == 200
        assert eventually(lambda: not list_of(folder))
        troubles = runtime().troubles.counts
        assert not [what for what in troubles if "could not be" in what or "failed" in what or "lost" in what]
    configuration.reset()


def list_of(folder: str) -> list[Any]:
    """Requests that are still in the journal."""
    return left_over(folder)


def eventually(holds: Callable[[], bool], seconds: int = 10) -> bool:
    """Whether it comes to hold in that time."""
    pause = threading.Event()
    return any(holds() or pause.wait(0.02) for _ in range(50 * seconds))
