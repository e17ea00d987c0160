"""Log records as lines of the running trace, and the trace's reference in log records.

`instrument()` does both for the whole process. By hand: `TraceHandler` on any logger (loguru takes it too),
`ReferenceFilter` on any handler, `add_reference` and `record_event` as processors of structlog.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import Any, Final, cast

from trifle_otel.calls import current
from trifle_otel.frames import RAW, TEXT, current_frame, put
from trifle_otel.integrations.patching import Patches
from trifle_otel.records import DEBUG, ERROR, SUCCESS, WARNING
from trifle_otel.runtime import runtime
from trifle_otel.values import text_of

REFERENCE: Final = "trifle_reference"
TRACE_ID: Final = "trifle_trace_id"

_OURS: Final = "trifle_otel"
_TASKS: Final = "celery.task"  # in a worker it keeps its records from the root logger
_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}


class TraceHandler(logging.Handler):
    """Puts log records into the trace that is running, as lines `<logger>: <message>` whose state is the level's.

    DEBUG becomes debug, INFO success, WARNING warning, ERROR and above error. An exception's traceback follows as a raw
    line. Our own records are left out, and outside of a trace nothing happens. The state of the trace stays what it is.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._busy = threading.local()  # what is called here may log in its turn

    def emit(self, record: logging.LogRecord) -> None:
        """Put a record into the trace. Faults of a record's own are counted and logged, and stop nobody."""
        frame = current_frame()
        if frame is None or _is_ours(record.name) or getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            put(frame, _line(record.name, record.getMessage()), _state(record.levelno), TEXT)
            text = _traceback(record)
            if text:
                put(frame, text, SUCCESS, RAW)
        except Exception as error:  # a record whose arguments do not fit its message, say
            runtime().troubles.report("a log record could not be put into a trace", error)
        finally:
            self._busy.now = False


class _TaskHandler(TraceHandler):
    """For Celery's logger of tasks, beside the root logger's handler: what comes to that one is recorded there."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `TraceHandler`."""
        if not logging.getLogger(_TASKS).propagate:
            super().emit(record)


class ReferenceFilter(logging.Filter):
    """Gives each log record `trifle_reference` and `trifle_trace_id` of the running trace; empty texts where none is.

    It lets every record pass. For a formatter: `%(message)s [%(trifle_reference)s]`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add to a record."""
        _mark(record)
        return True


def instrument(*, level: int | str = logging.INFO, logger: logging.Logger | None = None) -> None:
    """Put log records of `level` and above into the running trace, and its reference into every log record.

    A second call takes the place of the first.

    Args:
        level: of the records that become lines; a logger's own level counts before.
        logger: whose records; None: all that reach the root logger, and those of Celery's logger of tasks.

    Raises `ValueError` for a level that `logging` does not know.
    """
    global _handler  # noqa: PLW0603 - what this process is set up with
    handler, of_tasks = TraceHandler(level), _TaskHandler(level)
    uninstrument()
    _handler = (logger or logging.getLogger(), handler, of_tasks)
    _put_handlers()
    follow_celery()
    _mark_all()
    _patches.put(logging.Logger, "makeRecord", _with_extra)


def uninstrument() -> None:
    """Take back what `instrument` did; records that were made keep what they were given."""
    global _handler, _factory  # noqa: PLW0603 - see above
    if _handler is not None:
        target, handler, of_tasks = _handler
        target.removeHandler(handler)
        logging.getLogger(_TASKS).removeHandler(of_tasks)
        _handler = None
    _patches.take_back()
    if _factory is not None:
        ours, before = _factory
        if logging.getLogRecordFactory() is ours:  # else somebody wrapped it in their own, which goes on to ask ours
            logging.setLogRecordFactory(before)
        _factory = None


def follow_celery() -> None:
    """Have Celery tell us when it has set logging up in a worker, where it is there; `instrument` may be called later.

    By default it lets go of all handlers of the root logger then, after it has loaded the application.
    """
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.after_setup_logger.connect(_put_handlers, weak=False)
        signals.after_setup_task_logger.connect(_put_handlers, weak=False)


def add_reference(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: gives an event `trifle_reference` and `trifle_trace_id`, where a trace is running."""
    del logger, method
    running = current()
    if running is not None:
        event.setdefault(REFERENCE, running.reference)
        event.setdefault(TRACE_ID, running.trace_id)
    return event


def record_event(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor of structlog: puts an event into the running trace, `<event> name=value …`, with its level's state.

    Put it behind the processors whose fields the line is to have, and before the renderer.
    """
    del logger
    frame = current_frame()
    if frame is not None:
        try:
            put(frame, _event_line(event), _state(_LEVELS.get(method, logging.INFO)), TEXT)
        except Exception as error:  # a field whose own methods raise
            runtime().troubles.report("a log record could not be put into a trace", error)
    return event


_handler: tuple[logging.Logger, TraceHandler, _TaskHandler] | None = None  # the first two belong together
_factory: tuple[Any, Any] | None = None  # ours, and the one that it asks
_patches = Patches()


def _put_handlers(**_: Any) -> None:
    """Put our handlers where they are to be, and are not; none where we are not set up."""
    if _handler is None:
        return
    target, handler, of_tasks = _handler
    target.addHandler(handler)
    if target is logging.getLogger() and "celery" in sys.modules:
        tasks = logging.getLogger(_TASKS)
        if not tasks.propagate:  # not before it is set up: where it has a handler, Celery adds none of its own
            tasks.addHandler(of_tasks)


def _mark_all() -> None:
    """Have every record of the process marked: a filter on a logger does not see its children's records."""
    global _factory  # noqa: PLW0603 - see above
    before = logging.getLogRecordFactory()

    def marked(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = before(*args, **kwargs)
        _mark(record)
        return record

    _factory = (marked, before)
    logging.setLogRecordFactory(marked)


def _with_extra(make: Any, logger: logging.Logger, *args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a record whose `extra` may have our two names: what has a mark already, `logging` refuses with `KeyError`.

    `add_reference` puts them there, where structlog hands an event's fields on as `extra`.
    """
    extra = kwargs.get("extra", args[8] if len(args) > 8 else None)
    if not extra or (REFERENCE not in extra and TRACE_ID not in extra):
        return cast(logging.LogRecord, make(logger, *args, **kwargs))
    rest = {name: value for name, value in extra.items() if name not in (REFERENCE, TRACE_ID)}
    if "extra" in kwargs:
        kwargs["extra"] = rest
    else:
        args = (*args[:8], rest, *args[9:])
    record: logging.LogRecord = make(logger, *args, **kwargs)
    vars(record).update({name: extra[name] for name in (REFERENCE, TRACE_ID) if name in extra})
    return record


def _mark(record: logging.LogRecord) -> None:
    running = current()
    setattr(record, REFERENCE, running.reference if running is not None else "")
    setattr(record, TRACE_ID, running.trace_id if running is not None else "")


def _is_ours(name: str) -> bool:
    return name == _OURS or name.startswith(f"{_OURS}.")


def _line(name: str, message: str) -> str:
    return message if name == "root" else f"{name}: {message}"


def _state(level: int) -> str:
    if level >= logging.ERROR:
        return ERROR
    if level >= logging.WARNING:
        return WARNING
    return SUCCESS if level >= logging.INFO else DEBUG


def _traceback(record: logging.LogRecord) -> str:
    """The traceback that came with a record, as text; empty where there is none."""
    if record.exc_text:
        return record.exc_text
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(record.exc_info[1])).rstrip("\n")
    return record.stack_info or ""


def _event_line(event: MutableMapping[str, Any]) -> str:
    fields = (f"{name}={value!r}" for name, value in event.items() if name not in ("event", REFERENCE, TRACE_ID))
    return " ".join([text_of(event.get("event", "")), *fields])
