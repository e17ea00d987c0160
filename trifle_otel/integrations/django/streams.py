"""Responses of Django that are streamed: their trace lasts until the last of the body, or until they are closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from opentelemetry.context import Context

from trifle_otel.integrations.attempts import Attempt
from trifle_otel.integrations.web import gone
from trifle_otel.otel_context import attach, get_current


def trace_to_its_end(response: Any, attempt: Attempt) -> None:
    """Have the making of a response's body traced, and its end be the trace's.

    A file that the server sends by itself (`FileResponse`) stays one: nothing is recorded while it is sent.
    """
    inside = _Inside(attempt)
    attempt.step_out()
    if getattr(response, "file_to_stream", None) is None:
        kind = AsyncBody if getattr(response, "is_async", False) else Body
        response.streaming_content = kind(response.streaming_content, inside)
    close = response.close

    def closed() -> None:
        with inside:
            close()
        attempt.succeed()

    response.close = closed  # asked for by servers of both kinds; what the body does about it is part of the trace


class _Inside:
    """A context manager in which the trace is current, or what the body has made current in it.

    It may be entered within itself: what closes a response may take a last step of its body.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self._ours = attempt.within
        self._theirs: list[Context] = []

    def __enter__(self) -> None:
        self._theirs.append(get_current())
        attach(self._ours)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind in (StopIteration, StopAsyncIteration):
                self.attempt.succeed()
            elif isinstance(error, asyncio.CancelledError):
                gone(self.attempt)  # as most streams of events end
            elif error is not None:
                self.attempt.fail(error)
            else:
                self._ours = get_current()
        finally:
            attach(self._theirs.pop())


class Body(Iterator[bytes]):
    """A body, each part of which is made in the trace; between two parts the server has its own context."""

    def __init__(self, parts: Iterator[bytes], inside: _Inside) -> None:
        self._parts = iter(parts)
        self._inside = inside

    def __next__(self) -> bytes:
        with self._inside:
            return next(self._parts)


class AsyncBody(AsyncIterator[bytes]):
    """The same of a body that is made by a coroutine."""

    def __init__(self, parts: AsyncIterator[bytes], inside: _Inside) -> None:
        self._parts = aiter(parts)
        self._inside = inside

    async def __anext__(self) -> bytes:
        with self._inside:
            return await anext(self._parts)
