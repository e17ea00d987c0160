"""Executions of background jobs, as OpenTelemetry spans with events and in full in a Trifle archive.

The public names, and nothing else; what is needed only for reading or set-up is loaded when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trifle_otel.calls import (
    artifact,
    attach,
    block,
    current,
    fail,
    flush,
    ignore,
    shutdown,
    succeed,
    tag,
    trace,
    tracer,
    warn,
)
from trifle_otel.configuration import configure
from trifle_otel.records import Entry, TraceRecord
from trifle_otel.redaction import Redactor
from trifle_otel.runtime import on

if TYPE_CHECKING:
    from trifle_otel.archive import Archive
    from trifle_otel.span_exporter import TrifleSpanExporter
    from trifle_otel.span_processor import TrifleSpanProcessor

__all__ = [
    "Archive",
    "Entry",
    "Redactor",
    "TraceRecord",
    "TrifleSpanExporter",
    "TrifleSpanProcessor",
    "artifact",
    "attach",
    "block",
    "configure",
    "current",
    "fail",
    "flush",
    "ignore",
    "on",
    "shutdown",
    "succeed",
    "tag",
    "trace",
    "tracer",
    "warn",
]


def __getattr__(name: str) -> Any:
    if name == "Archive":
        from trifle_otel.archive import Archive  # noqa: PLC0415 - only readers need it

        return Archive
    if name == "TrifleSpanExporter":
        from trifle_otel.span_exporter import TrifleSpanExporter  # noqa: PLC0415 - it needs the SDK

        return TrifleSpanExporter
    if name == "TrifleSpanProcessor":
        from trifle_otel.span_processor import TrifleSpanProcessor  # noqa: PLC0415 - it needs the SDK

        return TrifleSpanProcessor
    raise AttributeError(f"module 'trifle_otel' has no attribute {name!r}")
