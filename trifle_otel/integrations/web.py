"""A web request as one trace: what the middlewares for ASGI and WSGI have in common. No protocol is known here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.trace import SpanKind

from trifle_otel.calls import tracer
from trifle_otel.integrations.attempts import Attempt, begin, is_wanted
from trifle_otel.records import ERROR, SUCCESS, WARNING
from trifle_otel.runtime import runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request, as its server tells of it.

    Attributes:
        method: `GET`, `POST`, …; `WEBSOCKET` for one.
        path: the path that was asked for, which is no part of the key.
        query: the query string as it came.
        route: the template of the route, `/orders/{id}`; None where nobody knows.
        parameters: what the route's placeholders stand for.
        headers: in lower case.
        client: who asks.
    """

    method: str
    path: str
    query: str = ""
    route: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    client: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """Which requests are traced, and how.

    Attributes:
        select: whether a request is traced; None: each is.
        key: its key; None: `http/<method>/<route template>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """

    select: Callable[[Request], bool] | None = None
    key: Callable[[Request], str] | None = None
    mode: str | None = None
    retention: int | None = None


def start_request(describe: Callable[[], Request], options: WebOptions) -> Attempt | None:
    """Start tracing a request, here and now; None where it is not traced. Never raises.

    `describe` is asked only where there is anything to record into: looking for a route takes its time.
    """
    if not is_wanted():
        return None
    try:
        request = describe()
        if options.select is not None and not options.select(request):
            return None
        return begin(lambda alone: _tracer(request, options, alone), request.headers)
    except Exception as error:  # a callable of the user's, a request that is no usual one: it is served untraced
        runtime().troubles.report("a request could not be traced", error)
        return None


def answered(attempt: Attempt, status: int, *, unread: bool = False) -> None:
    """Note the status that was answered: 4xx as a warning's line, 5xx as the trace's state.

    `unread`: the client had gone away before, which is what most frameworks answer 500 to: a line, and no state.
    """
    if status >= 500 and unread:
        attempt.note(f"Response {status}", ERROR)
        return
    if status >= 500:
        attempt.say(f"Response {status}", ERROR)
        return
    attempt.note(f"Response {status}", WARNING if status >= 400 else SUCCESS)


def gone(attempt: Attempt) -> None:
    """End the trace of a request whose client did not wait for all of the answer: said, and no failure of ours.

    What has been an error before, a 5xx that the client was told of say, stays one.
    """
    recording, line = attempt.recording, "Cancelled: the client went away"
    if recording is not None and recording.state == ERROR:
        attempt.note(line, WARNING)
    else:
        attempt.say(line, WARNING)
    attempt.succeed()


def default_key(request: Request) -> str:
    """`http/<method>/<route template>`, never the path: a key stands for one kind of work."""
    route = (request.route or "").strip("/")
    return f"http/{request.method}/{route}" if route else f"http/{request.method}"


def _tracer(request: Request, options: WebOptions, alone: bool) -> tracer:
    meta = {"method": request.method, "path": request.path, "query": request.query, "route": request.route}
    if request.parameters:
        meta["parameters"] = dict(request.parameters)  # type: ignore[assignment]
    if request.client:
        meta["client"] = request.client
    return tracer(
        (options.key or default_key)(request),
        meta=meta,
        mode=options.mode,
        retention=options.retention,
        kind=SpanKind.SERVER if alone else SpanKind.INTERNAL,
        attributes=_attributes(request) if alone else None,
    )


def _attributes(request: Request) -> dict[str, Any]:
    """Of a server's span: https://opentelemetry.io/docs/specs/semconv/http/http-spans/. Never the query."""
    known = {
        "http.request.method": request.method,
        "url.path": request.path,
        "http.route": request.route,
        "client.address": request.client,
        "user_agent.original": request.headers.get("user-agent"),
    }
    return {name: value for name, value in known.items() if value is not None}
