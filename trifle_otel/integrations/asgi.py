"""Requests of ASGI applications (Starlette, FastAPI, Django and others) as traces.

    app.add_middleware(TraceMiddleware, select=lambda request: request.path.startswith("/orders"))

A trace lasts as long as the application's call, streaming and websockets included; what is sent and received passes
unchanged. Background tasks of Starlette are part of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from trifle_otel.integrations.attempts import Attempt
from trifle_otel.integrations.web import Request, WebOptions, answered, gone, start_request
from trifle_otel.runtime import runtime

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


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
        try:
            await self.app(scope, receive, _watched(send, attempt))
        except asyncio.CancelledError:
            gone(attempt)
            raise
        except BaseException as error:
            attempt.fail(error)
            raise
        attempt.succeed()


def _watched(send: Send, attempt: Attempt) -> Send:
    """`send`, which also notes the status."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered(attempt, int(message.get("status", 0)))
        await send(message)

    return watched


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
