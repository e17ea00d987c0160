"""Sending OTLP: where an endpoint's URL leads, and what is done about each answer, against servers of this machine."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from otlp_servers import GrpcServer, HttpServer, OtlpServer, Reply, running

from trifle_otel.errors import UsageError
from trifle_otel.otlp.endpoint import endpoint_of
from trifle_otel.otlp.sending import Answer, EndpointUnavailable, RequestRefused, Sender
from trifle_otel.otlp.writing import request_of
from trifle_otel.span_data import SpanData


@pytest.fixture
def http() -> Iterator[HttpServer]:
    """A server of OTLP over HTTP."""
    yield from running(HttpServer)


@pytest.fixture
def grpc_server() -> Iterator[GrpcServer]:
    """A server of OTLP over gRPC."""
    yield from running(GrpcServer)


@pytest.fixture(params=[HttpServer, GrpcServer])
def server(request: pytest.FixtureRequest) -> Iterator[OtlpServer]:
    """A server of either kind."""
    yield from running(request.param)


class FakeTime:
    """A clock that goes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def clock(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> FakeTime:
    """The time that senders of a test have."""
    return FakeTime()


def sender(endpoint: str, time: FakeTime, **changes: Any) -> Sender:
    """A sender whose time is made up."""
    variables = changes.pop("variables", None)
    return Sender(endpoint_of(endpoint, variables=variables), clock=time.clock, sleep=time.sleep, **changes)


REQUEST = request_of([SpanData("1" * 32, "2" * 16, None, "a span", 1, 2, resource={"service.name": "x"})])


def refusal(code: grpc.StatusCode, details: str = "", wait: float | None = None) -> Any:
    """An answer of gRPC, with how long to wait where that is given."""
    if wait is None:
        return code, details, ()
    info = RetryInfo()
    info.retry_delay.FromNanoseconds(int(wait * 1e9))
    detail = AnyMessage()
    detail.Pack(info)
    status = Status(code=code.value[0], message=details, details=[detail])
    return code, details, (("grpc-status-details-bin", status.SerializeToString()),)


# --- Endpoints

URLS = {
    "http://h:4318": ("http://h:4318/v1/traces", "http/protobuf", False),
    "http://h:4318/": ("http://h:4318/v1/traces", "http/protobuf", False),
    "http://h:4318/v1/traces": ("http://h:4318/v1/traces", "http/protobuf", False),
    "https://h/otlp": ("https://h/otlp/v1/traces", "http/protobuf", True),
    "https://h": ("https://h/v1/traces", "http/protobuf", True),
    "http://h:9999": ("http://h:9999/v1/traces", "http/protobuf", False),
    "http://h:4317": ("h:4317", "grpc", False),
    "https://h:4317": ("h:4317", "grpc", True),
    "h:4317": ("h:4317", "grpc", False),
    "h:4318": ("http://h:4318/v1/traces", "http/protobuf", False),
    "grpc://h": ("h:4317", "grpc", False),
    "grpcs://h": ("h:443", "grpc", True),
    "[::1]:4317": ("[::1]:4317", "grpc", False),
    "http://[::1]:4318": ("http://[::1]:4318/v1/traces", "http/protobuf", False),
    "http://h:4318/v1/traces?key=1": ("http://h:4318/v1/traces?key=1", "http/protobuf", False),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_tells_where_and_how(url: str) -> None:
    """Path, protocol and TLS follow from what is given: scheme, port, path."""
    found = endpoint_of(url)
    assert (found.url, found.protocol, found.secure) == URLS[url]


VARIABLES: list[tuple[dict[str, str], str, str]] = [
    ({}, "http://localhost:4318/v1/traces", "http/protobuf"),
    ({"ENDPOINT": "http://h:4318"}, "http://h:4318/v1/traces", "http/protobuf"),
    ({"TRACES_ENDPOINT": "http://h:4318"}, "http://h:4318/", "http/protobuf"),
    ({"TRACES_ENDPOINT": "http://h/in", "ENDPOINT": "http://g"}, "http://h/in", "http/protobuf"),
    ({"ENDPOINT": "http://h:4317"}, "h:4317", "grpc"),
    ({"ENDPOINT": "http://h:4317", "PROTOCOL": "http/protobuf"}, "http://h:4317/v1/traces", "http/protobuf"),
    ({"ENDPOINT": "http://h:55", "PROTOCOL": "grpc"}, "h:55", "grpc"),
    (
        {"ENDPOINT": "http://h:55", "PROTOCOL": "grpc", "TRACES_PROTOCOL": "http/json"},
        "http://h:55/v1/traces",
        "http/protobuf",
    ),
]


@pytest.mark.parametrize("variables, url, protocol", VARIABLES)
def test_opentelemetrys_variables_say_the_rest(variables: dict[str, str], url: str, protocol: str) -> None:
    """Without a URL the variables count, those for traces before those for all, by OpenTelemetry's rules."""
    found = endpoint_of(None, variables={**variables, "LOGS_ENDPOINT": "http://other"})
    assert (found.url, found.protocol) == (url, protocol)


def test_a_protocol_that_is_given_counts_most() -> None:
    """`--protocol` stands above port and variables."""
    assert endpoint_of("http://h:4317", "http/protobuf").url == "http://h:4317/v1/traces"
    assert endpoint_of("http://h:4318", "grpc", {"PROTOCOL": "http/protobuf"}).url == "h:4318"


@pytest.mark.parametrize("url", ["", "http://", "ftp://h", "http://h:70000", "http://[", "http://h:0", "://"])
def test_what_is_no_endpoint_is_refused(url: str) -> None:
    """A URL that leads nowhere is wrong use, and said so; so is a protocol that is none."""
    if not url:
        with pytest.raises(UsageError, match="protocol"):
            endpoint_of(None, "http/json")
        return
    with pytest.raises(UsageError, match="endpoint"):
        endpoint_of(url)


def test_credentials_of_a_url_become_a_header() -> None:
    """User and password are sent and never shown, not even where the URL is wrong."""
    found = endpoint_of("https://user:se%40cret@h/otlp")
    assert base64.b64decode(found.headers["authorization"].removeprefix("Basic ")) == b"user:se@cret"
    assert "cret" not in repr(found)
    with pytest.raises(UsageError) as caught:
        endpoint_of("ftp://user:secret@h:bad")
    assert "secret" not in str(caught.value)


# --- Sending


def test_a_request_arrives(server: OtlpServer, time: FakeTime) -> None:
    """A request arrives as it was, with the headers that the variables name."""
    with sender(server.endpoint, time, variables={"HEADERS": "x-tenant=nine,Authorization=Bearer%20t"}) as sending:
        assert sending.send(REQUEST) == Answer()
    assert server.requests == [REQUEST]
    assert server.headers[0]["x-tenant"] == "nine"
    assert server.headers[0]["authorization"] == "Bearer t"


def test_requests_are_compressed_where_that_is_asked_for(server: OtlpServer, time: FakeTime) -> None:
    """`OTEL_EXPORTER_OTLP_COMPRESSION=gzip` counts for both protocols."""
    with sender(server.endpoint, time, variables={"TRACES_COMPRESSION": "gzip"}) as sending:
        sending.send(REQUEST)
    assert server.requests == [REQUEST]
    assert "gzip" in server.headers[0].get("content-encoding", server.headers[0].get("grpc-encoding", "gzip"))


def test_a_netrc_does_not_replace_the_header(
    http: HttpServer, time: FakeTime, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials that a file names for the host do not stand in for those that were given."""
    netrc = own_folder / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with sender(http.endpoint, time, variables={"HEADERS": "authorization=Bearer t"}) as sending:
        sending.send(REQUEST)
    assert http.headers[0]["authorization"] == "Bearer t"


def test_what_was_not_taken_is_told(server: OtlpServer, time: FakeTime) -> None:
    """A partial success says how many spans were refused, and why."""
    partial = ExportTraceServiceResponse()
    partial.partial_success.rejected_spans = 3
    partial.partial_success.error_message = "too old"
    server.replies = [partial if server.protocol == "grpc" else Reply(200, {}, partial.SerializeToString())]
    with sender(server.endpoint, time) as sending:
        assert sending.send(REQUEST) == Answer(3, "too old")


def test_an_answer_in_another_format_is_an_answer(http: HttpServer, time: FakeTime) -> None:
    """Servers that say 200 and then JSON, or nothing that can be read, have taken the request."""
    http.replies = [Reply(200, {"content-type": "application/json"}, b'{"partialSuccess":{}}'), Reply(204)]
    with sender(http.endpoint, time) as sending:
        assert sending.send(REQUEST) == Answer()
        assert sending.send(REQUEST) == Answer()


# --- Again


def test_http_waits_as_long_as_the_answer_says(http: HttpServer, time: FakeTime) -> None:
    """429 and 503 are tried again after the seconds, or at the date, of Retry-After."""
    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)
    http.replies = [Reply(429, {"retry-after": "7"}), Reply(503, {"retry-after": later})]
    with sender(http.endpoint, time) as sending:
        sending.send(REQUEST)
    assert time.sleeps[0] == 7
    assert 50 < time.sleeps[1] <= 60
    assert http.requests == [REQUEST]


def test_grpc_waits_as_long_as_the_answer_says(grpc_server: GrpcServer, time: FakeTime) -> None:
    """RESOURCE_EXHAUSTED and UNAVAILABLE are tried again after the time of RetryInfo."""
    grpc_server.replies = [
        refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", 7),
        refusal(grpc.StatusCode.UNAVAILABLE, "later", 1.5),
    ]
    with sender(grpc_server.endpoint, time) as sending:
        sending.send(REQUEST)
    assert time.sleeps == [7, 1.5]
    assert grpc_server.requests == [REQUEST]


AGAIN: dict[type[OtlpServer], list[Any]] = {
    HttpServer: [Reply(429), Reply(502), Reply(503, {"retry-after": "soon"}), Reply(504, {"retry-after": "0"})],
    GrpcServer: [
        refusal(code)
        for code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.DATA_LOSS,
        )
    ],
}


def test_pauses_grow_where_nobody_says_how_long(server: OtlpServer, time: FakeTime) -> None:
    """Each pause is about twice the one before; then the request is taken, once."""
    server.replies = list(AGAIN[type(server)])
    with sender(server.endpoint, time) as sending:
        sending.send(REQUEST)
    assert [round(pause / 2**number) for number, pause in enumerate(time.sleeps)] == [1, 1, 1, 1]
    assert server.requests == [REQUEST]


def test_patience_ends(server: OtlpServer, time: FakeTime) -> None:
    """A request that is not taken for the time that was allowed ends it, with what the server said."""
    server.replies = AGAIN[type(server)][:1] * 50
    with sender(server.endpoint, time, patience=100) as sending, pytest.raises(EndpointUnavailable, match="100 s"):
        sending.send(REQUEST)
    assert 60 < time.now <= 100


def test_a_wait_that_is_too_long_is_not_waited_for(http: HttpServer, time: FakeTime) -> None:
    """Where Retry-After is beyond the patience, it ends at once, and says so."""
    http.replies = [Reply(503, {"retry-after": "86400"}, b"maintenance")]
    with sender(http.endpoint, time) as sending, pytest.raises(EndpointUnavailable, match=r"86400 s.*maintenance"):
        sending.send(REQUEST)
    assert time.sleeps == []


def test_a_slow_endpoint_is_asked_again(server: OtlpServer, time: FakeTime) -> None:
    """An answer that does not come in time is no answer: the request is sent again, and then taken."""
    server.hold.clear()

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        server.hold.set()

    endpoint = endpoint_of(server.endpoint)
    with Sender(endpoint, answering=0.2, clock=time.clock, sleep=sleep) as sending:
        sending.send(REQUEST)
    assert len(time.sleeps) == 1
    assert server.requests[-1] == REQUEST


def test_a_connection_that_breaks_is_made_again(time: FakeTime) -> None:
    """An endpoint that was there and goes away is waited for: here it comes back."""
    first = HttpServer()
    port = first.port

    def come_back(seconds: float) -> None:
        time.sleep(seconds)
        servers.append(HttpServer(port))

    servers: list[HttpServer] = []
    with Sender(endpoint_of(first.endpoint), clock=time.clock, sleep=come_back) as sending:
        sending.send(REQUEST)
        first.close()
        sending.send(REQUEST)
    assert [len(first.requests), len(servers[0].requests)] == [1, 1]
    servers[0].close()


# --- Not again


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_nobody_there_is_said_at_once(scheme: str, time: FakeTime) -> None:
    """A refused connection ends it in one clear sentence, without waiting."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with sender(f"{scheme}://127.0.0.1:{port}", time) as sending, pytest.raises(EndpointUnavailable) as caught:
        sending.send(REQUEST)
    assert f"nobody answers at {scheme}://127.0.0.1:{port}" in str(caught.value)
    assert "Connection refused" in str(caught.value)
    assert time.sleeps == []


REFUSED: list[tuple[type[OtlpServer], Any, type[Exception], str]] = [
    (
        HttpServer,
        Reply(400, {}, Status(code=3, message="no such field").SerializeToString()),
        RequestRefused,
        "no such field",
    ),
    (HttpServer, Reply(500, {"content-type": "text/plain"}, b"it\nbroke"), RequestRefused, "it broke"),
    (HttpServer, Reply(401), EndpointUnavailable, "401"),
    (HttpServer, Reply(404, {"content-type": "text/html"}, b"<html>" * 1000), EndpointUnavailable, "404"),
    (HttpServer, Reply(302, {"location": "http://example.com"}), EndpointUnavailable, "302"),
    (GrpcServer, refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad span"), RequestRefused, "bad span"),
    (GrpcServer, refusal(grpc.StatusCode.INTERNAL, "it broke"), RequestRefused, "it broke"),
    (GrpcServer, refusal(grpc.StatusCode.UNAUTHENTICATED, "who?"), EndpointUnavailable, "who?"),
    (GrpcServer, refusal(grpc.StatusCode.UNIMPLEMENTED, "no traces"), EndpointUnavailable, "no traces"),
]


@pytest.mark.parametrize("kind, reply, error, words", REFUSED)
def test_a_refusal_is_told_and_not_tried_again(
    kind: type[OtlpServer], reply: Any, error: type[Exception], words: str, time: FakeTime
) -> None:
    """What OTLP calls final is sent once; whether it is about this request or about all, the error's class says."""
    for server in running(kind):
        server.replies = [reply]
        with sender(server.endpoint, time) as sending, pytest.raises(error, match=words.replace("?", r"\?")) as caught:
            sending.send(REQUEST)
        assert len(str(caught.value)) < 500
        assert len(server.headers) == 1
    assert time.sleeps == []


def test_a_request_that_is_too_large_is_known_as_one(server: OtlpServer, time: FakeTime) -> None:
    """413, and gRPC's RESOURCE_EXHAUSTED without a time to wait, say that parts of it may be taken."""
    size = 25 * 1024 * 1024 if server.protocol == "http/protobuf" else 5 * 1024 * 1024
    large = request_of([SpanData("1" * 32, "2" * 16, None, "a span", 1, 2, attributes={"x": "y" * size})])
    with sender(server.endpoint, time) as sending, pytest.raises(RequestRefused) as caught:
        sending.send(large)
    assert caught.value.too_large


def test_the_wrong_protocol_is_said(http: HttpServer, grpc_server: GrpcServer, time: FakeTime) -> None:
    """HTTP to a gRPC server, and the reverse, end in an error and not in a wait."""
    for url, protocol in ((f"127.0.0.1:{http.port}", "grpc"), (f"127.0.0.1:{grpc_server.port}", "http/protobuf")):
        sending = Sender(endpoint_of(url, protocol), clock=time.clock, sleep=time.sleep)
        with sending, pytest.raises(EndpointUnavailable):
            sending.send(REQUEST)
    assert time.sleeps == []


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "grpcs://127.0.0.1:1"])
def test_a_certificate_that_is_not_there_is_wrong_use(url: str, time: FakeTime) -> None:
    """A file that a variable names and that cannot be read is said."""
    with (
        pytest.raises(UsageError, match=r"no\.pem"),
        sender(url, time, variables={"CERTIFICATE": "/no.pem"}) as sending,
    ):
        sending.send(REQUEST)


@pytest.mark.parametrize("headers", ["x-a=b%0Ac", "x-a=secret%E9", "x-a=secret,%0A=c"])
def test_a_header_that_cannot_be_sent_is_wrong_use(headers: str) -> None:
    """A header with a line break or other than ASCII is refused by its name, and its value not shown."""
    with pytest.raises(UsageError, match="header") as caught:
        endpoint_of("http://h", variables={"HEADERS": headers})
    assert "secret" not in str(caught.value)


def test_requests_are_protobuf_to_the_path_of_traces(http: HttpServer, time: FakeTime) -> None:
    """Over HTTP a request is posted as protobuf to `/v1/traces`."""
    with sender(http.endpoint, time) as sending:
        sending.send(ExportTraceServiceRequest())
    assert http.paths == ["/v1/traces"]
    assert http.headers[0]["content-type"] == "application/x-protobuf"
