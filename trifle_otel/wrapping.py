"""Functions of every kind inside a frame: plain, coroutine, generator, asynchronous generator.

`wrap` serves the decorators of blocks and of traces alike: it is given what opens a frame, and
opens a fresh one for each call, so recursion and concurrent tasks each have their own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, TypeVar, cast

from opentelemetry.context import attach, get_current

from trifle_otel.recording import Frame

F = TypeVar("F", bound=Callable[..., Any])
Opener = Callable[[], "Frame | None"]

LAZY = frozenset((CoroutineType, GeneratorType, AsyncGeneratorType))
"""Types of values that do nothing until somebody waits for them or steps through them."""

_LAZY_CODE = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def is_lazy(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or generator, as far as its code tells."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _LAZY_CODE)


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
    else:
        wrapper = _plain(function, opener)
    return cast("F", functools.wraps(function)(wrapper))


def call(function: Callable[[], Any], frame: Frame) -> Any:
    """Call `function` inside `frame`, which is open and current, and end the frame with what it gives.

    Where that is a coroutine or generator, the frame stays open until it has finished.
    """
    try:
        value = function()
    except BaseException as error:
        frame.leave_with(error)
        raise
    if value.__class__ in LAZY:
        return later(value, frame)
    frame.returned(value)
    return value


def later(value: Any, frame: Frame) -> Any:
    """A coroutine or generator whose end is the end of `frame`; until it runs, the frame is not current."""
    if get_current() is frame.ours:
        attach(frame.before)

    def enter() -> Frame:
        attach(frame.ours)
        return frame

    if isinstance(value, CoroutineType):
        return _await(value, enter)
    if isinstance(value, GeneratorType):
        return _steps(value, enter)
    return _async_steps(value, enter)


def _plain(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        frame = opener()
        if frame is None:
            return function(*args, **kwargs)
        try:
            value = function(*args, **kwargs)
        except BaseException as error:
            frame.leave_with(error)
            raise
        if value.__class__ is CoroutineType:
            return later(value, frame)
        frame.returned(value)
        return value

    return wrapper


def _coroutine(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await _await(function(*args, **kwargs), opener)

    return wrapper


def _generator(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return (yield from _steps(function(*args, **kwargs), opener))

    return wrapper


def _async_generator(function: Callable[..., Any], opener: Opener) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        steps = _async_steps(function(*args, **kwargs), opener)
        sent: Any = None
        try:
            while True:
                try:
                    item = await steps.asend(sent)
                except StopAsyncIteration:
                    return
                while True:
                    try:
                        sent = yield item
                        break
                    except GeneratorExit:
                        raise
                    except BaseException as thrown:
                        try:
                            item = await steps.athrow(thrown)
                        except StopAsyncIteration:
                            return
        finally:
            await steps.aclose()

    return wrapper


async def _await(coroutine: Coroutine[Any, Any, Any], opener: Opener) -> Any:
    frame = opener()
    if frame is None:
        return await coroutine
    try:
        value = await coroutine
    except BaseException as error:
        frame.leave_with(error)
        raise
    frame.returned(value)
    return value


def _steps(generator: Generator[Any, Any, Any], opener: Opener) -> Generator[Any, Any, Any]:
    """Our context for each step, theirs again at each yield: what the body left current is kept for its next step."""
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
                ours = get_current()
                attach(theirs)
            sent = thrown = None
            try:
                sent = yield item
                theirs = get_current()
            except GeneratorExit:
                _abandon(generator, ours)
                frame.leave()
                raise
            except BaseException as error:
                thrown = error
                theirs = get_current()
    except StopIteration as stop:
        frame.returned(stop.value)
        return stop.value
    except BaseException as error:
        frame.leave_with(error)  # does nothing where the frame was left already
        raise


def _abandon(generator: Generator[Any, Any, Any], ours: Any) -> None:
    """Let the body clean up, in its own context."""
    theirs = get_current()
    attach(ours)
    try:
        generator.close()
    finally:
        attach(theirs)


async def _async_steps(generator: AsyncGenerator[Any, Any], opener: Opener) -> AsyncGenerator[Any, Any]:
    theirs = get_current()
    frame = opener()
    ours = theirs if frame is None else frame.ours
    sent: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            attach(ours)
            try:
                item = await (generator.asend(sent) if thrown is None else generator.athrow(thrown))
            finally:
                ours = get_current()
                attach(theirs)
            sent = thrown = None
            try:
                sent = yield item
                theirs = get_current()
            except GeneratorExit:
                await _abandon_async(generator, ours)
                if frame is not None:
                    frame.leave()
                raise
            except BaseException as error:
                thrown = error
                theirs = get_current()
    except StopAsyncIteration:
        if frame is not None:
            frame.leave()
    except BaseException as error:
        if frame is not None:
            frame.leave_with(error)
        raise


async def _abandon_async(generator: AsyncGenerator[Any, Any], ours: Any) -> None:
    theirs = get_current()
    attach(ours)
    try:
        await generator.aclose()
    finally:
        attach(theirs)
