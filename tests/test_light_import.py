"""What `import trifle_otel` loads: a job that is about to start waits for it, and so does each command.

No time is asserted here, which a busy machine would falsify (`python -m benchmarks.run --only footprint` measures it);
but the modules that cost most must not come back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "opentelemetry.sdk": "as much as all of ours",
    "opentelemetry.exporter": "several times as much",
    "importlib.metadata": "a quarter of all of ours",
    "email": "what importlib.metadata needs",
    "zipfile": "the same",
    "difflib": "a misspelt setting needs it",
    "hashlib": "OpenSSL; a key that is too long needs it",
    "ssl": "OpenSSL",
    "socket": "drivers and the spool need it",
    "subprocess": "commands need it",
    "asyncio": "frameworks bring it",
    "sqlite3": "the index needs it, once something is indexed",
    "http": "drivers need it",
    "urllib.request": "nobody needs it",
    "logging.config": "nobody needs it",
    "multiprocessing": "frameworks bring it",
    "google.protobuf": "OTLP needs it",
    "typing_extensions": "types alone need it",
    "rich": "the command line needs it",
    "cyclopts": "the same",
    "starlette": "the viewer needs it",
    "jinja2": "the same",
    "obstore": "object storage needs it",
    "psycopg": "PostgreSQL needs it",
    "pymongo": "MongoDB needs it",
    "trifle_otel.stores": "an archive needs them",
    "trifle_otel.indexes": "the same",
    "trifle_otel.archive": "readers need it",
    "trifle_otel.delivery": "a process that is configured needs it",
    "trifle_otel.shipper": "the same",
    "trifle_otel.integrations": "each is imported by who uses it",
    "trifle_otel.testing": "tests need it",
}
"""What must not be loaded, with what lies below it, and why not."""


def modules_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nloaded = list(sys.modules)\nimport json\nprint(json.dumps(loaded))"
    run = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    done = subprocess.run(run, cwd=root, capture_output=True, check=True, timeout=60, text=True)
    return set(json.loads(done.stdout))


@pytest.fixture(scope="module")
def added() -> set[str]:
    """What the import of ours adds to that of OpenTelemetry's API."""
    return modules_after("import trifle_otel") - modules_after("import opentelemetry.trace")


def test_importing_loads_nothing_heavy(added: set[str]) -> None:
    """None of the modules that cost most is among those that `import trifle_otel` loads."""
    found = {name for name in added for heavy in HEAVY if name == heavy or name.startswith(f"{heavy}.")}
    assert found == set()


def test_the_heavy_ones_are_named_rightly() -> None:
    """What is on the list and is ours, the standard library's or the SDK's is there, so that each line holds."""
    names = [name for name in HEAVY if name.startswith(("trifle_otel", "opentelemetry")) or "." not in name]
    standard = [name for name in names if name.startswith(("trifle", "open")) or name in sys.stdlib_module_names]
    assert set(standard) <= modules_after("import " + ", ".join(standard))


def test_a_line_without_set_up_loads_nothing_heavy() -> None:
    """A process that records nothing, since nothing is configured, pays for nothing either."""
    code = "import trifle_otel as trifle\nwith trifle.tracer('job'):\n    trifle.trace('line', lambda: 1)"
    added = modules_after(code) - modules_after("import opentelemetry.trace\nopentelemetry.trace.get_current_span()")
    assert not {"sqlite3", "trifle_otel.delivery", "trifle_otel.archive", "opentelemetry.sdk"} & added
