"""Replay: archived traces, sent to any OTLP endpoint as the spans that they were.

How a trace becomes spans is `replaying.spans`' business, how a request is sent `otlp.sending`'s. Here they are put
together: read one by one, packed into requests that receivers take, at a pace, with an account of what became of
each trace.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from trifle_otel.archive import Archive
from trifle_otel.errors import TrifleError, UsageError
from trifle_otel.otlp.endpoint import GRPC, MOST_BYTES, endpoint_of
from trifle_otel.otlp.sending import Answer, RequestRefused, Sender
from trifle_otel.otlp.writing import Batch, batches_of, request_of
from trifle_otel.records import TraceRecord
from trifle_otel.replaying.spans import PREVIEWS, ArchivedTrace, Extent
from trifle_otel.span_data import SpanData

MOST_SPANS = 512
"""Spans of one request: what the batch processor of OpenTelemetry's SDK sends at once."""

_MARGIN = 64 * 1024  # bytes that a request stays below what receivers take


class Sending(Protocol):
    """What sends requests: a `Sender`."""

    def send(self, request: ExportTraceServiceRequest) -> Answer:
        """Send one and wait until it is taken. Raises `RequestRefused`, and other errors that end the replay."""
        ...


@dataclass
class Report:
    """What became of traces that were replayed.

    Attributes:
        traces: how many were sent, those that were refused included.
        spans: how many spans were sent and taken.
        requests: in how many requests.
        size: bytes of those, before compression.
        shortened: values that were shortened so that a span fits into a request.
        lines_omitted: lines of the archives that are on no span.
        refused: spans that the endpoint did not take.
        failed: references of traces that were not taken, or not wholly; of a replay that ended early those that were
            begun.
        problems: what went wrong, in words: damaged parts, messages that are missing, refusals.
    """

    traces: int = 0
    spans: int = 0
    requests: int = 0
    size: int = 0
    shortened: int = 0
    lines_omitted: int = 0
    refused: int = 0
    failed: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Replay:
    """Sends archived traces, one after the other.

    Args:
        archive: where they are.
        sending: where they go; None: nowhere, all else is done.
        most_bytes: of a request, as receivers count.
        full: whether whole payloads are sent, or previews as a running trace sends them.
        rate: spans a second at the most; None: as fast as they are taken.
        clock: seconds on a monotonic clock.
        sleep: waits for so many seconds.

    Attributes:
        report: what became of them so far.
    """

    def __init__(
        self,
        archive: Archive,
        sending: Sending | None,
        *,
        most_bytes: int = MOST_BYTES[GRPC],
        full: bool = False,
        rate: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        if rate is not None and not rate > 0:
            raise UsageError(f"not a rate: {rate:g}; it is spans a second, above 0")
        self.report = Report()
        self._archive = archive
        self._sending = sending
        self._most_bytes = max(most_bytes - _MARGIN, _MARGIN)
        self._extent = Extent(span=self._most_bytes) if full else PREVIEWS
        self._most_spans = MOST_SPANS if rate is None else max(int(min(rate, MOST_SPANS)), 1)
        self._pace = _Pace(rate, clock, sleep)
        # of each span that was made and not sent yet its trace's reference, and whether it is that trace's last one
        self._owners: deque[tuple[str, bool]] = deque()
        self._ended: TrifleError | None = None  # the archive's, after which no more spans are made

    def run(self, records: Iterable[TraceRecord], *, progress: Callable[[], object] | None = None) -> Report:
        """Send the traces of these records; `progress` is called when all of one was sent.

        Raises `EndpointUnavailable` where the endpoint takes nothing, `StoreUnavailable` for the archive: `report` has
        what was sent until then, and which traces were not. What was read of the archive until then is sent.
        """
        spans = self._spans(records)
        for batch in batches_of(spans, most_bytes=self._most_bytes, most_spans=self._most_spans):
            owners = [self._owners.popleft() for _ in batch.spans]
            self._pace.wait(len(owners))
            try:
                self._send(batch, [reference for reference, _ in owners])
            except TrifleError:
                for reference, _ in (*owners, *self._owners):
                    self._fail(reference)
                raise
            for _ in filter(_is_last, owners):
                self.report.traces += 1
                if progress is not None:
                    progress()
        if self._ended is not None:
            raise self._ended
        return self.report

    def _spans(self, records: Iterable[TraceRecord]) -> Iterator[SpanData]:
        try:
            for record in records:
                yield from self._spans_of(record)
        except TrifleError as error:  # of the archive; what comes before it is still to be sent
            self._ended = error

    def _spans_of(self, record: TraceRecord) -> Iterator[SpanData]:
        try:
            trace = self._trace(record)
        except TrifleError:
            self._fail(record.reference)
            raise
        for number, span in enumerate(trace.spans(), 1):
            self._owners.append((record.reference, number == trace.count))
            yield span
        report = self.report
        report.shortened += trace.shortened
        report.lines_omitted += trace.lines_omitted
        for name in trace.missing:
            self._fail(record.reference, f"trace {record.reference} lacks {name}")

    def _trace(self, record: TraceRecord) -> ArchivedTrace:
        entries = self._archive.entries(record)
        for damage in entries.damaged:
            self._fail(record.reference, str(damage))

        def read(name: str, most: int) -> bytes:
            with self._archive.open_artifact(record, name) as stream:
                return stream.read(most)

        uri = self._archive.store.uri(record.folder)
        return ArchivedTrace(record, entries, self._extent, read=read, uri=uri)

    def _send(self, batch: Batch, owners: list[str]) -> None:
        """Send a request; one that is too large for this endpoint is sent in halves."""
        try:
            answer = Answer() if self._sending is None else self._sending.send(batch.request)
        except RequestRefused as error:
            if error.too_large and len(batch.spans) > 1:
                self._send_halves(batch, owners)
            else:
                self._refuse(len(batch.spans), owners, str(error))
            return
        report = self.report
        report.requests += 1
        report.size += batch.size
        report.spans += len(batch.spans) - answer.rejected
        if answer.rejected:  # which ones, nobody says
            self._refuse(answer.rejected, owners, answer.message)

    def _send_halves(self, batch: Batch, owners: list[str]) -> None:
        half = len(batch.spans) // 2
        for part in (slice(half), slice(half, None)):
            spans = batch.spans[part]
            request = request_of(spans)
            self._send(Batch(request, spans, request.ByteSize()), owners[part])

    def _refuse(self, spans: int, owners: list[str], why: str) -> None:
        self.report.refused += spans
        traces = list(dict.fromkeys(owners))
        more = f" and {len(traces) - 1} more" if len(traces) > 1 else ""
        for reference in traces:
            self._fail(reference)
        self.report.problems.append(f"{spans} span{'s' * (spans != 1)} of {traces[0]}{more} refused: {why}")

    def _fail(self, reference: str, problem: str | None = None) -> None:
        self.report.failed[reference] = None
        if problem is not None:
            self.report.problems.append(problem)


def _is_last(owner: tuple[str, bool]) -> bool:
    return owner[1]


class _Pace:
    """Waits, so that no more than so many spans go in a second."""

    def __init__(self, rate: float | None, clock: Callable[[], float], sleep: Callable[[float], object]) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next = clock()

    def wait(self, spans: int) -> None:
        """Wait until so many may go."""
        if self._rate is None:
            return
        now = self._clock()
        if self._next > now:
            self._sleep(self._next - now)
        self._next = max(self._next, now) + spans / self._rate


def replay(
    archive: Archive,
    records: Iterable[TraceRecord | str],
    endpoint: str | None = None,
    *,
    protocol: str | None = None,
    variables: Mapping[str, str] | None = None,
    full: bool = False,
    rate: float | None = None,
) -> Report:
    """Send archived traces to an OTLP endpoint with their original ids, times and nesting.

    Args:
        archive: where they are.
        records: which ones: records, or references.
        endpoint: URL; None: what the variables say, else `http://localhost:4318`.
        protocol: `http/protobuf` or `grpc`; None: what the URL tells.
        variables: OpenTelemetry's, by their names after `OTEL_EXPORTER_OTLP_`; headers and certificates come from them.
        full: whole payloads instead of previews, as far as requests hold them.
        rate: spans a second at the most.

    Raises `UsageError` for an endpoint that is none, `EndpointUnavailable` where nobody takes what is sent,
    `NotFound` for a reference that is not there.
    """
    target = endpoint_of(endpoint, protocol, variables)
    found = (archive.find(record) if isinstance(record, str) else record for record in records)
    with Sender(target) as sender:
        return Replay(archive, sender, most_bytes=MOST_BYTES[target.protocol], full=full, rate=rate).run(found)
