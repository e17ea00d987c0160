"""The names of our span attributes and events, each with what it means.

Nothing is computed here but the version of the library, which its tracer has beside its name.
The table in the README is checked against `ATTRIBUTES` and `EVENTS`
by a test. Names that OpenTelemetry defines (`exception.*`, `error.type`) are used as they are.
"""

from __future__ import annotations

from functools import lru_cache

# Attributes of spans.
KEY = "trifle.key"
MODE = "trifle.mode"
META = "trifle.meta"
TAGS = "trifle.tags"
RETENTION = "trifle.retention"
ARCHIVE = "trifle.archive"
LINES = "trifle.lines"
LINES_OMITTED = "trifle.lines_omitted"
BLOCKS_OMITTED = "trifle.blocks_omitted"
STATE = "trifle.state"
REFERENCE = "trifle.reference"
PENDING = "trifle.pending"
REPLAYED = "trifle.replayed"

# Attributes of events.
TEXT = "trifle.text"
TEXT_SIZE = "trifle.text_size"
TEXT_REF = "trifle.text_ref"
TYPE = "trifle.type"
LINE = "trifle.line"
RESULT = "trifle.result"
RESULT_SIZE = "trifle.result_size"
RESULT_REF = "trifle.result_ref"
PREVIOUS_STATE = "trifle.previous_state"
ARTIFACT = "trifle.artifact"
ARTIFACT_SIZE = "trifle.artifact_size"
ARTIFACT_REF = "trifle.artifact_ref"

# OpenTelemetry's own.
EXCEPTION_EVENT = "exception"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"
ERROR_TYPE = "error.type"

# Events. Each is named like the attribute that carries what it is about.
TEXT_EVENT = TEXT
RESULT_EVENT = RESULT
STATE_EVENT = STATE
ARTIFACT_EVENT = ARTIFACT

MAX_NAME = 100
"""Characters in the name of a span."""

MAX_VALUE = 2048
"""Bytes of UTF-8 in an attribute's value: Tempo cuts longer ones, in the middle of a character and silently."""

EVENTS = {
    TEXT_EVENT: "a line or a section's head",
    RESULT_EVENT: "the result of the block; on the span of the trace what a job returned, and a traceback",
    STATE_EVENT: "the state of the trace was set by `fail()`, `warn()` or `succeed()`, or by an exception",
    ARTIFACT_EVENT: "an artifact was stored",
    EXCEPTION_EVENT: "an exception left a block or the trace; once for each, on the innermost span that it left",
}

ATTRIBUTES = {
    KEY: "span of the trace: its key",
    MODE: "span of the trace: `live` or `deferred`",
    META: "span of the trace: `meta` as JSON",
    TAGS: "span of the trace: its tags, a list, as many as fit into 2,048 bytes",
    RETENTION: "span of the trace: days that the payload is kept",
    ARCHIVE: "span of the trace: URI of the trace's folder in the archive",
    LINES: "span of the trace: lines in the archive",
    LINES_OMITTED: "lines that are in the archive alone: on a block's span its own, on the trace's those of all",
    BLOCKS_OMITTED: "span of the trace: blocks that have no span of their own",
    STATE: "span: state of the trace or, if not success, of the block; event: state of the line, or the new one",
    REFERENCE: "span of the trace: the archive's reference",
    PENDING: "pending span, beside the trace's key, reference and archive: true",
    REPLAYED: "each span of a trace that was sent from the archive: true; with `replay --full` no value is shortened",
    TEXT: "the message, at most 2,048 bytes",
    TEXT_SIZE: "bytes of the whole message, where it was shortened",
    TEXT_REF: "`<reference>#<line>`: where the whole message is, where it was shortened",
    TYPE: "`text` or `head`",
    LINE: "number of the line in the archive, from 1",
    RESULT: "the serialised result, at most 2,048 bytes",
    RESULT_SIZE: "bytes of the whole result, where it was shortened",
    RESULT_REF: "`<reference>#<line>`: where the whole result is, where it was shortened",
    PREVIOUS_STATE: "the state before",
    ARTIFACT: "the artifact's name",
    ARTIFACT_SIZE: "bytes of the artifact",
    ARTIFACT_REF: "`<reference>/artifacts/<name>`: where it is in the archive",
    EXCEPTION_TYPE: "OpenTelemetry's: the exception's class",
    EXCEPTION_MESSAGE: "OpenTelemetry's: its message, which is also the description of the span's status",
    EXCEPTION_STACKTRACE: "OpenTelemetry's: the end of its traceback",
    ERROR_TYPE: "OpenTelemetry's: class of the exception that left the block or the trace",
}

# Metrics, and the attribute that is theirs alone.
METRIC_TRACES = "trifle.traces"
METRIC_ENTRIES = "trifle.entries"
METRIC_DURATION = "trifle.duration"
METRIC_SHIPPED = "trifle.shipped"
METRIC_PROBLEMS = "trifle.problems"
METRIC_WAITING = "trifle.waiting"
METRIC_WAITING_BYTES = "trifle.waiting.bytes"
METRIC_WAITING_AGE = "trifle.waiting.age"
METRIC_REQUESTS = "trifle.receiver.requests"
METRIC_SPANS = "trifle.receiver.spans"
METRIC_REJECTED = "trifle.receiver.spans.rejected"
METRIC_REQUESTS_WAITING = "trifle.receiver.waiting.bytes"
PROBLEM = "trifle.problem"
OUTCOME = "trifle.outcome"

METRICS = {
    METRIC_TRACES: "Traces that ended, by key and state",
    METRIC_ENTRIES: "Entries of traces that ended, by key",
    METRIC_DURATION: "How long traces took, by key and state",
    METRIC_SHIPPED: "Traces that reached the archive and its index",
    METRIC_PROBLEMS: "What went wrong in recording and shipping, by kind: retries, drops, errors of stores",
    METRIC_WAITING: "Traces that wait for the archive",
    METRIC_WAITING_BYTES: "Bytes that wait for the archive",
    METRIC_WAITING_AGE: "How long the oldest trace has waited for the archive",
    METRIC_REQUESTS: "OTLP requests that the receiver answered, by outcome",
    METRIC_SPANS: "Spans that the receiver accepted",
    METRIC_REJECTED: "Spans that the receiver refused, of requests that it accepted",
    METRIC_REQUESTS_WAITING: "Bytes of accepted requests that the receiver has not sorted into executions yet",
}


@lru_cache(maxsize=1)
def own_version() -> str:
    """The version of this library; "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - costs 5 ms at import

    try:
        return version("trifle-otel")
    except PackageNotFoundError:
        return ""
