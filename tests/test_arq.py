"""Arq: each try of a job is one trace, which the enqueuer's trace context reaches; workers run over a real Redis."""

from __future__ import annotations

import asyncio
import json
import pickle
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import arq
import arq.jobs
import pytest
import servers
from arq import connections, worker
from arq.connections import ArqRedis, RedisSettings
from brokers import Worker
from opentelemetry import baggage, context
from otlp_servers import HttpServer
from spans import Sdk, parent_id
from workshop import Workshop

import trifle_otel as trifle
from trifle_otel import TraceRecord
from trifle_otel.integrations import arq as ours
from trifle_otel.integrations.behind import look_behind
from trifle_otel.runtime import runtime

slow = pytest.mark.slow
fault = pytest.mark.fault

ARQS_OWN = ["t", "f", "a", "k", "et"]  # keys of a job, in Arq's order
QUEUE = "trifle"


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    """Until the test ends."""
    ours.instrument()
    yield
    ours.uninstrument()


@pytest.fixture
def sdk() -> Sdk:
    """An SDK, and an archive in memory, that this process records into."""
    return Sdk().configure()


@pytest.fixture
def redis_settings(server_missing: Callable[[str], NoReturn]) -> RedisSettings:
    """A real Redis."""
    try:
        server = servers.redis()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    return RedisSettings(port=server.port)


@pytest.fixture
async def pool(redis_settings: RedisSettings) -> AsyncIterator[ArqRedis]:
    """Who enqueues; Redis is empty."""
    made = await arq.create_pool(redis_settings, default_queue_name=QUEUE)
    await made.flushdb()
    yield made
    await made.aclose()


async def enqueue(pool: ArqRedis, *job: Any, **options: Any) -> str:
    """Enqueue a job; its id."""
    made = await pool.enqueue_job(*job, **options)
    assert made is not None
    return made.job_id


async def enqueue_from(sdk: Sdk, pool: ArqRedis, *job: Any, **options: Any) -> tuple[str, str]:
    """Enqueue a job inside a span; its id, and the span's."""
    with sdk.provider.get_tracer("web").start_as_current_span("request") as request:
        made = await enqueue(pool, *job, **options)
    return made, f"{request.get_span_context().span_id:016x}"


async def message(pool: ArqRedis, job_id: str) -> bytes:
    """A job as it lies in Redis."""
    found = await pool.get(f"arq:job:{job_id}")
    assert isinstance(found, bytes)
    return found


async def work(pool: ArqRedis, *functions: Any, **options: Any) -> None:
    """Run a worker until no job is left."""
    made = arq.Worker(
        functions, redis_pool=pool, burst=True, poll_delay=0.01, queue_name=QUEUE, handle_signals=False, **options
    )
    await made.async_run()


async def result(pool: ArqRedis, job_id: str, deserializer: Any = None) -> Any:
    """What a job returned."""
    return await arq.jobs.Job(job_id, pool, QUEUE, deserializer).result(timeout=0)


def records(sdk: Sdk) -> list[TraceRecord]:
    """All traces, the oldest first."""
    assert trifle.flush(5)
    return sdk.archive.search().records[::-1]


def messages(sdk: Sdk, record: TraceRecord) -> list[str]:
    """A trace's lines but the first."""
    return [entry.message for entry in sdk.archive.entries(record)][1:]


async def price(ctx: dict[str, Any], number: int) -> int:
    """A job."""
    trifle.trace("pricing")
    return number * 2


async def flaky(ctx: dict[str, Any]) -> int:
    """A job that asks for a second try."""
    if ctx["job_try"] < 2:
        raise arq.Retry
    return 7


async def takes_long(ctx: dict[str, Any]) -> None:
    """A job that takes too long."""
    trifle.trace("waiting")
    await asyncio.sleep(30)


async def fails(ctx: dict[str, Any]) -> None:
    """A job that raises."""
    raise ValueError("no rate")


async def starts_another(ctx: dict[str, Any], name: str, *args: Any) -> None:
    """A job that enqueues one."""
    await ctx["redis"].enqueue_job(name, *args)


async def says_who_asks(ctx: dict[str, Any]) -> object:
    """A job that reads its enqueuer's baggage."""
    return baggage.get_baggage("customer")


# -- tries


async def test_a_job_is_a_trace(sdk: Sdk, pool: ArqRedis) -> None:
    """Its arguments, its id, its result."""
    job_id = await enqueue(pool, "price", 7)
    await work(pool, price)
    record = sdk.record
    assert record.key.endswith("test_arq/price")
    assert (record.meta, record.state, record.context["queue"]) == ([7], "success", QUEUE)
    assert messages(sdk, record) == ["pricing", "14"]
    assert record.tags == (job_id,)
    assert (record.context["root_id"], record.context.get("parent_id")) == (job_id, None)


async def test_how_jobs_end(sdk: Sdk, pool: ArqRedis) -> None:
    """A retry is a warning, an exception and a time limit are errors."""
    for name in ("flaky", "fails", "takes_long"):
        await enqueue(pool, name)
    await work(pool, flaky, fails, arq.func(takes_long, timeout=0.05, max_tries=1), retry_jobs=True)
    found = {(record.key.rpartition("/")[2], record.context["attempt"]): record for record in records(sdk)}
    assert {name: record.state for name, record in found.items()} == {
        ("flaky", 1): "warning",
        ("flaky", 2): "success",
        ("fails", 1): "error",
        ("takes_long", 1): "error",
    }
    assert messages(sdk, found["fails", 1])[0] == "Exception: no rate"
    assert messages(sdk, found["takes_long", 1])[0] == "waiting"
    assert messages(sdk, found["takes_long", 1])[1].startswith("Cancelled")


# -- the enqueuer's context


async def test_a_job_belongs_to_its_enqueuer(sdk: Sdk, pool: ArqRedis) -> None:
    """One distributed trace joins both; each try is the enqueuer's, since the same message is read again."""
    _, request = await enqueue_from(sdk, pool, "flaky")
    await work(pool, flaky)
    tries = [span for span in sdk.spans if span.name.endswith("/flaky")]
    assert [parent_id(span) for span in tries] == [request, request]
    span = sdk.named("request").context
    assert span is not None
    assert {record.trace_id for record in records(sdk)} == {f"{span.trace_id:032x}"}


async def test_what_else_the_enqueuer_brings_along_travels(sdk: Sdk, pool: ArqRedis) -> None:
    """Baggage, without any span too."""
    before = context.attach(baggage.set_baggage("customer", "acme"))
    job_id = await enqueue(pool, "says_who_asks")
    context.detach(before)
    await work(pool, says_who_asks)
    assert await result(pool, job_id) == "acme"


async def test_the_message_is_arqs_with_the_context_behind_it(sdk: Sdk, pool: ArqRedis) -> None:
    """Where those who do not know of it do not look."""
    job_id, request = await enqueue_from(sdk, pool, "price", 7)
    packed = await message(pool, job_id)
    headers = look_behind(packed)
    assert list(headers) == ["traceparent"]
    assert request in headers["traceparent"]
    assert list(pickle.loads(packed)) == ARQS_OWN  # noqa: S301 - written here
    definition = await arq.jobs.Job(job_id, pool, QUEUE).info()
    assert definition is not None
    assert (definition.function, definition.args, definition.kwargs) == ("price", (7,), {})
    (queued,) = await pool.queued_jobs(queue_name=QUEUE)
    assert (queued.function, queued.args) == ("price", (7,))


async def test_without_a_context_the_message_is_arqs_own(sdk: Sdk, pool: ArqRedis) -> None:
    """To the byte."""
    packed = await message(pool, await enqueue(pool, "price", 7))
    stored = pickle.loads(packed)  # noqa: S301 - written here
    assert list(stored) == ARQS_OWN
    assert packed == arq.jobs.serialize_job("price", (7,), {}, None, stored["et"])


async def test_who_does_not_trace_reads_the_job_as_ever(sdk: Sdk, pool: ArqRedis) -> None:
    """A worker without us runs it."""
    job_id, _ = await enqueue_from(sdk, pool, "price", 7)
    ours.uninstrument()
    await work(pool, price)
    assert await result(pool, job_id) == 14
    assert records(sdk) == []


async def test_a_job_of_who_does_not_trace_is_a_trace_of_its_own(sdk: Sdk, pool: ArqRedis) -> None:
    """Its message brings nothing along; nor does what the job before it brought reach it."""
    await enqueue_from(sdk, pool, "price", 7, _job_id="a")
    ours.uninstrument()
    job_id, _ = await enqueue_from(sdk, pool, "price", 8, _job_id="b")
    ours.instrument()
    await work(pool, price, max_jobs=1)
    first, second = (span for span in sdk.spans if span.name.endswith("/price"))
    assert (parent_id(first) is None, parent_id(second) is None) == (False, True)
    assert records(sdk)[-1].context["root_id"] == job_id


async def test_jobs_that_are_enqueued_at_once_have_each_its_own(sdk: Sdk, pool: ArqRedis) -> None:
    """In tasks of their own, over one pool."""
    sent = await asyncio.gather(*(enqueue_from(sdk, pool, "price", number) for number in range(10)))
    for job_id, request in sent:
        assert request.encode() in await message(pool, job_id)
    await work(pool, price)
    parents = {record.tags[0]: record.context["parent_span_id"] for record in records(sdk)}
    assert parents == dict(sent)


async def test_a_job_that_another_one_enqueues_names_it(sdk: Sdk, pool: ArqRedis) -> None:
    """As its parent; the first of all is the root of all."""
    first = await enqueue(pool, "starts_another", "starts_another", "price", 7)
    await work(pool, starts_another, price)
    one, two, three = records(sdk)
    assert [record.context["root_id"] for record in (one, two, three)] == [first] * 3
    assert [record.context.get("parent_id") for record in (one, two, three)] == [None, first, two.tags[0]]
    assert {record.trace_id for record in (two, three)} == {one.trace_id}


async def test_a_job_that_enqueues_itself_is_not_its_own_parent(sdk: Sdk, pool: ArqRedis) -> None:
    """As it can once its message has expired."""

    async def again(ctx: dict[str, Any]) -> None:
        await ctx["redis"].delete(f"arq:job:{ctx['job_id']}")
        await enqueue(ctx["redis"], "again", _job_id=ctx["job_id"])
        assert look_behind(await message(ctx["redis"], ctx["job_id"])) == {}

    await enqueue(pool, "again", _job_id="nightly")
    await work(pool, arq.func(again, name="again"))
    assert sdk.record.state == "success"


async def test_a_cron_job_has_no_enqueuer(sdk: Sdk, pool: ArqRedis) -> None:
    """It is a trace, the root of its own."""

    async def nightly(ctx: dict[str, Any]) -> None:
        await enqueue(ctx["redis"], "price", 7)

    job = arq.cron(nightly, name="nightly", run_at_startup=True, hour=0, minute=0)
    await work(pool, price, cron_jobs=[job])
    found = {record.key.rpartition("/")[2]: record for record in records(sdk)}
    cron, priced = found["nightly"], found["price"]
    assert (cron.context["root_id"], cron.context.get("parent_id")) == (cron.tags[0], None)
    assert cron.context.get("parent_span_id") is None
    assert (priced.context["root_id"], priced.trace_id) == (cron.tags[0], cron.trace_id)


async def test_a_job_that_is_there_already_stays_as_it_is(sdk: Sdk, pool: ArqRedis) -> None:
    """Arq says so by None."""
    job_id, request = await enqueue_from(sdk, pool, "price", 7, _job_id="one")
    with sdk.provider.get_tracer("web").start_as_current_span("again"):
        assert await pool.enqueue_job("price", 8, _job_id="one") is None
    assert request.encode() in await message(pool, job_id)
    plain = await enqueue(pool, "price", 9)
    assert look_behind(await message(pool, plain)) == {}


# -- messages of others


def to_json(job: dict[str, Any]) -> bytes:
    """A writer that does not pickle, and whose messages may end as a pickle does."""
    return json.dumps(job).encode() + b" ."


def of_json(packed: bytes) -> dict[str, Any]:
    """Its reader, which minds what is behind."""
    found: dict[str, Any] = json.loads(packed.removesuffix(b" ."))
    return found


async def test_a_serializer_of_somebodys_own_lets_the_context_go(sdk: Sdk, pool: ArqRedis) -> None:
    """What is behind its messages might spoil them."""
    pool.job_serializer, pool.job_deserializer = to_json, of_json
    job_id, _ = await enqueue_from(sdk, pool, "price", 7)
    await work(pool, price, job_serializer=to_json, job_deserializer=of_json)
    assert await result(pool, job_id, of_json) == 14
    assert parent_id(sdk.named("jobs/test_arq/price")) is None
    assert not runtime().troubles.counts


async def test_arguments_that_cannot_be_written_are_the_enqueuers_fault(sdk: Sdk, pool: ArqRedis) -> None:
    """It is raised as Arq raises it, and nothing of ours is blamed."""
    with pytest.raises(arq.jobs.SerializationError, match='unable to serialize job "price"'):
        await enqueue_from(sdk, pool, "price", lambda: None)
    assert not runtime().troubles.counts


@pytest.mark.parametrize("headers", [7, None, [], {"traceparent": 7}, {"traceparent": "no"}, "\ud800"])
async def test_what_a_stranger_puts_behind_a_message_hurts_no_job(sdk: Sdk, pool: ArqRedis, headers: Any) -> None:
    """It is a trace of its own."""
    job_id = await enqueue(pool, "price", 7)
    packed = await message(pool, job_id)
    await pool.set(f"arq:job:{job_id}", packed + b"\ntrifle_otel:" + json.dumps(headers).encode())
    await work(pool, price)
    assert await result(pool, job_id) == 14
    assert parent_id(sdk.root) is None


async def test_a_message_that_cannot_be_read_is_arqs_fault(sdk: Sdk, pool: ArqRedis) -> None:
    """As ever: the job fails with what Arq says."""
    pool.job_serializer = to_json
    job_id = await enqueue(pool, "price", 7)
    await work(pool, price)
    with pytest.raises(arq.jobs.DeserializationError):
        await result(pool, job_id)
    assert records(sdk) == []


# -- setting up


async def test_uninstrumented_arq_is_as_it_was(sdk: Sdk, pool: ArqRedis) -> None:
    """What was put in the place of its functions is put back, and messages have nothing of ours."""
    ours.instrument()  # a second time
    ours.uninstrument()
    ours.uninstrument()
    assert vars(connections)["serialize_job"] is arq.jobs.serialize_job
    assert vars(worker)["deserialize_job_raw"] is arq.jobs.deserialize_job_raw
    assert not hasattr(ArqRedis.enqueue_job, "__wrapped__")
    job_id, _ = await enqueue_from(sdk, pool, "price", 7)
    assert look_behind(await message(pool, job_id)) == {}
    await work(pool, price)
    assert records(sdk) == []


async def test_who_has_wrapped_ours_since_is_left_in_peace(
    sdk: Sdk, pool: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours does nothing then; set up again, it puts the context in once."""
    wrapped = vars(connections)["serialize_job"]

    @wraps(wrapped)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    monkeypatch.setattr(connections, "serialize_job", theirs)
    ours.uninstrument()
    assert vars(connections)["serialize_job"] is theirs
    job_id, _ = await enqueue_from(sdk, pool, "price", 7)
    assert look_behind(await message(pool, job_id)) == {}
    ours.instrument()
    job_id, request = await enqueue_from(sdk, pool, "price", 8)
    assert (await message(pool, job_id)).count(request.encode()) == 1
    ours.uninstrument()


# -- workers as processes


class Shop(Workshop):
    """Workers of `arq_jobs`, and who enqueues for them."""

    def __init__(self, folder: Path, settings: RedisSettings) -> None:
        super().__init__("arq_jobs", folder, f"redis://127.0.0.1:{settings.port}/0")
        self.settings = settings

    def start(self, **environment: str) -> Worker:
        """Start a worker, and wait until it takes jobs."""
        return self.work("-m", "arq", "arq_jobs.WorkerSettings", ready="Starting worker", **environment)

    def send(self, *job: Any, wait: bool = False) -> Any:
        """Enqueue a job; what it returned, if that is waited for."""

        async def run() -> Any:
            pool = await arq.create_pool(self.settings, default_queue_name=self.queue)
            sent = await pool.enqueue_job(*job)
            assert sent is not None
            returned = await sent.result(timeout=servers.PATIENCE, poll_delay=0.05) if wait else None
            await pool.aclose()
            return returned

        return asyncio.run(run())


@pytest.fixture
def shop(own_folder: Path, redis_settings: RedisSettings) -> Iterator[Shop]:
    """A shop without workers yet."""
    made = Shop(own_folder, redis_settings)
    yield made
    made.close()


@slow
def test_one_distributed_trace_across_processes(shop: Shop, sink: HttpServer) -> None:
    """From who enqueues by the worker to what a job there enqueues."""
    shop.start(JOBS_SPANS=sink.endpoint)
    shop.check_joined(ours, sink, lambda: shop.send("starts_another", 1))
    first, _, second = sorted(shop.records(3), key=lambda record: record.reference)
    assert second.context["parent_id"] == second.context["root_id"] == first.tags[0]


@slow
def test_processes_with_and_without_us_work_for_each_other(shop: Shop, sdk: Sdk) -> None:
    """A worker that does not trace runs what was enqueued with a context, and one that does what was without."""
    untraced = shop.start(JOBS_UNTRACED="yes")
    with sdk.provider.get_tracer("web").start_as_current_span("request"):
        assert shop.send("add", 1, 2, wait=True) == 3
    untraced.stop()
    ours.uninstrument()
    shop.start()
    assert shop.send("add", 3, 4, wait=True) == 7
    record = shop.record("add")
    assert (record.meta, record.context["root_id"]) == ([3, 4], record.tags[0])


@fault
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_stopped_leaves_closed_traces(shop: Shop, kind: signal.Signals) -> None:
    """Told to stop it cancels its jobs, and they say so; of one that is killed the next process closes them."""
    running = shop.start()
    shop.send("hangs")
    shop.wait_for("hangs")
    running.stop(kind)
    record = shop.record("hangs", recover=kind is signal.SIGKILL)
    if kind is signal.SIGKILL:
        shop.check_dead(record)
        return
    assert record.state == "error"
    lines = shop.messages(record)
    assert lines[:2] == ["waiting ↴", "inside"]
    assert "Cancelled: out of time, aborted, or the worker ends" in lines
