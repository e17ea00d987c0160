"""Celery: each attempt at a task is a trace, in every pool, with OpenTelemetry's own instrumentation or without.

An attempt begins where Celery tells its loader that a task starts: after every receiver of `task_prerun`, among them
OpenTelemetry's, and before the task's own `before_start`. It ends as the first receiver of `task_postrun`: after the
task's `on_success`, `on_failure`, `on_retry` and `after_return`, before OpenTelemetry's span ends, and before the
worker lets go of the message. What an attempt is, is in `attempts`; nothing of the task itself is wrapped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from signal import Signals
from typing import Any, Final
from weakref import WeakKeyDictionary

from opentelemetry.trace import SpanKind

from trifle_otel import interruptions
from trifle_otel.calls import prepare
from trifle_otel.integrations.attempts import Attempt, Job, Options, end, inject, start
from trifle_otel.integrations.logging import follow_celery
from trifle_otel.runtime import runtime

try:
    from celery import _state, signals, states
    from celery.app import trace as celery_trace
    from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
    from celery.loaders.base import BaseLoader
except ImportError as missing:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(f"this traces Celery's tasks: pip install 'trifle-otel[celery]' ({missing})") from missing

HOUSEKEEPING: Final = frozenset({"celery.backend_cleanup", "celery.chord_unlock"})
"""Tasks of Celery's own that poll and tidy up: traced only where `select` says so."""

_HOOK: Final = "on_task_init"

_options: Options | None = None
_hooked: dict[Any, Any] = {}  # classes of loaders, and what they had in the place of our hook
_attempts: WeakKeyDictionary[Any, Attempt] = WeakKeyDictionary()  # by the request that is being worked on


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at a task of this process, and of the pool's processes that it starts.

    Call it where the application is made, so that the worker's main process has it too; called again it changes the
    options. In a pool's process (`worker_process_init`) it works as well.

    Args:
        select: whether an attempt is traced; None: each is, but for `HOUSEKEEPING`.
        key: its key, or what gives it; None: `jobs/<module path>/<name>`.
        mode: `live` (flushed while it runs) or `deferred` (written when it ends); None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        interruptions.add(SoftTimeLimitExceeded)
        for loader in _loaders(BaseLoader):
            _hook(loader)
        signals.worker_init.connect(_worker_starts, weak=False)
        signals.before_task_publish.connect(_is_published, weak=False)
        signals.task_postrun.connect(_ends, weak=False)
        follow_celery()
        _come_first()
        _build_again()


def uninstrument() -> None:
    """Trace no more attempts. Those that run are still ended."""
    global _options  # noqa: PLW0603
    _options = None
    interruptions.remove(SoftTimeLimitExceeded)
    for loader, theirs in _hooked.items():
        setattr(loader, _HOOK, theirs)
    _hooked.clear()
    signals.worker_init.disconnect(_worker_starts)
    signals.before_task_publish.disconnect(_is_published)


# -- where Celery calls us


def _loaders(loader: Any) -> Iterator[Any]:
    """A class of loaders and all that are made of it."""
    yield loader
    for special in loader.__subclasses__():
        yield from _loaders(special)


def _hook(loader: Any) -> None:
    """Have a class of loaders tell us of each task that starts, where it is not another class that does."""
    theirs = vars(loader).get(_HOOK)
    if theirs is None or loader in _hooked:
        return

    @wraps(theirs)
    def on_task_init(self: Any, task_id: str, task: Any) -> Any:
        _starts(task)
        return theirs(self, task_id, task)

    _hooked[loader] = theirs
    setattr(loader, _HOOK, on_task_init)


def _come_first() -> None:
    """Put our receiver of `task_postrun` before all others: one of them ends the span around ours."""
    signal: Any = signals.task_postrun
    with signal.lock:
        signal.receivers[:] = sorted(signal.receivers, key=lambda item: item[1] is not _ends)


def _build_again() -> None:
    """Have tasks call our hook that were made ready to run before it was there, as in a pool's process."""
    node: Any = getattr(celery_trace, "_localized", None) or (None, None, None)  # its last is the worker's name
    for app in _state._get_active_apps():
        for name, task in app.tasks.items() if app.finalized else ():
            if task.__trace__ is not None:
                task.__trace__ = celery_trace.build_tracer(name, task, app.loader, node[2], app=app)


def _worker_starts(sender: Any = None, **_: Any) -> None:
    """In a worker's main process, before its pool is there: what it is configured with is what its pool inherits.

    It is this process that ships what a pool's process left behind when it was recycled or killed.
    """
    prepare()
    loader = getattr(getattr(sender, "app", None), "loader", None)
    if loader is not None:  # of a class, perhaps, that was not there when `instrument` was called
        _hook(type(loader))


def _is_published(headers: Any = None, **_: Any) -> None:
    if headers is not None:
        inject(headers)


# -- an attempt


def _starts(task: Any) -> None:
    """Called in the context of the task's body. Never raises."""
    options = _options
    if options is None or (options.select is None and task.name in HOUSEKEEPING):
        return
    try:
        request = task.request
        if request in _attempts:  # a loader's hook has called the one of its base class
            return
        kind = SpanKind.INTERNAL if request.is_eager else SpanKind.CONSUMER
        attempt = start(_job(task, request), options, kind=kind)
        if attempt is not None:
            _attempts[request] = attempt
    except Exception as error:  # a message of somebody else's may hold anything
        runtime().troubles.report("an attempt at a job could not be traced", error)


def _job(task: Any, request: Any) -> Job:
    delivery = request.delivery_info or {}
    return Job(
        system="celery",
        name=task.name,
        args=request.args,
        kwargs=request.kwargs or {},
        id=request.id,
        queue=_queue_of(delivery, task.app),
        attempt=(request.retries or 0) + 1,
        root=request.root_id,
        parent=request.parent_id,
        worker=request.hostname,
        headers={**(request.headers or {}), **vars(request)},  # protocol 2 has them among the fields, protocol 1 apart
        function=task.run,
        more=_more(request, delivery),
    )


def _queue_of(delivery: Any, app: Any) -> str | None:
    """The name of the queue that a message came from, which it does not say itself.

    The default exchange sends to the queue that the routing key names. Another one may send to several: the queue is
    the one of those that are consumed here whose binding fits, or stays the routing key where that is not certain.
    """
    exchange: str | None = delivery.get("exchange")
    key: str | None = delivery.get("routing_key")
    if not exchange:
        return key
    consumed = list(app.amqp.queues.consume_from.values())  # more may be added meanwhile
    fitting: list[str] = [
        queue.alias or queue.name
        for queue in consumed
        if any(_fits(bound, exchange, key or "") for bound in (queue, *queue.bindings))
    ]
    return fitting[0] if len(fitting) == 1 else key


def _fits(bound: Any, exchange: str, key: str) -> bool:
    """Whether an exchange sends messages of a routing key to what is bound to it so."""
    if bound.exchange is None or bound.exchange.name != exchange:
        return False
    if bound.exchange.type == "direct":
        return key == (bound.routing_key or "")
    if bound.exchange.type == "topic":
        return _topic(bound.routing_key or "").fullmatch(f"{key}.") is not None
    return True  # to all that is bound, or by what only the broker knows


@lru_cache(maxsize=1024)
def _topic(pattern: str) -> re.Pattern[str]:
    """A topic exchange's pattern, for routing keys with a dot at the end: `*` is one word, `#` any number of them."""
    wild = {"*": r"[^.]*\.", "#": r"(?:[^.]*\.)*"}
    return re.compile("".join(wild.get(word, re.escape(f"{word}.")) for word in pattern.split(".")))


def _more(request: Any, delivery: Any) -> dict[str, Any]:
    """What of an attempt's surroundings is there."""
    chord = request.chord
    exchange = delivery.get("exchange") or None  # the default one needs no name: its routing keys are queues
    return {
        "exchange": exchange,
        "routing_key": delivery.get("routing_key") if exchange else None,
        "group_id": request.group,
        "chord_id": chord["options"].get("task_id") if chord and "options" in chord else None,
        "eager": True if request.is_eager else None,
        "redelivered": True if delivery.get("redelivered") else None,
    }


def _ends(task: Any = None, state: str | None = None, retval: Any = None, **_: Any) -> None:
    request = getattr(task, "request", None)
    attempt = None if request is None else _attempts.pop(request, None)
    if attempt is None:
        return
    if state == states.SUCCESS:
        attempt.succeed(retval)
        return
    # without a state it leaves through Celery, as SystemExit does
    error = retval if isinstance(retval, BaseException) else sys.exc_info()[1]
    end(attempt, lambda: _ends_with(attempt, error, task), error)


def _ends_with(attempt: Attempt, error: BaseException | None, task: Any) -> None:
    if isinstance(error, Retry):
        attempt.retry(_why_again(error), error.exc)
    elif isinstance(error, Ignore):
        attempt.ignore(error)
    elif isinstance(error, Reject):
        attempt.reject(f"{error.reason or 'its message'}{', requeued' if error.requeue else ''}")
    elif error is not None and isinstance(error, task.throws or ()):
        attempt.expected(error)
    elif isinstance(error, SystemExit) and (ending := _signal_of(error)) is not None:
        attempt.cancel(ending, error)
    else:
        attempt.fail(error)


def _why_again(error: Any) -> str:
    """When the task is tried again, and what for."""
    when = error.humanize()
    return when if error.excs is None else f"{when}: {error.excs}"


def _signal_of(error: SystemExit) -> str | None:
    """The signal by which Celery ends a job that is revoked, or whose hard time limit is over; None for other exits."""
    code = error.code
    try:
        return Signals(256 + code).name if isinstance(code, int) and code < 0 else None  # as billiard has it
    except ValueError:
        return None
