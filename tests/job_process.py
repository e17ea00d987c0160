"""What the jobs of all frameworks share in a worker's process: where spans go, and how far a job is."""

from __future__ import annotations

import os
from pathlib import Path


def send_spans() -> None:
    """Send this process's spans to the sink that a test started, if it did."""
    if "JOBS_SPANS" not in os.environ:
        return
    from opentelemetry import trace as otel
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{os.environ['JOBS_SPANS']}/v1/traces")))
    otel.set_tracer_provider(provider)


def mark(name: str) -> None:
    """Say to the test how far a job is."""
    (Path(os.environ["JOBS_FOLDER"]) / name).touch()
