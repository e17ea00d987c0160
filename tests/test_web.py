"""Requests of ASGI and WSGI applications as traces."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any
from wsgiref.handlers import SimpleHandler

import flask
import httpx
import pytest
from fastapi import APIRouter, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Incoming
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


OF_REQUESTS: dict[str, Any] = {"type": "http", "method": "GET", "asgi": {"spec_version": "2.3"}}
OF_WEBSOCKETS: dict[str, Any] = {"type": "websocket", "scheme": "ws", "subprotocols": []}


class Served:
    """A server's side of one request: hands out messages, the last of them once the application has begun to answer."""

    def __init__(self, *incoming: dict[str, Any], refuses: str | None = None) -> None:
        self.incoming = list(incoming)
        self.refuses = refuses
        self.sent: list[Any] = []
        self.begun = asyncio.Event()
        self.patient = False

    async def receive(self) -> Any:
        if not self.incoming:
            await asyncio.Event().wait()
        if self.patient and len(self.incoming) == 1:
            await self.begun.wait()
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        if message["type"] == self.refuses:  # as servers of version 2.4 of ASGI do once the client has gone
            raise OSError("closed")
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.begun.set()
        await asyncio.sleep(0)

    def serve(self, app: Any, path: str = "/", *, patient: bool = False, **scope: Any) -> None:
        """Serve one request; raises what the application raises. `patient`: the last message has to wait."""
        self.patient = patient
        kind = OF_WEBSOCKETS if self.incoming[0]["type"] == "websocket.connect" else OF_REQUESTS
        whole = {**kind, "path": path, "headers": [], "query_string": b"", **scope}
        asyncio.run(app(whole, self.receive, self.send))


ASKED: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
HALF: dict[str, Any] = {"type": "http.request", "body": b"{", "more_body": True}
GONE: dict[str, Any] = {"type": "http.disconnect"}
CONNECTED: dict[str, Any] = {"type": "websocket.connect"}
HEARD: dict[str, Any] = {"type": "websocket.receive", "text": "hello"}
CLOSED: dict[str, Any] = {"type": "websocket.disconnect", "code": 1006}
STARTED: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
FAILED: dict[str, Any] = {"type": "http.response.start", "status": 500, "headers": []}
PART: dict[str, Any] = {"type": "http.response.body", "body": b"part", "more_body": True}
LAST: dict[str, Any] = {"type": "http.response.body", "body": b"part"}
CANCELLED = "Cancelled: the client went away"


def ended(archive: Archive) -> tuple[str, list[str]]:
    """State and lines of the one trace that there is."""
    ((_, lines),) = traces(archive).items()
    return archive.search().records[0].state, lines


async def endless() -> AsyncIterator[bytes]:
    """A stream that never ends by itself."""
    while True:
        yield b"part"


async def streaming(request: Incoming) -> StreamingResponse:
    """A view that answers by it."""
    del request
    return StreamingResponse(endless())


def test_a_client_that_goes_away_in_the_middle_of_a_stream(archive: Archive) -> None:
    """Starlette hears of it, cancels what it has begun by itself, and returns as if nothing were."""
    app = Starlette(routes=[Route("/", streaming)])
    app.add_middleware(asgi.TraceMiddleware)
    Served(ASKED, GONE).serve(app, patient=True)
    assert ended(archive) == ("warning", ["Response 200", CANCELLED])


@pytest.mark.parametrize("outside", [False, True])
def test_a_client_that_goes_away_in_the_middle_of_its_upload(archive: Archive, outside: bool) -> None:
    """What Starlette raises passes, and its traceback is nobody's; nor is a 500 that is answered to nobody."""

    async def upload(request: Incoming) -> PlainTextResponse:
        await request.body()
        return PlainTextResponse("never")

    app: Any = Starlette(routes=[Route("/", upload)])
    if outside:
        app = asgi.TraceMiddleware(app)
    else:
        app.add_middleware(asgi.TraceMiddleware)
    with pytest.raises(ClientDisconnect):
        Served(HALF, GONE).serve(app)
    assert ended(archive) == ("warning", ["Response 500", CANCELLED] if outside else [CANCELLED])


def test_a_client_that_goes_away_in_the_middle_of_its_json(archive: Archive) -> None:
    """FastAPI answers 400, which nobody reads."""
    app = FastAPI()

    @app.post("/")
    async def take(body: dict[str, int]) -> None:
        del body

    app.add_middleware(asgi.TraceMiddleware)
    served = Served(HALF, GONE)
    served.serve(app, method="POST")
    assert served.sent[0]["status"] == 400
    assert ended(archive) == ("warning", ["Response 400", CANCELLED])


def telling(messages: Iterable[dict[str, Any]], then: BaseException | None = None, *, first: int = 0) -> Any:
    """An application that sends messages, hears all that it is told after the first of them, and raises `then`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        for number, message in enumerate((*messages, {})):
            if number == first:
                while (await receive())["type"] not in ("http.disconnect", "websocket.disconnect"):
                    pass
            if message:
                await send(message)
        if then is not None:
            raise then

    return asgi.TraceMiddleware(app)


@pytest.mark.parametrize(
    "last", [LAST, {**LAST, "more_body": False}, {"type": "http.response.pathsend", "path": "/etc/hosts"}]
)
def test_servers_tell_of_an_end_after_a_whole_answer_too(archive: Archive, last: dict[str, Any]) -> None:
    """They answer whoever asks so; nobody went away before the end."""
    Served(ASKED, GONE).serve(telling((STARTED, PART, last), first=3))
    assert ended(archive) == ("success", ["Response 200"])


def test_an_answer_is_whole_while_a_server_takes_the_last_of_it(archive: Archive) -> None:
    """A listener may be told of the end before the last `send` returns, as below Starlette's own middlewares."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(STARTED)
        await send(LAST)
        assert listening.done()

    Served(ASKED, GONE).serve(asgi.TraceMiddleware(app), patient=True)
    assert ended(archive) == ("success", ["Response 200"])


@pytest.mark.parametrize("error", [None, OSError("closed"), asyncio.CancelledError()])
def test_an_application_that_gives_up_because_its_client_went_away(
    archive: Archive, error: BaseException | None
) -> None:
    """By whatever it does so: it is no failure, and what it raises passes."""
    app = telling((STARTED, PART), error, first=2)
    with nullcontext() if error is None else pytest.raises(type(error)):
        Served(ASKED, GONE).serve(app)
    assert ended(archive) == ("warning", ["Response 200", CANCELLED])


def test_a_failure_stays_one_whoever_went_away(archive: Archive) -> None:
    """What else the application raises is its own fault."""
    with pytest.raises(ValueError, match="no rate"):
        Served(ASKED, GONE).serve(telling((STARTED, PART), ValueError("no rate"), first=2))
    state, lines = ended(archive)
    assert (state, lines[:2]) == ("error", ["Response 200", "Exception: no rate"])
    assert CANCELLED not in lines


def test_a_disconnect_that_nobody_told_of_is_a_failure(archive: Archive) -> None:
    """Another connection's, say, that the application has itself."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope, receive, send
        raise ClientDisconnect

    with pytest.raises(ClientDisconnect):
        Served(ASKED).serve(asgi.TraceMiddleware(app))
    assert ended(archive)[0] == "error"


def test_a_server_error_stays_one_when_its_client_goes_away(archive: Archive) -> None:
    """The client was told of it before."""
    Served(ASKED, GONE).serve(telling((FAILED, PART), first=2))
    assert ended(archive) == ("error", ["Response 500", CANCELLED])


@pytest.mark.parametrize("refused", ["http.response.start", "http.response.body"])
def test_a_server_that_takes_no_more(archive: Archive, refused: str) -> None:
    """From version 2.4 of ASGI on, `send` raises an OSError when the client has gone, and none needs to listen."""
    app = Starlette(routes=[Route("/", streaming)])
    app.add_middleware(asgi.TraceMiddleware)
    with pytest.raises(ClientDisconnect):
        Served(ASKED, refuses=refused).serve(app, asgi={"spec_version": "2.4"})
    assert ended(archive) == ("warning", ["Response 200", CANCELLED])


def chat(then: BaseException | None = None) -> FastAPI:
    """An echo, without end or with one of its own."""
    app = FastAPI()

    @app.websocket("/")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                text = await websocket.receive_text()
                trifle.trace(f"heard {text}")
                await websocket.send_text(text)
        except WebSocketDisconnect:
            if then is not None:
                raise then from None
            raise

    app.add_middleware(asgi.TraceMiddleware)
    return app


def test_a_client_that_closes_its_websocket(archive: Archive) -> None:
    """The ordinary end of one; what Starlette raises passes."""
    with pytest.raises(WebSocketDisconnect) as caught:
        Served(CONNECTED, HEARD, CLOSED).serve(chat())
    assert caught.value.code == 1006
    assert ended(archive) == ("success", ["heard hello"])


def test_a_websocket_that_is_closed_while_we_speak(archive: Archive) -> None:
    """The server takes no more; Starlette makes the same of it."""
    with pytest.raises(WebSocketDisconnect):
        Served(CONNECTED, HEARD, refuses="websocket.send").serve(chat())
    assert ended(archive) == ("success", ["heard hello"])
    with pytest.raises(OSError, match="closed"):
        Served(CONNECTED, CLOSED, refuses="websocket.send").serve(telling(({"type": "websocket.send"},)))
    assert trifle.flush(5)
    assert [record.state for record in archive.search().records] == ["success", "success"]


@pytest.mark.parametrize("error", [ValueError("no rate"), FileNotFoundError("no rate")])
def test_a_websocket_that_fails_after_its_end(archive: Archive, error: Exception) -> None:
    """What else the application raises is its own fault."""
    with pytest.raises(type(error), match="no rate"):
        Served(CONNECTED, HEARD, CLOSED).serve(chat(error))
    state, lines = ended(archive)
    assert (state, lines[:2]) == ("error", ["heard hello", "Exception: no rate"])


def test_a_websocket_that_ends_quietly(archive: Archive) -> None:
    """Most applications catch the end themselves."""
    Served(CONNECTED, CLOSED).serve(telling(({"type": "websocket.accept"},)))
    assert ended(archive) == ("success", [])


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


def served(app: Any) -> bytes:
    """The head that the standard library's server writes."""
    out = io.BytesIO()
    handler = SimpleHandler(io.BytesIO(), out, sys.stderr, {"REQUEST_METHOD": "GET", "PATH_INFO": "/"})
    handler.origin_server = False  # no date, which would differ
    handler.run(app)
    return out.getvalue().split(b"\r\n\r\n")[0]


def test_a_wsgi_body_with_a_length_keeps_it(archive: Archive) -> None:
    """Servers give a Content-Length to what is one part; an empty list is as long as it is."""
    assert served(answers) == served(wsgi.TraceMiddleware(answers))
    assert b"Content-Length: 5" in served(answers)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/"}
    for parts in ([], [b"1"], (b"1", b"2")):
        body: Any = wsgi.TraceMiddleware(lambda *_, parts=parts: parts)(environ, lambda *_: None)
        assert len(body) == len(parts)
        assert list(body) == list(parts)
        body.close()
    assert len(archive.search().records if trifle.flush(5) else []) == 4


def test_a_wsgi_body_without_a_length_gets_none(archive: Archive) -> None:
    """Nobody knows how many parts a generator will have."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"hello"

    body: Any = wsgi.TraceMiddleware(app)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, lambda *_: None)
    assert not hasattr(body, "__len__")
    assert list(body) == [b"hello"]
    body.close()
    assert served(app) == served(wsgi.TraceMiddleware(app))
    assert trifle.flush(5)


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
