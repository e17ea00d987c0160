"""`TrifleSpanExporter`: local root spans of this process, with all that is in them, as archived traces.

For an application that is instrumented already. Its promises, each tested:
- it works behind `BatchSpanProcessor` and `SimpleSpanProcessor`, in whatever order and batches spans come;
- `export` only sorts spans: what becomes of them happens in a small thread of its own;
- memory is bounded: above the bound the oldest executions are archived early, in the thread that exports;
- `force_flush` archives all executions whose root has come, `shutdown` everything;
- what our own API records is not archived again, nor the local root around it;
- a forked child begins with nothing: what its parent had is its parent's;
- nothing that it does is traced, and no fault of ours reaches the application.

What an execution is `assemble` knows, how one is archived `archiving`.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from trifle_otel import span_data
from trifle_otel.configuration import runtime_into
from trifle_otel.errors import ConfigurationError
from trifle_otel.executions.archiving import archive as archive_execution
from trifle_otel.executions.assemble import Assembler, Execution
from trifle_otel.recording import open_recordings
from trifle_otel.runtime import Runtime, runtime
from trifle_otel.settings import LONGEST_WAIT
from trifle_otel.span_data import SpanData, SpanEvent, SpanLink
from trifle_otel.values import text_of

MOST_SPANS: Final = 100_000
REMEMBERED: Final = 20_000
"""Spans of archived executions by which those that come late are known."""

_SUPPRESSED: Final = "suppress_instrumentation"
_SOONEST = 0.05  # seconds between two looks for what is complete
_JOIN = 5.0  # seconds that `shutdown` waits for what the thread has in hand
_RESOURCES = 64  # whose attributes are held as a plain dict
_FAILED: Final = StatusCode.ERROR
_OK: Final = StatusCode.OK
_NOTHING: Final[dict[str, Any]] = {}
_KINDS: Final = {
    SpanKind.INTERNAL.value: span_data.INTERNAL,
    SpanKind.SERVER.value: span_data.SERVER,
    SpanKind.CLIENT.value: span_data.CLIENT,
    SpanKind.PRODUCER.value: span_data.PRODUCER,
    SpanKind.CONSUMER.value: span_data.CONSUMER,
}


class TrifleSpanExporter(SpanExporter):
    """Archives every local root span (a request, a task) as a trace, its children as blocks.

    Where nothing is configured yet, it configures this process for its archive, so that `tracer` and its kin record
    there too.

    Args:
        archive: URL of the archive; None: the one that is configured, else `TRIFLE_ARCHIVE`, else `./traces`.
        index: URL of its index, as for `configure`.
        settle: seconds that an execution whose root has ended waits for spans that come late.
        wait: seconds that spans wait for their root; then they are archived without it, which the trace says.
        most_spans: spans that wait, of the usual size; large ones count as several.

    Raises `ConfigurationError` for an archive that is unknown or cannot be written, and for numbers out of bounds.
    """

    def __init__(
        self,
        archive: str | os.PathLike[str] | None = None,
        *,
        index: str | None = None,
        settle: float = 2.0,
        wait: float = 3600.0,
        most_spans: int = MOST_SPANS,
    ) -> None:
        if not (settle >= 0 and wait > 0 and most_spans >= 1):
            raise ConfigurationError(f"{settle=}, {wait=}, {most_spans=}: at least 0, more than 0, and at least 1")
        self._archive = archive
        self._index = index
        self._own = runtime_into(archive, index)
        self._seen = runtime()
        self._pause = max(min(settle, 1.0), _SOONEST)
        self._assembler = Assembler(
            self._deliver, settle=settle, wait=wait, most_spans=most_spans, remembered=REMEMBERED, runs=_runs
        )
        self._resources: dict[int, tuple[Resource, Mapping[str, Any]]] = {}
        self._begin()
        _exporters.add(self)

    def _begin(self) -> None:
        self._starting = threading.Lock()  # guards `_thread`
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._asleep = False
        self._ended = False
        self._reporting = threading.Lock()  # guards `_reported`
        self._reported: Counter[str] = Counter()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take finished spans. A success once they are taken, even where some of them cannot be used."""
        if self._ended:
            return SpanExportResult.FAILURE
        try:
            self._assembler.add(self._read(spans))
            if self._thread is None:
                self._start()
            elif self._asleep:
                self._wake.set()
        except Exception as error:  # ours: the application goes on
            runtime().troubles.report("spans could not be taken", error)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: float | None = 30000) -> bool:
        """Archive all executions whose root has come; True when they are in the archive in time; None: however long."""
        timeout = LONGEST_WAIT if timeout_millis is None else min(timeout_millis / 1000, LONGEST_WAIT)
        return self._finish(timeout, roots_alone=True)

    def shutdown(self) -> None:
        """Archive all that waits, executions without their root too, and take nothing more."""
        if self._ended:
            return
        self._ended = True
        self._wake.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN)
        timeout = runtime().settings.exit_timeout
        self._finish(timeout, roots_alone=False)
        if self._own is not None and self._own.sink is not None:  # nobody else's
            self._own.sink.shutdown(timeout)

    def _finish(self, timeout: float, *, roots_alone: bool) -> bool:
        token = attach(set_value(_SUPPRESSED, True))
        try:
            self._assembler.flush(roots_alone=roots_alone)
            self._report()
            sink = self._target().sink
            return True if sink is None else sink.flush(timeout)
        except Exception as error:  # ours
            runtime().troubles.report("what waits could not be archived", error)
            return False
        finally:
            detach(token)

    def _read(self, spans: Sequence[ReadableSpan]) -> list[SpanData]:
        try:
            return [self._data(span) for span in spans]
        except Exception:  # one of them is not like the others: the others are taken
            return list(self._read_each(spans))

    def _read_each(self, spans: Sequence[ReadableSpan]) -> list[SpanData]:
        taken = []
        for span in spans:
            try:
                taken.append(self._data(span))
            except Exception as error:  # a span of another make
                runtime().troubles.report("a span could not be read", error)
        return taken

    def _data(self, span: ReadableSpan) -> SpanData:
        resource = span.resource
        known = self._resources.get(id(resource))
        if known is None:
            if len(self._resources) >= _RESOURCES:
                self._resources.clear()
            known = self._resources[id(resource)] = (resource, dict(resource.attributes))
        return data_of(span, known[1])

    def _target(self) -> Runtime:
        """Where executions go: to the runtime in force, unless that has another archive than was asked for."""
        current = runtime()
        if current is self._seen or self._archive is None:
            return self._own or current
        self._own = runtime_into(self._archive, self._index, self._own)
        self._seen = current
        return self._own or current

    def _deliver(self, execution: Execution) -> None:
        if execution.ours or (execution.root is None and _runs(execution.spans[0].trace_id)):
            return
        try:
            archive_execution(execution, self._target())
        except Exception as error:  # ours, or its archive cannot be opened: others are archived
            runtime().troubles.report("an execution could not be archived", error)

    def _report(self) -> None:
        """Tell of what was refused, dropped or closed early since the last time."""
        counts = self._assembler.counts
        if counts == self._reported:
            return
        with self._reporting:
            now = Counter(counts)
            more, self._reported = now - self._reported, now
        for what, amount in more.items():
            runtime().troubles.report(what, amount=amount)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._ended:
                thread = threading.Thread(target=self._run, name="trifle-exporter", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # at the interpreter's end, where `shutdown` archives what is there
                    return
                self._thread = thread

    def _run(self) -> None:
        attach(Context({_SUPPRESSED: True}))
        while not self._ended:
            try:
                due = self._assembler.sweep()
                self._report()
            except Exception as error:  # a fault of ours must not end the thread
                runtime().troubles.report("the exporter's thread failed and goes on", error)
                due = self._pause
            self._sleep(due)

    def _sleep(self, due: float) -> None:
        if due < math.inf:
            self._wake.wait(min(max(due, _SOONEST), self._pause))
        else:
            self._asleep = True  # before the look at what waits, as whoever adds looks at them in the other order
            if not self._assembler.waiting:
                self._wake.wait()
            self._asleep = False
        if not self._ended:
            self._wake.clear()

    def after_fork(self) -> None:
        """In a forked child: nothing that the parent holds is ours."""
        ended = self._ended
        self._assembler.forget()
        self._begin()
        self._ended = ended


def data_of(span: ReadableSpan, resource: Mapping[str, Any]) -> SpanData:
    """A finished span of the SDK as plain data, with attributes of its resource."""
    context, parent, status, scope = span.context, span.parent, span.status, span.instrumentation_scope
    attributes: Any = span.attributes
    events, links = span.events, span.links
    code = status.status_code
    name = span.name
    start, end = span.start_time, span.end_time
    return SpanData(
        f"{context.trace_id:032x}" if context is not None else "",
        f"{context.span_id:016x}" if context is not None else "",
        None if parent is None else f"{parent.span_id:016x}",
        name if type(name) is str else text_of(name),
        start if type(start) is int else _whole(start),
        end if type(end) is int else _whole(end),
        None if parent is None else parent.is_remote,
        _KINDS.get(span.kind.value, span_data.INTERNAL),
        _plain(attributes) if attributes else _NOTHING,
        [SpanEvent(_text(event.name), _whole(event.timestamp), _plain(event.attributes)) for event in events]
        if events
        else [],
        [_link(link) for link in links] if links else [],
        span_data.UNSET if code is StatusCode.UNSET else span_data.FAILED if code is _FAILED else span_data.OK,
        status.description or "",
        "" if scope is None else scope.name,
        resource,
        span.dropped_events,
        span.dropped_attributes,
        context.trace_state.to_header() if context is not None and context.trace_state else "",
    )


def _link(link: Any) -> SpanLink:
    context = link.context
    return SpanLink(f"{context.trace_id:032x}", f"{context.span_id:016x}", _plain(link.attributes))


def _plain(attributes: Any) -> dict[str, Any]:
    """The SDK's attributes as a plain dict, by their own way: they are no dict, and slow as an iterable."""
    if not attributes:
        return _NOTHING
    try:
        plain: dict[str, Any] = attributes.copy()
    except AttributeError:
        return dict(attributes)
    return plain


def _text(given: Any) -> str:
    """A name, which is whatever the caller gave."""
    return given if type(given) is str else text_of(given)


def _whole(given: Any) -> int:
    """A time, which is whatever the caller gave; 0 for none."""
    try:
        return int(given)
    except (TypeError, ValueError, OverflowError):
        return 0


def _runs(trace_id: str) -> bool:
    """Whether a trace of our own API runs in this trace id: what has ended in it belongs to that."""
    return any(recording.trace_id == trace_id for recording in open_recordings())


_exporters: weakref.WeakSet[TrifleSpanExporter] = weakref.WeakSet()


def _after_fork() -> None:
    for exporter in list(_exporters):
        exporter.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
