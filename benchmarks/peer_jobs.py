"""The demonstration job written with what people use else (`logging`, structlog, eliot, bare spans, logfire), and ours.

Each `use_…` sets up its process, in which the job then believes to import `trifle_otel`, and gives what brings the last
byte to disk. What is measured, and how it is counted, is in `peers`.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.floor import put_in_place
from benchmarks.traces import Finish

Value = Any
LINE, RESULT, OPENED, CLOSED = "line", "result", "opened", "closed"
SPANS_FILE = "spans.jsonl"
QUEUE = 1 << 20


class Writer:
    """How a peer writes: what `stand_in` makes of the job's calls. `state` of a line is that of the job."""

    def begin(self, key: str, meta: Value) -> Value:
        """A trace begins; gives what `end` gets."""
        raise NotImplementedError

    def end(self, begun: Value, tags: list[str], state: str) -> None:
        """It ends."""
        raise NotImplementedError

    def line(self, message: str, state: str) -> None:
        """A line of the current step."""
        raise NotImplementedError

    def open(self, message: str) -> Value:
        """A step begins; gives what `close` gets."""
        raise NotImplementedError

    def close(self, opened: Value, message: str, value: Value) -> None:
        """It ends with its result."""
        raise NotImplementedError


class Job:
    """What stands in for `trifle_otel`: writes inside of a trace, and nothing outside."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.running = False
        self.tags: list[str] = []
        self.state = "success"

    def trace(self, message: str, *, state: str = "success", head: bool = False) -> None:
        """A line."""
        del head
        if self.running:
            self.writer.line(message, state)

    def tag(self, *tags: str) -> None:
        """Labels."""
        self.tags.extend(tags)

    def artifact(self, name: str, source: str) -> None:
        """Left out: few of the job's traces have one."""

    def warn(self) -> None:
        """Set the state to warning."""
        self.state = "warning"


class block:  # noqa: N801 - the stand-in has the names of what it stands for
    """A step."""

    __slots__ = ("message", "opened", "value")
    job: Job

    def __init__(self, message: str, *, head: bool = False) -> None:
        del head
        self.message = message
        self.value: Value = None

    def __call__(self, function: Callable[..., Value]) -> Callable[..., Value]:
        message, job, writer = self.message, self.job, self.job.writer

        @functools.wraps(function)
        def wrapper(*args: Value, **kwargs: Value) -> Value:
            if not job.running:
                return function(*args, **kwargs)
            opened = writer.open(message)
            value = function(*args, **kwargs)
            writer.close(opened, message, value)
            return value

        return wrapper

    def __enter__(self) -> block:
        self.opened = self.job.writer.open(self.message) if self.job.running else None
        return self

    def result(self, value: Value) -> Value:
        """Keep the result and give it back."""
        self.value = value
        return value

    def __exit__(self, *exception: object) -> None:
        if self.job.running:
            self.job.writer.close(self.opened, self.message, self.value)


class tracer:  # noqa: N801
    """An execution."""

    __slots__ = ("begun", "key", "meta")
    job: Job

    def __init__(self, key: str, *, meta: Value = None) -> None:
        self.key = key
        self.meta = meta

    def __enter__(self) -> None:
        job = self.job
        job.running, job.tags, job.state = True, [], "success"
        self.begun = job.writer.begin(self.key, self.meta)

    def __exit__(self, *exception: object) -> None:
        job = self.job
        job.running = False
        job.writer.end(self.begun, job.tags, job.state)


def stand_in(writer: Writer) -> None:
    """Let the job write with it instead of with `trifle_otel`."""
    block.job = tracer.job = job = Job(writer)
    put_in_place((job.trace, job.tag, job.artifact, job.warn, block, tracer), fail=job.warn)


class Lines(Writer):
    """Lines in a log, each with the trace's number and its depth. `write` is what makes a line."""

    def __init__(self, write: Callable[[int, int, str, str, str], object]) -> None:
        self.write = write
        self.numbers = count(1)
        self.number = 0
        self.level = 0

    def begin(self, key: str, meta: Value) -> None:
        self.number = next(self.numbers)
        self.level = 0
        self.write(self.number, 0, "begin", f"{key} {meta}", "success")

    def end(self, begun: Value, tags: list[str], state: str) -> None:
        del begun
        self.write(self.number, 0, "end", " ".join(tags), state)

    def line(self, message: str, state: str) -> None:
        self.write(self.number, self.level, LINE, message, state)

    def open(self, message: str) -> None:
        self.write(self.number, self.level, OPENED, message, "success")
        self.level += 1

    def close(self, opened: Value, message: str, value: Value) -> None:
        del opened
        self.level -= 1
        self.write(self.number, self.level, CLOSED, message, "success")
        self.write(self.number, self.level, RESULT, repr(value), "success")


def use_logging(folder: Path) -> Finish:
    """The standard library's logging into a file, with formatted times."""
    logger = logging.getLogger("job")
    handler = logging.FileHandler(folder / "job.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def write(number: int, level: int, kind: str, text: str, state: str) -> None:
        (logger.info if state == "success" else logger.warning)("%d %d %s %s", number, level, kind, text)

    stand_in(Lines(write))
    return handler.close


def use_structlog(folder: Path) -> Finish:
    """structlog as JSON lines into a file, set up for speed as its documentation says."""
    import orjson
    import structlog

    file = open(folder / "job.jsonl", "wb")  # noqa: SIM115 - closed at the end
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.BytesLoggerFactory(file),
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger()

    def write(number: int, level: int, kind: str, text: str, state: str) -> None:
        (logger.info if state == "success" else logger.warning)(text, trace=number, level=level, kind=kind)

    stand_in(Lines(write))
    return file.close


class Actions(Writer):
    """eliot's: actions within actions, messages in them."""

    def __init__(self) -> None:
        eliot = _not_always_there("eliot")
        self.start, self.log = eliot.start_action, eliot.log_message

    def begin(self, key: str, meta: Value) -> Value:
        return self.start(action_type=key, meta=meta).__enter__()

    def end(self, begun: Value, tags: list[str], state: str) -> None:
        begun.add_success_fields(tags=tags, state=state)
        begun.__exit__(None, None, None)

    def line(self, message: str, state: str) -> None:
        self.log(message_type=LINE, text=message, state=state)

    def open(self, message: str) -> Value:
        return self.start(action_type=message).__enter__()

    def close(self, opened: Value, message: str, value: Value) -> None:
        del message
        opened.add_success_fields(result=repr(value))
        opened.__exit__(None, None, None)


def use_eliot(folder: Path) -> Finish:
    """eliot with its destination of JSON lines in a file."""
    file = open(folder / "job.jsonl", "wb")  # noqa: SIM115 - closed at the end
    _not_always_there("eliot").to_file(file)
    stand_in(Actions())
    return file.close


class BareSpans(Writer):
    """The SDK's: a span for the trace and for each step, an event for each line and each result."""

    def __init__(self, provider: Value) -> None:
        self.tracer = provider.get_tracer("job")
        from opentelemetry import context, trace

        self.context, self.trace = context, trace

    def _start(self, name: str, attributes: Value = None) -> Value:
        span = self.tracer.start_span(name, attributes=attributes)
        return span, self.context.attach(self.trace.set_span_in_context(span))

    def begin(self, key: str, meta: Value) -> Value:
        return self._start(key, {"meta": repr(meta)})

    def end(self, begun: Value, tags: list[str], state: str) -> None:
        span, token = begun
        span.set_attributes({"tags": list(tags), "state": state})
        self.context.detach(token)
        span.end()

    def line(self, message: str, state: str) -> None:
        self.trace.get_current_span().add_event(LINE, {"text": message, "state": state})

    def open(self, message: str) -> Value:
        return self._start(message)

    def close(self, opened: Value, message: str, value: Value) -> None:
        del message
        span, token = opened
        span.add_event(RESULT, {"result": repr(value)})
        self.context.detach(token)
        span.end()


def _into_a_file(folder: Path) -> Value:
    """A processor that exports spans into a file of OTLP JSON lines."""
    from opentelemetry.exporter.otlp.json.file import FileSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(FileSpanExporter(str(folder / SPANS_FILE)), max_queue_size=QUEUE)


def use_otel(folder: Path) -> Finish:
    """The bare SDK."""
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(_into_a_file(folder))
    stand_in(BareSpans(provider))
    return provider.shutdown


class LogfireSpans(Writer):
    """logfire's: spans for trace and steps, and for each line one of no length."""

    def __init__(self) -> None:
        self.logfire = _not_always_there("logfire")

    def begin(self, key: str, meta: Value) -> Value:
        return self.logfire.span(key, meta=repr(meta)).__enter__()

    def end(self, begun: Value, tags: list[str], state: str) -> None:
        begun.set_attribute("tags", list(tags))
        begun.set_attribute("state", state)
        begun.__exit__(None, None, None)

    def line(self, message: str, state: str) -> None:
        (self.logfire.info if state == "success" else self.logfire.warn)(LINE, text=message)

    def open(self, message: str) -> Value:
        return self.logfire.span(message).__enter__()

    def close(self, opened: Value, message: str, value: Value) -> None:
        del message
        opened.set_attribute(RESULT, repr(value))
        opened.__exit__(None, None, None)


def use_logfire(folder: Path) -> Finish:
    """logfire without its service, with the same exporter."""
    logfire = _not_always_there("logfire")
    logfire.configure(
        send_to_logfire=False,
        console=False,
        metrics=False,
        inspect_arguments=False,
        additional_span_processors=[_into_a_file(folder)],
    )
    stand_in(LogfireSpans())
    return lambda: logfire.shutdown()


def _not_always_there(package: str) -> Value:
    """A package of the extra `benchmarks`, which whoever checks types need not have."""
    return importlib.import_module(package)


def archive(folder: Path) -> Finish:
    """Ours, sampled out: the archive alone."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    return _ours(folder, TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))


def both(folder: Path) -> Finish:
    """Ours, archive and spans."""
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(_into_a_file(folder))
    return _ours(folder, provider)


def _ours(folder: Path, provider: Value) -> Finish:
    import trifle_otel as trifle

    trifle.configure(archive=folder / "archive", tracer_provider=provider)

    def finish() -> None:
        if not trifle.flush(timeout=60):
            raise TimeoutError("the archive did not take all traces within a minute")
        provider.shutdown()

    return finish
