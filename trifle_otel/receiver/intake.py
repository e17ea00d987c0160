"""From the body of an OTLP request to archived executions: what a receiver does behind its servers.

Its promises, each tested:
- a request that was taken is on disk before it is answered, and goes when all its spans are archived; what a receiver
  that died has left is taken in by the next one;
- requests wait on disk and not in memory; what waits is bounded in bytes, and above the bound senders are told to come
  back;
- while the archive is down and the spool full, nothing is sorted and nothing dropped: it waits in the journal;
- an execution is archived whole or not at all, however requests and deaths have cut it;
- bad requests and spans are refused and counted; a fault of ours ends neither thread nor process.

How requests come is the servers' business, what an execution is `assemble`'s, how one is archived `archiving`'s.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from opentelemetry.context import attach, set_value
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from trifle_otel.otlp.spans import (
    PROTOBUF,
    MalformedRequest,
    UnsupportedContent,
    encoding_of,
    parse_request,
    spans_of,
)
from trifle_otel.receiver.answers import BUSY, MALFORMED, UNAVAILABLE, UNSUPPORTED, Reason, Refused, accepted
from trifle_otel.receiver.claims import Claims, Places
from trifle_otel.receiver.journal import Entry, Journal
from trifle_otel.receiver.metrics import ReceiverMetrics
from trifle_otel.runtime import Troubles
from trifle_otel.span_data import SpanData

RETRY_BUSY: Final = 1  # seconds
RETRY_LATER: Final = 30  # seconds: where it takes people to put it right
COMPACT_EVERY: Final = 10.0  # seconds, at the least, between two times that the journal is made smaller
ADOPT_EVERY: Final = 60.0  # seconds between two looks for what receivers that died have left
_SWEEP_SOONEST, _SWEEP_LATEST = 0.05, 0.5  # seconds between two looks for executions that are due
_PAUSE = 0.5  # seconds until it is looked again whether the archive takes anything
_LOST = "a trace was lost when it ended"  # how a sink, which must not raise, says that it has not kept one
_HELD = "the spool cannot be written; traces are held in memory"  # and that one is not on disk yet
_UNREADABLE = "a request that was taken cannot be read"
_NO_IDS = "spans without a trace id of 16 bytes and a span id of 8 bytes, not all of them zero"


class Assembled(Protocol):
    """An execution, as far as this module knows it."""

    spans: list[SpanData]


class Assembling(Protocol):
    """What makes executions of spans; see `assemble.Assembler`."""

    counts: Counter[str]
    """What was dropped or closed early, and how often."""

    def add(self, spans: Iterable[SpanData]) -> None:
        """Take spans in."""

    def sweep(self) -> float:
        """Deliver what is due; seconds until the next is."""
        ...

    def flush(self) -> None:
        """Deliver everything now."""


class Archiving(Protocol):
    """What executions are given to."""

    def archive(self, execution: Any) -> object:
        """Keep an execution. It is durable when this returns, unless the sink's troubles say that it is not."""

    def has_room(self) -> bool:
        """Whether more can wait for the archive."""
        ...

    def is_idle(self) -> bool:
        """Whether all that was kept is in the archive."""
        ...


class Intake:
    """Takes requests of any thread in, and archives them in a thread of its own.

    Args:
        journal: where requests are kept; opened by `start`, closed by `close`.
        assembling: makes an assembler, given where it delivers executions, and where it tells of spans that it drops.
        archiving: what executions are given to.
        troubles: told what goes wrong.
        settle: seconds that an execution with its root waits for more, as the assembler counts them.
        max_waiting: bytes of requests that may wait; also of those whose spans wait for others.
    """

    def __init__(
        self,
        journal: Journal,
        assembling: Callable[[Callable[[Any], None], Callable[[Iterable[SpanData]], None]], Assembling],
        archiving: Archiving,
        troubles: Troubles,
        *,
        settle: float,
        max_waiting: int,
    ) -> None:
        self.troubles = troubles
        self.metrics = ReceiverMetrics(self.waits)
        self._journal = journal
        self._assembler = assembling(self._deliver, self._dropped)
        self._archiving = archiving
        self._settle = settle
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[Entry | None] = SimpleQueue()
        self._counting = threading.Lock()  # guards `_waiting`
        self._waiting = 0
        # All that follows is of the own thread.
        self._claims = Claims()
        self._told: Counter[str] = Counter()
        self._unsure: list[Places] = []
        self._sweep_at = self._swept_at = self._sorted_at = self._adopt_at = self._compact_at = 0.0
        self._full = False
        self._ending = False
        self._end_at = 0.0
        self._thread = threading.Thread(target=self._run, name="trifle-intake", daemon=True)

    def start(self) -> None:
        """Begin with what is left of others. Raises `OSError` where nothing can be kept."""
        self._journal.open()
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._ending

    def waits(self) -> int:
        """Bytes of requests that are not sorted into executions yet."""
        return self._waiting

    def check(self) -> None:
        """Raises `Refused` where no request is taken now, whatever is in it."""
        if not self.alive:
            raise Refused(UNAVAILABLE, "the receiver is ending; send it again", RETRY_BUSY)
        if self._waiting > self._max_waiting:
            raise self._busy()

    def take(self, body: bytes, content_type: str) -> ExportTraceServiceResponse:
        """Take a request, whose body is not compressed; the answer to it. Raises `Refused`."""
        self.check()
        request = _parsed(body, content_type)
        count, rejected = sift(request)
        if count:
            if rejected or encoding_of(content_type) != PROTOBUF:
                body = request.SerializeToString()
            self._keep(body)
        self.metrics.spans(count, rejected)
        if rejected:
            self.troubles.report("spans were refused: they have no valid ids", amount=rejected)
        return accepted(rejected, f"refused: {_NO_IDS}")

    def close(self, timeout: float) -> None:
        """Take nothing more, archive what is complete, leave the rest in the journal for the next receiver."""
        self._end_at = time.monotonic() + timeout
        self._ending = True
        self._sweep_at = 0.0
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout + 1.0)
        if not self._thread.is_alive():
            self._journal.close()

    def _keep(self, body: bytes) -> None:
        with self._counting:
            if self._waiting and self._waiting + len(body) > self._max_waiting:
                raise self._busy()
            self._waiting += len(body)
        try:
            entry = self._journal.write(body)
        except OSError as error:
            self._count(-len(body))
            self.troubles.report("requests cannot be kept on disk and are refused", error)
            raise Refused(UNAVAILABLE, "the request cannot be kept now; send it again", RETRY_LATER) from error
        self._queue.put(entry)

    def _busy(self) -> Refused:
        self.troubles.report("requests were refused: more waited than `max_waiting` allows")
        return Refused(BUSY, "more requests wait than are allowed; send it again", RETRY_BUSY)

    def _count(self, size: int) -> None:
        with self._counting:
            self._waiting += size

    def _run(self) -> None:
        attach(set_value("suppress_instrumentation", True))
        while not self._is_over():
            try:
                self._turn()
            except Exception as error:  # a fault of ours must not end the thread
                self.troubles.report("the receiver's thread failed and goes on", error)
                time.sleep(_PAUSE)

    def _is_over(self) -> bool:
        if not self._ending:
            return False
        if time.monotonic() >= self._end_at:
            return True
        return self._queue.empty() and (not self._claims or self._swept_at > self._sorted_at + self._settle)

    def _turn(self) -> None:
        now = time.monotonic()
        if not self._archiving.has_room():
            if not self._full:
                self.troubles.report("the spool is full: requests wait in the journal")
            self._full = True
            time.sleep(_PAUSE)
            return
        self._full = False
        if now >= self._adopt_at:
            self._adopt_at = now + ADOPT_EVERY
            self._adopt()
        try:
            entry = self._queue.get(timeout=max(0.0, self._sweep_at - now))
        except Empty:
            entry = None
        if entry is not None:
            self._sort(entry)
        if time.monotonic() >= self._sweep_at:
            self._sweep()

    def _adopt(self) -> None:
        try:
            for entry in self._journal.adopt():
                self._count(entry.size)
                self._queue.put(entry)
        except OSError as error:
            self.troubles.report("what a receiver that died left cannot be read", error)

    def _sort(self, entry: Entry) -> None:
        """Give a request's spans to the assembler."""
        try:
            spans = spans_of(parse_request(entry.read(), PROTOBUF))
        except MalformedRequest as error:
            self._give_up(entry, error)
            return
        except OSError as error:
            self._leave(entry, error)
            return
        finally:
            self._count(-entry.size)
        done = entry.done
        entry.runs = []
        entry.spans = len(spans)
        entry.left = len(spans) - len(done)
        if not entry.left:
            self._journal.remove(entry)
            return
        for number, span in enumerate(spans):
            if number not in done:
                self._claims.add(span, entry, number)
        if done:
            spans = [span for number, span in enumerate(spans) if number not in done]
        self._assembler.add(spans)
        self._sorted_at = time.monotonic()
        self._sweep_at = min(self._sweep_at, self._sorted_at + max(self._settle, _SWEEP_SOONEST))

    def _give_up(self, entry: Entry, error: Exception) -> None:
        """Put a request that is none out of the way."""
        where = entry.path
        with suppress(OSError):  # then it stays where it is
            where = self._journal.set_aside(entry)
        self.troubles.report(_UNREADABLE, error, detail=f"kept in {where}")

    def _leave(self, entry: Entry, error: OSError) -> None:
        """Leave a request that cannot be read now to the next receiver, if it is there at all."""
        if isinstance(error, FileNotFoundError):
            self._journal.remove(entry)
            self.troubles.report(_UNREADABLE, error)
        else:
            self.troubles.report(_UNREADABLE, error, detail=f"the next receiver tries again with {entry.path}")

    def _sweep(self) -> None:
        self._make_room()
        self._swept_at = time.monotonic()
        due = self._assembler.sweep()
        self._tell()
        latest = _SWEEP_SOONEST if self._ending else _SWEEP_LATEST
        self._sweep_at = time.monotonic() + min(max(due, _SWEEP_SOONEST), latest)
        if self._unsure and self._archiving.is_idle():
            unsure, self._unsure = self._unsure, []
            for done in unsure:
                self._settled(done)

    def _make_room(self) -> None:
        """Keep what the requests of spans that wait for others take on disk within `max_waiting`."""
        if self._journal.size - self._waiting > self._max_waiting // 2 and time.monotonic() >= self._compact_at:
            try:
                self._claims.compact(self._journal)
            except (OSError, MalformedRequest) as error:
                self.troubles.report("the journal cannot be made smaller", error)
            self._compact_at = time.monotonic() + COMPACT_EVERY
        if self._journal.size - self._waiting > self._max_waiting:
            self.troubles.report("executions were closed early: their requests took more than `max_waiting`")
            self._assembler.flush()

    def _tell(self) -> None:
        """Report what the assembler has counted since the last time."""
        for what, amount in (self._assembler.counts - self._told).items():
            self.troubles.report(what, amount=amount)
            self._told[what] += amount

    def _deliver(self, execution: Assembled) -> None:
        """Archive an execution, and let go of its spans where that is known to have worked."""
        counts = self.troubles.counts
        lost, held = counts[_LOST], counts[_HELD]
        try:
            self._archiving.archive(execution)
        except Exception as error:  # its spans stay in the journal, and the next receiver tries again
            self.troubles.report("an execution could not be archived", error)
            self._claims.release(execution.spans)
            return
        done = self._claims.release(execution.spans)
        if counts[_LOST] != lost:  # the next receiver tries again
            return
        if counts[_HELD] != held:  # it is not durable before it is in the archive
            self._unsure.append(done)
        else:
            self._settled(done)

    def _dropped(self, spans: Iterable[SpanData]) -> None:
        """No execution will have these: they are repeats."""
        self._settled(self._claims.drop(spans))

    def _settled(self, done: Places) -> None:
        if not done:
            return
        try:
            self._journal.settle(done)
        except OSError as error:  # they are archived again by the next receiver, under the same references
            self.troubles.report("the journal cannot be written", error)


def sift(request: ExportTraceServiceRequest) -> tuple[int, int]:
    """Remove the spans that have no valid ids: how many are left, and how many were removed."""
    left = removed = 0
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            spans = of_scope.spans
            total = len(spans)
            good = [span for span in spans if _has_ids(span)]
            if len(good) < total:
                kept = ScopeSpans(spans=good)
                of_scope.ClearField("spans")
                of_scope.spans.extend(kept.spans)
            left += len(good)
            removed += total - len(good)
    return left, removed


def _has_ids(span: Span) -> bool:
    trace_id, span_id = span.trace_id, span.span_id
    return len(trace_id) == 16 and len(span_id) == 8 and any(trace_id) and any(span_id)


def _parsed(body: bytes, content_type: str) -> ExportTraceServiceRequest:
    try:
        return parse_request(body, content_type)
    except MalformedRequest as error:
        reason: Reason = UNSUPPORTED if isinstance(error, UnsupportedContent) else MALFORMED
        raise Refused(reason, str(error)) from error
