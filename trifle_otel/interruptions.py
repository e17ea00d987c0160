"""Exceptions that others raise into whatever happens to run, a job's time limit above all: no guard of ours keeps them.

Frameworks end a job that takes too long by an exception out of a signal's handler, or out of another thread. It may
strike while our code runs, inside one of the guards that keep our own faults from the job; were it kept there too, the
job would run on without limit. So each guard hands what it has caught to `let_pass`, most of them by reporting it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import CodeType
from typing import Any

_kinds: tuple[type[BaseException], ...] = ()


def add(kind: type[BaseException]) -> None:
    """Let exceptions of this kind pass from now on. Those that a signal's handler raises pass anyway."""
    global _kinds  # noqa: PLW0603 - what this process is set up with
    if kind not in _kinds:
        _kinds = (*_kinds, kind)


def remove(kind: type[BaseException]) -> None:
    """Let them pass no more."""
    global _kinds  # noqa: PLW0603 - what this process is set up with
    _kinds = tuple(other for other in _kinds if other is not kind)


def let_pass(error: BaseException) -> None:
    """Raise `error` again where it is an interruption; give way where it is a fault. For the guards of ours."""
    if is_interruption(error):
        raise error


def is_interruption(error: BaseException) -> bool:
    """Whether an exception is none that our code, or what it called, has made: somebody wants the job to end."""
    return not isinstance(error, Exception) or isinstance(error, _kinds) or _is_of_a_signal(error)


def _is_of_a_signal(error: BaseException) -> bool:
    """Whether the handler of a signal has raised it; Python calls handlers in the main thread alone."""
    trace = error.__traceback__
    if trace is None or threading.current_thread() is not threading.main_thread():
        return False
    handlers = set(_handlers())
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _handlers() -> Iterator[CodeType]:
    """The code of each handler that is installed."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        if callable(handler):
            function = getattr(handler, "func", handler)  # of a partial
            function = getattr(function, "__func__", function)  # of a method
            code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
            if code is not None:
                yield code
