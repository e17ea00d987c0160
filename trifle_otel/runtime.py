"""What recording needs of its surroundings: the settings in force, where traces go, and where our own faults end.

Recording itself is in `recording`; what reads the environment and names drivers is in `configuration`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trifle_otel.interruptions import let_pass
from trifle_otel.redaction import Redactor
from trifle_otel.settings import Settings
from trifle_otel.values import serializer

if TYPE_CHECKING:
    from pathlib import Path

    from trifle_otel.recording import Recording

logger = logging.getLogger("trifle_otel")

Event = Literal["liftoff", "bump", "wrapup"]
EVENTS: tuple[Event, ...] = ("liftoff", "bump", "wrapup")

LOG_EVERY = 60.0
"""Seconds between two log lines about the same kind of trouble."""


class Sink(Protocol):
    """Where recordings go. No method raises, and none waits for a network."""

    def place(self, recording: Recording) -> str | None:
        """At the start of a trace: the bucket that it will be stored in, where there are buckets."""

    def finish(self, recording: Recording) -> None:
        """Make a finished trace durable. It is when this returns."""

    def bump(self, recording: Recording) -> None:
        """Make what a running trace has recorded so far durable, and let go of it."""

    def artifact(self, recording: Recording, name: str, source: bytes | Path, cleanup: bool) -> int:
        """Keep an artifact; gives its size in bytes, or -1 where it could not be kept (which is counted)."""
        ...

    def uri(self, recording: Recording) -> str | None:
        """URI of the trace's folder in the archive."""

    def flush(self, timeout: float) -> bool:
        """Ship what waits; True when all of it is shipped in time."""
        ...

    def shutdown(self, timeout: float) -> bool:
        """Ship what waits and stop; True when all of it is shipped in time."""
        ...


class Troubles:
    """Our own faults: counted by kind, handed to the error handler, logged at most once a minute for each kind."""

    def __init__(self, handler: Callable[[BaseException], None] | None, clock: Callable[[], float] = time.monotonic):
        self._handler = handler
        self._clock = clock
        self._lock = threading.RLock()  # a finalizer or a signal's handler may have something to report, anywhere
        self._logged: dict[str, tuple[float, int]] = {}
        self.counts: Counter[str] = Counter()
        self.also: Callable[[str, int], None] | None = None
        """Told of each: what, and how often. For metrics."""
        _all_troubles.add(self)

    def report(self, what: str, error: BaseException | None = None, amount: int = 1, detail: str = "") -> None:
        """Count `what` went wrong (one of few texts), and tell of it, with `detail`.

        Raises nothing, but `error` again where it is no fault of ours: see `interruptions`.
        """
        if error is not None:
            let_pass(error)
        with self._lock:
            self.counts[what] += amount
            due = self._due(what)
        if self.also is not None:
            try:
                self.also(what, amount)
            except Exception as second:  # another SDK's metrics
                let_pass(second)
                logger.warning("what went wrong could not be measured: %r", second)
        if error is not None and self._handler is not None:
            try:
                self._handler(error)
            except Exception as second:  # a handler of the user's: its own fault is logged beside ours
                let_pass(second)
                logger.warning("error_handler raised %r", second)
        elif due:
            because = f": {error!r}" if error is not None else ""
            logger.warning("%s%s (%d so far)%s", what, detail and f" ({detail})", self.counts[what], because)

    def after_fork(self) -> None:
        """In a forked child: a thread that is gone may have held the lock."""
        self._lock = threading.RLock()

    def _due(self, what: str) -> bool:
        now = self._clock()
        last = self._logged.get(what)
        if last is not None and now - last[0] < LOG_EVERY:
            return False
        self._logged[what] = (now, self.counts[what])
        return True


_all_troubles: weakref.WeakSet[Troubles] = weakref.WeakSet()


class Runtime:
    """The settings in force, worked out once, so that recording only reads attributes."""

    def __init__(self, settings: Settings, sink: Sink | None) -> None:
        self.settings = settings
        self.sink = sink
        self.troubles = Troubles(settings.error_handler)
        self.serialize: Callable[[Any], str] = serializer(settings.serializer)
        self.nothing = self.serialize(None)
        self.redactor: Redactor | None = _redactor(settings.redaction)
        self.pid = os.getpid()
        self.provider: Any = None  # the TracerProvider that was seen last
        self.on_provider: Callable[[Any], object] | None = None
        """Told of each TracerProvider that traces go to, before the first one does."""

    def see(self, provider: Any) -> None:
        """Tell of a TracerProvider that traces go to from now on."""
        self.provider = provider
        if self.on_provider is not None:
            try:
                self.on_provider(provider)
            except Exception as error:  # a provider of another kind: our own spans can do without
                self.troubles.report("a provider took no span processor", error)


_callbacks: dict[Event, list[Callable[[Recording], object]]] = {event: [] for event in EVENTS}
_runtime: Runtime | None = None
_first_use: Callable[[], None] | None = None
_lock = threading.RLock()  # guards `_runtime`; nothing of others is called under it


def install(runtime: Runtime | None) -> None:
    """Put a runtime in force."""
    global _runtime  # noqa: PLW0603 - what this process is set up with
    with _lock:
        _runtime = runtime


def at_first_use(configure: Callable[[], None]) -> None:
    """What to call when something is recorded and nothing was configured; it may call `install`.

    Threads may call it at once.
    """
    global _first_use  # noqa: PLW0603
    _first_use = configure


def runtime() -> Runtime:
    """The runtime in force; without configuration one that keeps no archive."""
    return _runtime or _start()


def _start() -> Runtime:
    global _runtime  # noqa: PLW0603 - what this process is set up with
    try:
        if _first_use is not None:
            _first_use()
    except Exception as error:  # a wrong environment variable must not stop the job that it was meant to record
        let_pass(error)
        logger.warning("trifle_otel is not configured, nothing is archived: %s", error)
    if _runtime is not None:
        return _runtime
    without_archive = Runtime(Settings(), None)
    with _lock:
        if _runtime is None:  # else another thread has configured meanwhile
            _runtime = without_archive
        return _runtime


def on(event: Event, callback: Callable[[Recording], object]) -> Callable[[Recording], object]:
    """Call `callback` with the trace at its start (`liftoff`), at each flush (`bump`) or before it ends (`wrapup`).

    A callback that raises is counted and logged; the job goes on. Gives the callback back.
    Raises `ValueError` for another event.
    """
    if event not in _callbacks:
        raise ValueError(f"no event {event!r}; there are {', '.join(EVENTS)}")
    _callbacks[event].append(callback)
    return callback


def forget_callbacks() -> None:
    """Forget what `on` was given."""
    for callbacks in _callbacks.values():
        callbacks.clear()


def announce(event: Event, recording: Recording) -> None:
    """Call the callbacks of an event."""
    for callback in tuple(_callbacks[event]):
        try:
            callback(recording)
        except Exception as error:  # users' code: it must not stop the job
            recording.runtime.troubles.report(f"a {event} callback raised", error)


def _redactor(redaction: Redactor | bool) -> Redactor | None:
    if redaction is True:
        return Redactor()
    return redaction or None


def _after_fork() -> None:
    """In a forked child: threads that held a lock are gone."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for troubles in list(_all_troubles):
        troubles.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
