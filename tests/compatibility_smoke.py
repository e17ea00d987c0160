"""What must work wherever the package is installed: run by `compatibility.sh` in each environment, warnings as errors.

python -W error compatibility_smoke.py cli viewer …      the extras that are installed there
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points
from pathlib import Path

from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import trifle_otel as trifle
from trifle_otel.archive import Archive
from trifle_otel.errors import MissingDependency

MODULES = {
    "cli": "trifle_otel.cli.app",
    "viewer": "trifle_otel.viewer.app",
    "receiver": "trifle_otel.receiver.server",
    "s3": "trifle_otel.stores.objects",
    "postgres": "trifle_otel.indexes.postgres",
    "mongo": "trifle_otel.indexes.mongo",
    "celery": "trifle_otel.integrations.celery",
    "rq": "trifle_otel.integrations.rq",
    "dramatiq": "trifle_otel.integrations.dramatiq",
    "huey": "trifle_otel.integrations.huey",
}
"""What each extra is for."""
URLS = {
    "s3": ("s3://bucket/traces?endpoint=http://127.0.0.1:9", "memory:"),
    "postgres": ("memory:", "postgresql://127.0.0.1:9/none"),
    "mongo": ("memory:", "mongodb://127.0.0.1:9/none"),
}


def main(extras: set[str]) -> None:
    """All of it. Raises where something does not work."""
    assert "site-packages" in str(trifle.__file__), f"not the installed package: {trifle.__file__}"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        reference = _record()
        _read(reference)
        _export()
        _log_records()
        _exporter_of_entry_point()
        _commands(reference, installed="cli" in extras)
    _extras(extras)


@trifle.block("Fetching Main product")
def _product(number: int) -> dict[str, int]:
    return {"id": number}


_spans = InMemorySpanExporter()


def _record() -> str:
    """Every call of the recording API, with spans that record."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(_spans))
    trifle.configure(archive="./traces", tracer_provider=provider)
    with trifle.tracer("commodity/calculate/one", meta=[9], tags=["store:1"]) as job:
        trifle.trace("Product -> Calculate job Start", head=True)
        assert trifle.trace("Loading Product", lambda: 9) == 9
        with trifle.block("Calculation result", head=True) as step:
            step.result(_product(9))
        trifle.tag("product:9")
        trifle.artifact("page.html", b"<html>")
        with provider.get_tracer("others").start_as_current_span("GET /rates"):
            pass
        trifle.warn()
        assert trifle.current() is job
    assert trifle.flush(30)
    provider.shutdown()
    names = {span.name for span in _spans.get_finished_spans()}
    assert {"commodity/calculate/one", "Loading Product", "Fetching Main product", "GET /rates"} <= names, names
    assert job.reference is not None
    return job.reference


def _read(reference: str) -> None:
    """The archive has it."""
    with Archive.open("./traces") as archive:
        (record,) = archive.search(segment="commodity", any_tags=["product:9"], since="1h").records
        assert (record.reference, record.state) == (reference, "warning")
        messages = [entry.message for entry in archive.entries(record)]
        assert "Loading Product ↴" in messages, messages
        assert any("GET /rates" in message for message in messages), messages
        assert archive.artifact(record, "page.html") == b"<html>"


def _export() -> None:
    """Plain OpenTelemetry spans become a trace."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(trifle.TrifleSpanExporter()))
    with provider.get_tracer("shop").start_as_current_span("GET /orders") as span:
        span.add_event("cache miss")
    provider.shutdown()
    trifle.flush(30)
    with Archive.open("./traces") as archive:
        assert archive.search().records[0].trace_id == f"{span.get_span_context().trace_id:032x}"


def _log_records() -> None:
    """Lines become log records, too."""
    exporters = importlib.import_module("opentelemetry.sdk._logs.export")
    kept = getattr(exporters, "InMemoryLogRecordExporter", None) or exporters.InMemoryLogExporter
    exporter = kept()
    provider = importlib.import_module("opentelemetry.sdk._logs").LoggerProvider()
    provider.add_log_record_processor(exporters.SimpleLogRecordProcessor(exporter))
    spans = TracerProvider()
    trifle.configure(archive="./traces", tracer_provider=spans, logger_provider=provider, events="both")
    with trifle.tracer("logged"):
        trifle.trace("a line for the log")
    provider.shutdown()
    spans.shutdown()
    found = [record.log_record.attributes or {} for record in exporter.get_finished_logs()]
    assert "a line for the log" in [attributes.get("trifle.text") for attributes in found], found


def _exporter_of_entry_point() -> None:
    """`OTEL_TRACES_EXPORTER=trifle` finds the exporter."""
    (found,) = entry_points(group="opentelemetry_traces_exporter", name="trifle")
    assert found.load() is trifle.TrifleSpanExporter
    assert isinstance(otel.get_tracer_provider(), otel.TracerProvider)


def _commands(reference: str, *, installed: bool) -> None:
    """`show`, `ls` and `search` print the trace; without the extra they say what to install."""
    for arguments in (["show", reference], ["ls"], ["search", "--tag", "product:9"], ["doctor"]):
        command = [sys.executable, "-W", "error", "-m", "trifle_otel", *arguments, "--archive", "./traces"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
        if installed:
            assert done.returncode == 0, done.stderr
            assert reference in done.stdout or arguments == ["doctor"], done.stdout
        else:
            assert done.returncode, done.stdout
            assert "pip install 'trifle-otel[cli]'" in done.stderr, done.stderr


def _extras(extras: set[str]) -> None:
    """What an extra is for can be imported where it is installed, and is asked for by name where it is not."""
    for extra, module in MODULES.items():
        if extra in extras:
            importlib.import_module(module)
    for extra, (archive, index) in URLS.items():
        missing = _missing(archive, index)
        assert (missing == "") == (extra in extras), (extra, missing)
        assert not missing or f"trifle-otel[{extra}]" in missing, missing


def _missing(archive: str, index: str) -> str:
    """What is said to be missing for these stores; nothing where they can be opened."""
    try:
        Archive.open(archive, index).close()
    except MissingDependency as missing:
        return str(missing)
    return ""


if __name__ == "__main__":
    main(set(sys.argv[1:]))
    version = importlib.import_module("opentelemetry.sdk.version").__version__
    sys.stdout.write(f"Python {sys.version.split()[0]}, OpenTelemetry {version}, {Path(sys.prefix).name}: works\n")
