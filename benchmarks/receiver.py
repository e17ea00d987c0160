"""The receiver: spans a second and memory, with traces of 100,000 spans over HTTP, from the first byte to the archive.

`trifle-otel receive` runs in a process of its own, and so does what it is compared with: the same HTTP server that
writes each body to a file and does nothing else. Both get the same requests of 512 spans, the SDK's batches, over
one connection. A trace counts once its row is in the index. Memory is the most that the process has used, all in all.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter, sleep

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.harness import Row

ROOT = Path(__file__).resolve().parent.parent
SPANS, BATCH = 100_000, 512
PATIENCE = 180.0
SECOND = 1_000_000_000
START = 1_760_000_000 * SECOND


@dataclass(frozen=True, slots=True)
class Run:
    """Spans a second until all were answered, and until all were archived; the peak of memory in MB."""

    answered: float
    archived: float
    peak: float


def bodies(trace: int, spans: int) -> Iterator[bytes]:
    """A trace in requests, its root last. Each span has the attributes of an HTTP call, one in ten an event."""
    trace_id = trace.to_bytes(16, "big")
    numbers = [*range(2, spans + 1), 1]
    for first in range(0, spans, BATCH):
        request = ExportTraceServiceRequest()
        of_resource = request.resource_spans.add()
        of_resource.resource.attributes.add(key="service.name").value.string_value = "shop"
        of_scope = of_resource.scope_spans.add()
        of_scope.scope.name = "benchmark"
        of_scope.spans.extend(_span(trace_id, number) for number in numbers[first : first + BATCH])
        yield request.SerializeToString()


def _span(trace_id: bytes, number: int) -> Span:
    parent = 0 if number == 1 else 1 if number < 100 else number // 100
    span = Span(
        trace_id=trace_id,
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name="nightly import" if number == 1 else "GET",
        kind=Span.SPAN_KIND_INTERNAL if number == 1 else Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=START + number * 1000,
        end_time_unix_nano=START + 3600 * SECOND - number * 1000,
    )
    for key, value in (
        ("http.request.method", "GET"),
        ("url.full", f"https://example.com/products/{number}"),
        ("server.address", "example.com"),
        ("network.protocol.version", "1.1"),
    ):
        span.attributes.add(key=key).value.string_value = value
    span.attributes.add(key="http.response.status_code").value.int_value = 200
    if number % 10 == 0:
        span.events.add(name="retried", time_unix_nano=START + number * 1000 + 500)
    return span


def rows(folder: Path, rounds: int, traces: int = 3, spans: int = SPANS) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    sent = [list(bodies(trace, spans)) for trace in range(1, traces + 1)]
    runs = []
    for number in range(rounds):
        ours = _measured(folder / f"ours-{number}", "receive", sent, spans)
        bare = _measured(folder / f"bare-{number}", "bare", sent, spans)
        print(f"  {ours.answered:,.0f} spans/s, archived {ours.archived:,.0f}, {ours.peak:.0f} MB", file=sys.stderr)
        runs.append((ours, bare))
    what = f"receiver, traces of {spans:,} spans"
    yield _row(f"{what}, answered", [(ours.answered, bare.answered) for ours, bare in runs], "spans/s")
    yield _row(f"{what}, archived", [(ours.archived, bare.answered) for ours, bare in runs], "spans/s")
    yield _row(f"{what}, memory", [(ours.peak, bare.peak) for ours, bare in runs], "MB")


def _row(what: str, pairs: Sequence[tuple[float, float]], unit: str) -> Row:
    ours, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
    ratios = [second / first if unit == "spans/s" else first / second for first, second in pairs]
    return Row(what, ours, unit, "bodies written to files", bare, statistics.median(ratios))


def _measured(folder: Path, contender: str, traces: Sequence[Sequence[bytes]], spans: int) -> Run:
    folder.mkdir(parents=True)
    if contender == "bare":
        command = [sys.executable, "-m", "benchmarks.receiver", "bare", str(folder)]
    else:
        options = ["--port", "0", "--no-grpc", "--settle", "0.5", "--archive", str(folder)]
        command = [sys.executable, "-m", "trifle_otel", "receive", *options]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    with subprocess.Popen(command, cwd=ROOT, env=plain, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r":(\d+)", process.stdout.readline().replace("http:", ""))
        assert found is not None
        try:
            begun = perf_counter()
            _send(int(found[1]), traces)
            answered = perf_counter() - begun
            if contender != "bare":
                _wait_for_archive(folder, len(traces))
            archived = perf_counter() - begun
            peak = _peak(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
    total = len(traces) * spans
    return Run(total / answered, total / archived, peak)


def _send(port: int, traces: Sequence[Sequence[bytes]]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    for trace in traces:
        for body in trace:
            connection.request("POST", "/v1/traces", body, {"content-type": "application/x-protobuf"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"{response.status} {response.reason}")
    connection.close()


def _wait_for_archive(folder: Path, traces: int) -> None:
    """Until the index has them. What the receiver does meanwhile is not disturbed by more than a look."""
    from trifle_otel import Archive

    deadline = monotonic() + PATIENCE
    with Archive.open(folder) as archive:
        while len(archive.search(limit=traces + 1).records) < traces:
            if monotonic() > deadline:
                raise TimeoutError("the archive did not take all traces")
            sleep(0.05)


def _peak(pid: int) -> float:
    """The most memory that a process has used, in MB; only Linux tells."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


async def bare(folder: Path) -> None:
    """What ours is compared with: each body becomes a file."""
    from trifle_otel.receiver.bodies import Budget
    from trifle_otel.receiver.over_http import Gate, HTTPServer

    written = 0

    async def take(body: bytes, kind: str, compressed: bool) -> bytes:
        nonlocal written
        del kind, compressed
        written += 1
        (folder / f"{written}.pb").write_bytes(body)
        return b""

    gate = Gate(None, 20 << 20, 20.0, Budget(80 << 20))
    server = HTTPServer(take, gate, lambda: None, lambda: True, lambda _: None)
    print(f":{await server.start('127.0.0.1', 0, None)}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """The bare server in this process: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=("bare",))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(bare(given.folder))


if __name__ == "__main__":
    main()
