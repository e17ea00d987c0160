"""Starts the example service, sends it one request, and shows the one distributed trace that comes of it.

    python run.py

A web server and a worker are two processes, each under `opentelemetry-instrument`. Their spans are sent by OTLP to a
small sink in here, in the place of a collector, and their records go into the archive; README.md tells more.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trifle_otel import Archive, TraceRecord

HERE = Path(__file__).parent
ARCHIVE = os.environ.get("TRIFLE_ARCHIVE", "./traces")
PATIENCE = 120.0  # seconds; two processes start, perhaps on a busy machine


class Span(NamedTuple):
    """What is shown of a span."""

    id: str
    parent: str
    trace: str
    service: str
    name: str
    reference: str
    start: int


class Sink(ThreadingHTTPServer):
    """Takes spans by OTLP over HTTP, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taker)
        self.spans: list[Span] = []


class Taker(BaseHTTPRequestHandler):
    """One request to the sink."""

    server: Any  # the Sink

    def do_POST(self) -> None:
        """Keep what is sent."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.spans += spans_in(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server asks for
        """Requests to the sink are nothing to show."""


def spans_in(request: ExportTraceServiceRequest) -> Iterator[Span]:
    """The spans of an export."""
    for resource in request.resource_spans:
        service = {pair.key: pair.value.string_value for pair in resource.resource.attributes}["service.name"]
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            reference = {pair.key: pair.value.string_value for pair in span.attributes}.get("trifle.reference", "")
            ids = (span.span_id.hex(), span.parent_span_id.hex(), span.trace_id.hex())
            yield Span(*ids, service, span.name, reference, span.start_time_unix_nano)


@contextmanager
def running(command: Sequence[str], log: Path, environment: Mapping[str, str], *inherit: int) -> Iterator[None]:
    """A process of the service, until the block ends; what it printed into its log is shown where the block fails."""
    beside = Path(sys.executable).with_name  # not on the path where the environment is not activated
    with log.open("wb") as printed:
        process = subprocess.Popen(
            [beside("opentelemetry-instrument"), beside(command[0]), *command[1:]],
            cwd=HERE,
            env={**os.environ, **environment, "OTEL_SERVICE_NAME": log.stem},
            stderr=printed,
            stdout=printed,
            pass_fds=inherit,
        )
    try:
        yield
    except BaseException:
        ended = process.poll()
        print(f"{log.stem} {'runs' if ended is None else f'ended with {ended}'}, and printed:", file=sys.stderr)
        print(log.read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(PATIENCE)


def wait_for(what: str, there: Callable[[], Any]) -> Any:
    """What a callable gives, once it gives something."""
    deadline = time.monotonic() + PATIENCE
    while not (found := there()):
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come within {PATIENCE:.0f} seconds")
        time.sleep(0.1)
    return found


def order(port: int) -> list[TraceRecord]:
    """Send one request; gives the records of its trace and of its job's, once both are in the archive."""
    with urlopen(Request(f"http://127.0.0.1:{port}/orders/9?currency=HUF", method="POST"), timeout=PATIENCE) as answer:
        job = json.load(answer)["job"]
    with Archive.open(ARCHIVE) as archive:
        (work,) = wait_for("the job's trace", lambda: archive.search(any_tags=[job], limit=1).records)

        def both() -> list[TraceRecord]:
            found = archive.search(trace_id=work.trace_id).records[::-1]
            return found if len(found) == 2 and all(record.finished for record in found) else []

        return list(wait_for("the request's trace", both))


def show(spans: list[Span], parent: str = "", depth: int = 0) -> None:
    """A trace as a tree: service, name, and the archive's reference where there is one."""
    ids = {span.id for span in spans}
    children = [span for span in spans if span.parent == parent or (not depth and span.parent not in ids)]
    for span in sorted(children, key=lambda span: span.start):
        print(f"{span.service:7} {'  ' * depth}{span.name}  {span.reference}".rstrip())
        show(spans, span.id, depth + 1)


def main() -> None:
    """Start all, ask, and show."""
    sink = Sink()
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    # Listening starts here, so that the port is the web server's from the first moment on.
    listener = socket.create_server(("127.0.0.1", 0))
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "TRIFLE_ARCHIVE": str(Path(ARCHIVE).resolve()) if "://" not in ARCHIVE else ARCHIVE,
            "BROKER_FOLDER": folder,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds: somebody is waiting here
        }
        celery = ("celery", "-A", "tasks", "worker", "--pool", "solo")
        worker = running(celery, Path(folder, "worker.log"), environment)
        fd = listener.fileno()
        uvicorn = ("uvicorn", "web:app", "--fd", str(fd))
        web = running(uvicorn, Path(folder, "web.log"), environment, fd)
        with worker, web:
            port = listener.getsockname()[1]
            listener.close()  # a web server that cannot start refuses the request, instead of leaving it waiting
            records = order(port)
    print("In the archive:")
    for record in records:
        print(" ", record.reference, record.state, record.key, record.meta)
    print("\nOne distributed trace, of both processes:")
    show([span for span in sink.spans if span.trace == records[0].trace_id])


if __name__ == "__main__":
    main()
