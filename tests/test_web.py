"""Requests of ASGI and WSGI applications as traces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import flask
import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.integrations import asgi, wsgi
from trifle_otel.integrations.web import Request
from trifle_otel.runtime import runtime


@pytest.fixture
def archive() -> Archive:
    """An archive in memory that this process records into."""
    return trifle.configure("memory:")


class TestClient:
    """Asks an ASGI application, each time in a loop of its own."""

    __test__ = False

    def __init__(self, app: Any) -> None:
        self.app = app

    def __enter__(self) -> TestClient:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """The answer to a GET; raises what the application raises."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.get(path, headers=headers)

        return asyncio.run(ask())


def traces(archive: Archive) -> dict[str, list[str]]:
    """The messages of each trace but its first line, by its key."""
    assert trifle.flush(5)
    return {record.key: [e.message for e in archive.entries(record)][1:] for record in archive.search().records}


def fast_application(**options: Any) -> FastAPI:
    """A FastAPI application with our middleware."""
    app = FastAPI()
    router = APIRouter()

    @app.get("/orders/{number}")
    async def order(number: int) -> dict[str, int]:
        trifle.trace(f"order {number}")
        return {"number": number}

    @router.get("/items/{item}")
    def item(item: str) -> str:
        trifle.trace("in a thread")
        return item

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(3):
                trifle.trace(f"part {number}")
                yield f"{number}\n".encode()

        return StreamingResponse(parts())

    @app.get("/raises")
    async def raises() -> None:
        raise ValueError("no rate")

    @app.websocket("/chat/{room}")
    async def chat(websocket: WebSocket, room: str) -> None:
        await websocket.accept()
        text = await websocket.receive_text()
        trifle.trace(f"heard {text}")
        await websocket.send_text(text.upper())
        await websocket.close()

    deeper = APIRouter()

    @deeper.get("/sizes/{size}")
    async def size(size: int) -> int:
        return size

    router.include_router(deeper, prefix="/rings")
    app.include_router(router, prefix="/shop/{shop}")
    app.add_middleware(asgi.TraceMiddleware, **options)
    return app


def test_a_request_is_a_trace_of_its_route(archive: Archive) -> None:
    """The key is the route's template, the path and the parameters are in the meta."""
    with TestClient(fast_application()) as client:
        assert client.get("/orders/7?full=1").json() == {"number": 7}
    assert traces(archive) == {"http/GET/orders/{number}": ["order 7", "Response 200"]}
    meta = archive.search().records[0].meta
    assert (meta["path"], meta["query"], meta["route"]) == ("/orders/7", "full=1", "/orders/{number}")
    assert meta["parameters"] == {"number": "7"}
    assert runtime().troubles.counts == {}


def test_routers_and_mounts_are_looked_into(archive: Archive) -> None:
    """The template is the whole one, from the top."""
    with TestClient(fast_application()) as client:
        assert client.get("/shop/9/items/ring").json() == "ring"
        assert client.get("/shop/9/rings/sizes/54").json() == 54
    inner = Starlette(routes=[Route("/mails/{id}", lambda _: PlainTextResponse("mail"))])
    app = Starlette(routes=[Mount("/api", inner)])
    app.add_middleware(asgi.TraceMiddleware)
    with TestClient(app) as client:
        assert client.get("/api/mails/3").text == "mail"
    deep = "http/GET/shop/{shop}/rings/sizes/{size}"
    assert set(traces(archive)) == {"http/GET/shop/{shop}/items/{item}", deep, "http/GET/api/mails/{id}"}
    assert traces(archive)["http/GET/shop/{shop}/items/{item}"] == ["in a thread", "Response 200"]


def test_a_path_without_a_route_is_no_key(archive: Archive) -> None:
    """Whatever is asked for, the number of keys stays small; a 404 is no failure of ours."""
    with TestClient(fast_application()) as client:
        for number in range(3):
            assert client.get(f"/nothing/{number}").status_code == 404
    records = archive.search().records if trifle.flush(5) else []
    assert [(record.key, record.state) for record in records] == [("http/GET", "success")] * 3


def test_a_stream_is_recorded_to_its_end(archive: Archive) -> None:
    """The trace lasts until the last part was sent."""
    with TestClient(fast_application()) as client:
        assert client.get("/stream").text == "0\n1\n2\n"
    assert traces(archive) == {"http/GET/stream": ["Response 200", "part 0", "part 1", "part 2"]}


def test_an_exception_passes_and_is_recorded(archive: Archive) -> None:
    """The application's own error handling sees it as if we were not there."""
    with TestClient(fast_application()) as client, pytest.raises(ValueError, match="no rate"):
        client.get("/raises")
    (record,) = archive.search().records if trifle.flush(5) else []
    assert (record.key, record.state) == ("http/GET/raises", "error")
    assert traces(archive)["http/GET/raises"][0] == "Exception: no rate"


@pytest.mark.parametrize(
    "path, key, lines",
    [
        ("/never", "http/GET/never", ["waiting", "Cancelled: the client went away"]),
        ("/endless", "http/GET/endless", ["Response 200", "a part", "Cancelled: the client went away"]),
    ],
)
def test_a_client_that_goes_away(archive: Archive, path: str, key: str, lines: list[str]) -> None:
    """Before the answer, and in the middle of a stream: servers cancel the application; that is no failure of it."""
    app = FastAPI()

    async def run() -> None:
        waiting = asyncio.Event()

        @app.get("/never")
        async def never() -> None:
            trifle.trace("waiting")
            waiting.set()
            await asyncio.Event().wait()

        @app.get("/endless")
        async def endless() -> StreamingResponse:
            async def parts() -> AsyncIterator[bytes]:
                trifle.trace("a part")
                yield b"part"
                waiting.set()
                await asyncio.Event().wait()

            return StreamingResponse(parts())

        app.add_middleware(asgi.TraceMiddleware)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asking = asyncio.ensure_future(client.get(path))
            await waiting.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(run())
    assert traces(archive) == {key: lines}
    assert [record.state for record in archive.search().records] == ["warning"]


def test_a_websocket_is_one_trace(archive: Archive) -> None:
    """From its handshake to its end."""
    incoming: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "hello"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "websocket", "path": "/chat/red", "headers": [], "query_string": b""}
    asyncio.run(fast_application()({**scope, "scheme": "ws", "subprotocols": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "HELLO"
    assert traces(archive) == {"http/WEBSOCKET/chat/{room}": ["heard hello"]}


def test_requests_are_chosen_and_named(archive: Archive) -> None:
    """A selector and a key of the user's own."""

    def select(request: Request) -> bool:
        return request.path.startswith("/orders")

    app = fast_application(select=select, key=lambda request: f"web/{request.route}", mode="deferred", retention=3)
    with TestClient(app) as client:
        client.get("/orders/7")
        client.get("/stream")
    (record,) = archive.search().records if trifle.flush(5) else []
    assert (record.key, record.retention) == ("web/orders/{number}", 3)


def test_the_servers_span_takes_the_callers_context() -> None:
    """One distributed trace joins caller and service, where no other instrumentation does that."""
    sdk = Sdk().configure()
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "user-agent": "test"}
    with TestClient(fast_application()) as client:
        client.get("/orders/7", headers=headers)
    assert parent_id(sdk.root) == "b7ad6b7169203331"
    assert sdk.root.kind is SpanKind.SERVER
    found = attributes(sdk.root)
    assert (found["http.request.method"], found["http.route"]) == ("GET", "/orders/{number}")
    assert sdk.root.name == "http/GET/orders/{number}"


def test_requests_at_once_do_not_meet(archive: Archive) -> None:
    """Each has its own trace, however they are interleaved."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        trifle.trace(f"start {scope['path']}")
        await asyncio.sleep(0)
        trifle.trace(f"end {scope['path']}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        transport = httpx.ASGITransport(asgi.TraceMiddleware(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await asyncio.gather(*(client.get(f"/{number}") for number in range(5)))

    asyncio.run(ask())
    assert trifle.flush(5)
    found = [[entry.message for entry in archive.entries(record)] for record in archive.search().records]
    assert sorted(lines[1:] for lines in found) == [
        [f"start /{number}", f"end /{number}", "Response 200"] for number in range(5)
    ]


def test_background_tasks_are_part_of_their_request(archive: Archive) -> None:
    """Starlette runs them inside the application's call."""
    task = BackgroundTask(lambda: trifle.trace("in the background"))
    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("ok", background=task))])
    app.add_middleware(asgi.TraceMiddleware)
    with TestClient(app) as client:
        client.get("/")
    assert traces(archive) == {"http/GET": ["Response 200", "in the background"]}


def flask_application(**options: Any) -> flask.Flask:
    """A Flask application with our middleware."""
    app = flask.Flask("shop")

    @app.get("/orders/<int:number>")
    def order(number: int) -> str:
        trifle.trace(f"order {number}")
        return str(number)

    @app.get("/stream")
    def stream() -> flask.Response:
        def parts() -> Iterator[str]:
            try:
                for number in range(3):
                    trifle.trace(f"part {number}")
                    yield f"{number}\n"
            finally:
                trifle.trace("closed")

        return flask.Response(parts())

    @app.get("/raises")
    def raises() -> str:
        raise ValueError("no rate")

    app.wsgi_app = wsgi.TraceMiddleware(app.wsgi_app, route=wsgi.flask_route(app), **options)  # type: ignore[method-assign]
    return app


def test_a_flask_request_is_a_trace_of_its_rule(archive: Archive) -> None:
    """The key is the rule, the arguments are in the meta."""
    with flask_application().test_client() as client:
        assert client.get("/orders/7", buffered=True).text == "7"
    assert traces(archive) == {"http/GET/orders/<int:number>": ["order 7", "Response 200"]}
    assert archive.search().records[0].meta["parameters"] == {"number": 7}


def test_a_wsgi_stream_is_recorded_to_its_end(archive: Archive) -> None:
    """Each part is made in the trace; between them the server has its own context."""
    with flask_application().test_client() as client:
        answer = client.get("/stream", buffered=False)
        parts = answer.iter_encoded()
        assert next(parts) == b"0\n"
        assert trifle.current() is None
        assert list(parts) == [b"1\n", b"2\n"]
        answer.close()
    assert traces(archive) == {"http/GET/stream": ["Response 200", "part 0", "part 1", "part 2", "closed"]}


def test_a_block_goes_on_from_one_part_of_a_wsgi_stream_to_the_next(archive: Archive) -> None:
    """What is recorded behind a part is in the block that was open before it."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        with trifle.block("Rows"):
            yield b"1"
            trifle.trace("between")
            yield b"2"

    body: Any = wsgi.TraceMiddleware(app)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    assert list(body) == [b"1", b"2"]
    body.close()
    assert trifle.flush(5)
    (record,) = archive.search().records
    assert [(entry.level, entry.message) for entry in archive.entries(record)][1:] == [
        (0, "Response 200"),
        (0, "Rows ↴"),
        (1, "between"),
        (0, "Rows ↵"),
        (0, "↳ None"),
    ]


def test_a_wsgi_stream_that_nobody_wants_any_more(archive: Archive) -> None:
    """A client that goes away ends the trace, and what the body does about it is in it."""
    with flask_application().test_client() as client:
        answer = client.get("/stream", buffered=False)
        next(answer.iter_encoded())
        answer.close()
    assert traces(archive) == {"http/GET/stream": ["Response 200", "part 0", "closed"]}


def test_flask_answers_errors_itself(archive: Archive) -> None:
    """What the framework turns into a 500 is an error by its status; without a route the key is short."""
    with flask_application().test_client() as client:
        assert client.get("/raises", buffered=True).status_code == 500
        assert client.get("/nothing/7", buffered=True).status_code == 404
    assert trifle.flush(5)
    found = {record.key: record.state for record in archive.search().records}
    assert found == {"http/GET/raises": "error", "http/GET": "success"}


def test_a_wsgi_application_that_raises(archive: Archive) -> None:
    """The exception passes unmodified."""

    def app(environ: Any, start_response: Any) -> Any:
        raise ValueError("no rate")

    with pytest.raises(ValueError, match="no rate"):
        wsgi.TraceMiddleware(app)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    assert traces(archive)["http/GET"][0] == "Exception: no rate"
    assert trifle.current() is None


def answers(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """A WSGI application."""
    del environ
    start_response("200 OK", [])
    return [b"hello"]


def test_a_route_that_cannot_be_found_stops_no_request() -> None:
    """What `route` raises is its own fault: the request is served, untraced, and the fault is told."""
    faults: list[BaseException] = []
    archive = trifle.configure("memory:", error_handler=faults.append)

    def route(environ: dict[str, Any]) -> Any:
        raise KeyError(environ["PATH_INFO"])

    app = wsgi.TraceMiddleware(answers, route=route)
    body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/orders"}, lambda *_: None)
    assert list(body) == [b"hello"]
    assert traces(archive) == {}
    assert [type(fault) for fault in faults] == [KeyError]


def test_without_configuration_requests_pass() -> None:
    """Neither an archive nor an SDK: the middleware is not there, and no route is looked for."""
    with TestClient(fast_application()) as client:
        assert client.get("/orders/7").json() == {"number": 7}
    asked: list[Any] = []
    app = wsgi.TraceMiddleware(answers, route=asked.append)  # type: ignore[arg-type]
    assert list(app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)) == [b"hello"]
    assert asked == []
