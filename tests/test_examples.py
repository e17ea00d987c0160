"""The examples: each runs by the command that it names, and its traces are in the archive."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import servers

from trifle_otel import Archive

EXAMPLES = Path(__file__).parent.parent / "examples"
JOBS = sorted(path for path in EXAMPLES.glob("*.py") if path.stem != "price_calculation")

slow = pytest.mark.slow


def run(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example in the test's folder."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def archived(name: str, **environment: str) -> list[tuple[str, str]]:
    """Run an example; gives keys and states of the traces that are in its archive, and were shown."""
    done = run(name, **environment)
    assert done.returncode == 0, done.stderr
    with Archive.open("traces") as archive:
        records = archive.search().records
    assert all(record.reference in done.stdout for record in records)
    return sorted((record.key, record.state) for record in records)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_its_docstring_names_the_command(path: Path) -> None:
    """The command that runs it, and what it needs."""
    text = path.read_text()
    docstring = text.split('"""')[1]
    assert re.search(rf"^    .*python {path.name}$", docstring, re.MULTILINE)
    assert 'pip install "trifle-otel[' in docstring


def test_cron_script() -> None:
    """A run is a trace."""
    assert archived("cron_script.py") == [("cron/daily_totals", "warning")]


def test_prefect_flow() -> None:
    """Without Prefect too."""
    assert archived("prefect_flow.py") == [("flows/convert_prices", "success")]


def test_flask_app() -> None:
    """Requests are traces of their rules; the one that is not wanted is none."""
    assert archived("flask_app.py") == [
        ("http/GET/catalogue", "success"),
        ("http/GET/prices/<int:product>", "error"),
        ("http/GET/prices/<int:product>", "success"),
    ]


def test_django_app() -> None:
    """Requests and a task."""
    assert archived("django_app.py") == [
        ("http/GET/prices/<int:product>", "error"),
        ("http/GET/prices/<int:product>", "success"),
        ("jobs/__main__/publish", "success"),
    ]


@slow
def test_fastapi_app() -> None:
    """Requests are traces of their routes."""
    assert archived("fastapi_app.py") == [
        ("http/GET/catalogue", "success"),
        ("http/GET/prices/{product}", "success"),
        ("http/GET/prices/{product}", "warning"),
    ]


@slow
def test_apscheduler_app() -> None:
    """Runs are traces, those of the heartbeat are not."""
    assert set(archived("apscheduler_app.py")) == {("shop/synchronise", "error"), ("shop/synchronise", "success")}


@slow
def test_taskiq_app() -> None:
    """Attempts are traces, all of one distributed trace."""
    assert archived("taskiq_app.py") == [
        *[("jobs/shop/price", "success")] * 2,
        *[("jobs/shop/price", "warning")] * 2,
        ("shop/campaign", "success"),
        *[("shop/publish", "success")] * 2,
    ]


@pytest.mark.parametrize(
    "name, variable",
    [("arq_app.py", "REDIS_URL"), ("rq_app.py", "REDIS_URL"), ("procrastinate_app.py", "DATABASE_URL")],
)
def test_what_needs_a_server_says_so(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is recorded, and the message says what to do."""
    monkeypatch.delenv(variable, raising=False)
    done = run(name)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"python {name}")
    assert f"{variable}=" in done.stderr


def test_dramatiq_app() -> None:
    """Attempts are traces."""
    assert archived("dramatiq_app.py") == [
        *[("jobs/dramatiq_app/price", "success")] * 2,
        *[("jobs/dramatiq_app/price", "warning")] * 2,
        *[("shop/publish", "success")] * 2,
    ]


def test_huey_app() -> None:
    """Attempts are traces."""
    assert archived("huey_app.py") == [
        *[("jobs/huey_app/price", "success")] * 2,
        *[("jobs/huey_app/price", "warning")] * 2,
        ("shop/campaign", "success"),
        *[("shop/publish", "success")] * 2,
    ]


@slow
def test_rq_app(server_missing: Callable[[str], NoReturn]) -> None:
    """Against a real Redis."""
    try:
        server = servers.redis()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    assert archived("rq_app.py", REDIS_URL=f"redis://127.0.0.1:{server.port}") == [
        ("jobs/rq_app/price", "error"),
        ("jobs/rq_app/price", "success"),
        ("jobs/rq_app/price", "warning"),
        ("shop/campaign", "success"),
        ("shop/publish", "success"),
    ]


@slow
def test_arq_app(server_missing: Callable[[str], NoReturn]) -> None:
    """Against a real Redis."""
    try:
        server = servers.redis()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    assert archived("arq_app.py", REDIS_URL=f"redis://127.0.0.1:{server.port}") == [
        ("shop/campaign", "success"),
        *[("shop/price", "success")] * 2,
        *[("shop/price", "warning")] * 2,
    ]


@slow
def test_procrastinate_app(server_missing: Callable[[str], NoReturn]) -> None:
    """Against a real PostgreSQL."""
    try:
        server = servers.postgres()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    assert archived("procrastinate_app.py", DATABASE_URL=server.url()) == [
        ("jobs/shop/price", "success"),
        ("jobs/shop/price", "warning"),
        ("shop/publish", "success"),
    ]


@slow
def test_the_service_is_one_distributed_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans of two processes, of OpenTelemetry's instrumentations and of ours, each below the one that caused it."""
    monkeypatch.delenv("BROKER", raising=False)
    done = run("service/run.py")
    assert done.returncode == 0, done.stderr
    with Archive.open("traces") as archive:
        records = archive.search().records
    assert [record.key for record in records] == ["jobs/shop/price", "http/POST/orders/{product}"]
    assert len({record.trace_id for record in records}) == 1
    tree = done.stdout.partition("One distributed trace, of both processes:\n")[2].splitlines()
    assert tree[:7] == [
        "web     POST /orders/{product}",
        f"web       http/POST/orders/{{product}}  {records[1].reference}",
        "web         Enqueueing",
        "web           apply_async/shop.price",
        "worker          run/shop.price",
        f"worker            jobs/shop/price  {records[0].reference}",
        "worker              Asking the bank",
    ]
