"""What a job pays for its archive: at the end of a trace, for each pair of stores, while a store hangs or is away.

Servers are those of the tests (`tests/servers.py`, `tests/s3_server.py`), on loopback; a row whose server is not
there is left out, and said. CPU is that of the job's process alone, all its threads, with everything shipped. The
peer of a remote pair runs the same job untraced and hands the same bytes to the same clients: two objects from a
pool of threads, a row in batches, and nothing around it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from benchmarks.harness import MICROSECONDS, Row, compare, peak_memory

if TYPE_CHECKING:
    from examples.price_calculation import Product

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the servers' module

LINES = 315
WAITING = 50_000
FERRETDB = 200
"""Traces for FerretDB, each of whose updates reads the whole collection: a thousand take it a minute."""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}


def rows(folder: Path, rounds: int, traces: int) -> Iterator[Row]:
    """All figures of this module; archives are made in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    yield _end_of_a_trace(folder, rounds)
    with ExitStack() as stack:
        places = dict(_places(stack, folder))
        yield from _processor_time(places, folder, traces)
        if "S3 + PostgreSQL" in places:
            yield from _hanging(places["S3 + PostgreSQL"], folder)
    yield _memory(folder)


# -- the end of a trace


def _end_of_a_trace(folder: Path, rounds: int) -> Row:
    import trifle_otel as trifle

    trifle.configure(archive=folder / "end", default_mode="deferred", tracer_provider=_sampled_out())
    bare = folder / "bare"
    bare.mkdir()
    found = compare(_ends, lambda count: _bare_ends(bare, count), count=20, rounds=rounds)
    trifle.shutdown()
    peer = "mkdir, create and write 1.2 kB"
    return Row("end of a trace of 316 entries, files", found.ours, MICROSECONDS, peer, found.peer, found.ratio, most=5)


def _ends(count: int) -> float:
    import trifle_otel as trifle

    spent = 0.0
    for _ in range(count):
        with trifle.tracer("benchmark/end", tags=["product:9"], meta=[9, 133554920]):
            for number in range(LINES):
                trifle.trace(f"Freight to zone {number}: 24.80 EUR")
            start = perf_counter()
        spent += perf_counter() - start
    return spent


def _bare_ends(folder: Path, count: int) -> float:
    data = os.urandom(1200)
    names = [f"{folder}/{time.time_ns()}-{number}" for number in range(count)]
    start = perf_counter()
    for name in names:
        os.mkdir(name)
        descriptor = os.open(f"{name}/data_1.json.gz", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(descriptor, data)
        os.close(descriptor)
    return perf_counter() - start


# -- CPU for each pair of stores


Place = tuple[str, str | None]
"""URLs of an archive and an index."""


def _processor_time(places: dict[str, Place], folder: Path, traces: int) -> Iterator[Row]:
    for name, place in places.items():
        traces = min(traces, FERRETDB) if name.endswith("protocol") else traces
        samples = []
        for number in range(3):
            ours = _in_a_process("ours", place, folder / f"{len(name)}-{number}", traces)["cpu"]
            bare = _in_a_process("bare", place, folder / f"bare-{len(name)}-{number}", traces)["cpu"]
            samples.append((ours, bare))
        first, second = (statistics.median(pair[side] for pair in samples) for side in (0, 1))
        ratio = statistics.median(ours / bare for ours, bare in samples)
        peer = "the job untraced, the same bytes handed to bare clients"
        yield Row(f"whole job shipped to {name}, CPU", first, "µs a trace", peer, second, ratio)


def _places(stack: ExitStack, folder: Path) -> Iterator[tuple[str, Place]]:
    """Pairs of stores whose servers are there. `{folder}` in a URL stands for a folder of the run's own."""
    import s3_server
    import servers

    yield "files + SQLite", ("{folder}/archive", None)
    if not s3_server.is_installed("localbucket"):
        print("  the package localbucket is not there: S3 is left out", file=sys.stderr)
        return
    os.environ.update(CREDENTIALS)
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    (folder / "buckets").mkdir()
    server = s3_server.localbucket(folder / "buckets").start()
    stack.callback(server.kill)
    stack.callback(server.go_on)
    bucket = server.make_bucket("benchmark")
    archive = f"s3://{bucket}/traces?endpoint={server.endpoint}&bulk_delete=false"
    _hang[archive] = server
    for name, start, url in (
        ("PostgreSQL", servers.postgres, "{url}?table=benchmark_{{run}}"),
        ("MongoDB's protocol", servers.ferretdb, "{url}?collection=benchmark_{{run}}"),
    ):
        try:
            database = start()
        except servers.ServerMissingError as missing:
            print(f"  {missing}: {name} is left out", file=sys.stderr)
            continue
        yield f"S3 + {name}", (archive, url.format(url=database.url()))


_hang: dict[str, Any] = {}


def _of_this_run(url: str, folder: Path) -> str:
    """A URL with a run's own folder, table or collection: none pays for what another has left."""
    return url.replace("{folder}", str(folder)).replace("{run}", f"{folder.name.replace('-', '_')}")


def _in_a_process(what: str, place: Place, folder: Path, traces: int) -> dict[str, float]:
    folder.mkdir(parents=True)
    urls = [_of_this_run(url, folder) for url in place if url is not None]
    command = [sys.executable, "-m", "benchmarks.shipping", what, "--traces", str(traces), "--folder", str(folder)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("TRIFLE_", "OTEL_"))}
    done = subprocess.run([*command, *urls], cwd=ROOT, env=plain, stdout=subprocess.PIPE, check=True)
    answer: dict[str, float] = json.loads(done.stdout)
    print(f"  {what} {urls[-1].partition(':')[0]}: {answer}", file=sys.stderr)
    return answer


def ours(urls: list[str], folder: Path, traces: int) -> dict[str, float]:
    """The demonstration job, traced and shipped."""
    del folder
    import trifle_otel as trifle

    trifle.configure(urls[0], index=urls[1] if len(urls) > 1 else None, tracer_provider=_sampled_out())
    cpu = _job(traces, lambda stone: _calculate(stone))
    if not trifle.flush(120):
        raise TimeoutError("the archive did not take all traces within two minutes")
    return {"cpu": (process_time() - cpu) / traces * 1e6}


def bare(urls: list[str], folder: Path, traces: int) -> dict[str, float]:
    """The same job untraced; bytes of the same size go to bare clients."""
    part, record = os.urandom(3700), os.urandom(1100)
    with _clients(urls, folder) as (put, insert):
        waiting: list[int] = []

        def step(stone: Product) -> None:
            _calculate(stone)
            number = step_numbers.pop()
            put(f"7/commodity/{number}/data_1.json.gz", part)
            put(f"7/commodity/{number}/record.json", record)
            waiting.append(number)
            if len(waiting) >= 256:
                insert(waiting)
                waiting.clear()

        step_numbers = list(range(traces))
        cpu = _job(traces, step)
        insert(waiting)
    return {"cpu": (process_time() - cpu) / traces * 1e6}


@contextmanager
def _clients(
    urls: list[str], folder: Path
) -> Iterator[tuple[Callable[[str, bytes], object], Callable[[list[int]], object]]]:
    if len(urls) == 1:
        yield _file_client(folder)
        return
    from urllib.parse import parse_qs, urlsplit

    from obstore.store import S3Store

    parts = urlsplit(urls[0])
    endpoint = parse_qs(parts.query)["endpoint"][0]
    store = S3Store(parts.netloc, prefix="bare", endpoint=endpoint, client_options={"allow_http": True})
    with ThreadPoolExecutor(8) as pool:
        insert = (_postgres if urls[1].startswith("postgres") else _mongo)(urls[1].partition("?")[0])
        yield lambda name, data: pool.submit(store.put, name, data), insert


def _file_client(folder: Path) -> tuple[Callable[[str, bytes], object], Callable[[list[int]], object]]:
    import sqlite3

    connection = sqlite3.connect(folder / "bare.sqlite")
    connection.execute("pragma journal_mode = wal")
    connection.execute("create table traces (reference text primary key, record text)")

    def put(name: str, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def insert(numbers: list[int]) -> None:
        connection.executemany("insert into traces values (?, ?)", [(str(number), "x" * 900) for number in numbers])
        connection.commit()

    return put, insert


def _postgres(url: str) -> Callable[[list[int]], object]:
    import psycopg

    connection = psycopg.connect(url, autocommit=True)
    connection.execute("create table if not exists bare (reference text, record text)")

    def insert(numbers: list[int]) -> None:
        with connection.cursor() as cursor:
            cursor.executemany("insert into bare values (%s, %s)", [(str(number), "x" * 900) for number in numbers])

    return insert


def _mongo(url: str) -> Callable[[list[int]], object]:
    import pymongo

    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(url)
    collection = client.get_default_database()["bare"]
    return lambda numbers: collection.insert_many([{"reference": str(number), "x": "x" * 900} for number in numbers])


def _job(traces: int, step: Callable[[Product], object]) -> float:
    """Run the job, its caches warm; gives the CPU time at the start."""
    from benchmarks.traces import priced_in_full

    stones = priced_in_full(traces)
    cpu = process_time()
    for stone in stones:
        step(stone)
    return cpu


def _calculate(stone: Product) -> None:
    from examples import price_calculation as job

    job.calculate(stone)


# -- a store that hangs, or is away


def _hanging(place: Place, folder: Path) -> Iterator[Row]:
    """The slowest trace of 50 lines in a thousand, while the store answers and while it does not."""
    import trifle_otel as trifle

    server = _hang[place[0]]
    index = None if place[1] is None else _of_this_run(place[1], folder / "hanging")
    trifle.configure(place[0], index=index, tracer_provider=_sampled_out(), default_mode="deferred")
    pairs = []
    for _ in range(3):
        answering = _slowest(5)
        server.hang()
        hanging = _slowest(10)
        server.go_on()
        trifle.flush(60)
        pairs.append((hanging, answering))
    trifle.shutdown()
    hanging, answering = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(first / second for first, second in pairs)
    what = "a trace of 50 lines while the store hangs, slowest of 1,000"
    yield Row(what, hanging, MICROSECONDS, "while it answers", answering, ratio, highest=answering + 1000)


def _slowest(seconds: float) -> float:
    """Microseconds that all but one in a thousand traces took less than."""
    import trifle_otel as trifle

    samples = []
    end = perf_counter() + seconds
    while perf_counter() < end:
        start = perf_counter()
        with trifle.tracer("benchmark/hanging"):
            for number in range(50):
                trifle.trace(f"Freight to zone {number}: 24.80 EUR")
        samples.append(perf_counter() - start)
        time.sleep(0.001)
    return statistics.quantiles(samples, n=1000)[-1] * 1e6


def _memory(folder: Path) -> Row:
    """Megabytes that a process grows by while a store is down and traces wait on disk, against one that ships them."""
    nowhere = "s3://bucket/traces?endpoint=http://127.0.0.1:9"
    down = _in_a_process("waiting", (nowhere, "memory:"), folder / "waiting", WAITING)
    up = _in_a_process("waiting", ("{folder}/archive", None), folder / "shipped", WAITING)
    first, second = down["grown"], up["grown"]
    peer = "while the archive takes them"
    what = f"memory, {WAITING:,} traces recorded while the store is down"
    return Row(what, first, "MB", peer, second, first / max(second, 0.1), highest=64)


def waiting(urls: list[str], folder: Path, traces: int) -> dict[str, float]:
    """Record small traces; how much the process grows, in megabytes."""
    import trifle_otel as trifle

    os.environ.update(CREDENTIALS)
    index = urls[1] if len(urls) > 1 else None
    os.environ["TRIFLE_ARCHIVE"] = urls[0]
    if index is not None:
        os.environ["TRIFLE_INDEX"] = index
    os.environ["TRIFLE_SPOOL"] = str(folder / "spool")
    os.environ["TRIFLE_EXIT_TIMEOUT"] = "0.1"
    for _ in range(500):
        _small_trace(trifle)
    before = peak_memory()
    for _ in range(traces):
        _small_trace(trifle)
    return {"grown": (peak_memory() - before) / 1e6}


def _small_trace(trifle: Any) -> None:
    with trifle.tracer("benchmark/waiting", tags=["product:9"], meta=[9, 133554920]):
        trifle.trace("Freight to zone 2: 24.80 EUR")


def _sampled_out() -> Any:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    return TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)


def main() -> None:
    """One run in this process, as JSON: what `rows` starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ours", "bare", "waiting"))
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--traces", type=int, default=1000)
    given = parser.parse_args()
    run = {"ours": ours, "bare": bare, "waiting": waiting}[given.what]
    print(json.dumps(run(given.urls, given.folder, given.traces)))


if __name__ == "__main__":
    main()
