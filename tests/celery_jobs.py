"""The application that workers of `test_celery` run, set up by the environment as a test wants it.

JOBS_BROKER, JOBS_BACKEND    URLs
JOBS_QUEUE                   the queue's name
JOBS_OURS                    where our integration is set up: module (the usual place), child (a pool's process), off
JOBS_THEIRS                  where OpenTelemetry's is: before, after (ours, in the module), child, off
JOBS_SPANS                   OTLP over HTTP; without it no SDK is set up
JOBS_SPANS_BATCHED           whether spans go through the batch processor, as they do where people follow the docs
JOBS_LOGGING                 where log records become lines: module, child; Celery then sets logging up by its defaults
JOBS_CONFIGURE               what `configure` is called with in the module; else TRIFLE_ARCHIVE is all there is
JOBS_FOLDER                  where jobs leave files that say how far they are
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Any

from celery import Celery, chain, chord, group, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.utils.log import get_task_logger
from job_process import mark
from opentelemetry import trace as otel
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation import celery as instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

import trifle_otel as trifle
from trifle_otel.integrations.attempts import job_options

app: Any = Celery("jobs", broker=os.environ["JOBS_BROKER"], backend=os.environ["JOBS_BACKEND"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    broker_transport_options={"polling_interval": 0.05},
    task_default_queue=os.environ["JOBS_QUEUE"],
    worker_hijack_root_logger="JOBS_LOGGING" in os.environ,
)
OURS, THEIRS = os.environ.get("JOBS_OURS", "module"), os.environ.get("JOBS_THEIRS", "off")
LOGGING = os.environ.get("JOBS_LOGGING", "off")


def ours() -> None:
    """Set up our integration."""
    from trifle_otel.integrations import celery

    celery.instrument()


def log_records() -> None:
    """Have log records become lines."""
    from trifle_otel.integrations import logging as integration

    integration.instrument()


def theirs() -> None:
    """Set up OpenTelemetry's."""
    instrumentor: Any = instrumentation.CeleryInstrumentor
    instrumentor().instrument()


def spans() -> None:
    """Set up the SDK."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{os.environ['JOBS_SPANS']}/v1/traces")
    batched = "JOBS_SPANS_BATCHED" in os.environ
    provider.add_span_processor(BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter))
    otel.set_tracer_provider(provider)


@signals.worker_process_init.connect(weak=False)
def in_a_child(**_: Any) -> None:
    """In a pool's process, which OpenTelemetry's docs have people set up the SDK and its instrumentation in."""
    if "JOBS_SPANS" in os.environ and THEIRS == "child":
        spans()
        theirs()
    if OURS == "child":
        ours()
    if LOGGING == "child":
        log_records()


if "JOBS_SPANS" in os.environ and THEIRS != "child":
    spans()
if "JOBS_CONFIGURE" in os.environ:
    trifle.configure(os.environ["JOBS_CONFIGURE"])
if THEIRS == "before":
    theirs()
if LOGGING == "module":
    log_records()
if OURS == "module":
    ours()
if THEIRS == "after":
    theirs()


@app.task
def add(x: int, y: int = 0) -> int:
    """A job like any other."""
    trifle.trace("adding")
    return x + y


@app.task
def logs() -> None:
    """A job that logs, by Celery's logger of tasks, by its own, and by one of a library."""
    get_task_logger(__name__).warning("of the task")
    logging.getLogger(__name__).warning("of the module")
    logging.getLogger("shop").error("of the library")


@app.task
def total(numbers: list[int]) -> int:
    """The end of a chord."""
    return sum(numbers)


@app.task
def fails() -> None:
    """A job that raises."""
    with trifle.block("dividing"):
        raise ValueError("no rate")


@app.task(throws=(KeyError,))
def is_expected() -> None:
    """A job that raises what it says it does."""
    raise KeyError("unknown product")


@app.task
def gives_what_cannot_be_sent() -> object:
    """A job whose result cannot be written."""
    return object()


@app.task(bind=True, max_retries=2)
def again(self: Any) -> int:
    """A job that succeeds when it is tried for the third time."""
    if self.request.retries < 2:
        try:
            raise ConnectionError("no answer")
        except ConnectionError as error:
            # not at once: OpenTelemetry's instrumentation knows spans by the job's id, and would take one for the other
            raise self.retry(exc=error, countdown=0.3) from error
    return int(self.request.retries)


@app.task
def ignored() -> None:
    """A job that says that its outcome does not matter."""
    raise Ignore("nothing to do")


@app.task
def rejected() -> None:
    """A job that gives its message back."""
    raise Reject("no product", requeue=False)


@app.task(soft_time_limit=1)
def softly() -> str:
    """A job that takes too long, and would go on."""
    trifle.trace("before")
    time.sleep(30)
    return "never"


@app.task(soft_time_limit=1)
def handles() -> str:
    """A job that takes too long, and notices."""
    try:
        time.sleep(30)
    except SoftTimeLimitExceeded:
        return "half of it"
    return "never"


@app.task
def hangs(name: str = "hangs", seconds: float = 30) -> str:
    """A job that takes long, and says what it does before."""
    with trifle.block("waiting"):
        trifle.trace("inside")
        time.sleep(1.3)  # a running trace is flushed after a second
        mark(name)
        time.sleep(seconds)
    return "done"


@app.task(time_limit=3)
def hard(deaf: bool = False) -> str:
    """A job that is ended when its time is up, by force where it does not hear."""
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trifle.trace("before")
    time.sleep(30)
    return "never"


@app.task
def leaves() -> None:
    """A job that ends its process."""
    sys.exit(3)


@app.task
@job_options(trace=False)
def secret() -> str:
    """A job that nobody is to see."""
    return "secret"


@app.task
def starts_another(x: int) -> str:
    """A job that enqueues one."""
    return str(add.delay(x, 1).id)


@app.task
def composes() -> None:
    """A job that enqueues jobs which belong together."""
    chain(add.s(1, 2), add.s(3)).apply_async()
    chord([add.s(number, number) for number in range(3)], total.s()).apply_async()
    group(add.s(number) for number in range(2)).apply_async()
