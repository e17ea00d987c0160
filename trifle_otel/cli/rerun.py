"""`rerun`: the call that an archived job was, printed, or sent to its framework again."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from json import dumps
from keyword import iskeyword
from typing import Any, NamedTuple

from trifle_otel.cli.finding import resolve
from trifle_otel.cli.options import Flag, Place, opened
from trifle_otel.cli.pager import print_json
from trifle_otel.cli.visible import visible
from trifle_otel.errors import TrifleError, UsageError
from trifle_otel.records import TraceRecord

REDACTED = "[redacted:"
_ALWAYS = frozenset({"system", "name", "args", "kwargs", "queue"})


class Call(NamedTuple):
    """What was run, with what."""

    system: str
    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str | None
    exchange: str | None = None  # of a broker that has them, where it is not the default one
    routing_key: str | None = None


def rerun(
    reference: str, *, enqueue: Flag = False, app: str | None = None, json: Flag = False, place: Place | None = None
) -> int:
    """Print the call that a job was, with its arguments as they were; or send it to its framework again.

    Refuses what is not known exactly: redacted arguments, and such as JSON does not hold.

    Parameters
    ----------
    reference
        The job's trace; the beginning of its reference is enough.
    enqueue
        Send it again, as a new job in the same queue.
    app
        With --enqueue: what to send it with, as `module:name`: a Celery app, an RQ queue, a Dramatiq broker, a Huey
        instance; for Django's tasks what sets Django up, such as `shop.wsgi:application`.
    json
        Print it as JSON.
    """
    with opened(place) as archive:
        call = call_of(resolve(archive, reference))
    if not enqueue:
        if json:
            print_json(sys.stdout, _fields(call))
        else:
            print(visible(python_of(call)))
        return 0
    if app is None:
        raise UsageError("--enqueue needs --app module:name, which says what to send the job with")
    print(f"Enqueued {call.name} as {visible(send(call, load(app)))}.")
    return 0


def call_of(record: TraceRecord) -> Call:
    """The call that a record tells of. Raises `UsageError` where it tells of none, or not exactly."""
    context, meta = record.context, record.meta
    name, system = context.get("job_name"), context.get("job_system")
    if not isinstance(name, str) or not isinstance(system, str):
        raise UsageError(f"{record.reference} is no job of a framework: its context names no job_name and job_system")
    if context.get("meta_exact") is False:
        raise UsageError(
            f"{record.reference} had arguments that JSON does not hold as they were; they are shown by"
            f" `trifle-otel show {record.reference}`"
        )
    if REDACTED in dumps(meta, ensure_ascii=False):
        raise UsageError(f"{record.reference} had arguments that were redacted: nobody knows them any more")
    args, kwargs = (meta.get("args"), meta.get("kwargs")) if isinstance(meta, dict) else (meta, {})
    if not isinstance(args, list | None) or not isinstance(kwargs, dict):
        raise UsageError(f"{record.reference} does not say what its arguments were")
    queue, exchange, key = (
        value if isinstance(value := context.get(field), str) else None
        for field in ("queue", "exchange", "routing_key")
    )
    return Call(system, name, args or [], kwargs, queue, exchange, key)


def _fields(call: Call) -> dict[str, Any]:
    """A call for JSON; how it was routed only where that is more than its queue."""
    return {name: value for name, value in call._asdict().items() if name in _ALWAYS or value is not None}


def python_of(call: Call) -> str:
    """The call as Python: `shop.tasks.price(9, 'EUR', fast=True)`."""
    given = [repr(value) for value in call.args]
    given += [
        f"{name}={value!r}" if name.isidentifier() and not iskeyword(name) else f"**{{{name!r}: {value!r}}}"
        for name, value in call.kwargs.items()
    ]
    return f"{call.name}({', '.join(given)})"


def load(path: str) -> Any:
    """What `module:name` names, with the current folder on the path. Raises `UsageError`."""
    module, _, name = path.partition(":")
    if not module or not name:
        raise UsageError(f"--app {path!r} is not allowed; it is module:name, as in shop.worker:app")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"--app {path!r} cannot be loaded: {error}") from error
    return found


def send(call: Call, app: Any) -> str:
    """Send the job; gives the id of the new one.

    Raises `UsageError` for a framework that cannot be sent to here, and `TrifleError` where the framework could not.
    """
    sender = _SENDERS.get(call.system)
    if sender is None:
        others = ", ".join(_SENDERS)
        raise UsageError(f"jobs of {call.system} cannot be sent from here, only those of {others}: {python_of(call)}")
    try:
        return str(sender(call, app))
    except AttributeError as error:
        raise UsageError(f"what --app names is not what {call.system} sends jobs with: {error}") from error
    except UsageError:
        raise
    except Exception as error:  # its broker is out of reach, say
        raise TrifleError(f"{call.system} could not send {call.name}: {type(error).__name__}: {error}") from error


def _celery(call: Call, app: Any) -> Any:
    if call.exchange is None:
        return app.send_task(call.name, args=call.args, kwargs=call.kwargs, queue=call.queue).id
    queues = app.amqp.queues.values()
    bound = [(queue, exchange) for queue in queues for exchange in _exchanges(queue) if exchange.name == call.exchange]
    if not bound:
        raise UsageError(f"what --app names has no queue at the exchange {call.exchange!r}: {python_of(call)}")
    # the exchange chooses the queue, as it did; what there is of it is declared, since only AMQP's own brokers know
    # its kind; but a broadcast's queues are their workers' own
    kind = bound[0][1].type
    there = [exchange if kind == "fanout" else queue for queue, exchange in bound]
    route = {"exchange": call.exchange, "exchange_type": kind, "routing_key": call.routing_key, "declare": there}
    return app.send_task(call.name, args=call.args, kwargs=call.kwargs, **route).id


def _exchanges(queue: Any) -> list[Any]:
    """The exchanges that a queue gets messages from."""
    return [bound.exchange for bound in (queue, *queue.bindings) if bound.exchange is not None]


def _rq(call: Call, queue: Any) -> Any:
    if call.queue not in (None, queue.name):
        queue = type(queue)(
            call.queue,
            connection=queue.connection,
            is_async=queue.is_async,
            serializer=queue.serializer,
            job_class=queue.job_class,
            death_penalty_class=queue.death_penalty_class,
            default_timeout=queue._default_timeout,
        )
    return queue.enqueue_call(call.name, args=tuple(call.args), kwargs=call.kwargs).id


def _dramatiq(call: Call, broker: Any) -> Any:
    from dramatiq import Message

    actors = [actor for name, actor in broker.actors.items() if call.name in (name, f"{actor.fn.__module__}.{name}")]
    if len(actors) != 1:
        raise UsageError(f"Dramatiq knows no actor {call.name}; import its module where --app is defined")
    (actor,) = actors
    message: Message[Any] = Message(
        queue_name=call.queue or actor.queue_name,
        actor_name=actor.actor_name,
        args=tuple(call.args),
        kwargs=call.kwargs,
        options={},
    )
    return broker.enqueue(message).message_id


def _huey(call: Call, huey: Any) -> Any:
    registry = huey._registry
    names = [name for name in registry._registry if name == call.name or name.endswith(f".{call.name}")]
    if len(names) != 1:
        raise UsageError(f"Huey knows no task {call.name}; import its module where --app is defined")
    return huey.enqueue(registry.string_to_task(names[0])(tuple(call.args), call.kwargs)).id


def _django(call: Call, project: Any) -> Any:
    """The task itself knows how it is sent, once loading `project` has set Django up."""
    del project
    module, _, name = call.name.rpartition(".")
    try:
        task = load(f"{module}:{name}")
    except UsageError as error:
        raise UsageError(f"Django knows no task {call.name}: {error}") from error
    queue = {} if call.queue in (None, task.queue_name) else {"queue_name": call.queue}
    return task.using(**queue).enqueue(*call.args, **call.kwargs).id


_SENDERS: dict[str, Callable[[Call, Any], Any]] = {
    "celery": _celery,
    "rq": _rq,
    "dramatiq": _dramatiq,
    "huey": _huey,
    "django": _django,
}
