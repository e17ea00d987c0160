"""Django's tasks: each attempt as one trace, of `django.tasks` (Django 6) and of the package `django-tasks`.

A task's own function is called by `Task.call` or `Task.acall` in whatever backend; which job that is, its backend has
said by the signal `task_started` before. What nobody has announced so is a plain call, and no trace. Dummy backends run
nothing. A task's row or message has no place for headers, so that the enqueuer's trace context does not travel; in
immediate backends it is there anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from trifle_otel.errors import MissingDependency
from trifle_otel.integrations.attempts import Attempt, Job, Options, running_job, start
from trifle_otel.integrations.patching import Patches
from trifle_otel.runtime import runtime

_MOST_ANNOUNCED: Final = 1000  # a worker that is interrupted between announcing a job and calling it never calls it

_options: Options | None = None
_patches = Patches()
_announced: deque[tuple[int, Any]] = deque(maxlen=_MOST_ANNOUNCED)  # thread, and result of a job to be called
_lock = threading.Lock()  # guards _announced


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at each task from now on. May be called again with other values.

    The Django app calls it by itself. Raises `MissingDependency` where Django has no tasks, and `django-tasks` is not
    installed.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key; None: `jobs/<module path>/<name>`.
        mode: `live` or `deferred`; None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    found = _installed()
    if not found:
        raise MissingDependency("tracing Django's tasks needs Django 6, or its backport: pip install django-tasks")
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        for task, signals in found:
            _patches.put(task, "call", _call)
            _patches.put(task, "acall", _acall)
            signals.task_started.connect(_starts, dispatch_uid=__name__)
            signals.task_finished.connect(_has_finished, dispatch_uid=__name__)


def uninstrument() -> None:
    """Trace no more attempts."""
    global _options
    before, _options = _options, None
    if before is not None:
        _patches.take_back()
        for _, signals in _installed():
            signals.task_started.disconnect(dispatch_uid=__name__)
            signals.task_finished.disconnect(dispatch_uid=__name__)
        _announced.clear()


def are_installed() -> bool:
    """Whether there are tasks to trace: Django 6's, or the backport's."""
    return find_spec("django.tasks") is not None or find_spec("django_tasks") is not None


def _installed() -> list[tuple[type, Any]]:
    """The class of tasks and the module of signals, of Django and of the backport: both may be in use."""
    found: list[tuple[type, Any]] = []
    if find_spec("django.tasks") is not None:
        found.append((import_module("django.tasks.base").Task, import_module("django.tasks.signals")))
    if find_spec("django_tasks") is not None:
        found.append((import_module("django_tasks.base").Task, import_module("django_tasks.signals")))
    return found


# -- what Django calls


def _starts(task_result: Any, **_: Any) -> None:
    with _lock:
        _announced.append((threading.get_ident(), task_result))


def _has_finished(task_result: Any, **_: Any) -> None:
    """Forget a job that was announced, and never called."""
    with _lock:
        for entry in [entry for entry in _announced if entry[1].id == task_result.id]:
            _announced.remove(entry)


def _call(call: Any, task: Any, /, *args: Any, **kwargs: Any) -> Any:
    attempt = _started(task, args, kwargs)
    if attempt is None:
        return call(task, *args, **kwargs)
    try:
        value = call(task, *args, **kwargs)
    except BaseException as error:
        attempt.fail(error)
        raise
    attempt.succeed(value)
    return value


async def _acall(acall: Any, task: Any, /, *args: Any, **kwargs: Any) -> Any:
    attempt = _started(task, args, kwargs)
    if attempt is None:
        return await acall(task, *args, **kwargs)
    try:
        value = await acall(task, *args, **kwargs)
    except asyncio.CancelledError:
        attempt.cancel("the worker ends")
        raise
    except BaseException as error:
        attempt.fail(error)
        raise
    attempt.succeed(value)
    return value


def _started(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Attempt | None:
    options = _options
    if options is None:
        return None
    try:
        result = _result_of(task, args, kwargs)
        return None if result is None else start(_job(task, result), options)
    except Exception as error:  # a backend whose results are other than Django's: the task runs untraced
        runtime().troubles.report("an attempt at a task could not be traced", error)
        return None


def _result_of(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The job that is called here: announced in this thread, or with the same arguments in another one.

    A worker of coroutines sends its signals in threads.
    """
    thread = threading.get_ident()
    if task.takes_context:
        args = args[1:]
    with _lock:
        mine = [entry for entry in _announced if entry[1].task.func == task.func]
        entry = next((entry for entry in mine if entry[0] == thread), None) or next(
            (entry for entry in mine if list(entry[1].args) == list(args) and entry[1].kwargs == kwargs), None
        )
        if entry is None:
            return None
        _announced.remove(entry)
        return entry[1]


def _job(task: Any, result: Any) -> Job:
    parent, root = running_job()
    more = {"backend": result.backend}
    if result.worker_ids:
        more["worker_id"] = result.worker_ids[-1]
    return Job(
        system="django",
        name=task.module_path,
        args=result.args,
        kwargs=result.kwargs,
        id=result.id,
        queue=task.queue_name,
        attempt=max(1, result.attempts),
        root=root or parent,
        parent=parent,
        function=task.func,
        more=more,
    )
