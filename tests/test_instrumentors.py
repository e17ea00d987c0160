"""What `opentelemetry-instrument` sets up without code."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trifle_otel import Archive
from trifle_otel.integrations import instrumentors
from trifle_otel.integrations.instrumentors import INSTRUMENTORS, FrameworkInstrumentor, Row

ROOT = Path(__file__).parent.parent


def declared() -> dict[str, str]:
    """The entry points of pyproject.toml, by their names."""
    text = (ROOT / "pyproject.toml").read_text()
    group = re.search(r"\[project\.entry-points\.opentelemetry_instrumentor\]\n(.*?)\n\n", text, re.DOTALL)
    assert group is not None
    return dict(re.findall(r'^(\w+) = "(.*)"$', group[1], re.MULTILINE))


def made(row: Row) -> Any:
    """An instrumentor of a framework of this test's own."""
    return type("OwnInstrumentor", (FrameworkInstrumentor,), {"row": row})()


def test_each_instrumentor_is_an_entry_point() -> None:
    """Named after our module, so that one can be left out by its name."""
    expected = {
        f"trifle_{row.module}": f"trifle_otel.integrations.instrumentors:{name}" for name, row in INSTRUMENTORS.items()
    }
    assert declared() == expected
    for name, row in INSTRUMENTORS.items():
        assert getattr(instrumentors, name)().row is row


def test_frameworks_that_are_not_installed_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is imported, and nothing is said."""
    one = made(Row("no_such_module", "no_such_framework", "no-such-framework"))
    one.instrument(skip_dep_check=True)
    one.uninstrument()
    assert caplog.records == []
    assert list(one.instrumentation_dependencies()) == ["no-such-framework"]


def test_what_cannot_be_set_up_is_said_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A module that is not there, or fails, is one line in the log."""
    one = made(Row("no_such_module", "json", ""))
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        one.instrument(skip_dep_check=True)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "trifle_otel could not instrument no_such_module"
    ]


@pytest.mark.slow
def test_opentelemetry_instrument_is_all_that_a_program_needs(tmp_path: Path, own_folder: Path) -> None:
    """A program that knows nothing of tracing has its jobs archived, inside the spans of OpenTelemetry's own."""
    script = tmp_path / "program.py"
    script.write_text("""
from celery import Celery
app = Celery("shop", broker="memory://")
@app.task(name="shop.job")
def job(x):
    return x + 1
print(job.apply((1,)).get())
""")
    installed = tmp_path / "packages" / "trifle_otel-0.1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: trifle-otel\nVersion: 0.1.0\n")
    points = "\n".join(f"{name} = {value}" for name, value in declared().items())
    (installed / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{points}\n")
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "PYTHONPATH": f"{installed.parent}:{ROOT}",
        "TRIFLE_ARCHIVE": str(tmp_path / "archive"),
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    command = [f"{Path(sys.executable).parent}/opentelemetry-instrument", sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout.startswith("2\n")
    assert "could not instrument celery" not in done.stderr
    assert '"name": "run/shop.job"' in done.stdout
    with Archive.open(tmp_path / "archive") as archive:
        (record,) = archive.search().records
    assert (record.key, record.meta) == ("jobs/shop/job", [1])
    assert f'"trace_id": "0x{record.trace_id}"' in done.stdout
