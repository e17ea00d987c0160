"""Requests of ASGI applications (Starlette, FastAPI, Django and others) as traces.

    app.add_middleware(TraceMiddleware, select=lambda request: request.path.startswith("/orders"))

A trace lasts as long as the application's call, streaming and websockets included; what is sent and received passes
unchanged. Background tasks of Starlette are part of it. A client that goes away before its answer is whole is a
warning; one that closes its websocket is how websockets end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from trifle_otel.integrations.attempts import Attempt
from trifle_otel.integrations.web import Request, WebOptions, answered, gone, start_request
from trifle_otel.runtime import runtime

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# what brings a body, or the last of it; the latter two are extensions, for servers that send files themselves
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
_CLOSED: Final = frozenset({"WebSocketDisconnect"})  # Starlette's
_DISCONNECTS: Final = _CLOSED | {"ClientDisconnect"}


class TraceMiddleware:
    """Traces requests and websockets of an ASGI application.

    Args:
        app: the application.
        select: whether a request is traced; None: each is.
        key: its key; None: `http/<method>/<route template>`. Where the application's routes are not known (they are for
            Starlette and FastAPI), the key is `http/<method>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """

    def __init__(
        self,
        app: Application,
        *,
        select: Callable[[Request], bool] | None = None,
        key: Callable[[Request], str] | None = None,
        mode: str | None = None,
        retention: int | None = None,
    ) -> None:
        self.app = app
        self.options = WebOptions(select=select, key=key, mode=mode, retention=retention)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        traced = scope["type"] in ("http", "websocket")
        attempt = start_request(lambda: _request(scope), self.options) if traced else None
        if attempt is None:
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(attempt, receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:
            exchange.end(error)
            raise
        exchange.end(None)


class _Exchange:
    """The messages of one request or websocket, which pass unchanged: what they say of the answer and of the client."""

    __slots__ = ("_answered", "_attempt", "_closed", "_gone", "_receive", "_refusal", "_send")

    def __init__(self, attempt: Attempt, receive: Receive, send: Send) -> None:
        self._attempt = attempt
        self._receive = receive
        self._send = send
        self._answered = False
        """The answer to a request is whole."""
        self._gone = False
        """The client of a request went away before that, and the application was told so."""
        self._closed = False
        """A websocket was closed, and the application was told so."""
        self._refusal: OSError | None = None
        """What the server last raised because there was nobody to send to."""

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message.get("type")
        if kind == "http.disconnect":
            self._lost()
        elif kind == "websocket.disconnect":
            self._closed = True
        return message

    async def send(self, message: Message) -> None:
        kind, whole = message.get("type"), self._answered
        if kind == "http.response.start":
            answered(self._attempt, int(message.get("status", 0)), unread=self._gone)
        elif kind in _BODIES and not message.get("more_body", False):
            # before it is sent: from then on servers tell everybody who listens of a disconnect, and `send` may wait
            self._answered = True
        try:
            await self._send(message)
        except OSError as error:  # by version 2.4 of ASGI: the client has gone
            self._refusal = error
            self._answered = whole  # not by this message
            if kind is not None and kind.startswith("websocket."):
                self._closed = True
            else:
                self._lost()
            raise

    def end(self, error: BaseException | None) -> None:
        """The application returned, or raised `error`."""
        refusal, self._refusal = self._refusal, None  # its traceback leads back here: a cycle
        if isinstance(error, asyncio.CancelledError) or (self._gone and _is_of_a_disconnect(error)):
            gone(self._attempt)
        elif error is None or (self._closed and (_is_named(error, _CLOSED) or error is refusal)):
            self._attempt.succeed()
        else:
            self._attempt.fail(error)

    def _lost(self) -> None:
        if not self._answered:
            self._gone = True


def _is_of_a_disconnect(error: BaseException | None) -> bool:
    """Whether a request whose client is known to have gone ended because of that; None: quietly."""
    return error is None or isinstance(error, OSError) or _is_named(error, _DISCONNECTS)


def _is_named(error: BaseException, names: frozenset[str]) -> bool:
    """Whether its class has one of the names: no framework is imported for that."""
    return any(kind.__name__ in names for kind in type(error).__mro__)


def _request(scope: Scope) -> Request:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
    route, parameters = _route(scope)
    client = scope.get("client")
    return Request(
        method=scope.get("method", "WEBSOCKET"),
        path=scope.get("path", ""),
        query=scope.get("query_string", b"").decode("latin-1"),
        route=route,
        parameters=parameters,
        headers=headers,
        client=client[0] if client else None,
    )


def _route(scope: Scope) -> tuple[str | None, dict[str, Any]]:
    """The template of the route that will serve a request, and its parameters, where the routes can be asked."""
    try:
        found = _match(getattr(scope.get("app"), "routes", ()), scope)
    except Exception as error:  # routes of another framework, or of another release: the key is a shorter one
        runtime().troubles.report("a request's route could not be found", error)
        found = None
    return (None, {}) if found is None else found


def _match(routes: Iterable[Any], scope: Scope) -> tuple[str, dict[str, Any]] | None:
    for route in routes:
        included = getattr(route, "effective_route_contexts", None)  # FastAPI's, of a router that was included
        found = _match_one(route, scope) if included is None else _match_included(included(), scope)
        if found is not None:
            return found
    return None


def _match_one(route: Any, scope: Scope) -> tuple[str, dict[str, Any]] | None:
    matches, path = getattr(route, "matches", None), getattr(route, "path", None)
    if matches is None or not isinstance(path, str):
        return None
    match, more = matches(scope)
    if getattr(match, "name", "") != "FULL":
        return None
    parameters = dict(more.get("path_params", {}))
    within = getattr(route, "routes", None)
    if within:  # a mount: the rest of the path is matched below it
        inner = _match(within, {**scope, **more})
        if inner is not None:
            return path.rstrip("/") + inner[0], {**parameters, **inner[1]}
    return path, parameters


def _match_included(contexts: Iterable[Any], scope: Scope) -> tuple[str, dict[str, Any]] | None:
    """Among what FastAPI makes of the routes of an included router: their whole paths and methods."""
    for context in contexts:
        if context.starlette_route is not None:
            found = _match_one(context.starlette_route, scope)
            if found is not None:
                return found
            continue
        match = context.path_regex.match(scope["path"])
        if match is not None and scope.get("method") in (context.methods or ()):
            return context.path_format, match.groupdict()
    return None
