"""Dramatiq: each attempt at a message is a trace, with every broker, in threads and processes.

An attempt lasts from before the first middleware hears of a message until the last one has, so that what they record
and send is part of it, and what they decide (skip it, try it again, give it up) is how it ends: before the message is
acknowledged. The enqueuer's trace context travels in the message's options. What an attempt is, is in `attempts`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from trifle_otel.calls import prepare
from trifle_otel.integrations.attempts import (
    PARENT,
    ROOT,
    Attempt,
    Job,
    Options,
    because,
    end,
    inject,
    ship_before_exit,
    start,
)
from trifle_otel.integrations.patching import Patches
from trifle_otel.runtime import runtime

try:
    from dramatiq import Broker
    from dramatiq.errors import ActorNotFound, Retry
except ImportError as missing:
    from trifle_otel.errors import MissingDependency

    raise MissingDependency(
        f"tracing Dramatiq's actors needs Dramatiq: pip install 'trifle-otel[dramatiq]' ({missing})"
    ) from missing

_RUNNING: Final = "__trifle_attempt__"  # of a message that is processed

_options: Options | None = None
_patches = Patches()


class _Running(NamedTuple):
    """The attempt at a message, and how often the message had been tried again before it."""

    attempt: Attempt
    retries: int
    throws: Any


def instrument(
    *,
    select: Callable[[Job], bool] | None = None,
    key: str | Callable[[Job], str] | None = None,
    mode: str | None = None,
    retention: int | None = None,
) -> None:
    """Trace each attempt at a message of this process, whatever its broker; called again it changes how.

    Call it in the module that declares the broker or the actors, which each of Dramatiq's processes imports.

    Args:
        select: whether an attempt is traced; None: each is.
        key: its key, or what gives it; None: `jobs/<module path>/<name>`.
        mode: `live` (flushed while it runs) or `deferred` (written when it ends); None: the setting.
        retention: days that the payload is kept; None: the setting.
    """
    global _options
    before, _options = _options, Options(select=select, key=key, mode=mode, retention=retention)
    if before is None:
        _patches.put(Broker, "emit_before", _before)
        _patches.put(Broker, "emit_after", _after)


def uninstrument() -> None:
    """Trace no more attempts."""
    global _options  # noqa: PLW0603
    _options = None
    _patches.take_back()


# -- where Dramatiq calls us: around all middlewares


def _before(theirs: Any, broker: Any, signal: str, *args: Any, **kwargs: Any) -> Any:
    if signal == "process_message":
        _start(broker, args[0])
    elif signal == "enqueue":
        inject(args[0].options, job_id=args[0].message_id)
    elif signal == "worker_boot":
        prepare()  # before the first message; and it looks for what dead processes left
    return theirs(broker, signal, *args, **kwargs)


def _after(theirs: Any, broker: Any, signal: str, *args: Any, **kwargs: Any) -> Any:
    if signal == "worker_shutdown":
        theirs(broker, signal, *args, **kwargs)
        return ship_before_exit()
    if signal not in ("process_message", "skip_message"):
        return theirs(broker, signal, *args, **kwargs)
    error: BaseException | None = kwargs.get("exception")
    skipped = sys.exc_info()[1] if signal == "skip_message" else None
    try:
        theirs(broker, signal, *args, **kwargs)
    except BaseException as late:  # an interrupt that came while a middleware worked: Dramatiq calls again with it
        if error is None and skipped is None:
            raise
        _end(args[0], late, None, None)
        raise
    _end(args[0], error, skipped, kwargs.get("result"))
    return None


# -- an attempt


def _start(broker: Any, message: Any) -> None:
    options = _options
    if options is None:
        return
    try:
        actor = _actor(broker, message)
        attempt = start(_describe(message, actor), options)
        if attempt is not None:
            throws = message.options.get("throws") or (actor is not None and actor.options.get("throws"))
            setattr(message, _RUNNING, _Running(attempt, _retries(message), throws or ()))
    except Exception as error:  # options of somebody else's may hold anything
        runtime().troubles.report("an attempt at a job could not be traced", error)


def _actor(broker: Any, message: Any) -> Any:
    try:
        return broker.get_actor(message.actor_name)
    except ActorNotFound:  # Dramatiq says so itself
        return None


def _retries(message: Any) -> int:
    return int(message.options.get("retries") or 0)


def _describe(message: Any, actor: Any) -> Job:
    function, headers = getattr(actor, "fn", None), message.options
    module = getattr(function, "__module__", None)
    return Job(
        system="dramatiq",
        name=f"{module}.{message.actor_name}" if module else message.actor_name,
        args=message.args,
        kwargs=message.kwargs,
        id=message.message_id,
        queue=message.queue_name,
        attempt=_retries(message) + 1,
        root=headers.get(ROOT, message.message_id),
        parent=headers.get(PARENT),
        headers=headers,
        function=function,
        more={"group_id": headers.get("group_callback_uuid")},
    )


def _end(message: Any, error: BaseException | None, skipped: BaseException | None, result: Any) -> None:
    running: _Running | None = vars(message).pop(_RUNNING, None)
    if running is not None:
        end(running.attempt, lambda: _end_as(running, message, error, skipped, result))


def _end_as(running: _Running, message: Any, error: Any, skipped: BaseException | None, result: Any) -> None:
    attempt = running.attempt
    if skipped is not None:
        (attempt.reject if message.failed else attempt.ignore)(skipped)
    elif error is None:
        attempt.succeed(result)
    elif isinstance(error, running.throws):
        attempt.expected(error)
    elif _retries(message) > running.retries and not message.failed:
        attempt.retry(_why(error), error)
    else:
        attempt.fail(error)


def _why(error: BaseException) -> str:
    """Why an actor is tried again: it may ask for that itself, and say why and when."""
    if not isinstance(error, Retry):
        return because(error)
    delay = f"in {error.delay / 1000:g} s" if error.delay else ""
    return ": ".join(filter(None, (delay, str(error.message)))) or type(error).__name__
