"""Requests of WSGI applications (Flask, Django and others) as traces.

    app.wsgi_app = TraceMiddleware(app.wsgi_app, route=flask_route(app))

A trace lasts until the server has taken the last of the body, or has closed it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from trifle_otel.integrations.attempts import Attempt
from trifle_otel.integrations.web import Request, WebOptions, answered, start_request
from trifle_otel.otel_context import attach, get_current

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]
RouteOf = Callable[[Environ], "tuple[str | None, dict[str, Any]]"]


class TraceMiddleware:
    """Traces requests of a WSGI application.

    Args:
        app: the application.
        route: gives the template of a request's route and its parameters, as `flask_route(app)` does; None: the key is
            `http/<method>`.
        select: whether a request is traced; None: each is.
        key: its key; None: `http/<method>/<route template>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """

    def __init__(
        self,
        app: Application,
        *,
        route: RouteOf | None = None,
        select: Callable[[Request], bool] | None = None,
        key: Callable[[Request], str] | None = None,
        mode: str | None = None,
        retention: int | None = None,
    ) -> None:
        self.app = app
        self.route = route
        self.options = WebOptions(select=select, key=key, mode=mode, retention=retention)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve a request."""
        attempt = start_request(lambda: self._request(environ), self.options)
        if attempt is None:
            return self.app(environ, start_response)
        try:
            body = self.app(environ, _watched(start_response, attempt))
        except BaseException as error:
            attempt.fail(error)
            raise
        return (_SizedBody if isinstance(body, Sized) else _Body)(body, attempt)

    def _request(self, environ: Environ) -> Request:
        route, parameters = (None, {}) if self.route is None else self.route(environ)
        return Request(
            method=environ.get("REQUEST_METHOD", "GET"),
            path=environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            route=route,
            parameters=parameters,
            headers={
                name[5:].replace("_", "-").lower(): str(value)
                for name, value in environ.items()
                if name.startswith("HTTP_")
            },
            client=environ.get("REMOTE_ADDR"),
        )


def flask_route(app: Any) -> RouteOf:
    """For a Flask application: what gives the rule that serves a request, `/orders/<int:id>`, and its arguments."""

    def route(environ: Environ) -> tuple[str | None, dict[str, Any]]:
        try:
            rule, arguments = app.url_map.bind_to_environ(environ).match(return_rule=True)
        except Exception:  # no route, another method, a redirect: Flask answers that, under no template
            return None, {}
        return rule.rule, dict(arguments)

    return route


def _watched(start_response: StartResponse, attempt: Attempt) -> StartResponse:
    """`start_response`, which also notes the status."""

    def watched(status: str, *rest: Any, **more: Any) -> Any:
        code = status.split(" ", 1)[0]
        if code.isdecimal():
            answered(attempt, int(code))
        return start_response(status, *rest, **more)

    return watched


class _Body:
    """The body of an answer. Each step of it runs in the trace; between two steps the server has its own context."""

    def __init__(self, body: Iterable[bytes], attempt: Attempt) -> None:
        self._body = body
        self._attempt = attempt
        self._steps: Iterator[bytes] | None = None
        self._ours = attempt.within
        attempt.step_out()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        before = get_current()
        attach(self._ours)
        try:
            if self._steps is None:
                self._steps = iter(self._body)
            return next(self._steps)
        except StopIteration:
            raise
        except BaseException as error:
            self._attempt.fail(error)
            raise
        finally:
            self._ours = get_current()  # with a block in it that goes on in the next step
            attach(before)

    def close(self) -> None:
        """The server is done with it."""
        before = get_current()
        attach(self._ours)
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._attempt.fail(error)
            raise
        finally:
            self._attempt.succeed()
            attach(before)


class _SizedBody(_Body):
    """The same of a body that has a length: of one that is a single part, servers know the Content-Length."""

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
