"""Records and searches for tests: one sample, random ones, and what a search over them must find. No tests here."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

from trifle_otel.indexes.contract import Index
from trifle_otel.records import Position, Query, TraceRecord

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def sample_record(**changes: Any) -> TraceRecord:
    """A finished trace's record with something in each field; `changes` are fields of `TraceRecord`.

    `segments` and `expires_at` follow from what is changed.
    """
    fields: dict[str, Any] = {
        "reference": "01KDYAK3SEABCDEFGHJKMNPQRS",
        "key": "commodity/calculate/one",
        "state": "success",
        "tags": ("product:9", "store:133554920"),
        "meta": [9, 133554920, {"name": "Żaba"}],
        "context": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331", "tenant": 9},
        "duration": 1_234,
        "counters": {
            "states": {"success": 300, "warning": 12, "error": 3, "debug": 1},
            "types": {"text": 200, "head": 20, "raw": 95, "media": 1},
            "max_level": 5,
        },
        "length": 316,
        "parts": 2,
        "first_at": START,
        "last_at": START + timedelta(milliseconds=1_234),
        "retention": 7,
        **changes,
    }
    steps = fields["key"].split("/")
    fields.setdefault("segments", tuple("/".join(steps[: count + 1]) for count in range(len(steps))))
    fields.setdefault("expires_at", fields["first_at"] + timedelta(days=fields["retention"]))
    return TraceRecord(**fields)


def run_at_once(calls: Iterable[Any]) -> None:
    """Run each call in a thread of its own, begun together; the first error is raised."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))
    errors: list[BaseException] = []

    def run(call: Any) -> None:
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def pages(index: Index, query: Query) -> Iterable[list[TraceRecord]]:
    """The pages of a search, as a reader turns them."""
    while True:
        page = index.search(query)
        yield page
        if len(page) < query.limit:
            return
        last = page[-1]
        nanoseconds = (last.first_at - EPOCH) // timedelta(microseconds=1) * 1000
        query = replace(query, after=Position(nanoseconds, last.reference))


def random_record(chance: random.Random, number: int, tick: timedelta = timedelta(microseconds=1)) -> TraceRecord:
    """A record with values that repeat, ties on `first_at` included, which is one of forty ticks."""
    return sample_record(
        reference=f"{chance.randrange(16):x}{number:05d}",
        key="/".join(chance.choice("abc") for _ in range(chance.randint(1, 3))),
        state=chance.choice(("running", "success", "success", "warning", "error")),
        tags=tuple(sorted(chance.sample("pqrs", chance.randrange(4)))),
        duration=chance.choice((0, 9, 10, 11, 999, 1_000, 5_000, 10**7)),
        context={"trace_id": chance.choice("xyz") * 32} if chance.random() < 0.7 else {},
        first_at=START + chance.randrange(40) * tick,
    )


def rounded(moment: datetime, tick: timedelta) -> datetime:
    """A time, rounded down to a whole number of ticks."""
    return moment - (moment - EPOCH) % tick


def random_query(chance: random.Random, tick: timedelta = timedelta(microseconds=1)) -> Query:
    """A search with one to four conditions of `random_record`'s values."""
    conditions: dict[str, Any] = {
        "segment": chance.choice(("a", "a/b", "b/c/a", "c")),
        "any_tags": tuple(chance.sample("pqrs", chance.randint(1, 3))),
        "all_tags": tuple(chance.sample("pqrs", chance.randint(1, 2))),
        "state": chance.choice(("running", "success", "warning", "error")),
        "since": START + chance.randrange(40) * tick,
        "until": START + chance.randrange(40) * tick,
        "min_duration": chance.choice((0, 10, 11, 1_000, 2_000, 10**9)),
        "trace_id": chance.choice("xyz") * 32,
    }
    chosen = chance.sample(sorted(conditions), chance.randint(0, 3))
    return Query(limit=chance.choice((5, 7, 20, 300)), **{name: conditions[name] for name in chosen})


def expected(records: Iterable[TraceRecord], query: Query) -> list[TraceRecord]:
    """All records that a search without limit and cursor must find, in order."""
    found = [record for record in records if _is_wanted(record, query)]
    return sorted(found, key=lambda record: (record.first_at, record.reference), reverse=True)


def _is_wanted(record: TraceRecord, query: Query) -> bool:
    path = f"{record.key}/"
    conditions = [
        query.segment is None or path.startswith(f"{query.segment}/"),
        not query.any_tags or any(tag in record.tags for tag in query.any_tags),
        all(tag in record.tags for tag in query.all_tags),
        query.state in (None, record.state),
        query.since is None or query.since <= record.first_at,
        query.until is None or record.first_at < query.until,
        query.min_duration is None or query.min_duration <= record.duration,
        query.trace_id is None or record.context.get("trace_id") == query.trace_id,
    ]
    return all(conditions)
