"""Dramatiq's messages as traces: what an attempt says, how it ends, and workers as processes against a real Redis."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import dramatiq
import dramatiq_jobs as jobs
import pytest
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from opentelemetry.trace import SpanKind
from otlp_servers import HttpServer
from servers import ServerMissingError, redis
from spans import Sdk, attributes, parent_id, span_id
from workshop import Workshop, messages, states

import trifle_otel as trifle
from trifle_otel import TraceRecord
from trifle_otel.cli.rerun import call_of, python_of, send
from trifle_otel.integrations import dramatiq as ours
from trifle_otel.integrations.attempts import Job
from trifle_otel.runtime import runtime

slow = pytest.mark.slow
fault = pytest.mark.fault
BROKER: StubBroker = jobs.broker


@pytest.fixture
def sdk() -> Sdk:
    """A process that records spans, with an archive in memory."""
    return Sdk().configure()


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Messages are traced."""
    ours.instrument()
    yield
    ours.uninstrument()


@pytest.fixture
def work(instrumented: None) -> Iterator[Callable[[], None]]:
    """What runs the messages that wait, in a thread of this process."""
    BROKER.flush_all()
    worker = dramatiq.Worker(BROKER, worker_timeout=20, worker_threads=1)
    BROKER.emit_after("process_boot")
    worker.start()

    def work() -> None:
        BROKER.join(jobs.QUEUE)
        worker.join()

    yield work
    worker.stop()


@pytest.fixture(scope="module", autouse=True)
def one_clock() -> None:
    """Dramatiq's clock of time limits is a thread that can be started once."""
    for middleware in BROKER.middleware:
        manager: Any = getattr(middleware, "manager", None)
        if hasattr(manager, "start"):
            start = manager.start
            manager.start = lambda start=start, manager=manager: None if manager.is_alive() else start()


def records(sdk: Sdk) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return sdk.archive.search(limit=100).records[::-1]


# -- what an attempt says


def test_an_attempt_says_what_was_run_with_what(sdk: Sdk, work: Callable[[], None]) -> None:
    """Key, arguments, tag and context come from the message; what the actor returned is the result."""
    message = jobs.add.send(9, y=4)
    work()
    record = sdk.record
    assert record.key == "jobs/dramatiq_jobs/add"
    assert record.meta == {"args": [9], "kwargs": {"y": 4}}
    assert record.tags == (message.message_id,)
    assert record.state == "success"
    expected = {"job_name": "dramatiq_jobs.add", "job_system": "dramatiq", "queue": "prices", "attempt": 1}
    assert {name: record.context[name] for name in expected} == expected
    assert record.context["job_id"] == record.context["root_id"] == message.message_id
    assert messages(sdk.archive) == ["adding", "13"]


def test_a_coroutine_is_traced_like_any_other_actor(sdk: Sdk, work: Callable[[], None]) -> None:
    """It runs in another thread's event loop, in our context."""
    jobs.waits.send(5)
    work()
    assert messages(sdk.archive) == ["waiting", "5"]


def test_what_middlewares_do_is_part_of_the_attempt(sdk: Sdk, work: Callable[[], None]) -> None:
    """It lasts until the last of them has heard of the message's end."""
    jobs.add.send_with_options(args=(1,), chatty=True)
    work()
    assert messages(sdk.archive) == ["adding", "afterwards: 1", "1"]


def test_an_actor_that_is_called_like_a_function_is_none(sdk: Sdk, instrumented: None) -> None:
    """It runs in whatever trace is current."""
    with trifle.tracer("outer"):
        assert jobs.add(1, 2) == 3
    assert sdk.record.key == "outer"
    assert messages(sdk.archive) == ["adding"]


# -- how it ends


def test_exceptions_with_retries_left_are_no_failures(sdk: Sdk, work: Callable[[], None]) -> None:
    """Each attempt is a trace, with its number; the last one failed, with line and traceback."""
    message = jobs.fails.send()
    work()
    found = records(sdk)
    assert states(found) == ["warning", "error"]
    assert [record.context["attempt"] for record in found] == [1, 2]
    assert {record.tags for record in found} == {(message.message_id,)}
    first, last = (messages(sdk.archive, record) for record in found)
    assert first[-2:] == ["Retry: ValueError: no rate", "Traceback (most recent call last):"]
    assert last[-2:] == ["Exception: no rate", "Traceback (most recent call last):"]


@pytest.mark.parametrize(
    "actor, lines",
    [
        (jobs.again, ["Retry: in 0.02 s: not yet", "Exception: not yet"]),
        (jobs.is_limited, ["Retry: RateLimitExceeded: too many", "Exception: too many"]),
    ],
)
def test_an_actor_may_ask_to_be_run_again(
    sdk: Sdk, work: Callable[[], None], actor: dramatiq.Actor[[], None], lines: list[str]
) -> None:
    """Which is no failure as long as it is."""
    actor.send()
    work()
    found = records(sdk)
    assert states(found) == ["warning", "error"]
    assert [messages(sdk.archive, record)[0] for record in found] == lines


def test_what_an_actor_says_it_throws_is_no_failure(sdk: Sdk, work: Callable[[], None]) -> None:
    """Dramatiq does not try it again."""
    jobs.is_expected.send()
    work()
    assert sdk.record.state == "warning"
    assert messages(sdk.archive) == ["Expected: KeyError: 'unknown product'"]


def test_skipped_messages_are_no_failures(sdk: Sdk, work: Callable[[], None]) -> None:
    """Whether they are dropped or put aside, a trace says so."""
    jobs.add.send_with_options(args=(1,), skip="drop")
    work()
    jobs.add.send_with_options(args=(1,), skip="fail")
    work()
    found = records(sdk)
    assert states(found) == ["success", "warning"]
    ends = [messages(sdk.archive, record) for record in found]
    assert ends == [["Ignored: nobody needs it"], ["Rejected: nobody needs it"]]


def test_a_message_that_is_too_old_is_rejected(sdk: Sdk, work: Callable[[], None]) -> None:
    """Dramatiq's own middleware puts it aside."""
    message = jobs.add.message(1)
    BROKER.enqueue(message.copy(message_timestamp=message.message_timestamp - 60_000, options={"max_age": 1000}))
    work()
    assert messages(sdk.archive) == ["Rejected: Message age limit exceeded"]


def test_a_time_limit_ends_an_attempt_as_an_error(sdk: Sdk, work: Callable[[], None]) -> None:
    """Dramatiq's interrupt is in the trace."""
    jobs.takes_long.send()
    work()
    assert sdk.record.state == "error"
    assert messages(sdk.archive)[:2] == ["before", "Exception: TimeLimitExceeded"]


def test_without_the_retries_middleware_an_exception_is_a_failure(sdk: Sdk, instrumented: None) -> None:
    """Nobody tries it again. Brokers of any kind are traced, whenever they were made."""
    broker = StubBroker(middleware=[])

    def breaks() -> None:
        raise ValueError("no rate")

    actor = dramatiq.actor(breaks, broker=broker, actor_name="shop.breaks")  # type: ignore[call-overload]
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    actor.send()
    broker.join("default")
    worker.join()
    worker.stop()
    assert (sdk.record.key, sdk.record.state) == ("jobs/test_dramatiq/shop/breaks", "error")


# -- distributed traces


def test_one_distributed_trace_joins_enqueuer_and_worker(sdk: Sdk, work: Callable[[], None]) -> None:
    """The enqueuer's context is in the message's options."""
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        message = jobs.add.send(1)
    assert list(message.options) == ["traceparent"]
    work()
    root = sdk.root
    assert root.kind is SpanKind.CONSUMER
    assert parent_id(root) == f"{enqueuer.get_span_context().span_id:016x}"
    assert attributes(root)["messaging.system"] == "dramatiq"
    assert attributes(root)["messaging.destination.name"] == "prices"
    assert attributes(root)["messaging.message.id"] == message.message_id


def test_a_message_that_another_one_sends_names_it(sdk: Sdk, work: Callable[[], None]) -> None:
    """As its parent and as the root of its workflow; its span lies in the other's trace."""
    first = jobs.starts_another.send(1)
    work()
    found = {record.key: record for record in records(sdk)}
    child = found["jobs/dramatiq_jobs/add"]
    assert child.context["parent_id"] == child.context["root_id"] == first.message_id
    assert {record.trace_id for record in found.values()} == {child.trace_id}
    assert parent_id(sdk.named("jobs/dramatiq_jobs/add")) == span_id(sdk.named("inner"))


def test_the_steps_of_a_pipeline_follow_each_other(sdk: Sdk, work: Callable[[], None]) -> None:
    """Each is a child of the one before, and all name the first as their root."""
    pipe = dramatiq.pipeline([jobs.add.message(1, 1), jobs.add.message(10), jobs.add.message(100)])
    pipe.run()
    work()
    found = records(sdk)
    assert [record.meta for record in found] == [[1, 1], [10, 2], [100, 12]]
    first, second, third = found
    assert [record.context.get("parent_id") for record in found] == [None, first.tags[0], second.tags[0]]
    assert {record.context["root_id"] for record in found} == {first.tags[0]}
    assert first.trace_id == second.trace_id == third.trace_id


def test_each_attempt_belongs_to_the_enqueuer(sdk: Sdk, work: Callable[[], None]) -> None:
    """A retry is no child of the attempt before it."""
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        jobs.fails.send()
    work()
    enqueuer = span_id(sdk.named("enqueue"))
    assert [parent_id(span) for span in sdk.spans if span.name.endswith("/fails")] == [enqueuer, enqueuer]


def test_a_retry_of_what_nobody_traced_is_no_child_of_its_own(sdk: Sdk, work: Callable[[], None]) -> None:
    """It says nothing of an enqueuer, as the first attempt did."""
    jobs.fails.send()
    work()
    assert [record.context.get("parent_id") for record in records(sdk)] == [None, None]
    assert [span.parent for span in sdk.spans if span.name.endswith("/fails")] == [None, None]


# -- options, and faults of ours


def test_jobs_choose_how_they_are_traced(sdk: Sdk, work: Callable[[], None]) -> None:
    """A job's own options come before those of `instrument`, which may be called again."""
    ours.instrument(key=lambda job: f"own/{job.queue}", retention=30)
    jobs.secret.send()
    jobs.add.send(1)
    work()
    assert (sdk.record.key, sdk.record.retention) == ("own/prices", 30)


def test_a_trace_says_how_to_run_it_again(sdk: Sdk, work: Callable[[], None]) -> None:
    """`trifle-otel rerun` sends the same call."""
    jobs.add.send(9, y=4)
    work()
    call = call_of(sdk.record)
    assert python_of(call) == "dramatiq_jobs.add(9, y=4)"
    send(call, BROKER)
    work()
    first, second = records(sdk)
    assert (first.key, first.meta) == (second.key, second.meta)
    assert first.tags != second.tags


def test_without_instrumentation_nothing_is_traced(sdk: Sdk, work: Callable[[], None]) -> None:
    """What was put in the place of Dramatiq's methods is gone."""
    ours.uninstrument()
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        assert jobs.add.send(1).options == {}
    work()
    assert records(sdk) == []
    assert not hasattr(dramatiq.Broker.emit_before, "__wrapped__")


def test_without_configuration_jobs_run_untraced(work: Callable[[], None]) -> None:
    """With neither an archive nor an SDK."""
    jobs.add.send(1)
    work()
    assert BROKER.dead_letters == []


def test_a_selector_that_raises_hurts_no_job(sdk: Sdk, work: Callable[[], None]) -> None:
    """The job runs untraced, and the fault is counted."""

    def select(job: Job) -> bool:
        raise LookupError(job.name)

    ours.instrument(select=select)
    jobs.add.send(1)
    work()
    assert BROKER.dead_letters == []
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


def test_options_that_make_no_sense_hurt_no_job(sdk: Sdk, work: Callable[[], None]) -> None:
    """A message of somebody else's may hold anything."""
    jobs.add.send_with_options(args=(1,), retries="many", traceparent=7)
    work()
    assert BROKER.dead_letters == []
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


# -- workers as processes


class Shop(Workshop):
    """Workers of `dramatiq_jobs`, and who enqueues for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__("dramatiq_jobs", folder, f"redis://127.0.0.1:{redis().port}/0")
        self.client = RedisBroker(url=self.environment["JOBS_BROKER"])
        self.client.flush_all()

    def start(self, *options: str, **environment: str) -> Any:
        """Start a worker: two processes of two threads."""
        command = ["-m", "dramatiq", "dramatiq_jobs", "--processes", "2", "--threads", "2", *options]
        worker = self.work(*command, ready="is booting up", **environment)
        self.wait_until(lambda: worker.said.count("Worker process is ready for action") == 2)
        return worker

    def send(self, name: str, *args: Any, **options: Any) -> str:
        """Enqueue a message; gives its id."""
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=self.queue, actor_name=name, args=args, kwargs={}, options=options
        )
        return self.client.enqueue(message).message_id

    def close(self) -> None:
        """Let go of the connection as well."""
        super().close()
        self.client.close()


@pytest.fixture
def shop(tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[Shop]:
    """A shop without workers yet."""
    try:
        made = Shop(tmp_path)
    except ServerMissingError as missing:
        server_missing(str(missing))
    made.client.declare_queue(made.queue)
    yield made
    made.close()


@slow
@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_every_attempt_is_an_archive_in_threads_and_processes(shop: Shop, how: str) -> None:
    """One trace for each attempt, with how it ended, and none for what opted out; also of processes that are gone."""
    worker = shop.start(*(["--use-spawn"] if how == "spawn" else []))
    for name in ("fails", "is_expected", "again", "secret", "takes_long"):
        shop.send(name)
    for number in range(20):
        shop.send("add", number)
    shop.send("waits", 1)
    shop.send("starts_another", 100)
    found = shop.records(2 + 1 + 2 + 1 + 20 + 1 + 3)
    ends = Counter((record.key.removeprefix("jobs/dramatiq_jobs/"), record.state) for record in found)
    assert ends == {
        ("fails", "warning"): 1,
        ("fails", "error"): 1,
        ("is_expected", "warning"): 1,
        ("again", "warning"): 1,
        ("again", "error"): 1,
        ("takes_long", "error"): 1,
        ("add", "success"): 21,
        ("waits", "success"): 1,
        ("starts_another", "success"): 1,
        ("inner", "success"): 1,
    }
    shop.check_sums(found, *range(20), 100)
    assert worker.stop() == 0


@slow
def test_one_distributed_trace_across_processes(shop: Shop, sink: HttpServer) -> None:
    """From who enqueues by the worker to what a job there enqueues."""
    shop.start(JOBS_SPANS=sink.endpoint)
    shop.check_joined(ours, sink, lambda: shop.send("starts_another", 1))


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
def test_a_worker_that_is_killed_leaves_what_its_job_recorded(shop: Shop, mode: str) -> None:
    """Whoever recovers closes the trace."""
    worker = shop.start(TRIFLE_DEFAULT_MODE=mode)
    shop.send("hangs")
    shop.wait_for("hangs")
    worker.kill()
    shop.check_dead(shop.record("hangs", recover=True))


@fault
def test_a_process_that_is_killed_is_closed_by_another(shop: Shop) -> None:
    """Dramatiq stops the others, too; the next worker brings home what was left."""
    worker = shop.start()
    shop.send("hangs")
    shop.wait_for("hangs")
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    worker.process.wait(30)
    shop.client.flush_all()
    shop.start()
    shop.check_dead(shop.record("hangs"))


@fault
def test_sigterm_lets_jobs_finish(shop: Shop) -> None:
    """The worker ends when they have, and what they recorded is there: its processes call no exit handlers."""
    worker = shop.start()
    shop.send("hangs", "hangs", 1.0)
    shop.wait_for("hangs")
    assert worker.stop() == 0
    record = shop.record("hangs")
    shop.check_finished(record)


@fault
def test_a_job_that_hears_of_the_end_is_closed_by_it(shop: Shop) -> None:
    """Dramatiq interrupts it when the worker stops."""
    worker = shop.start()
    shop.send("hears_of_the_end")
    shop.wait_for("hears_of_the_end")
    assert worker.stop() == 0
    record = shop.record("hears_of_the_end")
    assert record.state == "error"
    assert shop.messages(record)[:2] == ["before", "Exception: Shutdown"]
