"""The settings of a process, as plain data. Where they come from is `configuration`'s business."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trifle_otel.redaction import Redactor

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from trifle_otel.recording import Recording

Mode = Literal["live", "deferred"]
DEFAULT_RETENTION = 7
LONGEST_RETENTION = 1_000_000
"""Days; what is longer ends after the year 9999, which no index can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `configure` can set; each has its environment variable, `TRIFLE_` and the name in capitals."""

    archive: str = "./traces"
    """URL of the archive: a folder, `file:///…` or `memory:`."""
    index: str | None = None
    """URL of the index; None: beside the archive (`<archive>/index.sqlite`)."""
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
    exit_timeout: float = 5
    """Seconds that the end of the process waits for what is still to be shipped; the rest is for the next process."""
    fsync: bool = False
    """Whether a finished trace is also made durable against the death of the machine."""
    max_spans: int = 1000
    """Child spans of one trace; further blocks are in the archive alone."""
    span_events: int = 128
    """Events that a span may have (the SDK's limit); 16 of them are left for others'."""
    span_value_limit: int = 2048
    """Bytes of an attribute's value."""
    events_budget: int = 256 * 1024
    """Bytes of all events of one trace."""
    service: str | None = None
    """Name of this service, in each record's `context`; None: what OpenTelemetry's variables or the provider say."""
    tracer_provider: TracerProvider | None = None
    """Where spans go; None: the application's global one, whenever it is set."""
