"""Huey's tasks as traces: what an attempt says, how it ends, and consumers as processes against a real Redis."""

from __future__ import annotations

import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import huey_jobs as jobs
import pytest
from huey import Huey, MemoryHuey, RedisHuey
from huey.registry import Message
from huey.serializer import Serializer, SignedSerializer
from huey.storage import MemoryStorage
from opentelemetry.trace import SpanKind
from otlp_servers import HttpServer
from servers import ServerMissingError, redis
from spans import Sdk, attributes, parent_id, span_id
from workshop import Workshop, messages, states

import trifle_otel as trifle
from trifle_otel import TraceRecord
from trifle_otel.cli.rerun import call_of, python_of, send
from trifle_otel.integrations import huey as ours
from trifle_otel.integrations.attempts import Job
from trifle_otel.runtime import runtime

slow = pytest.mark.slow
fault = pytest.mark.fault
HUEY: Any = jobs.huey


@pytest.fixture
def sdk() -> Sdk:
    """A process that records spans, with an archive in memory."""
    return Sdk().configure()


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Tasks are traced, and none waits."""
    HUEY.flush()
    ours.instrument()
    yield
    ours.uninstrument()


@pytest.fixture
def work(instrumented: None) -> Callable[[], None]:
    """What does as a worker does with the tasks that wait, and with those whose time has come."""

    def work() -> None:
        while (task := HUEY.dequeue()) is not None:
            HUEY.execute(task)
            for due in HUEY.read_schedule():
                HUEY.enqueue(due)

    return work


@pytest.fixture
def immediate(instrumented: None) -> Iterator[None]:
    """Tasks run where they are called."""
    HUEY.immediate = True
    yield
    HUEY.immediate = False


def records(sdk: Sdk) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return sdk.archive.search(limit=100).records[::-1]


# -- what an attempt says


def test_an_attempt_says_what_was_run_with_what(sdk: Sdk, work: Callable[[], None]) -> None:
    """Key, arguments, tag and context come from the task; what it returned is the result."""
    sent = jobs.add(9, y=4)
    work()
    record = sdk.record
    assert record.key == "jobs/huey_jobs/add"
    assert record.meta == {"args": [9], "kwargs": {"y": 4}}
    assert record.tags == (sent.id,)
    assert record.state == "success"
    expected = {"job_name": "huey_jobs.add", "job_system": "huey", "queue": "prices", "attempt": 1}
    assert {name: record.context[name] for name in expected} == expected
    assert record.context["job_id"] == record.context["root_id"] == sent.id
    assert messages(sdk.archive) == ["adding", "13"]
    assert sent.get() == 13


def test_what_hooks_do_is_part_of_the_attempt(sdk: Sdk, work: Callable[[], None]) -> None:
    """It lasts as long as Huey works on the task."""
    jobs.add(1, y="chatty")
    work()
    assert messages(sdk.archive) == ["a hook before", "adding", "a hook after", "1"]


def test_a_task_that_is_called_like_a_function_is_none(sdk: Sdk, instrumented: None) -> None:
    """It runs in whatever trace is current."""
    with trifle.tracer("outer"):
        assert jobs.add.call_local(1, 2) == 3
    assert sdk.record.key == "outer"
    assert messages(sdk.archive) == ["adding"]


# -- how it ends


def test_exceptions_with_retries_left_are_no_failures(sdk: Sdk, work: Callable[[], None]) -> None:
    """Each attempt is a trace, with its number; the last one failed, with line and traceback."""
    sent = jobs.fails()
    work()
    found = records(sdk)
    assert states(found) == ["warning", "error"]
    assert [record.context["attempt"] for record in found] == [1, 2]
    assert {record.tags for record in found} == {(sent.id,)}
    first, last = (messages(sdk.archive, record) for record in found)
    assert first[-2:] == ["Retry: ValueError: no rate", "Traceback (most recent call last):"]
    assert last[-2:] == ["Exception: no rate", "Traceback (most recent call last):"]


def test_a_retry_later_says_when(sdk: Sdk, work: Callable[[], None]) -> None:
    """Huey puts the task on a schedule."""
    jobs.fails_slowly()
    work()
    assert messages(sdk.archive)[0] == "Retry: in 3 s: ValueError: no rate"


def test_a_task_may_ask_to_be_run_again(sdk: Sdk, work: Callable[[], None]) -> None:
    """Which is no failure; it says until when."""
    jobs.again()
    work()
    found = records(sdk)
    assert states(found) == ["warning", "success"]
    line = messages(sdk.archive, found[0])[0]
    assert line.startswith("Retry: at 20")
    assert line.endswith(": not yet")


@pytest.mark.parametrize(
    "task, state, line",
    [
        (jobs.cancels_itself, "success", "Ignored: no product"),
        (jobs.is_limited, "warning", 'Expected: RateLimitExceeded: Rate limit exceeded on "prices"'),
        (jobs.is_interrupted, "error", "Cancelled: the worker stopped"),
    ],
)
def test_what_never_reaches_hueys_hooks_ends_an_attempt(
    sdk: Sdk, work: Callable[[], None], task: Any, state: str, line: str
) -> None:
    """What a task raises to say that it did not run is no failure; that its worker stopped is one."""
    task()
    work()
    assert sdk.record.state == state
    assert messages(sdk.archive)[0] == line


def test_a_task_that_is_locked_out_is_no_failure(sdk: Sdk, work: Callable[[], None]) -> None:
    """It did not run, which its trace says."""
    with HUEY.lock_task("prices"):
        jobs.is_locked()
        work()
    assert sdk.record.state == "warning"
    assert messages(sdk.archive) == ["Expected: TaskLockedException: unable to acquire lock prices"]


def test_a_task_that_a_hook_cancels_is_no_failure(sdk: Sdk, work: Callable[[], None]) -> None:
    """It did not run either."""
    jobs.add(1, y="cancel")
    work()
    assert sdk.record.state == "success"
    assert messages(sdk.archive) == ["Ignored: a hook cancelled the task before it ran"]


def test_a_task_that_was_revoked_before_it_ran_is_none(sdk: Sdk, work: Callable[[], None]) -> None:
    """Huey does not begin to work on it."""
    jobs.add(1).revoke()
    work()
    assert records(sdk) == []


def test_a_result_that_cannot_be_sent_is_a_failure(sdk: Sdk, work: Callable[[], None]) -> None:
    """As it is in Huey."""
    jobs.gives_what_cannot_be_sent()
    with pytest.raises(AttributeError):
        work()
    assert sdk.record.state == "error"
    assert trifle.current() is None


def test_a_running_task_is_closed_when_its_thread_is_to_end(sdk: Sdk, instrumented: None) -> None:
    """Huey tells of such tasks before its process ends, wherever their threads are."""
    huey = MemoryHuey("stopping")

    def is_stopped() -> None:
        trifle.trace("before")
        huey.notify_interrupted_tasks()
        trifle.trace("too late")

    task = huey.task()(is_stopped)
    task()
    huey.execute(huey.dequeue())
    assert sdk.record.state == "error"
    assert messages(sdk.archive) == ["before", "Cancelled: the worker stopped"]


# -- immediate mode


def test_immediate_tasks_are_traces_where_they_are_called(sdk: Sdk, immediate: None) -> None:
    """Their spans lie in the caller's."""
    with sdk.provider.get_tracer("web").start_as_current_span("call"):
        assert jobs.add(1, 2).get() == 3
    record = sdk.record
    assert record.context["eager"] is True
    assert sdk.root.kind is SpanKind.INTERNAL
    assert parent_id(sdk.root) == span_id(sdk.named("call"))


def test_immediate_retries_do_not_lie_in_each_other(sdk: Sdk, immediate: None) -> None:
    """An attempt ends before the next one begins."""
    with sdk.provider.get_tracer("web").start_as_current_span("call"):
        jobs.fails()
    found = records(sdk)
    assert states(found) == ["warning", "error"]
    assert [record.context["attempt"] for record in found] == [1, 2]
    caller = span_id(sdk.named("call"))
    assert [parent_id(span) for span in sdk.spans if span.name.endswith("/fails")] == [caller, caller]
    assert trifle.current() is None


# -- distributed traces


def test_one_distributed_trace_joins_enqueuer_and_worker(sdk: Sdk, work: Callable[[], None]) -> None:
    """The enqueuer's context travels behind the message."""
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        sent = jobs.add(1)
    work()
    root = sdk.root
    assert root.kind is SpanKind.CONSUMER
    assert parent_id(root) == f"{enqueuer.get_span_context().span_id:016x}"
    assert attributes(root)["messaging.system"] == "huey"
    assert attributes(root)["messaging.destination.name"] == "prices"
    assert attributes(root)["messaging.message.id"] == sent.id


class Own(Serializer):  # type: ignore[misc]
    """A serializer that does not pickle."""

    def _serialize(self, data: Any) -> bytes:
        return repr(tuple(data) if isinstance(data, Message) else data).encode()

    def _deserialize(self, data: bytes) -> Any:
        found = eval(data)  # noqa: S307 - written above
        return Message(*found) if isinstance(found, tuple) else found


@pytest.mark.parametrize(
    "serializer, travels",
    [
        (Serializer(), True),
        (Serializer(compression=True), True),
        (Serializer(compression=True, use_zlib=True), True),
        (SignedSerializer(secret="secret"), True),
        (Own(), False),
    ],
)
def test_headers_travel_with_what_huey_pickles(sdk: Sdk, instrumented: None, serializer: Any, travels: bool) -> None:
    """Compressed and signed as well; with another serializer tasks run as before."""
    huey = Huey("own", serializer=serializer, storage_class=MemoryStorage)
    task = huey.task(name="add")(jobs.add.func)
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        sent = task(1, 2)
    huey.execute(huey.dequeue())
    assert sent.get() == 3
    expected = f"{enqueuer.get_span_context().span_id:016x}" if travels else None
    assert parent_id(sdk.root) == expected


def test_who_does_not_trace_reads_the_same_message(sdk: Sdk, instrumented: None) -> None:
    """What lies behind it is ignored, as `pickle` promises; what looks alike inside an argument is none of ours."""
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        sent = jobs.add(1, y="\ntrifle_otel:{}")
    (packed,) = HUEY.storage.enqueued_items()
    assert b"traceparent" in packed
    message = pickle.loads(packed)  # noqa: S301 - written here
    assert (type(message), message.id, message.args) == (Message, sent.id, (1,))
    ours.uninstrument()
    task = HUEY.dequeue()
    assert (task.args, task.kwargs) == ((1,), {"y": "\ntrifle_otel:{}"})
    ours.instrument()
    HUEY.enqueue(task)
    again = HUEY.dequeue()
    assert (again.args, again.kwargs) == ((1,), {"y": "\ntrifle_otel:{}"})


def test_a_task_that_another_one_sends_names_it(sdk: Sdk, work: Callable[[], None]) -> None:
    """As its parent and as the root of its workflow; its span lies in the other's trace."""
    first = jobs.starts_another(1)
    work()
    found = {record.key: record for record in records(sdk)}
    child = found["jobs/huey_jobs/add"]
    assert child.context["parent_id"] == child.context["root_id"] == first.id
    assert {record.trace_id for record in found.values()} == {child.trace_id}
    assert parent_id(sdk.named("jobs/huey_jobs/add")) == span_id(sdk.named("inner"))


def test_the_steps_of_a_pipeline_follow_each_other(sdk: Sdk, work: Callable[[], None]) -> None:
    """Each is a child of the one before, and all name the first as their root."""
    HUEY.enqueue(jobs.add.s(1, 1).then(jobs.add, 10).then(jobs.add, 100))
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
        jobs.fails()
    work()
    enqueuer = span_id(sdk.named("enqueue"))
    assert [parent_id(span) for span in sdk.spans if span.name.endswith("/fails")] == [enqueuer, enqueuer]


# -- options, and faults of ours


def test_jobs_choose_how_they_are_traced(sdk: Sdk, work: Callable[[], None]) -> None:
    """A job's own options come before those of `instrument`, which may be called again."""
    ours.instrument(key=lambda job: f"own/{job.queue}", retention=30)
    jobs.secret()
    jobs.add(1)
    work()
    assert (sdk.record.key, sdk.record.retention) == ("own/prices", 30)


def test_a_trace_says_how_to_run_it_again(sdk: Sdk, work: Callable[[], None]) -> None:
    """`trifle-otel rerun` sends the same call."""
    jobs.add(9, y=4)
    work()
    call = call_of(sdk.record)
    assert python_of(call) == "huey_jobs.add(9, y=4)"
    send(call, HUEY)
    work()
    first, second = records(sdk)
    assert (first.key, first.meta) == (second.key, second.meta)
    assert first.tags != second.tags


def test_without_instrumentation_nothing_is_traced(sdk: Sdk, work: Callable[[], None]) -> None:
    """What was put in the place of Huey's methods is gone."""
    ours.uninstrument()
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        jobs.add(1)
    assert b"traceparent" not in HUEY.storage.enqueued_items()[0]
    work()
    assert records(sdk) == []
    assert not hasattr(Huey._execute, "__wrapped__")


def test_without_configuration_jobs_run_untraced(work: Callable[[], None]) -> None:
    """With neither an archive nor an SDK."""
    sent = jobs.add(1, 2)
    work()
    assert sent.get() == 3


def test_a_selector_that_raises_hurts_no_job(sdk: Sdk, work: Callable[[], None]) -> None:
    """The job runs untraced, and the fault is counted."""

    def select(job: Job) -> bool:
        raise LookupError(job.name)

    ours.instrument(select=select)
    sent = jobs.add(1, 2)
    work()
    assert sent.get() == 3
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


# -- consumers as processes

KINDS = {"thread": ["-k", "thread", "-w", "2"], "process": ["-k", "process", "-w", "2"]}


class Shop(Workshop):
    """Consumers of `huey_jobs`, and who enqueues for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__("huey_jobs", folder, f"redis://127.0.0.1:{redis().port}/0")
        self.client: Any = RedisHuey(self.queue, url=self.environment["JOBS_BROKER"])
        self.client.flush()

    def start(self, kind: str, *options: str, **environment: str) -> Any:
        """Start a consumer with two workers."""
        command = ["-m", "huey.bin.huey_consumer", "huey_jobs.huey", "-n", *KINDS[kind], *options]
        return self.work(*command, ready="starts_another", **environment)

    def send(self, name: str, *args: Any) -> str:
        """Enqueue a task; gives its id."""
        registry = self.client._registry
        kind = registry._registry.get(f"huey_jobs.{name}")
        if kind is None:
            function: Any = getattr(jobs, name).func
            kind = self.client.task(name=name, retries=getattr(jobs, name).retries)(function).task_class
        return str(self.client.enqueue(kind(args)).id)

    def close(self) -> None:
        """Let go of the connection as well."""
        super().close()
        self.client.storage.close()


@pytest.fixture
def shop(tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[Shop]:
    """A shop without workers yet."""
    try:
        made = Shop(tmp_path)
    except ServerMissingError as missing:
        server_missing(str(missing))
    yield made
    made.close()


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_attempt_is_an_archive_in_threads_and_processes(shop: Shop, kind: str) -> None:
    """One trace for each attempt, with how it ended, and none for what opted out."""
    worker = shop.start(kind)
    for name in ("fails", "cancels_itself", "again", "secret", "gives_what_cannot_be_sent"):
        shop.send(name)
    for number in range(20):
        shop.send("add", number)
    shop.send("starts_another", 100)
    if kind == "process":
        shop.send("takes_long")
    found = shop.records(2 + 1 + 2 + 1 + 20 + 3 + (kind == "process"))
    ends = Counter((record.key.removeprefix("jobs/huey_jobs/"), record.state) for record in found)
    expected = {
        ("fails", "warning"): 1,
        ("fails", "error"): 1,
        ("cancels_itself", "success"): 1,
        ("again", "warning"): 1,
        ("again", "success"): 1,
        ("gives_what_cannot_be_sent", "error"): 1,
        ("add", "success"): 21,
        ("starts_another", "success"): 1,
        ("inner", "success"): 1,
    }
    if kind == "process":
        expected["takes_long", "error"] = 1
    assert ends == expected
    shop.check_sums(found, *range(20), 100)
    assert worker.stop(signal.SIGINT) == 0


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_distributed_trace_across_processes(shop: Shop, sink: HttpServer, kind: str) -> None:
    """From who enqueues by the consumer to what a task there enqueues."""
    shop.start(kind, JOBS_SPANS=sink.endpoint)
    shop.check_joined(ours, sink, lambda: shop.send("starts_another", 1))


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_consumer_that_is_killed_leaves_what_its_task_recorded(shop: Shop, kind: str, mode: str) -> None:
    """Whoever recovers closes the trace."""
    worker = shop.start(kind, TRIFLE_DEFAULT_MODE=mode)
    shop.send("hangs")
    shop.wait_for("hangs")
    worker.kill()
    shop.check_dead(shop.record("hangs", recover=True))


@fault
def test_a_process_that_is_killed_is_closed_by_its_consumer(shop: Shop) -> None:
    """With what it had recorded."""
    worker = shop.start("process")
    shop.send("hangs")
    shop.wait_for("hangs")
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    shop.check_dead(shop.record("hangs"))


@fault
@pytest.mark.parametrize("kind", KINDS)
def test_sigint_lets_tasks_finish(shop: Shop, kind: str) -> None:
    """The consumer ends when they have, and what they recorded is there."""
    worker = shop.start(kind)
    shop.send("hangs", "hangs", 1.0)
    shop.wait_for("hangs")
    assert worker.stop(signal.SIGINT) == 0
    record = shop.record("hangs")
    shop.check_finished(record)


@fault
@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_ends_tasks_and_closes_their_traces(shop: Shop, kind: str) -> None:
    """At once: the consumer says that they were cancelled, and needs nobody to recover anything."""
    worker = shop.start(kind)
    shop.send("hangs")
    shop.wait_for("hangs")
    assert worker.stop() == 0
    record = shop.record("hangs")
    assert record.state == "error"
    lines = shop.messages(record)
    assert lines[:2] == ["waiting ↴", "inside"]
    assert "Cancelled: the worker stopped" in lines
