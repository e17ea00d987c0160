"""OTLP servers that the tests of sending talk to: real ones, of this process, that keep what arrives."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SERVER_LIMITS = {"http/protobuf": 20 * 1024 * 1024, "grpc": 4 * 1024 * 1024}


class Reply(NamedTuple):
    """An answer over HTTP, other than that all was taken."""

    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


class OtlpServer:
    """What both kinds have: the requests that were taken, and answers to be given first.

    Attributes:
        protocol: as OpenTelemetry's variables name it.
        endpoint: URL.
        requests: those that were taken.
        sizes: their bytes, and those of what was refused.
        headers: of each request, refused ones too.
        replies: what to answer before requests are taken.
        hold: a request waits for it before it is answered.
    """

    protocol = ""

    def __init__(self) -> None:
        self.endpoint = ""
        self.requests: list[ExportTraceServiceRequest] = []
        self.sizes: list[int] = []
        self.headers: list[dict[str, str]] = []
        self.replies: list[Any] = []
        self.hold = threading.Event()
        self.hold.set()

    @property
    def spans(self) -> list[Span]:
        """All spans in the order in which they came."""
        return [
            span
            for request in self.requests
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]


class HttpServer(OtlpServer):
    """OTLP over HTTP, in protobuf."""

    protocol = "http/protobuf"

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.paths: list[str] = []
        self.connections: list[socket.socket] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                server.connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                reply = server.take(self.path, dict(self.headers.items()), body)
                try:
                    self.send_response(reply.status)
                    for name, value in {"content-type": "application/x-protobuf", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(reply.body)))
                    self.end_headers()
                    self.wfile.write(reply.body)
                except OSError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port: int = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """Answer one request."""
        self.paths.append(path)
        self.headers.append({name.lower(): value for name, value in headers.items()})
        reply = self.replies.pop(0) if self.replies else Reply()
        self.hold.wait(20)
        if headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.sizes.append(len(body))
        if len(body) > SERVER_LIMITS[self.protocol]:
            return Reply(413)
        if isinstance(reply, Reply) and reply.status == 200:
            self.requests.append(ExportTraceServiceRequest.FromString(body))
        assert isinstance(reply, Reply)
        return reply

    def close(self) -> None:
        """Stop it."""
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)
        for connection in self.connections:  # those that are kept open for more
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


Refusal = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]
"""A status of gRPC's, what it says, and metadata after it."""


class GrpcServer(OtlpServer):
    """OTLP over gRPC, with the limits that gRPC has where nothing else is set."""

    protocol = "grpc"

    def __init__(self) -> None:
        super().__init__()
        server = self

        class Servicer(TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> ExportTraceServiceResponse:  # noqa: N802 - gRPC's name
                return server.take(request, context)

        self.pool = ThreadPoolExecutor(2)
        self.server = grpc.server(self.pool)
        add: Callable[[Any, Any], None] = add_TraceServiceServicer_to_server
        add(Servicer(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.endpoint = f"grpc://127.0.0.1:{self.port}"
        self.server.start()

    def take(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        """Answer one request."""
        self.headers.append({name: value for name, value in context.invocation_metadata() if isinstance(value, str)})
        self.sizes.append(request.ByteSize())
        reply = self.replies.pop(0) if self.replies else None
        self.hold.wait(20)
        if isinstance(reply, tuple):
            code, details, trailing = reply
            context.set_trailing_metadata(trailing)
            context.abort(code, details)
        self.requests.append(request)
        return reply if isinstance(reply, ExportTraceServiceResponse) else ExportTraceServiceResponse()

    def close(self) -> None:
        """Stop it."""
        self.hold.set()
        self.server.stop(None).wait(10)
        self.pool.shutdown()


def running(kind: Callable[[], Any]) -> Iterator[Any]:
    """A server while a test uses it: the body of a fixture."""
    server = kind()
    yield server
    server.close()


def value_of(value: AnyValue) -> Any:
    """A value as Python has it."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: value_of(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)


def attributes_of(message: Any) -> dict[str, Any]:
    """Attributes of a span, an event, a resource."""
    return {pair.key: value_of(pair.value) for pair in message.attributes}
