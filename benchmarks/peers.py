"""The demonstration job written with what people use else: its lines and results on disk, traces a second.

Each contender keeps all lines of the job (some 316 entries a trace), what each step returned, the nesting and the time
of each, in files; that nothing is missing is counted on disk after each run. Each runs in fresh processes, in turn
with the others, until the last byte is written. Artifacts, which few traces have, are left to ours. What else each
side does differs: ours also screens secrets, compresses, indexes, and is durable at the end of each trace. Spans of
the bare SDK, of logfire and of ours go into the SDK's exporter of OTLP JSON files through a `BatchSpanProcessor` whose
queue holds them all, since the usual one of 2,048 loses most of what a busy job makes.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import importlib
import importlib.util
import json
import logging
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.floor import put_in_place
from benchmarks.harness import RATE, Row
from benchmarks.traces import Finish, Run, floor, in_a_process, measure

Value = Any
LINE, RESULT, OPENED, CLOSED = "line", "result", "opened", "closed"
SPANS_FILE = "spans.jsonl"
QUEUE = 1 << 20
MEMORY = Path("/dev/shm")


class Kept(NamedTuple):
    """What a contender left on disk."""

    lines: int
    results: int


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


class Contender(NamedTuple):
    """What the table calls it, which package it needs, what sets it up, and what counts what it left on disk."""

    label: str
    package: str
    prepare: Callable[[Path], Finish]
    kept: Callable[[Path], Kept]


def _in_the_floor(folder: Path) -> Kept:
    return _in_parts(folder.glob("finished/*/data_*.json.gz"))


def _in_the_archive(folder: Path) -> Kept:
    return _in_parts((folder / "archive").glob("**/data_*.json.gz"))


def _in_parts(parts: Iterator[Path]) -> Kept:
    """Lines in the Trifle format: no block's opening or closing, nor what announces the trace, nor artifacts."""
    lines = results = 0
    for part in parts:
        for entry in json.loads(gzip.decompress(part.read_bytes())):
            if entry["type"] == "raw":
                results += 1
            elif entry["type"] != "media" and not entry["message"].endswith((" ↴", " ↵")):
                lines += not entry["message"].startswith("Tracer has been initialized for ")
    return Kept(lines, results)


def _in_the_log(folder: Path) -> Kept:
    with open(folder / "job.log", encoding="utf-8") as file:
        kinds = [line.split(" ", 6)[5] for line in file]
    return Kept(kinds.count(LINE), kinds.count(RESULT))


def _in_structlog(folder: Path) -> Kept:
    kinds = [found["kind"] for found in _json_lines(folder / "job.jsonl")]
    return Kept(kinds.count(LINE), kinds.count(RESULT))


def _in_eliot(folder: Path) -> Kept:
    found = list(_json_lines(folder / "job.jsonl"))
    lines = sum(message.get("message_type") == LINE for message in found)
    return Kept(lines, sum(RESULT in message for message in found))


def _in_spans(folder: Path) -> Kept:
    names = [event["name"] for span in _spans(folder) for event in span.get("events", ())]
    return Kept(names.count(LINE), names.count(RESULT))


def _in_logfire(folder: Path) -> Kept:
    lines = results = 0
    for span in _spans(folder):
        lines += span["name"] == LINE
        results += any(attribute["key"] == RESULT for attribute in span.get("attributes", ()))
    return Kept(lines, results)


def _in_both(folder: Path) -> Kept:
    """Of ours both sides have to be complete."""
    names = [event["name"] for span in _spans(folder) for event in span.get("events", ())]
    on_spans = Kept(names.count("trifle.text"), names.count("trifle.result"))
    archived = _in_the_archive(folder)
    announced = sum("trifle.key" in str(span.get("attributes")) for span in _spans(folder))
    if on_spans != (archived.lines + announced, archived.results):
        raise RuntimeError(f"the spans have {on_spans}, the archive {archived} of {announced} traces")
    return archived


def _spans(folder: Path) -> Iterator[dict[str, Value]]:
    for request in _json_lines(folder / SPANS_FILE):
        for resource in request["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                yield from scope["spans"]


def _json_lines(path: Path) -> Iterator[dict[str, Value]]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


CONTENDERS = {
    "archive": Contender("ours, the archive alone", "trifle_otel", archive, _in_the_archive),
    "both": Contender("ours, archive and spans", "opentelemetry.exporter.otlp.json", both, _in_both),
    "floor": Contender("bare prototype", "orjson", floor, _in_the_floor),
    "logging": Contender("`logging` into a file", "logging", use_logging, _in_the_log),
    "structlog": Contender("structlog, JSON into a file", "structlog", use_structlog, _in_structlog),
    "eliot": Contender("eliot into a file", "eliot", use_eliot, _in_eliot),
    "otel": Contender("the bare SDK, OTLP JSON file", "opentelemetry.exporter.otlp.json", use_otel, _in_spans),
    "logfire": Contender("logfire, OTLP JSON file", "logfire", use_logfire, _in_logfire),
}
MOST = {
    "archive": {"floor": 2.0, "logging": 1.0, "structlog": 1.0, "eliot": 1.0, "otel": 1.0, "logfire": 1.0},
    "both": {"otel": 1 / 0.75, "logfire": 1.0},
}
"""How many times as many traces a second a peer may make, of each of ours."""


def rows(folder: Path, rounds: int, traces: int) -> Iterator[Row]:
    """All figures of this module: in memory, and in `folder` on disk."""
    with ExitStack() as stack:
        places = {"on disk": folder}
        if os.access(MEMORY, os.W_OK):
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="trifle-benchmarks-", dir=MEMORY))
            places = {"in memory": Path(made), **places}
        for where, place in places.items():
            runs = [_all_once(place, number, traces) for number in range(rounds)]
            yield from _rates(where, runs)
            if where == next(iter(places)):
                yield from _processor_times(runs)


def _all_once(folder: Path, number: int, traces: int) -> dict[str, Run]:
    """Each contender that is installed once; the order turns from round to round."""
    names = [name for name, peer in CONTENDERS.items() if _is_there(peer, number)]
    names = names[number % len(names) :] + names[: number % len(names)]
    runs, kept = {}, {}
    for name in names:
        place = folder / f"{name}-{number}"
        runs[name] = in_a_process(name, place, traces, "benchmarks.peers")
        kept[name] = CONTENDERS[name].kept(place)
    if len(set(kept.values())) != 1:
        raise RuntimeError(f"not all have kept the same: {kept}")
    print(f"  each has kept {kept['archive']}", file=sys.stderr)
    return runs


def _is_there(peer: Contender, number: int) -> bool:
    try:
        there = importlib.util.find_spec(peer.package) is not None
    except ModuleNotFoundError:
        there = False
    if not there and not number:
        print(f"  {peer.package} is not installed: {peer.label} is left out", file=sys.stderr)
    return there


def _rates(where: str, runs: list[dict[str, Run]]) -> Iterator[Row]:
    for ours, peers in MOST.items():
        for peer, most in peers.items():
            if not {ours, peer} <= runs[0].keys():
                continue
            first, second = (statistics.median(run[name].rate for run in runs) for name in (ours, peer))
            ratio = statistics.median(run[peer].rate / run[ours].rate for run in runs)
            what = f"whole job {where}, {CONTENDERS[ours].label}"
            yield Row(what, first, RATE, CONTENDERS[peer].label, second, ratio, most)


def _processor_times(runs: list[dict[str, Run]]) -> Iterator[Row]:
    for ours, peers in MOST.items():
        for peer in peers:
            if not {ours, peer} <= runs[0].keys():
                continue
            first, second = (statistics.median(run[name].cpu for run in runs) for name in (ours, peer))
            ratio = statistics.median(run[ours].cpu / run[peer].cpu for run in runs)
            what = f"whole job, {CONTENDERS[ours].label}, CPU"
            yield Row(what, first, "µs a trace", CONTENDERS[peer].label, second, ratio)


def main() -> None:
    """One run in this process, as JSON: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=int, default=600)
    given = parser.parse_args()
    run = measure(given.contender, CONTENDERS[given.contender].prepare, given.folder, given.traces)
    print(json.dumps(asdict(run)))


if __name__ == "__main__":
    main()
