"""Requests of Django as traces: the middleware, and where a request's route comes from.

How a body that is streamed goes on being traced is in `streams`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.signals import got_request_exception
from django.urls import Resolver404, get_resolver

from trifle_otel.integrations.attempts import Attempt
from trifle_otel.integrations.django.options import given
from trifle_otel.integrations.django.streams import trace_to_its_end
from trifle_otel.integrations.web import Request, answered, gone, start_request
from trifle_otel.records import WARNING
from trifle_otel.runtime import runtime
from trifle_otel.values import exception_text

_ERROR: Final = "_trifle_error"  # attribute of a request that is traced: what was raised while it was served
_OF_REGULAR_EXPRESSIONS: Final = frozenset("^$(\\")


class TraceMiddleware:
    """Traces requests, in synchronous and in asynchronous stacks; the setting `TRIFLE` says which, and how.

    Its key is `http/<method>/<route>`, by the URLconf of the request where this middleware stands; of what no route
    matches, `http/<method>`. What a view raises is recorded, whatever Django answers; it is a failure where that is a
    5xx. A body that is streamed is part of the trace.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self.get_response = get_response
        self.options = given().requests
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)
        got_request_exception.connect(_raised, dispatch_uid="trifle_otel")

    def __call__(self, request: Any) -> Any:
        """Serve a request."""
        if self._is_async:
            return self._serve(request)
        attempt = self._started(request)
        if attempt is None:
            return self.get_response(request)
        try:
            response = self.get_response(request)
        except BaseException as error:
            attempt.fail(error)
            raise
        _end(attempt, request, response)
        return response

    async def _serve(self, request: Any) -> Any:
        attempt = self._started(request)
        if attempt is None:
            return await self.get_response(request)
        try:
            response = await self.get_response(request)
        except asyncio.CancelledError:
            gone(attempt)
            raise
        except BaseException as error:
            attempt.fail(error)
            raise
        _end(attempt, request, response)
        return response

    def process_exception(self, request: Any, exception: Exception) -> None:
        """Called by Django with what a view raised, before it becomes a response."""
        _note(request, exception)

    def _started(self, request: Any) -> Attempt | None:
        attempt = start_request(lambda: _described(request), self.options)
        if attempt is not None:
            setattr(request, _ERROR, None)
        return attempt


def _raised(request: Any = None, **_: Any) -> None:
    """Called by Django with what becomes a 500, such as what another middleware raises."""
    error = sys.exc_info()[1]
    if error is not None:
        _note(request, error)


def _note(request: Any, error: BaseException) -> None:
    """The first that was raised counts: later ones are about handling it."""
    if getattr(request, _ERROR, error) is None:
        setattr(request, _ERROR, error)


def _end(attempt: Attempt, request: Any, response: Any) -> None:
    """Note what was answered, and end the trace, or let the body end it. Never raises."""
    error = request.__dict__.pop(_ERROR, None)  # it holds frames, which hold the request
    try:
        answered(attempt, response.status_code)
        if error is not None and response.status_code >= 500:
            attempt.fail(error)
            return
        if error is not None:
            attempt.note(f"{type(error).__name__}: {exception_text(error)}", WARNING)
        if getattr(response, "streaming", False):
            trace_to_its_end(response, attempt)
            return
    except Exception as fault:  # a response that is no usual one
        runtime().troubles.report("a response could not be traced", fault)
    attempt.succeed()


def _described(request: Any) -> Request:
    route, parameters = _route(request)
    return Request(
        method=request.method or "GET",
        path=request.path,
        query=request.META.get("QUERY_STRING", ""),
        route=route,
        parameters=parameters,
        headers={name.lower(): value for name, value in request.headers.items()},
        client=request.META.get("REMOTE_ADDR"),
    )


def _route(request: Any) -> tuple[str | None, dict[str, Any]]:
    """The template of the route that will serve a request, and its parameters: Django itself looks only later."""
    try:
        match = get_resolver(getattr(request, "urlconf", None)).resolve(request.path_info)
        parameters = match.kwargs or {str(place): value for place, value in enumerate(match.args)}
        return "/" + _readable(match.route or "").lstrip("/"), dict(parameters)
    except Resolver404:
        return None, {}
    except Exception as error:  # a URLconf that cannot be imported, say: Django will say so too
        runtime().troubles.report("a request's route could not be found", error)
        return None, {}


def _readable(route: str) -> str:
    """A route's template, `orders/<int:id>/`; regular expressions become `articles/<year>/`."""
    if _OF_REGULAR_EXPRESSIONS.isdisjoint(route):
        return route
    from django.contrib.admindocs import utils  # noqa: PLC0415 - seldom needed, and it loads docutils where that is

    for simplified in (
        utils.remove_non_capturing_groups,
        utils.replace_named_groups,
        utils.replace_unnamed_groups,
        utils.replace_metacharacters,
    ):
        route = simplified(route)
    return route.replace("\\", "")
