"""Celery's workers as processes, against real brokers: every pool, every end, and workers that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import s3_server
from brokers import Worker, rabbitmq, redis
from celery import Celery
from otlp_servers import HttpServer
from servers import ServerMissingError
from spans import Sdk

from trifle_otel import Archive, TraceRecord
from trifle_otel.integrations import celery as ours

pytestmark = pytest.mark.timeout(500)
slow, fault = pytest.mark.slow, pytest.mark.fault
WITHIN = 180.0  # seconds; what a dead process left is taken up every ten
READY = " ready."
POOLS = {
    "prefork": ["-P", "prefork", "-c", "2"],
    "recycled": ["-P", "prefork", "-c", "2", "--max-tasks-per-child", "1"],
    "threads": ["-P", "threads", "-c", "2"],
    "solo": ["-P", "solo"],
}


class Shop:
    """Workers of `celery_jobs` and who enqueues for them, with queues and an archive of a test's own."""

    def __init__(self, folder: Path, broker: str, backend: str) -> None:
        self.folder = folder
        self.archive_url = str(folder / "archive")
        self.workers: list[Worker] = []
        self.client: Any = Celery("client", broker=broker, set_as_current=False)
        self.client.conf.task_default_queue = f"q-{folder.name}"
        self.environment = {
            "JOBS_BROKER": broker,
            "JOBS_BACKEND": backend,
            "JOBS_FOLDER": str(folder),
            "JOBS_QUEUE": self.client.conf.task_default_queue,
            "OTEL_PYTHON_LOG_LEVEL": "error",
        }

    def work(self, *options: str, archive: bool = True, **environment: str) -> Worker:
        """Start a worker. `environment` are variables after `JOBS_`, in small letters."""
        named = {f"JOBS_{name.upper()}": value for name, value in environment.items()}
        if archive:
            named["TRIFLE_ARCHIVE"] = self.archive_url
        command = [
            "-m",
            "celery",
            "-A",
            "celery_jobs",
            "worker",
            "-l",
            "info",
            "-Q",
            self.client.conf.task_default_queue,
        ]
        worker = Worker([*command, *options], READY, self.folder, {**self.environment, **named})
        self.workers.append(worker)
        return worker

    def send(self, name: str, *args: Any, **options: Any) -> str:
        """Enqueue a job; gives its id."""
        return str(self.client.send_task(f"celery_jobs.{name}", args, **options).id)

    def records(self, count: int, *, within: float = WITHIN, recover: bool = False) -> list[TraceRecord]:
        """All traces, as soon as that many have ended; the oldest first."""
        deadline = time.monotonic() + within
        while True:
            with Archive.open(self.archive_url) as archive:
                if recover:
                    archive.recover()
                found = [record for record in every(archive) if record.state != "running"]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, ([record.key for record in found], self.workers[-1].said[-4000:])
            time.sleep(0.1)  # another process's archive can only be polled

    def record(self, key: str, count: int, **how: Any) -> TraceRecord:
        """The only trace of a job, once so many traces have ended."""
        (record,) = [each for each in self.records(count, **how) if each.key == f"jobs/celery_jobs/{key}"]
        return record

    def messages(self, record: TraceRecord) -> list[str]:
        """First lines of a whole trace's messages, without the one that each begins with."""
        with Archive.open(self.archive_url) as archive:
            entries = archive.entries(record)
        assert entries.damaged == []
        assert len(entries) == record.length
        return [entry.message.splitlines()[0] for entry in entries[1:]]

    def close(self) -> None:
        """Kill workers; let go of connections while servers are there."""
        for worker in self.workers:
            worker.kill()
        self.client.close()


def every(archive: Archive) -> list[TraceRecord]:
    """All records, the oldest first."""
    found: list[TraceRecord] = []
    page = archive.search(limit=1000)
    while page.records:
        found += page.records
        if page.cursor is None:
            break
        page = archive.search(limit=1000, cursor=page.cursor)
    return found[::-1]


@pytest.fixture
def make_shop(tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[Callable[..., Shop]]:
    """What makes the shop of a test, by the name of the broker; results are kept in Redis."""
    shops: list[Shop] = []

    def make(broker: str = "redis") -> Shop:
        try:
            results = f"redis://127.0.0.1:{redis().port}/0"
            url = results if broker == "redis" else rabbitmq().url()
        except ServerMissingError as missing:
            server_missing(str(missing))
        shops.append(Shop(tmp_path, url, results))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


@pytest.fixture
def shop(make_shop: Callable[..., Shop]) -> Shop:
    """A shop with Redis as its broker."""
    return make_shop()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something holds that another process does."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- every pool, every end


@slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("broker", ["redis", "rabbitmq"])
def test_every_attempt_is_an_archive_in_every_pool(make_shop: Callable[..., Shop], broker: str, pool: str) -> None:
    """One trace for each attempt, with how it ended, and none for what opted out."""
    shop = make_shop(broker)
    shop.work(*POOLS[pool])
    for name in ("fails", "is_expected", "again", "ignored", "rejected", "gives_what_cannot_be_sent", "secret"):
        shop.send(name)
    shop.send("add", 1, 2)
    composer = shop.send("composes")
    found = shop.records(18, recover=pool == "recycled")
    ends = Counter((record.key.removeprefix("jobs/celery_jobs/"), record.state) for record in found)
    assert ends == {
        ("composes", "success"): 1,
        ("add", "success"): 8,
        ("total", "success"): 1,
        ("fails", "error"): 1,
        ("is_expected", "warning"): 1,
        ("again", "warning"): 2,
        ("again", "success"): 1,
        ("ignored", "success"): 1,
        ("rejected", "warning"): 1,
        ("gives_what_cannot_be_sent", "error"): 1,
    }
    chained = next(record for record in found if record.meta == [3, 3])
    first = next(record for record in found if record.tags == (chained.context["parent_id"],))
    assert first.meta == [1, 2]
    assert first.context["parent_id"] == first.context["root_id"] == chained.context["root_id"] == composer
    members = [record for record in found if "chord_id" in record.context]
    total = next(record for record in found if record.key.endswith("total"))
    assert {record.context["chord_id"] for record in members} == {total.tags[0]}
    assert len({record.context["group_id"] for record in members}) == 1
    assert shop.messages(total) == ["6"]
    assert total.context["worker"].startswith("celery@")
    assert total.context["queue"] == shop.client.conf.task_default_queue


@slow
@pytest.mark.parametrize("pool", ["prefork", "recycled"])
def test_a_soft_time_limit_ends_an_attempt_as_an_error(shop: Shop, pool: str) -> None:
    """Its exception is in the trace; a job that handles it has succeeded."""
    shop.work(*POOLS[pool])
    shop.send("softly")
    shop.send("handles")
    late = shop.record("softly", 2, recover=pool == "recycled")
    assert late.state == "error"
    assert shop.messages(late)[:2] == ["before", "Exception: SoftTimeLimitExceeded()"]
    handled = shop.record("handles", 2)
    assert handled.state == "success"
    assert shop.messages(handled) == ["'half of it'"]


@slow
@pytest.mark.parametrize(
    "pool, ours, where",
    [
        ("prefork", "module", "module"),
        ("solo", "module", "module"),
        ("prefork", "module", "child"),
        ("prefork", "child", "module"),
    ],
)
def test_log_records_are_lines_where_celery_sets_logging_up(shop: Shop, pool: str, ours: str, where: str) -> None:
    """It lets go of the root logger's handlers when the application is loaded, and keeps its tasks' records from it."""
    shop.work(*POOLS[pool], ours=ours, logging=where)
    shop.send("logs")
    lines = shop.messages(shop.record("logs", 1, recover=ours == "child"))
    said = ["celery_jobs: of the task", "celery_jobs: of the module", "shop: of the library"]
    assert [line for line in lines if " of the " in line] == said


# -- with OpenTelemetry's own instrumentation


@slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("theirs", ["off", "before", "after"])
def test_one_distributed_trace_joins_enqueuer_and_worker(shop: Shop, sink: HttpServer, theirs: str, pool: str) -> None:
    """Inside the span of OpenTelemetry's instrumentation where there is one, else in the enqueuer's trace."""
    shop.work(*POOLS[pool], theirs=theirs, spans=sink.endpoint)
    check_joined(shop, sink, theirs, recover=pool == "recycled")


@slow
@pytest.mark.parametrize("child", ["ours", "theirs", "both"])
def test_a_pools_process_may_set_up_either(shop: Shop, sink: HttpServer, child: str) -> None:
    """OpenTelemetry's docs have its instrumentation set up in `worker_process_init`; ours can be as well.

    Then no process of the worker outlives its jobs, and ships what the last of them left.
    """
    where = {"ours": ("child", "before"), "theirs": ("module", "child"), "both": ("child", "child")}[child]
    shop.work(*POOLS["recycled"], ours=where[0], theirs=where[1], spans=sink.endpoint)
    check_joined(shop, sink, where[1], recover=where[0] == "child")


def check_joined(shop: Shop, sink: HttpServer, theirs: str, recover: bool = False) -> None:
    """Send a job from within a span, and look where its attempt's span lies."""
    sdk = Sdk()
    ours.instrument()
    try:
        with sdk.provider.get_tracer("web").start_as_current_span("enqueue") as enqueuer:
            shop.send("starts_another", 1)
            shop.send("again")
    finally:
        ours.uninstrument()
    records = shop.records(5, recover=recover)
    enqueued = enqueuer.get_span_context()
    assert {record.trace_id for record in records} == {f"{enqueued.trace_id:032x}"}
    wait_for(lambda: len({span.span_id.hex() for span in sink.spans} & {record.span_id for record in records}) == 5)
    if theirs != "off":
        wait_for(lambda: sum(span.name.startswith("run/") for span in sink.spans) == 5)
    spans = {span.span_id.hex(): span for span in sink.spans}
    for record in records:
        mine = spans[record.span_id or ""]
        around = spans.get(mine.parent_span_id.hex())
        if theirs != "off":
            assert around is not None
            assert around.name == f"run/{record.context['job_name']}"
            assert around.start_time_unix_nano <= mine.start_time_unix_nano
            assert mine.end_time_unix_nano <= around.end_time_unix_nano
        elif record.key.endswith("/add"):
            assert around is not None
            assert around.name == "jobs/celery_jobs/starts_another"
        else:
            assert mine.parent_span_id.hex() == f"{enqueued.span_id:016x}"


@slow
def test_200_jobs_in_200_archives_out(
    shop: Shop, sink: HttpServer, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """With a process for each job nothing of ours is lost; most spans around ours are, set up as their docs say."""
    worker = shop.work(*POOLS["recycled"], theirs="child", spans=sink.endpoint, spans_batched="yes")
    for number in range(200):
        shop.send("add", number)
    found = shop.records(200, within=400)
    assert sorted(record.meta[0] for record in found) == list(range(200))
    assert {record.state for record in found} == {"success"}
    assert all(shop.messages(record) == ["adding", str(record.meta[0])] for record in found)
    worker.stop()
    theirs = sum(span.name == "run/celery_jobs.add" for span in sink.spans)
    record_testsuite_property("archives", len(found))
    record_testsuite_property("spans of OpenTelemetry's instrumentation that arrived", theirs)
    assert theirs <= 200


@slow
@pytest.mark.parametrize("configured", ["by the environment", "in the module"])
def test_what_recycled_processes_leave_goes_to_a_remote_store(
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: str,
    server_missing: Callable[[str], NoReturn],
) -> None:
    """The worker's main process ships it: a process that lives for one job opens no connection of its own."""
    if not s3_server.is_installed("localbucket"):
        server_missing("the package localbucket")
    (tmp_path / "buckets").mkdir()
    server = s3_server.localbucket(tmp_path / "buckets").start()
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TRIFLE_INDEX", f"sqlite:///{tmp_path}/index.sqlite")
    monkeypatch.setenv("TRIFLE_SPOOL", str(tmp_path / "spool"))
    try:
        shop.archive_url = f"s3://{server.make_bucket('jobs')}/traces?endpoint={server.endpoint}&bulk_delete=false"
        if configured == "in the module":
            worker = shop.work(*POOLS["recycled"], archive=False, configure=shop.archive_url)
        else:
            worker = shop.work(*POOLS["recycled"])
        for number in range(30):
            shop.send("add", number)
        with Archive.open(shop.archive_url, index=os.environ["TRIFLE_INDEX"]) as archive:
            wait_for(lambda: len(archive.search(limit=100).records) == 30)
            found = archive.search(limit=100).records
            assert all(len(archive.entries(record)) == 3 for record in found)
        assert sorted(record.meta[0] for record in found) == list(range(30))
        worker.stop()
    finally:
        server.kill()


# -- workers that end


@fault
@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize("whom", ["its process", "the whole worker"])
def test_a_job_that_is_killed_is_closed_with_what_it_recorded(
    shop: Shop, whom: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the worker itself where it lives, else by whoever recovers: in both modes, since a running trace is noted."""
    monkeypatch.setenv("TRIFLE_DEFAULT_MODE", mode)
    worker = shop.work(*POOLS["prefork"])
    shop.send("hangs")
    wait_for((shop.folder / "hangs").exists)
    if whom == "its process":
        wait_for(lambda: len(worker.children()) >= 2)
        for pid in worker.children():
            os.kill(pid, signal.SIGKILL)
    else:
        worker.kill()
    record = shop.record("hangs", 1, recover=whom != "its process")
    check_dead(shop, record)


def check_dead(shop: Shop, record: TraceRecord) -> None:
    """What was recorded is there, and a last line that says how it ended."""
    assert record.state == "error"
    lines = shop.messages(record)
    assert lines[:2] == ["waiting ↴", "inside"]
    assert lines[-1].startswith("Trace was not finished: its process")
    assert record.context["worker"].startswith("celery@")


@fault
def test_a_hard_time_limit_leaves_a_closed_trace(shop: Shop) -> None:
    """Celery ends the process, and the trace says where the job was; where it must kill it, the worker closes it."""
    shop.work(*POOLS["prefork"])
    shop.send("hard")
    shop.send("hard", True)
    ends = {record.meta == [True]: shop.messages(record) for record in shop.records(2) if record.state == "error"}
    assert ends[True][0] == "before"
    assert ends[True][-1].startswith("Trace was not finished: its process")
    check_cancelled(ends[False])


def check_cancelled(lines: list[str]) -> None:
    """What was recorded is there, and how it ended; on a busy machine Celery kills its process before it says so."""
    assert lines[0] == "before"
    assert lines[1] == "Cancelled: SIGTERM" or lines[-1].startswith("Trace was not finished: its process")


@fault
def test_a_job_that_is_revoked_and_terminated_leaves_a_closed_trace(shop: Shop) -> None:
    """Celery ends the process with SIGTERM, and the trace says where the job was; what has not started leaves none."""
    shop.work(*POOLS["prefork"])
    running = shop.send("hangs")
    never = shop.send("add", 1, countdown=4)
    wait_for((shop.folder / "hangs").exists)
    shop.client.control.revoke([running, never], terminate=True)
    record = shop.record("hangs", 1)
    assert record.state == "error"
    assert shop.messages(record)[:2] == ["waiting ↴", "inside"]
    assert "Cancelled: SIGTERM" in shop.messages(record)
    with Archive.open(shop.archive_url) as archive:
        assert "time.sleep(seconds)" in list(archive.entries(record))[-1].message
    shop.send("add", 2)
    assert shop.record("add", 2).meta == [2]


@fault
@pytest.mark.parametrize("pool", POOLS)
def test_sigterm_lets_jobs_finish(shop: Shop, pool: str) -> None:
    """The worker ends when they have, and what they recorded is there."""
    worker = shop.work(*POOLS[pool])
    shop.send("hangs", "hangs", 1.0)
    wait_for((shop.folder / "hangs").exists)
    assert worker.stop() == 0
    record = shop.record("hangs", 1, recover=True)
    assert record.state == "success"
    assert shop.messages(record) == ["waiting ↴", "inside", "waiting ↵", "↳ None", "'done'"]


@fault
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_sigquit_ends_jobs_and_closes_their_traces(shop: Shop, pool: str) -> None:
    """At once, in a cold shutdown: what is in a process that Celery kills is closed by whoever recovers."""
    worker = shop.work(*POOLS[pool])
    shop.send("hangs")
    wait_for((shop.folder / "hangs").exists)
    worker.stop(signal.SIGQUIT)
    record = shop.record("hangs", 1, recover=True)
    assert record.state == "error"
    assert shop.messages(record)[:2] == ["waiting ↴", "inside"]


@fault
def test_a_job_that_leaves_its_process_is_closed_by_it(shop: Shop) -> None:
    """`sys.exit` in a job ends the pool's process; the trace was closed before."""
    shop.work(*POOLS["prefork"])
    shop.send("leaves")
    record = shop.record("leaves", 1)
    assert record.state == "error"
    assert shop.messages(record)[0] == "Exception: 3"


@fault
def test_processes_that_are_killed_right_after_jobs_lose_none(shop: Shop) -> None:
    """What had ended is on disk, and the worker brings it into the archive."""
    worker = shop.work(*POOLS["prefork"])
    for number in range(20):
        shop.send("add", number)
    wait_for(lambda: worker.said.count("succeeded in") == 20)
    for pid in worker.children():
        os.kill(pid, signal.SIGKILL)
    found = shop.records(20)
    assert sorted(record.meta[0] for record in found) == list(range(20))
    assert {record.state for record in found} == {"success"}
