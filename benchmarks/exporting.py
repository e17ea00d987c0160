"""What the exporter archives in a second, against the SDK's OTLP/HTTP exporter and its exporter of OTLP JSON files.

All three are given the same finished spans in batches of 512, as the batch processor gives them: requests of one span
and some statements below. OTLP/HTTP goes to a server in another process that reads and answers. Ours does more: it puts
executions together, screens them, and makes each durable in files of its own and in an index.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.harness import Row

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

BATCH = 512
SPANS = 20_000
ROUNDS = 3
SIZES = (10, 100)
"""Spans of one trace."""

_SERVER = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


def rows(folder: Path) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            for size in SIZES:
                yield from _compared(folder, size, f"http://127.0.0.1:{port}/v1/traces")
        finally:
            server.kill()


def _compared(folder: Path, size: int, endpoint: str) -> Iterator[Row]:
    from opentelemetry.exporter.otlp.json.file import FileSpanExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    import trifle_otel as trifle

    spans = _spans(size)
    found: dict[str, list[float]] = {"ours": [], "http": [], "file": []}
    for number in range(ROUNDS):
        ours = trifle.TrifleSpanExporter(folder / f"{size}-{number}")
        found["ours"].append(_rate(ours, spans, ours.force_flush))
        ours.shutdown()
        found["http"].append(_rate(OTLPSpanExporter(endpoint=endpoint), spans, lambda: True))
        found["file"].append(_rate(FileSpanExporter(str(folder / f"{size}-{number}.jsonl")), spans, lambda: True))
    for name, peer in (("http", "the OTLP/HTTP exporter"), ("file", "the OTLP JSON file exporter")):
        ratio = statistics.median(theirs / ours for ours, theirs in zip(found["ours"], found[name], strict=True))
        first, second = statistics.median(found["ours"]), statistics.median(found[name])
        yield Row(f"exporter, traces of {size} spans", first, "spans/s", peer, second, ratio)


def _rate(exporter: SpanExporter, spans: list[ReadableSpan], finish: Callable[[], object]) -> float:
    start = perf_counter()
    for at in range(0, len(spans), BATCH):
        exporter.export(spans[at : at + BATCH])
    finish()
    return len(spans) / (perf_counter() - start)


def _spans(size: int) -> list[ReadableSpan]:
    """Finished spans, in the order of their ends."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("shop")
    request: dict[str, str | int] = {
        "http.request.method": "GET",
        "http.route": "/orders/{id}",
        "http.response.status_code": 200,
    }
    statement = {"db.system.name": "postgresql", "db.query.text": "SELECT * FROM orders WHERE id = %s"}
    for _ in range(SPANS // size):
        with tracer.start_as_current_span("GET /orders/{id}", attributes=request):
            for _ in range(size - 1):
                with tracer.start_as_current_span("SELECT", attributes=statement):
                    pass
    return list(kept.get_finished_spans())
