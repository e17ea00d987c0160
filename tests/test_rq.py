"""RQ's jobs as traces: what an attempt says, how it ends, and workers as processes against a real Redis."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import rq_jobs
import s3_server
from opentelemetry.trace import SpanKind
from otlp_servers import HttpServer
from redis import Redis
from rq import Callback, Queue, Retry, SimpleWorker
from rq.command import send_stop_job_command
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty, UnixSignalDeathPenalty
from servers import PATIENCE, ServerMissingError, redis
from spans import Sdk, attributes, parent_id, span_id
from workshop import Workshop, messages, states

import trifle_otel as trifle
from trifle_otel import Archive, TraceRecord
from trifle_otel.cli.rerun import Call, call_of, python_of, send
from trifle_otel.integrations import rq as ours
from trifle_otel.integrations.attempts import Job
from trifle_otel.runtime import runtime

slow = pytest.mark.slow
fault = pytest.mark.fault


@pytest.fixture
def sdk() -> Sdk:
    """A process that records spans, with an archive in memory."""
    return Sdk().configure()


@pytest.fixture
def instrumented() -> Iterator[None]:
    """Jobs are traced."""
    ours.instrument()
    yield
    ours.uninstrument()


@pytest.fixture
def connection(server_missing: Callable[[str], NoReturn]) -> Iterator[Redis]:
    """An empty Redis."""
    try:
        server = redis()
    except ServerMissingError as missing:
        server_missing(str(missing))
    with Redis(port=server.port, decode_responses=False) as client:
        client.flushall()
        yield client


@pytest.fixture
def queue(connection: Redis, instrumented: None) -> Queue:
    """A queue whose jobs wait for a worker, and are traced."""
    return Queue("prices", connection=connection)


@pytest.fixture
def work(queue: Queue) -> Iterator[Callable[[], None]]:
    """What runs the jobs that wait, in this process."""
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    yield lambda: SimpleWorkerOfTests([queue], connection=queue.connection).work_off()
    for kind, handler in before.items():
        signal.signal(kind, handler)


class SimpleWorkerOfTests(SimpleWorker):
    """RQ's worker that runs jobs in its own process, without its thread for commands, which takes a second to end."""

    def work_off(self) -> None:
        """Run what waits."""
        self.work(burst=True, logging_level="ERROR")

    def subscribe(self) -> None:
        """Take no commands."""

    def unsubscribe(self) -> None:
        """See `subscribe`."""


def records(sdk: Sdk) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return sdk.archive.search(limit=100).records[::-1]


# -- what an attempt says


def test_an_attempt_says_what_was_run_with_what(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Key, arguments, tag and context come from the job; what it returned is the result."""
    queue.enqueue(rq_jobs.add, 9, y=4, job_id="j1")
    work()
    record = sdk.record
    assert record.key == "jobs/rq_jobs/add"
    assert record.meta == {"args": [9], "kwargs": {"y": 4}}
    assert record.tags == ("j1",)
    assert record.state == "success"
    expected = {"job_id": "j1", "job_name": "rq_jobs.add", "job_system": "rq", "queue": "prices", "attempt": 1}
    assert {name: record.context[name] for name in expected} == expected
    assert record.context["root_id"] == "j1"
    assert "parent_id" not in record.context
    assert messages(sdk.archive) == ["adding", "13"]


def test_a_coroutine_is_traced_like_any_other_job(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """RQ runs it in an event loop of its own, in our context."""
    queue.enqueue(rq_jobs.waits, 5)
    work()
    assert messages(sdk.archive) == ["waiting", "5"]


def test_methods_are_named_by_their_class(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """An object's method cannot be run again by its arguments alone, which the trace says."""
    queue.enqueue(rq_jobs.Price(9).calculate, "EUR")
    queue.enqueue(rq_jobs.Price.default)
    work()
    of_object, of_class = records(sdk)
    assert (of_object.key, of_class.key) == ("jobs/rq_jobs/Price/calculate", "jobs/rq_jobs/Price/default")
    assert of_object.context["meta_exact"] is False
    assert "meta_exact" not in of_class.context


def test_callbacks_of_a_job_are_part_of_its_attempt(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """What RQ calls at a job's end is recorded before the attempt ends."""
    queue.enqueue(rq_jobs.add, 1, on_success=Callback(rq_jobs.when_done))
    work()
    assert messages(sdk.archive) == ["adding", "done: 1", "1"]


# -- how it ends


def test_a_job_that_raises_is_an_error(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Line and traceback, as Trifle has them; RQ sees the exception as it is."""
    job = queue.enqueue(rq_jobs.fails, on_failure=Callback(rq_jobs.when_failed))
    work()
    assert sdk.record.state == "error"
    lines = messages(sdk.archive)
    assert lines[-3:] == ["failed: no rate", "Exception: no rate", "Traceback (most recent call last):"]
    assert "in fails" in sdk.entries[-1].message
    assert job.get_status() == "failed"
    result = job.latest_result()
    assert result is not None
    assert "ValueError: no rate" in (result.exc_string or "")


def test_a_callback_that_raises_makes_the_job_fail(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """As it does in RQ."""
    queue.enqueue(rq_jobs.add, 1, on_success=Callback(rq_jobs.cannot))
    work()
    assert sdk.record.state == "error"
    assert messages(sdk.archive)[:2] == ["adding", "Exception: nobody to tell"]


def test_exceptions_with_retries_left_are_no_failures(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Each attempt is a trace, with its number; the last one failed."""
    queue.enqueue(rq_jobs.fails, retry=Retry(max=2), job_id="j1")
    work()
    found = records(sdk)
    assert states(found) == ["warning", "warning", "error"]
    assert [record.context["attempt"] for record in found] == [1, 2, 3]
    assert {record.tags for record in found} == {("j1",)}
    first = messages(sdk.archive, found[0])
    assert first[-2:] == ["Retry: ValueError: no rate", "Traceback (most recent call last):"]


def test_a_retry_later_says_when(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """RQ puts the job on a schedule."""
    queue.enqueue(rq_jobs.fails, retry=Retry(max=1, interval=60))
    work()
    assert "Retry: in 60 s: ValueError: no rate" in messages(sdk.archive)


def test_a_returned_retry_is_no_failure(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """As long as there are retries left."""
    queue.enqueue(rq_jobs.again)
    work()
    found = records(sdk)
    assert states(found) == ["warning", "warning", "error"]
    assert [record.context["attempt"] for record in found] == [1, 2, 3]
    ends = [messages(sdk.archive, record) for record in found]
    assert ends == [["Retry: 1 of 2"], ["Retry: 2 of 2"], ["All 2 retries are used up", "The job failed"]]


def test_a_time_limit_ends_an_attempt_as_an_error(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """RQ's exception is in the trace."""
    queue.enqueue(rq_jobs.takes_long, job_timeout=1)
    work()
    assert sdk.record.state == "error"
    assert messages(sdk.archive)[:2] == ["before", "Exception: Task exceeded maximum timeout value (1 seconds)"]


@pytest.mark.parametrize("penalty", [UnixSignalDeathPenalty, TimerDeathPenalty])
def test_a_time_limit_that_strikes_in_our_code_ends_the_job(
    sdk: Sdk, queue: Queue, work: Callable[[], None], penalty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal, or out of a timer's thread: it is no fault of ours that we would keep."""
    monkeypatch.setattr(SimpleWorker, "death_penalty_class", penalty)
    job = queue.enqueue(rq_jobs.shows_slowly, job_timeout=1)
    work()
    assert job.get_status() == JobStatus.FAILED
    assert sdk.record.state == "error"
    assert messages(sdk.archive)[:2] == ["looking ↴", "looking ↵"]
    assert "Exception: Task exceeded maximum timeout value (1 seconds)" in messages(sdk.archive)
    assert runtime().troubles.counts == {}


def test_a_time_limit_that_strikes_in_a_trace_by_hand_ends_the_job(queue: Queue, work: Callable[[], None]) -> None:
    """Without our integration too: a signal's handler has raised it."""
    ours.uninstrument()
    trifle.configure("memory:")
    job = queue.enqueue(rq_jobs.by_hand, job_timeout=1)
    work()
    assert job.get_status() == JobStatus.FAILED


@slow
def test_a_time_limit_is_not_lost_in_our_code(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Its clock stands still while an attempt is started, in which an exception would be taken for a fault of ours."""

    def select(job: Job) -> bool:
        time.sleep(1.2)
        return True

    ours.instrument(select=select)
    queue.enqueue(rq_jobs.takes_long, job_timeout=1)
    work()
    assert messages(sdk.archive)[:2] == ["before", "Exception: Task exceeded maximum timeout value (1 seconds)"]


def test_a_job_that_exits_is_an_error(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """RQ takes `SystemExit` like any other exception."""
    queue.enqueue(rq_jobs.leaves)
    work()
    assert sdk.record.state == "error"
    assert messages(sdk.archive)[0] == "Exception: 3"


def test_a_job_that_cannot_be_imported_is_an_error(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Its trace says what is missing."""
    queue.enqueue("rq_jobs.is_not_there", 9)
    work()
    assert (sdk.record.key, sdk.record.state) == ("jobs/rq_jobs/is_not_there", "error")
    assert messages(sdk.archive)[0] == "Exception: Invalid attribute name: is_not_there"


def test_a_result_that_cannot_be_sent_is_a_success(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """RQ keeps a note in its place."""
    job = queue.enqueue(rq_jobs.gives_what_cannot_be_sent)
    work()
    assert job.get_status() == "finished"
    assert sdk.record.state == "success"


def test_a_job_has_no_id_before_it_is_asked_for_one(queue: Queue) -> None:
    """Where RQ insists on an explicit one it still does."""
    with pytest.raises(ValueError, match="explicit job_id"):
        queue.enqueue_job(RQJob.create(rq_jobs.add, connection=queue.connection), unique=True)


def test_a_worker_of_another_kind_ends_attempts_too(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """Where a worker lets go of jobs in its own way, they end when it has performed them."""

    class Own(SimpleWorkerOfTests):
        def cleanup_execution(self, *args: Any, **kwargs: Any) -> None:
            pass

    queue.enqueue(rq_jobs.add, 1)
    Own([queue], connection=queue.connection).work_off()
    assert messages(sdk.archive) == ["adding", "1"]
    assert trifle.current() is None


# -- distributed traces


def test_one_distributed_trace_joins_enqueuer_and_worker(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """The enqueuer's context is in the job's meta, beside its own; what it gave is unchanged."""
    meta = {"user": 7}
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
        job = queue.enqueue(rq_jobs.add, 1, meta=meta)
    assert meta == {"user": 7}
    assert sorted(job.meta) == ["traceparent", "user"]
    work()
    root = sdk.root
    assert root.kind is SpanKind.CONSUMER
    assert parent_id(root) == f"{enqueuer.get_span_context().span_id:016x}"
    assert attributes(root)["messaging.system"] == "rq"
    assert attributes(root)["messaging.destination.name"] == "prices"
    assert attributes(root)["messaging.message.id"] == job.id


def test_a_job_that_another_one_enqueues_names_it(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """As its parent and as the root of its workflow; its span lies in the other's trace."""
    queue.enqueue(rq_jobs.starts_another, 1, job_id="j1")
    work()
    parent, inner, child = records(sdk)
    assert (parent.key, inner.key, child.key) == ("jobs/rq_jobs/starts_another", "inner", "jobs/rq_jobs/add")
    assert (child.context["parent_id"], child.context["root_id"]) == ("j1", "j1")
    assert child.trace_id == parent.trace_id
    assert sdk.named("jobs/rq_jobs/add").parent is not None
    assert parent_id(sdk.named("jobs/rq_jobs/add")) == span_id(sdk.named("inner"))


def test_each_attempt_belongs_to_the_enqueuer(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """A retry is no child of the attempt before it."""
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        queue.enqueue(rq_jobs.fails, retry=Retry(max=1))
    work()
    enqueuer = span_id(sdk.named("enqueue"))
    assert [parent_id(span) for span in sdk.spans if span.name == "jobs/rq_jobs/fails"] == [enqueuer, enqueuer]


def test_a_queue_that_runs_jobs_at_once_traces_them(sdk: Sdk, connection: Redis, instrumented: None) -> None:
    """In the place where they are enqueued."""
    eager = Queue("eager", connection=connection, is_async=False)
    with sdk.provider.get_tracer("web").start_as_current_span("enqueue"):
        eager.enqueue(rq_jobs.add, 1)
        eager.enqueue(rq_jobs.fails)
    added, failed = records(sdk)
    assert states([added, failed]) == ["success", "error"]
    assert sdk.named("jobs/rq_jobs/add").kind is SpanKind.INTERNAL
    assert parent_id(sdk.named("jobs/rq_jobs/add")) == span_id(sdk.named("enqueue"))


# -- options, and faults of ours


def test_jobs_choose_how_they_are_traced(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """A job's own options come before those of `instrument`, which may be called again."""
    ours.instrument(key=lambda job: f"own/{job.queue}", retention=30)
    queue.enqueue(rq_jobs.secret)
    queue.enqueue(rq_jobs.add, 1)
    work()
    assert (sdk.record.key, sdk.record.retention) == ("own/prices", 30)


def test_a_trace_says_how_to_run_it_again(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """`trifle-otel rerun` sends the same call."""
    queue.enqueue(rq_jobs.add, 9, y=4)
    work()
    call = call_of(sdk.record)
    assert python_of(call) == "rq_jobs.add(9, y=4)"
    send(call, queue)
    work()
    first, second = records(sdk)
    assert (first.key, first.meta) == (second.key, second.meta)
    assert first.tags != second.tags


def test_a_job_goes_back_to_its_own_queue(queue: Queue) -> None:
    """Whichever queue `--app` names; that one says how, its kind too."""

    class Own(Queue):
        pass

    named = Own("mails", connection=queue.connection, serializer=JSONSerializer, default_timeout=77)
    sent = RQJob.fetch(
        send(Call("rq", "rq_jobs.add", [9], {}, "prices"), named), queue.connection, serializer=JSONSerializer
    )
    assert (sent.origin, sent.timeout, sent.args) == ("prices", 77, [9])
    assert (queue.job_ids, named.job_ids) == ([sent.id], [])
    send(Call("rq", "rq_jobs.add", [9], {}, None), named)
    assert (queue.count, named.count) == (1, 1)


def test_without_instrumentation_nothing_is_traced(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """What was put in the place of RQ's methods is gone."""
    ours.uninstrument()
    job = queue.enqueue(rq_jobs.add, 1)
    work()
    assert job.return_value() == 1
    assert job.meta == {}
    assert records(sdk) == []
    assert RQJob.perform.__module__ == "rq.job"
    assert not hasattr(RQJob.perform, "__wrapped__")


def test_without_configuration_jobs_run_untraced(queue: Queue, work: Callable[[], None]) -> None:
    """With neither an archive nor an SDK."""
    job = queue.enqueue(rq_jobs.add, 1)
    work()
    assert job.return_value() == 1


def test_a_selector_that_raises_hurts_no_job(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """The job runs untraced, and the fault is counted."""

    def select(job: Job) -> bool:
        raise LookupError(job.name)

    ours.instrument(select=select)
    job = queue.enqueue(rq_jobs.add, 1)
    work()
    assert job.return_value() == 1
    assert runtime().troubles.counts["an attempt at a job could not be traced"] == 1


def test_meta_that_rq_cannot_read_stays_as_it_is(sdk: Sdk, queue: Queue, work: Callable[[], None]) -> None:
    """What RQ stands in for it goes back unchanged when the job is tried again."""
    job = queue.enqueue(rq_jobs.fails, retry=Retry(max=1))
    queue.connection.hset(job.key, "meta", b"no pickle")
    work()
    assert states(records(sdk)) == ["warning", "error"]
    assert queue.connection.hget(job.key, "meta") == b"no pickle"


def test_a_spawned_work_horse_is_set_up_by_unpickling() -> None:
    """As RQ does with a worker's exception handlers; what cannot be had there hurts nothing."""
    options = {"select": rq_jobs.only_marked, "key": None, "mode": None, "retention": 30}
    handler = pickle.loads(pickle.dumps(ours._SetUp(pickle.dumps(options))))  # noqa: S301 - written here
    try:
        assert ours._options is not None
        assert (ours._options.select, ours._options.retention) == (rq_jobs.only_marked, 30)
        assert handler("job", ValueError, ValueError("no rate"), None) is None
    finally:
        ours.uninstrument()
    pickle.loads(pickle.dumps(ours._SetUp(b"no pickle")))  # noqa: S301 - written here
    assert ours._options is None


# -- workers as processes

WORKERS = {
    "worker": "rq.worker.Worker",
    "simple": "rq.worker.SimpleWorker",
    "spawn": "rq.worker.SpawnWorker",
    "heroku": "rq.worker.HerokuWorker",
}
READY = "Listening on"


class Shop(Workshop):
    """Workers of `rq_jobs`, and who enqueues for them."""

    def __init__(self, folder: Path, connection: Redis) -> None:
        super().__init__("rq_jobs", folder, f"redis://127.0.0.1:{redis().port}/0")
        self.client = Queue(self.queue, connection=connection)

    def start(self, kind: str = "worker", *options: str, **environment: str) -> Any:
        """Start a worker of a kind."""
        command = ["-m", "rq.cli", "worker", "--config", "rq_jobs", "--url", self.environment["JOBS_BROKER"]]
        return self.work(*command, "-w", WORKERS[kind], *options, self.queue, ready=READY, **environment)

    def send(self, name: str, *args: Any, **options: Any) -> RQJob:
        """Enqueue a job."""
        return self.client.enqueue(f"rq_jobs.{name}", *args, **options)


@pytest.fixture
def shop(tmp_path: Path, connection: Redis) -> Iterator[Shop]:
    """A shop without workers yet."""
    made = Shop(tmp_path, connection)
    yield made
    made.close()


@slow
@pytest.mark.parametrize("kind", ["worker", "simple", "spawn"])
def test_every_attempt_is_an_archive_in_every_worker(shop: Shop, kind: str) -> None:
    """One trace for each attempt, with how it ended, and none for what opted out."""
    worker = shop.start(kind)
    for name in ("leaves", "again", "gives_what_cannot_be_sent", "secret"):
        shop.send(name)
    shop.send("fails", retry=Retry(max=1))
    shop.send("add", 1, 2)
    shop.send("takes_long", job_timeout=1)
    shop.send("starts_another", 1, job_id="j1")
    shop.wait_until(lambda: shop.client.finished_job_registry.count + shop.client.failed_job_registry.count == 9)
    worker.stop()
    found = shop.records(1 + 3 + 1 + 2 + 1 + 1 + 3, recover=True)
    ends = Counter((record.key.removeprefix("jobs/rq_jobs/"), record.state) for record in found)
    assert ends == {
        ("leaves", "error"): 1,
        ("again", "warning"): 2,
        ("again", "error"): 1,
        ("gives_what_cannot_be_sent", "success"): 1,
        ("fails", "warning"): 1,
        ("fails", "error"): 1,
        ("add", "success"): 2,
        ("takes_long", "error"): 1,
        ("starts_another", "success"): 1,
        ("inner", "success"): 1,
    }
    child = next(record for record in found if record.context.get("parent_id") == "j1")
    assert (child.key, child.context["root_id"], child.meta) == ("jobs/rq_jobs/add", "j1", [1])
    plain = next(record for record in found if record.meta == [1, 2])
    assert shop.messages(plain) == ["adding", "3"]
    assert plain.context["worker"] in worker.said
    attempts = [record.context["attempt"] for record in found if record.key.endswith("/fails")]
    assert attempts == [1, 2]


@slow
def test_a_worker_brings_home_what_its_work_horses_leave(shop: Shop) -> None:
    """By itself, while it lives."""
    worker = shop.start()
    shop.send("add", 1, 2)
    assert shop.record("add").meta == [1, 2]
    assert worker.stop() == 0


@slow
def test_a_worker_that_ends_ships_what_its_last_work_horses_left(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_missing: Callable[[str], NoReturn]
) -> None:
    """Into a bucket, and within seconds: nobody may come after it, as after `--burst` in a container."""
    if not s3_server.is_installed("localbucket"):
        server_missing("localbucket")
    server = s3_server.localbucket(tmp_path / "buckets").start()
    try:
        bucket = server.make_bucket("archive")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        url, index = f"s3://{bucket}?endpoint={server.endpoint}", f"sqlite:///{tmp_path / 'index.sqlite'}"
        for number in range(3):
            shop.send("add", number)
        worker = shop.start(
            "worker",
            "--burst",
            TRIFLE_ARCHIVE=url,
            TRIFLE_INDEX=index,
            TRIFLE_SPOOL=str(tmp_path / "spool"),
            TRIFLE_EXIT_TIMEOUT="30",
        )
        assert worker.process.wait(PATIENCE) == 0
        with Archive.open(url, index=index) as archive:
            assert states(archive.search().records) == ["success"] * 3
        assert list((tmp_path / "spool").rglob("record.json")) == []
    finally:
        server.kill()


@slow
def test_a_pool_of_workers_ships_before_it_ends(shop: Shop) -> None:
    """Its processes call no exit handlers."""
    options = ["-w", WORKERS["simple"], "--config", "rq_jobs", "--url", shop.environment["JOBS_BROKER"]]
    pool = shop.work("-m", "rq.cli", "worker-pool", shop.queue, "-n", "2", *options, ready=READY)
    for number in range(6):
        shop.send("hangs", f"hangs-{number}", 0)
    for number in range(6):
        shop.wait_for(f"hangs-{number}")
    assert pool.stop() == 0
    assert states(shop.records(6)) == ["success"] * 6


@slow
@pytest.mark.parametrize("kind", ["worker", "simple", "spawn"])
def test_one_distributed_trace_across_processes(shop: Shop, sink: HttpServer, kind: str) -> None:
    """From who enqueues by the worker to what a job there enqueues."""
    shop.start(kind, JOBS_SPANS=sink.endpoint)
    shop.check_joined(ours, sink, lambda: shop.send("starts_another", 1))


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize("kind", ["worker", "simple", "spawn"])
def test_a_worker_that_is_killed_leaves_what_its_job_recorded(shop: Shop, kind: str, mode: str) -> None:
    """Whoever recovers closes the trace."""
    worker = shop.start(kind, TRIFLE_DEFAULT_MODE=mode)
    shop.send("hangs")
    shop.wait_for("hangs")
    worker.kill()
    shop.check_dead(shop.record("hangs", recover=True))


@fault
@pytest.mark.parametrize("kind", ["worker", "spawn"])
def test_a_work_horse_that_is_killed_is_closed_by_its_worker(shop: Shop, kind: str) -> None:
    """With what it had recorded; that RQ tries the job again is counted."""
    worker = shop.start(kind)
    shop.send("hangs", "hangs", 0.2, retry=Retry(max=1))
    shop.wait_for("hangs")
    shop.send("add", 1)
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    found = shop.records(3)
    assert [(record.key.rpartition("/")[2], record.state, record.context["attempt"]) for record in found] == [
        ("hangs", "error", 1),
        ("add", "success", 1),
        ("hangs", "success", 2),
    ]
    shop.check_dead(found[0])


@fault
def test_a_stopped_job_leaves_a_closed_trace(shop: Shop, connection: Redis) -> None:
    """RQ kills its work-horse."""
    shop.start()
    job = shop.send("hangs")
    shop.wait_for("hangs")
    send_stop_job_command(connection, job.id)
    shop.wait_until(lambda: job.get_status() == "stopped")
    shop.check_dead(shop.record("hangs", recover=True))


@fault
@pytest.mark.parametrize("kind", WORKERS)
def test_sigterm_lets_the_job_finish(shop: Shop, kind: str) -> None:
    """The worker ends when it has, and what it recorded is there."""
    worker = shop.start(kind)
    shop.send("hangs", "hangs", 1.0)
    shop.wait_for("hangs")
    assert worker.stop() == 0
    record = shop.record("hangs", recover=True)
    shop.check_finished(record)


@fault
def test_a_second_sigterm_kills_the_job_and_its_trace_is_closed(shop: Shop) -> None:
    """RQ takes its work-horse down with it."""
    worker = shop.start()
    shop.send("hangs")
    shop.wait_for("hangs")
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(1.1)  # RQ takes a second signal within a second for the same
    worker.stop()
    shop.check_dead(shop.record("hangs", recover=True))
