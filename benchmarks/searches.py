"""Searches over a million records, each with all that a page of the list asks for: SQLite, and PostgreSQL where it is.

Records are spread as a fleet's are: few keys, one of which has half of all, many products, few errors, four weeks. The
peer is the index's own lookup of one reference, which nothing that gives twenty records can beat. Filling the
index takes longer than all the rest.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Row

if TYPE_CHECKING:
    from trifle_otel.indexes.contract import Index
    from trifle_otel.records import TraceRecord

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))  # the servers' module

RECORDS = 1_000_000
BATCH = 1000
SEARCHES = 200
MOST = 20.0
"""Milliseconds that 95 of a hundred searches may take at most."""


def rows(folder: Path, records: int) -> Iterator[Row]:
    """All figures of this module."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in _indexes(folder):
        started = perf_counter()
        _fill(index, records)
        print(f"  {records:,} records into {name}: {perf_counter() - started:.0f} s", file=sys.stderr)
        _settle(name)
        yield from _measured(name, index, records)
        index.close()


def _settle(name: str) -> None:
    """What PostgreSQL does by itself within a minute, so that no search is planned without statistics."""
    if name == "PostgreSQL":
        import psycopg
        import servers

        with psycopg.connect(servers.postgres().url(), autocommit=True) as connection:
            connection.execute("vacuum analyze searches")


def _indexes(folder: Path) -> Iterator[tuple[str, Index]]:
    import servers

    from trifle_otel.locations import open_index

    yield "SQLite", open_index(f"sqlite://{folder / 'index.sqlite'}")
    try:
        url = servers.postgres().url()
    except servers.ServerMissingError as missing:
        print(f"  {missing}: PostgreSQL is left out", file=sys.stderr)
        return
    yield "PostgreSQL", open_index(f"{url}?table=searches")


def _fill(index: Index, records: int) -> None:
    index.setup()
    numbers = random.Random(7)
    for first in range(0, records, BATCH):
        index.put([_record(number, numbers) for number in range(first, min(first + BATCH, records))])


KEYS = ["commodity/calculate/one", "commodity/calculate/all", "import/products", "sync/stock", "mail/send/receipt"]
WEIGHTS = [50, 20, 15, 10, 5]


def _record(number: int, numbers: random.Random) -> TraceRecord:
    from trifle_otel.references import segments
    from trifle_otel.testing import sample_record

    sample = sample_record()
    key = numbers.choices(KEYS, WEIGHTS)[0]
    first_at = sample.first_at + timedelta(seconds=number * 28 * 86_400 / RECORDS)
    duration = int(numbers.lognormvariate(6, 1.5))
    return replace(
        sample,
        reference=f"{number:026d}",
        key=key,
        segments=segments(key),
        state=numbers.choices(["success", "warning", "error"], [970, 25, 5])[0],
        tags=(f"product:{int(numbers.paretovariate(1.2)) % 50_000}", f"store:{numbers.randrange(200)}"),
        context={"trace_id": f"{number:032x}", "span_id": f"{number:016x}"},
        duration=duration,
        first_at=first_at,
        last_at=first_at + timedelta(milliseconds=duration),
        expires_at=first_at + timedelta(days=7),
    )


def _measured(name: str, index: Index, records: int) -> Iterator[Row]:
    numbers = random.Random(11)
    find = _p95(lambda: index.find(f"{numbers.randrange(records):026d}"))
    for what, make in _searches(records).items():
        taken = _p95(partial(_search, index, make, numbers))
        yield Row(f"{name}: {what}, p95", taken, "ms", "one record by its reference", find, taken / find, highest=MOST)


def _search(index: Index, make: Callable[[random.Random], Any], numbers: random.Random) -> None:
    index.search(make(numbers))


def _p95(search: Callable[[], object]) -> float:
    samples = []
    for _ in range(SEARCHES):
        start = perf_counter()
        search()
        samples.append(perf_counter() - start)
    return statistics.quantiles(samples, n=20)[-1] * 1e3


def _searches(records: int) -> dict[str, Callable[[random.Random], Any]]:
    from trifle_otel.queries import make_query
    from trifle_otel.records import Position
    from trifle_otel.testing import sample_record

    start = sample_record().first_at

    def at(numbers: random.Random) -> Any:
        return start + timedelta(days=numbers.random() * 28)

    def product(numbers: random.Random) -> str:
        return f"product:{int(numbers.paretovariate(1.2)) % 50_000}"

    def cursor(numbers: random.Random) -> Any:
        number = numbers.randrange(records)
        moment = start + timedelta(seconds=number * 28 * 86_400 / RECORDS)
        nanoseconds = int(moment.timestamp() * 1_000_000) * 1000
        return replace(make_query(segment="commodity"), after=Position(nanoseconds, f"{number:026d}"))

    def everything(numbers: random.Random) -> Any:
        return make_query(
            segment="commodity", all_tags=[product(numbers)], state="error", since=at(numbers), min_duration=500
        )

    return {
        "newest": lambda _: make_query(),
        "segment": lambda numbers: make_query(segment=numbers.choice(["commodity", *KEYS])),
        "one tag": lambda numbers: make_query(all_tags=[product(numbers)]),
        "any of three tags": lambda numbers: make_query(any_tags=[product(numbers) for _ in range(3)]),
        "two tags": lambda numbers: make_query(all_tags=[product(numbers), f"store:{numbers.randrange(200)}"]),
        "state": lambda numbers: make_query(state=numbers.choice(["success", "warning", "error", "running"])),
        "segment and state": lambda numbers: make_query(segment=numbers.choice(KEYS), state="error"),
        "tag and state": lambda numbers: make_query(all_tags=[product(numbers)], state="error"),
        "segment and tag": lambda numbers: make_query(segment=numbers.choice(KEYS), all_tags=[product(numbers)]),
        "time range": lambda numbers: make_query(since=(moment := at(numbers)), until=moment + timedelta(hours=6)),
        "segment and time": lambda numbers: make_query(segment=numbers.choice(KEYS), until=at(numbers)),
        "longer than": lambda numbers: make_query(min_duration=numbers.choice([1_000, 30_000, 500_000])),
        "segment, longer than": lambda numbers: make_query(segment=numbers.choice(KEYS), min_duration=60_000),
        "trace id": lambda numbers: make_query(trace_id=f"{numbers.randrange(records):032x}"),
        "page by cursor": cursor,
        "all filters at once": everything,
    }
