"""The settings of a process, as plain data. Where they come from is `configuration`'s business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trifle_otel.redaction import Redactor

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.trace import SpanKind, TracerProvider

    from trifle_otel.recording import Recording

Mode = Literal["live", "deferred"]
Events = Literal["span", "log", "both"]
Permissions = Literal["private", "group"]
DEFAULT_RETENTION = 7
LONGEST_RETENTION = 1_000_000
"""Days; what is longer ends after the year 9999, which no index can hold."""
LONGEST_WAIT = 30 * 86_400.0
"""Seconds; who waits longer waits as long as this: threads can wait for so long on every platform, not for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `configure` can set; each has its environment variable, `TRIFLE_` and the name in capitals."""

    archive: str = "./traces"
    """URL of the archive: a folder, `file:///…`, `s3://…`, `gs://…`, `az://…` or `memory:`."""
    index: str | None = None
    """URL of the index; None: beside the archive (`<archive>/index.sqlite`), where that is a folder."""
    retention: int | Callable[[Recording], int | None] = DEFAULT_RETENTION
    """Days that a payload is kept. A callable sees the finished trace in deferred mode (None: keep nothing of it), and
    the trace at its start in live mode, since the days are part of where it is stored."""
    default_mode: Mode = "live"
    """`live`: flushed while it runs; `deferred`: written when it ends."""
    bump_every: float = 15
    """Seconds between two flushes of a live trace."""
    payload_size_limit: int = 102_400
    """Bytes of a message above which it is stored as an artifact."""
    context: Mapping[str, Any] | Callable[[], Mapping[str, Any]] = field(default_factory=dict)
    """Fields that each record's `context` gets."""
    serializer: str | Callable[[Any], str] = "repr"
    """How results become text: `repr`, `str`, `json` or a callable."""
    error_handler: Callable[[BaseException], None] | None = None
    """Called with each error of ours; None: counted, and logged at most once a minute."""
    gzip: bool = True
    """Whether parts are compressed."""
    redaction: Redactor | bool = True
    """What is screened for secrets: True for the usual rules, False for none, or a `Redactor` of one's own."""
    spool: str | None = None
    """Folder for what waits on local disk; None: `<archive>/.spool`, else the user's state folder."""
    spool_limit: int = 1 << 30
    """Bytes that may wait; above it the oldest traces are dropped, and counted."""
    spool_age: float = 7 * 86_400
    """Seconds that a trace may wait which cannot be shipped; what is older is dropped, and counted."""
    exit_timeout: float = 5
    """Seconds that the end of the process waits for what is still to be shipped; the rest is for the next process."""
    fsync: bool = False
    """Whether a finished trace is also made durable against the death of the machine."""
    permissions: Permissions = "private"
    """Who may read what is made of a local archive and its index in SQLite: `private`: the user that records alone;
    `group`: the group of the archive's folder too, for a viewer that runs as another user. What is there already stays
    as it is, and the spool is always private."""
    events: Events = "span"
    """What lines, results, changes of state, artifacts and exceptions become: `span`: events of the spans; `log`: log
    records with an event name, through the application's LoggerProvider, as they come; `both`. The limits of spans
    (`span_events`, `events_budget`) are not those of log records, of which a trace makes at most 10,000, and as many
    again of errors and warnings."""
    pending_span: bool = False
    """Whether a trace makes a small span at its start, so that it is seen while it runs: others are when they end."""
    max_spans: int = 1000
    """Child spans of one trace; further blocks are in the archive alone."""
    span_events: int = 128
    """Events that a span may have (the SDK's limit); 16 of them are left for others'."""
    span_value_limit: int = 2048
    """Bytes of an attribute's value."""
    events_budget: int = 256 * 1024
    """Bytes of all events of one trace."""
    foreign_spans: bool | Callable[[str, str, SpanKind], object] = True
    """Whether spans that other instrumentations make inside a trace become lines of it: True, False, or a callable that
    says so of a span's name, the name of the instrumentation that made it, and its kind."""
    service: str | None = None
    """Name of this service, in each record's `context`; None: what OpenTelemetry's variables or the provider say."""
    tracer_provider: TracerProvider | None = None
    """Where spans go; None: the application's global one, whenever it is set."""
    logger_provider: LoggerProvider | None = None
    """Where log records go; None: the application's global one, whenever it is set."""


def whole_days(given: object) -> int:
    """A retention. Raises `ValueError` for what is no number of days."""
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= LONGEST_RETENTION:
        return int(given)
    raise ValueError(f"retention={given!r} is not whole days from 1 to {LONGEST_RETENTION}")
