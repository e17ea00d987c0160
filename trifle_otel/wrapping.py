"""Functions of every kind inside a frame: plain, coroutine, generator, asynchronous generator.

`wrap` serves the decorators of blocks and of traces alike: it is given what opens a frame, and
opens a fresh one for each call, so recursion and concurrent tasks each have their own.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import AsyncGeneratorType, CodeType, CoroutineType, GeneratorType
from typing import Any, TypeVar, cast

from trifle_otel.frames import Frame, current_frame
from trifle_otel.otel_context import attach, get_current

F = TypeVar("F", bound=Callable[..., Any])
Opener = Callable[[], "Frame | None"]

LAZY = frozenset((CoroutineType, GeneratorType, AsyncGeneratorType))
"""Types of values that do nothing until somebody waits for them or steps through them."""

_LAZY_CODE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def is_lazy(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or generator, as far as its code tells."""
    code = getattr(function, "__code__", None)
    return type(code) is CodeType and bool(code.co_flags & _LAZY_CODE)


def wrap(function: F, opener: Opener) -> F:
    """`function` in a frame that `opener` opens for each call. Raises `TypeError` for what cannot be called."""
    if isinstance(function, staticmethod | classmethod):
        kind = cast("Callable[[Any], F]", type(function))
        return kind(wrap(function.__func__, opener))
    if not callable(function):
        raise TypeError(
            f"cannot trace a {type(function).__name__}: put this decorator below @{type(function).__name__}"
        )
    if inspect.iscoroutinefunction(function):
        wrapper: Callable[..., Any] = _coroutine(function, opener)
    elif inspect.isasyncgenfunction(function):
        wrapper = _async_generator(function, opener)
    elif inspect.isgeneratorfunction(function):
        wrapper = _generator(function, opener)
        if function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE:  # it can be awaited
            wrapper = types.coroutine(wrapper)
    else:
        wrapper = _plain(function, opener)
    return cast("F", functools.wraps(function)(wrapper))


def call(function: Callable[[], Any], frame: Frame) -> Any:
    """Call `function` inside `frame`, which is open and current, and end the frame with what it gives.

    Where that is a coroutine or generator, the frame stays open until it has finished.
    """
    try:
        value = function()
        if type(value) not in LAZY:  # not its `__class__`, which a value may lie about, or raise at
            frame.returned(value)
            return value
    except BaseException as error:  # an interruption, too, that strikes while the value is recorded
        frame.leave_with(error)
        raise
    return later(value, frame)


def later(value: Any, frame: Frame) -> Any:
    """A coroutine or generator whose end is the end of `frame`; until it runs, the frame is not current."""
    if get_current() is frame.ours:
        attach(frame.before)

    def enter() -> Frame:
        frame.before = get_current()  # it may run in another task than the one that it was made in
        attach(frame.ours)
        return frame

    def given() -> Any:
        return value

    if isinstance(value, CoroutineType):
        return _await(value, enter)
    if isinstance(value, GeneratorType) and value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        steps: Callable[..., Any] = types.coroutine(_generator(given, enter))
        return steps()
    return (_generator if isinstance(value, GeneratorType) else _async_generator)(given, enter)()


def _plain(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        frame = opener()
        if frame is None:
            return function(*args, **kwargs)
        try:
            value = function(*args, **kwargs)
            if type(value) is not CoroutineType:
                frame.returned(value)
                return value
        except BaseException as error:
            frame.leave_with(error)
            raise
        return later(value, frame)

    return wrapper


def _coroutine(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await _await(function(*args, **kwargs), opener)

    return wrapper


async def _await(coroutine: Coroutine[Any, Any, Any], opener: Opener) -> Any:
    frame = opener()
    if frame is None:
        return await coroutine
    try:
        value = await coroutine
        frame.returned(value)
    except BaseException as error:
        frame.leave_with(error)
        raise
    return value


def _generator(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    """Our context for each step, theirs again at each yield: what the body left current is kept for its next step."""

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        theirs = get_current()
        frame = opener()
        if frame is None:
            return (yield from generator)
        ours = frame.ours
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                attach(ours)
                try:
                    item = generator.send(sent) if thrown is None else generator.throw(thrown)
                finally:
                    sent = thrown = None
                    ours = get_current()
                    attach(theirs)
                try:
                    sent = yield item
                except BaseException as error:  # of the consumer, or GeneratorExit where it stops: the body's to handle
                    thrown = error
                theirs = get_current()
        except StopIteration as stop:
            frame.returned(stop.value)
            return stop.value
        except GeneratorExit:
            frame.leave()
            raise
        except BaseException as error:
            frame.leave_with(error)
            raise

    return wrapper


def _async_generator(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = _Steps(function(*args, **kwargs), opener)
        sent: Any = None
        thrown: BaseException | None = None
        try:
            while True:
                try:
                    item = await steps.next(sent, thrown)
                finally:
                    sent = thrown = None
                try:
                    sent = yield item
                except BaseException as error:  # of the consumer, or GeneratorExit where it stops: the body's to handle
                    thrown = error
        except (StopAsyncIteration, GeneratorExit) as end:
            steps.leave(None)
            if isinstance(end, GeneratorExit):
                raise
        except BaseException as error:
            steps.leave(error)
            raise

    return wrapper


class _Steps:
    """The steps of an asynchronous generator: in our context where its block is recorded, in theirs otherwise."""

    __slots__ = ("frame", "generator", "ours", "started")

    def __init__(self, generator: AsyncGenerator[Any, Any], opener: Opener) -> None:
        self.generator = generator
        self.started = False
        theirs = get_current()
        self.frame = frame = opener()
        if frame is not None:
            self.ours = frame.ours
            attach(theirs)

    async def next(self, sent: Any, thrown: BaseException | None) -> Any:
        step = self._step(sent, thrown)
        frame = self.frame
        if frame is None:
            return await step
        theirs = get_current()
        attach(self.ours)
        try:
            item = await step
        except GeneratorExit:
            if _within(frame):  # elsewhere, where whoever drops a task that waits here closes it
                attach(theirs)
            raise
        except BaseException:
            attach(theirs)
            raise
        self.ours = get_current()
        attach(theirs)
        return item

    def leave(self, error: BaseException | None) -> None:
        """End the block."""
        if self.frame is None:
            return
        if error is None:
            self.frame.leave()
        else:
            self.frame.leave_with(error)

    def _step(self, sent: Any, thrown: BaseException | None) -> Any:
        if thrown is not None:
            return self.generator.athrow(thrown)
        if self.started:
            return self.generator.asend(sent)
        self.started = True
        hooks = sys.get_asyncgen_hooks()  # the event loop closes what it knows of, all at once: it is to know the
        sys.set_asyncgen_hooks(None, None)  # wrapper alone, which closes the body
        try:
            return self.generator.asend(None)
        finally:
            sys.set_asyncgen_hooks(*hooks)


def _within(frame: Frame) -> bool:
    """Whether what is current is this frame or lies in it."""
    inner = current_frame()
    while inner is not None and inner is not frame:
        inner = inner.parent
    return inner is frame
