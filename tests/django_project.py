"""A small Django project for tests: views of each kind, middlewares of others, and tasks.

Imported after Django's settings are there.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.urls import include, path, re_path

import trifle_otel as trifle
from trifle_otel.integrations.attempts import Job, job_options
from trifle_otel.integrations.web import Request

task: Any = import_module("django.tasks" if find_spec("django.tasks") else "django_tasks").task


waiting = asyncio.Event()  # set by views that wait for what does not come


# -- views


def order(request: HttpRequest, number: int) -> HttpResponse:
    """A plain view."""
    trifle.trace(f"order {number}")
    return HttpResponse(str(number).encode())


def item(request: HttpRequest, shop: str, number: int) -> HttpResponse:
    """A view of a URLconf that is included."""
    return HttpResponse(f"{number} of {shop}".encode())


def home(request: HttpRequest) -> HttpResponse:
    """The view of the shortest path."""
    return HttpResponse(b"home")


async def async_order(request: HttpRequest, number: int) -> HttpResponse:
    """The same as a coroutine."""
    await asyncio.sleep(0)
    trifle.trace(f"order {number}")
    return HttpResponse(str(number).encode())


def raises(request: HttpRequest, which: str) -> HttpResponse:
    """Raises what its path says."""
    raise {
        "error": ValueError("no rate"),
        "missing": Http404("no order 7"),
        "forbidden": PermissionDenied("not yours"),
    }[which]


async def async_raises(request: HttpRequest) -> HttpResponse:
    """Raises in a coroutine."""
    raise ValueError("no rate")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Three parts, made in a block."""

    def parts() -> Iterator[str]:
        try:
            with trifle.block("the parts"):
                for number in range(3):
                    trifle.trace(f"part {number}")
                    yield f"{number}\n"
        finally:
            trifle.trace("closed")

    return StreamingHttpResponse(parts())


async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    """The same as a coroutine."""

    async def parts() -> AsyncIterator[str]:
        with trifle.block("the parts"):
            for number in range(3):
                await asyncio.sleep(0)
                trifle.trace(f"part {number}")
                yield f"{number}\n"
        trifle.trace("closed")

    return StreamingHttpResponse(parts())


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """One event, and then none any more."""

    async def parts() -> AsyncIterator[str]:
        trifle.trace("an event")
        yield "event\n"
        waiting.set()
        await asyncio.Event().wait()

    return StreamingHttpResponse(parts())


def broken_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Fails after its first part."""

    def parts() -> Iterator[str]:
        yield "0\n"
        raise ValueError("no rate")

    return StreamingHttpResponse(parts())


def file(request: HttpRequest) -> FileResponse:
    """A file, which a server may send by itself."""
    return FileResponse(io.BytesIO(b"content"))


async def endless(request: HttpRequest) -> HttpResponse:
    """Waits for something that does not come."""
    trifle.trace("waiting")
    waiting.set()
    await asyncio.Event().wait()
    return HttpResponse()


def enqueues(request: HttpRequest) -> HttpResponse:
    """Enqueues a task, which is run at once."""
    return HttpResponse(str(price.enqueue(7, fast=True).return_value).encode())


urlpatterns = [
    path("orders/<int:number>/", order),
    path("async/orders/<int:number>/", async_order),
    path("shop/<slug:shop>/", include([path("items/<int:number>", item)])),
    re_path(r"^articles/(?P<number>[0-9]{4})/$", order),
    re_path(r"^pages/(\d+)/$", order),
    path("raises/<str:which>", raises),
    path("async/raises", async_raises),
    path("stream", stream),
    path("async/stream", async_stream),
    path("events", events),
    path("broken", broken_stream),
    path("file", file),
    path("endless", endless),
    path("enqueues", enqueues),
    path("", home),
]


# -- what settings name


def wanted(request: Request) -> bool:
    """A selector of requests."""
    return request.path.startswith("/orders")


def web_key(request: Request) -> str:
    """A key of requests."""
    return f"web{request.route}"


def fast_jobs(job: Job) -> bool:
    """A selector of tasks."""
    return bool(job.kwargs.get("fast"))


class FailingMiddleware:
    """A middleware of somebody else's that raises."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        del get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve nothing."""
        raise RuntimeError("no session")


class ForgivingMiddleware:
    """A middleware of somebody else's that makes an ordinary answer of what views raise."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve a request."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse:
        """Called by Django."""
        return HttpResponse(b"never mind")


# -- tasks


@task()
def price(number: int, fast: bool = False) -> int:
    """A plain task."""
    trifle.trace("pricing")
    return number * 2


@task()
async def async_price(number: int) -> int:
    """A coroutine as a task."""
    await asyncio.sleep(0)
    trifle.trace("pricing")
    return number * 2


@task(takes_context=True)
def with_context(context: Any, number: int) -> str:
    """A task that is told which attempt it is."""
    return f"{number}, attempt {context.attempt}"


@task()
def failing() -> None:
    """A task that fails."""
    raise ValueError("no rate")


@task()
def calling() -> int:
    """A task that calls another one as a function, and enqueues it."""
    value: int = price.call(1)
    price.enqueue(2)
    return value


@task()
@job_options(trace=False)
def untraced() -> int:
    """A task that is not traced."""
    return 7


@task()
@job_options(key="prices/nightly", retention=90)
def nightly() -> int:
    """A task with options of its own."""
    return 7


stored = price.using(backend="stored")
never = price.using(backend="dummy")
