"""What the tests of spans share: a real SDK that keeps its spans in memory, and a look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

import trifle_otel as trifle
from trifle_otel import Archive, Entry, TraceRecord
from trifle_otel.outline import Block, outline

LINES = ("trifle.text", "trifle.result", "trifle.artifact")


class Sdk:
    """A provider of the SDK whose finished spans can be read, and the archive of a process that is set up with it."""

    def __init__(
        self, *, sampler: Sampler | None = None, processors: Sequence[SpanProcessor] = (), resource: Any = None
    ) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self.provider.add_span_processor(processor)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.archive: Archive

    def configure(self, **changes: Any) -> Sdk:
        """Set this process up with it."""
        self.archive = trifle.configure("memory:", tracer_provider=self.provider, **changes)
        return self

    @property
    def spans(self) -> list[ReadableSpan]:
        """Finished spans, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    @property
    def root(self) -> ReadableSpan:
        """The only trace's own span."""
        roots = [span for span in self.spans if "trifle.reference" in attributes(span)]
        assert len(roots) == 1
        return roots[0]

    @property
    def blocks(self) -> list[ReadableSpan]:
        """The spans of blocks."""
        ours = [span for span in self.spans if scope(span) == "trifle_otel"]
        return [span for span in ours if "trifle.reference" not in attributes(span)]

    def named(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, [span.name for span in self.spans]
        return found[0]

    @property
    def record(self) -> TraceRecord:
        """The only trace in the archive, shipped."""
        assert trifle.flush(5)
        records = self.archive.search().records
        assert len(records) == 1
        return records[0]

    @property
    def entries(self) -> list[Entry]:
        """Its entries."""
        return list(self.archive.entries(self.record))


def attributes(span: ReadableSpan | Event) -> dict[str, Any]:
    """Attributes as a plain dict."""
    return dict(span.attributes or {})


def scope(span: ReadableSpan) -> str:
    """Name of the instrumentation that made a span."""
    return span.instrumentation_scope.name if span.instrumentation_scope else ""


def span_id(span: ReadableSpan) -> str:
    """A span's id as the archive writes it."""
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def parent_id(span: ReadableSpan) -> str | None:
    """The id of the span around it."""
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def events(span: ReadableSpan, name: str = "") -> list[dict[str, Any]]:
    """Attributes of a span's events, of one name or of all."""
    return [attributes(event) for event in span.events if event.name == name or not name]


def lines(span: ReadableSpan) -> list[Event]:
    """A span's events that are lines of the archive."""
    return [event for event in span.events if event.name in LINES]


def texts(span: ReadableSpan) -> list[str]:
    """Messages of the lines on a span."""
    return [event["trifle.text"] for event in events(span, "trifle.text")]


def tree(entries: Sequence[Entry]) -> list[str]:
    """First lines of messages, indented by the blocks that they lie in; `= ` before results; no closings, no start."""
    found = outline(entries)
    shown = []
    for place, entry in list(enumerate(entries))[1:]:
        owner = found.owners[place]
        if owner is not None and place == owner.closed:
            continue
        is_result = owner is not None and place == owner.result
        text = f"= {entry.message.removeprefix('↳ ')}" if is_result else entry.message.removesuffix(" ↴")
        shown.append("  " * (found.depth(place) + is_result) + text.splitlines()[0])
    return shown


def block_named(entries: Sequence[Entry], message: str) -> Block:
    """The only block of a message."""
    found = [block for block in outline(entries).blocks if block.message == message]
    assert len(found) == 1, [block.message for block in outline(entries).blocks]
    return found[0]


def assert_every_line_is_accounted_for(sdk: Sdk) -> None:
    """Each line of the archive is an event, or opens or closes a block that has a span, or is counted as omitted."""
    root = attributes(sdk.root)
    shown = sum(len(lines(span)) for span in [sdk.root, *sdk.blocks])
    omitted = root.get("trifle.lines_omitted", 0)
    assert shown + 2 * len(sdk.blocks) + omitted == root["trifle.lines"] == len(sdk.entries)


def assert_lines_are_where_they_say(sdk: Sdk) -> None:
    """Each event's number is the place in the archive of a line with its time, its message, and its block."""
    entries = sdk.entries
    for span in [sdk.root, *sdk.blocks]:
        for event in lines(span):
            found = attributes(event)
            entry = entries[found["trifle.line"] - 1]
            assert found[event.name] == entry.message.removeprefix("↳ ")
            assert event.timestamp == entry.ns
            assert entry.span == span_id(span)
