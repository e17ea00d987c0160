"""OpenTelemetry's instrumentations of real libraries, which talk to real servers of this machine, in traces of ours."""

from __future__ import annotations

import asyncio
import http.server
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from opentelemetry.instrumentation import _semconv
from ports import free_port
from servers import ServerMissingError
from servers import redis as redis_server
from spans import Sdk, block_named, scope, tree

import trifle_otel as trifle

Instrument = Callable[[type[Any]], None]
"""Switches an instrumentation on for the rest of a test."""


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers `/<status>` with that status."""

    def do_GET(self) -> None:
        """Answer."""
        body = b"an answer"
        self.send_response(int(self.path.strip("/").split("?")[0]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it has there
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A web server of this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["old", "stable"])
def conventions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The semantic conventions that instrumentations follow, which they read once a process."""
    if request.param == "stable":
        monkeypatch.setenv("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
    chosen: Any = _semconv._OpenTelemetrySemanticConventionStability
    monkeypatch.setattr(chosen, "_initialized", False)
    yield request.param
    chosen._initialized = False


@pytest.fixture
def sdk() -> Sdk:
    """This process set up with an SDK that keeps its spans, and an archive in memory."""
    return Sdk().configure()


@pytest.fixture
def instrument(sdk: Sdk) -> Iterator[Instrument]:
    """Switches an instrumentation on for the test."""
    switched_on: list[Any] = []

    def switch_on(kind: type[Any]) -> None:
        instrumentor = kind()
        instrumentor.instrument(tracer_provider=sdk.provider)
        switched_on.append(instrumentor)

    yield switch_on
    for instrumentor in switched_on:
        instrumentor.uninstrument()


def test_requests(sdk: Sdk, instrument: Instrument, url: str, conventions: str) -> None:
    """A call of `requests` is its method, its URL and its status; a failed one its error, too."""
    import requests
    from opentelemetry.instrumentation.requests import RequestsInstrumentor

    instrument(RequestsInstrumentor)
    nobody = f"http://127.0.0.1:{free_port()}/"
    with trifle.tracer("a/job"), trifle.block("Loading rates"):
        requests.get(f"{url}/200?day=2", timeout=5)
        requests.get(f"{url}/404", timeout=5)
        with suppress(requests.ConnectionError):
            requests.get(nobody, timeout=5)
    shown = tree(sdk.entries)
    assert shown[:5] == [
        *("Loading rates", "  GET", f"    = GET {url}/200?day=2 → 200"),
        *("  GET", f"    = GET {url}/404 → 404"),
    ]
    found = outcome(sdk, 2)
    assert found[0] == "error"
    assert found[1].startswith(f"GET {nobody}")
    assert "ConnectionError" in "\n".join(entry.message for entry in sdk.entries)


def outcome(sdk: Sdk, number: int) -> tuple[str, str]:
    """State and result of the block of the foreign span of that number, in the order of their ends."""
    from trifle_otel.outline import outline

    entries = sdk.entries
    blocks = [block for block in outline(entries).blocks if block.message == "GET"]
    result = blocks[number].result
    assert result is not None
    return blocks[number].state, entries[result].message.removeprefix("↳ ")


def test_httpx(sdk: Sdk, instrument: Instrument, url: str, conventions: str) -> None:
    """Calls of `httpx`, plain and in tasks that run at the same time, lie in the blocks that make them."""
    import httpx
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    instrument(HTTPXClientInstrumentor)

    async def load(client: httpx.AsyncClient, status: int) -> None:
        with trifle.block(f"task {status}"):
            await client.get(f"{url}/{status}")

    async def load_all() -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(load(client, status) for status in (200, 201, 503)))

    with trifle.tracer("a/job"):
        with httpx.Client() as client:
            client.get(f"{url}/204")
        asyncio.run(load_all())
    entries = sdk.entries
    assert tree(entries)[:2] == ["GET", f"  = GET {url}/204 → 204"]
    for status, state in ((200, "success"), (201, "success"), (503, "error")):
        (call,) = block_named(entries, f"task {status}").children
        assert call.result is not None
        assert (call.state, entries[call.result].message) == (state, f"↳ GET {url}/{status} → {status}")


def test_sqlite3(sdk: Sdk, instrument: Instrument, conventions: str) -> None:
    """A statement is the result of its block, and what SQLite had against it an error in there."""
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

    instrument(SQLite3Instrumentor)
    with trifle.tracer("a/job"), closing(sqlite3.connect(":memory:")) as connection:
        cursor = connection.cursor()
        with trifle.block("Writing"):
            cursor.execute("CREATE TABLE prices (product INTEGER,\n    price REAL)")
        with suppress(sqlite3.OperationalError):
            cursor.execute("SELECT * FROM rates")
    entries = sdk.entries
    (create,) = block_named(entries, "Writing").children
    assert create.result is not None
    assert entries[create.result].message == "↳ CREATE TABLE prices (product INTEGER, price REAL)"
    select = block_named(entries, "SELECT")
    assert select.state == "error"
    assert [entries[place].message.splitlines()[0] for place in select.lines] == [
        "Exception: no such table: rates",
        "Traceback (most recent call last):",
    ]
    assert select.result is not None
    assert entries[select.result].message.startswith("↳ SELECT * FROM rates")


def test_what_we_do_ourselves_makes_no_spans(tmp_path: Path, instrument: Instrument, sdk: Sdk) -> None:
    """Our own index in SQLite, under the same instrumentation, leaves no spans: neither in traces nor beside them."""
    from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor

    instrument(SQLite3Instrumentor)
    archive = trifle.configure(tmp_path / "archive", tracer_provider=sdk.provider, default_mode="live")
    with trifle.tracer("a/job"):
        trifle.trace("a line")
    assert trifle.flush()
    assert len(archive.search().records) == 1
    assert {scope(span) for span in sdk.spans} == {"trifle_otel"}


def test_redis(sdk: Sdk, instrument: Instrument, server_missing: Callable[[str], NoReturn], conventions: str) -> None:
    """A command of Redis is its statement, a pipeline all of them; an answer that is an error makes an error."""
    import redis
    from opentelemetry.instrumentation.redis import RedisInstrumentor

    try:
        server = redis_server()
    except ServerMissingError as missing:
        server_missing(str(missing))
    instrument(RedisInstrumentor)
    with redis.Redis(port=server.port) as client:
        client.flushall()
        with trifle.tracer("a/job"):
            client.set("price:9", "24.80")
            with client.pipeline() as pipeline:
                pipeline.get("price:9")
                pipeline.incr("seen")
                pipeline.execute()
            with suppress(redis.ResponseError):
                client.lpop("price:9")
    shown = tree(sdk.entries)
    results = [line.strip() for line in shown if line.strip().startswith("= ")]
    assert results[:2] == ["= SET ? ?", "= GET ?; INCRBY ? ?"]
    assert block_named(sdk.entries, "LPOP").state == "error"


def test_flask(sdk: Sdk, instrument: Instrument, url: str) -> None:
    """In a request under Flask's instrumentation a trace has the calls that it makes, and not the request around it."""
    import flask
    import requests
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from werkzeug.serving import make_server

    app = flask.Flask("shop")
    instrumentor: Any = FlaskInstrumentor  # it has no types
    instrumentor.instrument_app(app, tracer_provider=sdk.provider)
    instrument(RequestsInstrumentor)

    @app.get("/orders/<int:number>")
    def order(number: int) -> str:
        with trifle.tracer("orders/show", meta=[number]):
            return requests.get(f"{url}/200", timeout=5).text

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        answer = requests.get(f"http://127.0.0.1:{server.server_port}/orders/7", timeout=5)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        instrumentor.uninstrument_app(app)
    assert (answer.status_code, answer.text) == (200, "an answer")
    assert tree(sdk.entries) == ["GET", f"  = GET {url}/200 → 200"]
    request = sdk.named("GET /orders/<int:number>")
    assert request.context is not None
    assert sdk.record.trace_id == f"{request.context.trace_id:032x}"


def test_fastapi(sdk: Sdk, instrument: Instrument, url: str) -> None:
    """In a request under FastAPI's instrumentation, coroutines and threads of the pool alike record what they call."""
    import fastapi
    import httpx
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    app = fastapi.FastAPI()
    FastAPIInstrumentor.instrument_app(app, tracer_provider=sdk.provider)
    instrument(HTTPXClientInstrumentor)

    @app.get("/slow")
    async def slow() -> str:
        with trifle.tracer("orders/slow"), trifle.block("Loading"):
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{url}/200")).text

    @app.get("/plain")
    def plain() -> str:
        with trifle.tracer("orders/plain"), httpx.Client() as client:
            return client.get(f"{url}/201").text

    async def ask() -> list[str]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop") as client:
            return [(await client.get(path)).json() for path in ("/slow", "/plain")]

    assert asyncio.run(ask()) == ["an answer"] * 2
    FastAPIInstrumentor.uninstrument_app(app)
    assert trifle.flush()
    found = {record.key: tree(list(sdk.archive.entries(record))) for record in sdk.archive.search().records}
    assert found == {
        "orders/slow": ["Loading", "  GET", f"    = GET {url}/200 → 200", "  = None"],
        "orders/plain": ["GET", f"  = GET {url}/201 → 201"],
    }


def test_threading(sdk: Sdk, instrument: Instrument, url: str) -> None:
    """With the instrumentation of threads, calls made in threads and pools lie in the block that started those."""
    import requests
    from opentelemetry.instrumentation.requests import RequestsInstrumentor
    from opentelemetry.instrumentation.threading import ThreadingInstrumentor

    instrument(ThreadingInstrumentor)
    instrument(RequestsInstrumentor)
    with trifle.tracer("a/job"):
        with trifle.block("In a thread"):
            thread = threading.Thread(target=requests.get, args=(f"{url}/200",))
            thread.start()
            thread.join()
        with trifle.block("In a pool"), ThreadPoolExecutor(2) as pool:
            list(pool.map(requests.get, [f"{url}/201", f"{url}/202"]))
    entries = sdk.entries
    called = {}
    for name in ("In a thread", "In a pool"):
        results = [block.result for block in block_named(entries, name).children]
        called[name] = sorted(entries[result].message for result in results if result is not None)
    assert called == {
        "In a thread": [f"↳ GET {url}/200 → 200"],
        "In a pool": [f"↳ GET {url}/201 → 201", f"↳ GET {url}/202 → 202"],
    }
