"""What the tests of the receiver share: one that runs, clients that speak plainly to it, and requests to send."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord
from trifle_otel.receiver.intake import Intake
from trifle_otel.receiver.server import Receiver, ReceiverSettings, make_intake
from trifle_otel.runtime import runtime

PROTOBUF, JSON = "application/x-protobuf", "application/json"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND
FAST = ReceiverSettings(port=0, grpc_port=0, settle=0.05, read_timeout=5.0)


def span_of(trace: int, number: int, parent: int | None = None, **fields: Any) -> Span:
    """A span in protobuf; ids are made of small numbers, and the root has number 1."""
    values: dict[str, Any] = {
        "trace_id": trace.to_bytes(16, "big"),
        "span_id": number.to_bytes(8, "big"),
        "parent_span_id": b"" if parent is None else parent.to_bytes(8, "big"),
        "name": "job" if parent is None else f"step {number}",
        "kind": Span.SPAN_KIND_INTERNAL,
        "start_time_unix_nano": START + number * 1000,
        "end_time_unix_nano": START + SECOND - number * 1000,
    }
    return Span(**{**values, **fields})


def trace_of(trace: int, spans: int = 3) -> list[Span]:
    """A root and its children, the root last, as they end."""
    return [*(span_of(trace, number, 1) for number in range(2, spans + 1)), span_of(trace, 1)]


def request_of(spans: Sequence[Span], service: str = "shop") -> ExportTraceServiceRequest:
    """A request with these spans of one process."""
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.add(key="service.name").value.string_value = service
    of_resource.scope_spans.add().spans.extend(spans)
    return request


def body_of(spans: Sequence[Span]) -> bytes:
    """The same, in protobuf."""
    return request_of(spans).SerializeToString()


def json_of(trace: int, name: str = "job") -> bytes:
    """A request with one root, in JSON."""
    span = {"traceId": f"{trace:032x}", "spanId": f"{1:016x}", "name": name, "kind": 1}
    span |= {"startTimeUnixNano": str(START), "endTimeUnixNano": str(START + SECOND)}
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()


class Answer:
    """What a server said over HTTP."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def rejected(self) -> int:
        """Spans that were not taken, by an answer in protobuf."""
        return int(ExportTraceServiceResponse.FromString(self.body).partial_success.rejected_spans)


def post(port: int, body: Any, kind: str = PROTOBUF, path: str = "/v1/traces", **headers: str) -> Answer:
    """Send a request over HTTP. Names of headers have underscores here."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", path, body, {"content-type": kind, **named})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def get(port: int, path: str) -> Answer:
    """Ask for a path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def call(port: int, body: bytes, compression: Any = None, **metadata: str) -> ExportTraceServiceResponse:
    """Send a request over gRPC. Raises `grpc.RpcError`."""
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        export: Any = channel.unary_unary(EXPORT, response_deserializer=ExportTraceServiceResponse.FromString)
        answer = export(body, timeout=20, metadata=tuple(metadata.items()), compression=compression)
    assert isinstance(answer, ExportTraceServiceResponse)
    return answer


def gzipped(body: bytes) -> bytes:
    """A body as clients compress it."""
    return gzip.compress(body, 1)


class Loop:
    """An event loop in a thread, until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="receiver-loop")
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def close(self) -> None:
        """Stop it."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@contextmanager
def running(
    settings: ReceiverSettings = FAST, intake: Intake | None = None, archive: str = "./traces", **changes: Any
) -> Iterator[Receiver]:
    """A receiver in this process. What it was sent and is complete is archived when this is left."""
    settings = replace(settings, **changes)
    if intake is None:
        trifle.configure(archive)
    loop = Loop()
    try:
        receiver = Receiver(settings, intake or make_intake(settings, runtime()))
        loop.run(receiver.start())
        try:
            yield receiver
        finally:
            loop.run(receiver.stop())
            trifle.flush(10)
    finally:
        loop.close()


class Process:
    """`trifle-otel receive` as people run it, into `./traces`."""

    def __init__(self, *options: str, **environment: str) -> None:
        command = [sys.executable, "-m", "trifle_otel", "receive", "--port", "0", "--grpc-port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r":(\d+)/v1/traces and \S+?:(\d+) \(gRPC\)", self.line)
        if found is None:
            self.process.kill()
            raise AssertionError(self.line + self.process.communicate()[1])
        self.http_port, self.grpc_port = int(found[1]), int(found[2])

    @property
    def peak(self) -> int:
        """The most memory that it has used, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024

    def end(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """End it: its exit code, and what it said on the error stream."""
        self.process.send_signal(how)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err


@contextmanager
def process(*options: str, **environment: str) -> Iterator[Process]:
    """A receiver in a process of its own, gone when this is left."""
    started = Process(*options, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.end(signal.SIGKILL)


def records_in(folder: str = "./traces") -> list[TraceRecord]:
    """All records of an archive."""
    with Archive.open(folder) as archive:
        return list(archive.search(limit=1000).records)


def archived(folder: str = "./traces") -> dict[str, TraceRecord]:
    """All records of an archive, by trace id, where each has one."""
    records = records_in(folder)
    found = {record.trace_id or "": record for record in records}
    assert len(found) == len(records), "a trace id was archived twice"
    return found


def messages(record: TraceRecord, folder: str = "./traces") -> list[str]:
    """Its lines."""
    with Archive.open(folder) as archive:
        return [entry.message for entry in archive.entries(record)]


def left_over(folder: str = "./traces") -> list[Path]:
    """Requests that are still in the journal."""
    return sorted(Path(folder).glob(".spool-received/*/*.pb"))
