"""Celery's tasks as traces: what an attempt says and how it ends. Workers as processes are in `test_celery_workers`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import kombu.common
import pytest
from billiard.pool import soft_timeout_sighandler
from celery import Celery, Task, signals
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject
from celery.loaders.app import AppLoader
from celery.worker import state as worker_state
from opentelemetry import trace as otel
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.trace import SpanKind
from spans import Sdk, attributes, parent_id, span_id

import trifle_otel as trifle
from trifle_otel import TraceRecord
from trifle_otel.cli.rerun import Call, call_of, send
from trifle_otel.errors import UsageError
from trifle_otel.integrations import celery as ours
from trifle_otel.integrations.attempts import Job, job_options
from trifle_otel.runtime import runtime


@pytest.fixture
def sdk() -> Sdk:
    """A process that records spans, with an archive in memory."""
    return Sdk().configure()


class Shop(Celery):  # type: ignore[misc]
    """An application with a broker in memory, whose tasks no other application has."""

    def __init__(self, **options: Any) -> None:
        super().__init__("shop", broker="memory://", backend="cache+memory://", set_as_current=False, **options)

    def task(self, **options: Any) -> Callable[[Callable[..., Any]], Any]:
        """See `Celery.task`."""
        made: Any = super().task(**{**options, "shared": False})
        return made  # type: ignore[no-any-return]

    def close(self) -> None:
        """The broker in memory is the process's: nothing is to wait there for another test."""
        self.control.purge()
        super().close()


@pytest.fixture
def app() -> Iterator[Shop]:
    """An application whose tasks are traced."""
    ours.instrument()
    app = Shop()
    yield app
    app.close()
    ours.uninstrument()


@pytest.fixture
def theirs(sdk: Sdk) -> Iterator[Callable[[], None]]:
    """What sets up OpenTelemetry's own instrumentation."""
    instrumentor: Any = CeleryInstrumentor
    yield lambda: instrumentor().instrument(tracer_provider=sdk.provider)
    if instrumentor().is_instrumented_by_opentelemetry:
        instrumentor().uninstrument()


def record_of(sdk: Sdk, name: str) -> TraceRecord:
    """The only trace of a task."""
    assert trifle.flush(5)
    (record,) = sdk.archive.search(segment=f"jobs/shop/{name}").records
    return record


def messages(sdk: Sdk, record: TraceRecord | None = None) -> list[str]:
    """First lines of messages, without the one that each trace begins with."""
    entries = sdk.archive.entries(record or sdk.record)
    return [entry.message.splitlines()[0] for entry in entries[1:]]


def seven() -> int:
    """A job like any other."""
    return 7


def nothing() -> None:
    """A job that returns nothing."""


# -- what an attempt says


def test_an_attempt_says_what_was_run_with_what(sdk: Sdk, app: Shop) -> None:
    """Key, arguments, tag and context come from the task and its request; what it returned is the result."""

    @app.task(name="shop.prices.calculate")
    def calculate(product: int, currency: str) -> float:
        trifle.trace("calculating")
        return 42.5

    calculate.apply((9,), {"currency": "EUR"}, task_id="j1", routing_key="prices")
    record = sdk.record
    assert record.key == "jobs/shop/prices/calculate"
    assert record.meta == {"args": [9], "kwargs": {"currency": "EUR"}}
    assert record.tags == ("j1",)
    assert record.state == "success"
    expected = {"job_id": "j1", "job_name": "shop.prices.calculate", "job_system": "celery", "queue": "prices"}
    assert {name: record.context[name] for name in expected} == expected
    assert (record.context["attempt"], record.context["eager"]) == (1, True)
    assert messages(sdk) == ["calculating", "42.5"]


amqp: Any = kombu  # it has no types
FEEDS = amqp.Exchange("feeds", "topic")


@pytest.mark.parametrize(
    "exchange, key, queue",
    [
        ("", "feed.import", "feed.import"),
        (None, "feed.import", "feed.import"),
        ("feeds", "feed.import", "imports"),
        ("feeds", "feed", "imports"),
        ("feeds", "feed.a.b", "imports"),
        ("feeds", "mail.now", "mails"),
        ("feeds", "mail.now.or.later", "mail.now.or.later"),
        ("feeds", "both.now", "both.now"),
        ("feeds", "feedimport", "feedimport"),
        ("exact", "a.*", "exactly"),
        ("exact", "a.b", "a.b"),
        ("second", "b", "exactly"),
        ("everywhere", "anything", "news"),
        ("unknown", "feed.import", "feed.import"),
    ],
)
def test_the_queue_is_the_one_that_a_message_came_from(
    sdk: Sdk, app: Shop, exchange: str | None, key: str, queue: str
) -> None:
    """As its exchange has it, where that is certain; else it is the routing key, beside the name of the exchange."""
    app.conf.task_queues = (
        amqp.Queue("imports", [amqp.binding(FEEDS, "feed.#"), amqp.binding(FEEDS, "both.#")]),
        amqp.Queue("mails", [amqp.binding(FEEDS, "mail.*"), amqp.binding(FEEDS, "both.*")]),
        amqp.Queue(
            "exactly", [amqp.binding(amqp.Exchange("exact"), "a.*"), amqp.binding(amqp.Exchange("second"), "b")]
        ),
        amqp.common.Broadcast("news", exchange=amqp.Exchange("everywhere", "fanout")),
        amqp.Queue("celery", amqp.Exchange("celery"), "celery"),
    )
    app.task(name="shop.job")(nothing).apply(exchange=exchange, routing_key=key)
    context = sdk.record.context
    assert context["queue"] == queue
    expected = (exchange, key) if exchange else (None, None)
    assert (context.get("exchange"), context.get("routing_key")) == expected


def waiting(app: Shop, queue: str) -> list[str]:
    """The tasks whose messages wait in a queue."""
    found = []
    with app.connection_for_read() as connection:
        while message := connection.default_channel.basic_get(queue, no_ack=True):
            found.append(message.headers["task"])
    return found


def test_a_job_is_sent_again_by_the_way_that_it_came(sdk: Sdk, app: Shop) -> None:
    """Through its exchange, to a queue that somebody consumes; by an application that has sent nothing before."""
    app.conf.update(
        task_queues=(
            amqp.Queue("default", amqp.Exchange("default"), "d"),
            amqp.Queue("imports", FEEDS, "feed.#"),
            amqp.common.Broadcast("news"),
        ),
        task_default_queue="default",
    )
    app.task(name="shop.job")(nothing).apply(exchange="feeds", routing_key="feed.import")
    call = call_of(sdk.record)
    assert (call.queue, call.exchange, call.routing_key) == ("imports", "feeds", "feed.import")
    send(call, app)
    assert waiting(app, "imports") == ["shop.job"]
    assert waiting(app, "default") == []
    send(Call("celery", "shop.job", [], {}, "default"), app)
    assert waiting(app, "default") == ["shop.job"]


def test_a_broadcast_is_sent_to_all_again(app: Shop) -> None:
    """Though its routing key is empty, which of other exchanges would mean the default queue."""
    news = amqp.common.Broadcast("news")
    app.conf.task_queues = (amqp.Queue("celery", amqp.Exchange("celery"), "celery"), news)
    with app.connection_for_write() as connection:
        news(connection.default_channel).declare()
        send(Call("celery", "shop.job", [], {}, "news", "news", ""), app)
        assert waiting(app, news.name) == ["shop.job"]
        assert waiting(app, "celery") == []


def test_a_job_of_an_exchange_that_the_application_does_not_have_is_not_sent_again(app: Shop) -> None:
    """It would be lost, or lie in a queue that nobody consumes."""
    with pytest.raises(UsageError, match="no queue at the exchange 'feeds'"):
        send(Call("celery", "shop.job", [], {}, "imports", "feeds", "feed.import"), app)


def test_a_task_that_another_one_runs_is_a_trace_of_its_own(sdk: Sdk, app: Shop) -> None:
    """Its span lies in the other's, and each has its own lines."""

    @app.task(name="shop.inner")
    def inner() -> None:
        trifle.trace("inside")

    @app.task(name="shop.outer")
    def outer() -> None:
        inner.apply(task_id="j2")
        trifle.trace("afterwards")

    outer.apply(task_id="j1")
    parent, child = record_of(sdk, "outer"), record_of(sdk, "inner")
    assert child.trace_id == parent.trace_id
    assert messages(sdk, parent) == ["afterwards"]
    assert messages(sdk, child) == ["inside"]


def test_a_task_that_is_called_like_a_function_is_none(sdk: Sdk, app: Shop) -> None:
    """It runs in whatever trace is current."""

    @app.task(name="shop.add")
    def add(x: int, y: int) -> int:
        trifle.trace("adding")
        return x + y

    with trifle.tracer("outer"):
        assert add(1, 2) == 3
    assert sdk.record.key == "outer"
    assert messages(sdk) == ["adding"]


def test_what_a_task_does_before_and_after_its_body_is_in_its_attempt(sdk: Sdk, app: Shop) -> None:
    """Lines of a task's own handlers and of what it is called through are lines of its trace."""

    class Base(Task):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            trifle.trace("called")
            return self.run(*args, **kwargs)

        def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            trifle.trace("before_start")

        def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            trifle.trace("on_failure")

        def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
            trifle.trace("after_return")

    @app.task(base=Base, name="shop.fails")
    def fails() -> None:
        raise ValueError("no rate")

    fails.apply()
    assert messages(sdk)[:-1] == ["before_start", "called", "on_failure", "after_return", "Exception: no rate"]


# -- how it ends


def raising(error: BaseException) -> Callable[[], None]:
    """A function that raises."""

    def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    "error, state, line",
    [
        (ValueError("no rate"), "error", "Exception: no rate"),
        (Ignore("nothing to do"), "success", "Ignored: nothing to do"),
        (Reject("no product", requeue=True), "warning", "Rejected: no product, requeued"),
        (Reject(), "warning", "Rejected: its message"),
        (KeyError("product"), "warning", "Expected: KeyError: 'product'"),
    ],
)
def test_how_an_attempt_ended_is_said(sdk: Sdk, app: Shop, error: Exception, state: str, line: str) -> None:
    """What Celery takes for no failure is none, and each says what it was."""
    app.task(name="shop.job", throws=(KeyError,))(raising(error)).apply()
    assert sdk.record.state == state
    assert messages(sdk)[0] == line


@pytest.mark.parametrize("error", [ValueError("no rate"), SystemExit(3), KeyboardInterrupt()])
def test_what_leaves_through_celery_leaves_as_it_came(sdk: Sdk, app: Shop, error: BaseException) -> None:
    """The trace is closed by it, and nothing of it stays current."""
    with pytest.raises(type(error)) as raised:
        app.task(name="shop.job")(raising(error)).apply(throw=True)
    assert raised.value is error
    assert sdk.record.state == "error"
    assert trifle.current() is None


def test_the_traceback_leads_to_the_line_that_raised(sdk: Sdk, app: Shop) -> None:
    """Celery clears the frames of a traceback before we see it; its lines stay."""
    app.task(name="shop.job")(raising(ValueError("no rate"))).apply()
    traceback = list(sdk.entries)[-1]
    assert traceback.type == "raw"
    assert traceback.message.startswith("Traceback (most recent call last):")
    assert traceback.message.endswith("    raise error\nValueError: no rate")


def test_a_result_that_cannot_be_stored_fails_the_attempt(sdk: Sdk, app: Shop) -> None:
    """Celery then says that the task failed, and so does its trace."""
    app.conf.task_store_eager_result = True
    app.conf.result_serializer = "json"

    @app.task(name="shop.job")
    def job() -> object:
        return object

    assert job.apply().state == "FAILURE"
    assert sdk.record.state == "error"


@pytest.mark.parametrize("automatic", [False, True], ids=["retry", "autoretry_for"])
def test_each_try_is_a_trace_and_a_retry_is_no_failure(sdk: Sdk, app: Shop, automatic: bool) -> None:
    """A retry says when and what for, with the traceback; the last try ends as it ends."""

    @app.task(bind=True, name="shop.job", max_retries=2, autoretry_for=(OSError,) if automatic else ())
    def job(self: Any) -> int:
        try:
            if self.request.retries < 2:
                raise ConnectionError("no answer")
        except ConnectionError as error:
            if automatic:
                raise
            raise self.retry(exc=error, countdown=0) from error
        return 7

    assert job.apply(task_id="j1").get() == 7
    trifle.flush()
    records = sorted(sdk.archive.search().records, key=lambda record: record.reference)
    assert [(record.context["attempt"], record.state) for record in records] == [
        (1, "warning"),
        (2, "warning"),
        (3, "success"),
    ]
    assert {record.tags for record in records} == {("j1",)}
    line, traceback = list(sdk.archive.entries(records[0]))[1:]
    assert line.message.startswith("Retry: in ")
    assert line.message.endswith("s: ConnectionError('no answer')")
    assert traceback.message.endswith("ConnectionError: no answer")


# -- with OpenTelemetry's own instrumentation


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("error", [None, ValueError("no rate"), Ignore(), Reject(), SystemExit(1)], ids=repr)
def test_an_attempt_lies_in_the_span_of_opentelemetrys_instrumentation(
    sdk: Sdk, theirs: Callable[[], None], order: str, error: BaseException | None
) -> None:
    """Whichever was set up first: it opens inside that span, and has ended before it, whatever the end."""
    if order == "before":
        theirs()
    ours.instrument()
    if order == "after":
        theirs()
    app = Shop()
    job = app.task(name="shop.job")(raising(error) if error else seven)
    try:
        job.apply()
    except SystemExit:
        pass
    finally:
        ours.uninstrument()
        app.close()
    assert [span.name for span in sdk.spans] == ["jobs/shop/job", "run/shop.job"]
    mine, around = sdk.spans
    assert parent_id(mine) == span_id(around)
    assert mine.kind is SpanKind.INTERNAL
    assert "messaging.system" not in attributes(mine)
    assert otel.get_current_span() is otel.INVALID_SPAN


def published(app: Shop, name: str) -> dict[str, Any]:
    """The headers of the only message of a task that waits."""
    with app.connection_for_read() as connection:
        message = connection.default_channel.basic_get("celery", no_ack=True)
        assert message.headers["task"] == name
        return dict(message.headers)


def test_the_enqueuers_context_goes_with_the_message(sdk: Sdk, app: Shop) -> None:
    """In the header of the W3C; without a span there is none."""
    job = app.task(name="shop.job")(nothing)
    job.delay()
    assert "traceparent" not in published(app, "shop.job")
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as span:
        job.delay()
    context = span.get_span_context()
    sent = published(app, "shop.job")["traceparent"]
    assert sent.startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


@pytest.mark.parametrize("order", ["before", "after"])
def test_opentelemetrys_header_stays(sdk: Sdk, theirs: Callable[[], None], order: str) -> None:
    """Where its instrumentation is set up, the message carries the context of its span."""
    if order == "before":
        theirs()
    ours.instrument()
    if order == "after":
        theirs()
    app = Shop()
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        app.task(name="shop.job")(nothing).delay()
    ours.uninstrument()
    assert span_id(sdk.named("apply_async/shop.job")) in published(app, "shop.job")["traceparent"]
    app.close()


def test_enqueuer_and_worker_are_one_distributed_trace(sdk: Sdk, app: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our span is the consumer's, in the enqueuer's trace, and what the job enqueues in turn lies in its own."""
    monkeypatch.setattr(worker_state, "should_stop", None)
    monkeypatch.setattr("celery._state._task_join_will_block", False)
    monkeypatch.setattr("celery._state._tls.current_app", app)

    @app.task(name="shop.second")
    def second(x: int) -> int:
        return x + 1

    @app.task(name="shop.first")
    def first(x: int) -> int:
        return x * 2

    @app.task(name="shop.third")
    def third(x: int) -> None:
        worker_state.should_stop = 0

    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        sent = (first.s(3) | second.s() | third.s()).delay().parent
    app.conf.update(worker_enable_remote_control=False, broker_connection_retry_on_startup=True)
    app.WorkController(pool="solo", without_gossip=True, without_mingle=True, without_heartbeat=True).start()
    monkeypatch.undo()
    assert sent.get() == 7
    roots = [sdk.named("jobs/shop/first"), sdk.named("jobs/shop/second")]
    assert parent_id(roots[0]) == f"{enqueuer.get_span_context().span_id:016x}"
    assert parent_id(roots[1]) == span_id(roots[0])
    assert [root.kind for root in roots] == [SpanKind.CONSUMER] * 2
    assert attributes(roots[0])["messaging.system"] == "celery"
    assert attributes(roots[0])["messaging.destination.name"] == "celery"
    assert attributes(roots[0])["messaging.message.id"] == sent.parent.id
    record = record_of(sdk, "second")
    assert (record.context["root_id"], record.context["parent_id"]) == (sent.parent.id, sent.parent.id)
    assert record.context["queue"] == "celery"
    assert "eager" not in record.context


# -- options, and what is around it


def test_options_choose_what_is_traced_and_how(sdk: Sdk, app: Shop) -> None:
    """A selector, a key, a mode and days for all; one task may say otherwise."""
    ours.instrument(
        select=lambda job: job.queue == "prices", key=lambda job: f"own/{job.name}", mode="deferred", retention=30
    )

    @app.task(name="shop.secret")
    @job_options(trace=False)
    def secret() -> None:
        """A job that nobody is to see."""

    app.task(name="shop.mail")(nothing).apply(routing_key="mails")
    app.task(name="shop.price")(nothing).apply(routing_key="prices")
    secret.apply(routing_key="prices")
    assert (sdk.record.key, sdk.record.retention) == ("own/shop.price", 30)
    assert attributes(sdk.root)["trifle.mode"] == "deferred"


def test_celerys_own_housekeeping_is_traced_where_it_is_asked_for_alone(sdk: Sdk, app: Shop) -> None:
    """Polling for the end of a chord would fill the archive."""
    cleanup = app.tasks["celery.backend_cleanup"]
    cleanup.apply()
    assert trifle.flush(5)
    assert sdk.archive.search().records == []

    def every(job: Job) -> bool:
        return True

    ours.instrument(select=every)
    cleanup.apply()
    assert sdk.record.key == "jobs/celery/backend_cleanup"


def test_a_loader_of_ones_own_is_called_as_before(sdk: Sdk) -> None:
    """One that was there when `instrument` was called, whether or not it calls Celery's."""

    class Loader(AppLoader):  # type: ignore[misc]
        def on_task_init(self, task_id: str, task: Any) -> None:
            trifle.trace(f"own {task_id}")
            super().on_task_init(task_id, task)

    ours.instrument()
    app = Shop(loader=Loader)
    app.task(name="shop.job")(nothing).apply(task_id="j1")
    ours.uninstrument()
    assert messages(sdk) == ["own j1"]
    assert "on_task_init" in vars(Loader)
    assert not hasattr(Loader.on_task_init, "__wrapped__")


def test_tasks_that_were_ready_to_run_are_traced_as_well(sdk: Sdk) -> None:
    """A pool's process has built what runs its tasks before it tells anybody that it is there."""
    app = Shop()
    job = app.task(name="shop.job")(nothing)
    app.finalize()
    job.__trace__ = build_tracer(job.name, job, app=app)
    ours.instrument()
    job.__trace__("j1", (), {}, {"id": "j1"})
    ours.uninstrument()
    app.close()
    assert sdk.record.tags == ("j1",)


def test_it_can_be_taken_back(sdk: Sdk, app: Shop) -> None:
    """Then tasks run untraced, and messages carry nothing; set up again it works again, first among all receivers."""
    job = app.task(name="shop.job")(nothing)
    ours.uninstrument()
    job.apply()
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        job.delay()
    assert "traceparent" not in published(app, "shop.job")
    assert trifle.flush(5)
    assert sdk.archive.search().records == []
    ours.instrument()
    ours.instrument()
    job.apply()
    assert sdk.record.key == "jobs/shop/job"


def test_requests_that_are_odd_stop_no_task(sdk: Sdk, app: Shop) -> None:
    """What somebody else's message holds, or a selector raises, is counted; the job runs untraced."""
    job = app.task(name="shop.job")(seven)
    assert job.apply(headers={"traceparent": 7, "tracestate": [None]}, delivery_info=None).get() == 7
    assert sdk.record.state == "success"

    def select(job: Job) -> bool:
        raise LookupError(job.name)

    ours.instrument(select=select)
    assert job.apply().get() == 7
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


def test_a_workers_main_process_prepares_its_pool(sdk: Sdk, app: Shop) -> None:
    """What the first trace of a process does once is done before the pool's processes are forked."""
    assert runtime().provider is None
    signals.worker_init.send(sender=None)
    assert runtime().provider is sdk.provider


class Late:
    """A value that is shown when the job's time is up, as the pool's main process says by a signal."""

    def __repr__(self) -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "never"


def test_a_soft_time_limit_that_strikes_in_our_code_ends_the_job(sdk: Sdk, app: Shop) -> None:
    """It is no fault of ours that we would keep."""

    def job() -> str:
        trifle.trace("looking", Late)
        return "never"

    before = signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    try:
        assert app.task(name="shop.job")(job).apply().state == "FAILURE"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sdk.record.state == "error"
    assert "Exception: SoftTimeLimitExceeded()" in [entry.message for entry in sdk.entries]
    assert runtime().troubles.counts == {}


def test_a_soft_time_limit_that_strikes_at_the_end_leaves_a_closed_trace(sdk: Sdk, app: Shop) -> None:
    """Celery itself keeps it then: the job is done."""

    def job() -> Late:
        return Late()

    before = signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    try:
        assert app.task(name="shop.job")(job).apply().state == "SUCCESS"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert trifle.current() is None
    assert sdk.record.state == "error"


def test_an_end_that_is_odd_is_an_end(sdk: Sdk, app: Shop) -> None:
    """Where it cannot be said what it was, the exception is recorded, and nothing stays current."""
    error = Reject()
    del error.reason
    assert app.task(name="shop.job")(raising(error)).apply().state == "REJECTED"
    assert sdk.record.state == "error"
    assert trifle.current() is None
    assert runtime().troubles.counts["how an attempt at a job ended could not be found out"] == 1


def test_without_configuration_tasks_run_as_they_did(app: Shop) -> None:
    """With neither an archive nor an SDK nothing is recorded."""
    assert app.task(name="shop.job")(seven).apply().get() == 7
    assert runtime().sink is None
