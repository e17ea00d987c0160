"""What every index does, as tests."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from trifle_otel.indexes.contract import Index
from trifle_otel.records import Position, Query, TraceRecord
from trifle_otel.testing.samples import (
    EPOCH,
    START,
    expected,
    pages,
    random_query,
    random_record,
    rounded,
    run_at_once,
    sample_record,
)


class IndexContract:
    """What every index does.

    Attributes:
        tick: the smallest step of time that the index keeps; times are rounded down to it.
        searches: how many random ones are made.
    """

    tick: timedelta = timedelta(microseconds=1)
    searches: int = 200

    def kept(self, record: TraceRecord) -> TraceRecord:
        """A record with its times as the index keeps them."""
        return replace(
            record,
            first_at=rounded(record.first_at, self.tick),
            last_at=rounded(record.last_at, self.tick),
            expires_at=rounded(record.expires_at, self.tick),
        )

    def sample(self, **changes: Any) -> TraceRecord:
        """A `sample_record` with its times as the index keeps them."""
        return self.kept(sample_record(**changes))

    @pytest.fixture
    def index(self) -> Index:
        """The index to test, empty and set up. Give your own."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        "record",
        [
            sample_record(),
            sample_record(meta=None, context={}, tags=(), bucket_name="bucket-two", state="running", duration=0),
            sample_record(meta="text", key="Space Job/ünï/日本語", tags=("a'b\"c", "Żaba", "%_*")),
            sample_record(meta={"a": [1.5, None, True, "x"]}, context={"n": None, "list": [1]}, duration=2**40),
            sample_record(first_at=datetime(1999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc), retention=36_500),
        ],
        ids=["full", "sparse", "unicode", "nested", "old"],
    )
    def test_a_record_is_found_as_it_was_put(self, index: Index, record: TraceRecord) -> None:
        """Every field of a record is given back with the value that it was put with."""
        record = self.kept(record)
        index.put([record])
        assert index.find(record.reference) == record
        assert index.search(Query()) == [record]

    def test_an_unknown_reference_is_none(self, index: Index) -> None:
        """Nothing is found under a reference that was never put."""
        index.put([self.sample()])
        assert index.find("01KDYAK3SEABCDEFGHJKMNPQRT") is None
        assert index.find("") is None

    def test_nothing_to_put_or_delete_does_no_harm(self, index: Index) -> None:
        """Empty batches, and unknown references to delete, change nothing."""
        record = self.sample()
        index.put([record])
        index.put([])
        index.delete([])
        index.delete(["unknown"])
        assert index.search(Query()) == [record]

    def test_a_later_record_replaces_in_every_search(self, index: Index) -> None:
        """After a trace has ended it is found by its new state, tags and duration, and no longer by its old ones."""
        running = self.sample(state="running", tags=("early",), duration=5, parts=1)
        ended = replace(running, state="error", tags=("late",), duration=50_000, parts=3)
        index.put([running])
        index.put([ended])
        for query in (Query(), Query(state="error"), Query(all_tags=("late",)), Query(min_duration=50_000)):
            assert index.search(query) == [ended]
        for query in (Query(state="running"), Query(any_tags=("early",)), Query(min_duration=50_001)):
            assert index.search(query) == []

    def test_a_running_record_never_replaces_a_finished_one(self, index: Index) -> None:
        """A batch that comes again after a crash does not bring a finished trace back to life."""
        ended = self.sample(state="success", parts=2)
        running = replace(ended, state="running", parts=9)
        index.put([ended])
        index.put([running])
        index.put([ended, running])
        assert index.find(ended.reference) == ended
        assert index.search(Query(state="running")) == []

    def test_of_running_records_fewer_parts_never_replace_more(self, index: Index) -> None:
        """Of two records of a running trace that with more parts stays; with as many parts, the later one."""
        three = self.sample(state="running", parts=3, length=30)
        index.put([three])
        index.put([replace(three, parts=2, length=20)])
        assert index.find(three.reference) == three
        index.put([replace(three, length=31)])
        assert index.find(three.reference) == replace(three, length=31)

    def test_the_later_of_a_batch_counts(self, index: Index) -> None:
        """Where a batch holds a reference more than once, the last record that may replace the others is kept."""
        first, second = self.sample(duration=1), self.sample(duration=2)
        index.put([replace(first, state="running", parts=1), first, second, replace(first, state="running", parts=9)])
        assert index.search(Query()) == [second]

    def test_ties_are_ordered_by_reference(self, index: Index) -> None:
        """Of traces that began in the same microsecond the highest reference comes first, and pages go through them."""
        records = [self.sample(reference=f"ref-{name}") for name in "bdacfe"]
        index.put(records)
        found = [record.reference for page in pages(index, Query(limit=2)) for record in page]
        assert found == ["ref-f", "ref-e", "ref-d", "ref-c", "ref-b", "ref-a"]

    def test_time_bounds(self, index: Index) -> None:
        """`since` is inclusive and `until` exclusive, to the tick, and in between to the microsecond."""
        start, tick = self.sample().first_at, self.tick
        records = [self.sample(reference=f"ref-{n}", first_at=start + n * tick) for n in range(4)]
        index.put(records)
        assert index.search(Query(since=start + tick, until=start + 3 * tick)) == [records[2], records[1]]
        assert index.search(Query(since=start + 3 * tick)) == [records[3]]
        assert index.search(Query(until=start)) == []
        assert index.search(Query(until=start + timedelta(microseconds=1))) == [records[0]]
        assert index.search(Query(since=start + 2 * tick + timedelta(microseconds=1))) == [records[3]]

    def test_segments_match_whole(self, index: Index) -> None:
        """A segment finds its key and what lies below it, never a key that only begins alike."""
        keys = ("a", "a/b", "a/bc", "ab", "a/b/c")
        index.put([self.sample(reference=f"ref-{key}", key=key) for key in keys])
        assert {record.key for record in index.search(Query(segment="a/b"))} == {"a/b", "a/b/c"}
        assert {record.key for record in index.search(Query(segment="a"))} == {"a", "a/b", "a/bc", "a/b/c"}
        assert index.search(Query(segment="b")) == []

    def test_tags_of_a_search_are_or_and_and(self, index: Index) -> None:
        """`any_tags` asks for one of them, `all_tags` for each; both at once must hold; a trace comes once."""
        tagged = {"x": ("p", "q", "r"), "y": ("p",), "z": ("q", "s"), "none": ()}
        index.put([self.sample(reference=name, tags=tags) for name, tags in tagged.items()])

        def found(**query: Any) -> list[str]:
            return [record.reference for record in index.search(Query(**query))]

        assert found(any_tags=("p", "q", "q")) == ["z", "y", "x"]
        assert found(all_tags=("p", "q")) == ["x"]
        assert found(any_tags=("r", "s"), all_tags=("q",)) == ["z", "x"]
        assert found(any_tags=("unknown",)) == []
        assert found(all_tags=("p", "unknown")) == []

    def test_search_by_trace_id(self, index: Index) -> None:
        """All traces of one OpenTelemetry trace are found, newest first, other filters and pages included."""
        ids = ("a" * 32, "b" * 32)
        records = [
            self.sample(
                reference=f"ref-{n}",
                context={"trace_id": ids[n % 2]},
                duration=n,
                state="error" if n == 4 else "success",
                first_at=START + timedelta(seconds=n),
            )
            for n in range(7)
        ]
        index.put(records)
        found = [record.duration for page in pages(index, Query(trace_id=ids[0], limit=2)) for record in page]
        assert found == [6, 4, 2, 0]
        assert index.search(Query(trace_id=ids[0], state="error")) == [records[4]]
        assert index.search(Query(trace_id=ids[0], min_duration=5, segment="commodity")) == [records[6]]
        assert index.search(Query(trace_id="c" * 32)) == []

    def test_a_position_finer_than_a_microsecond(self, index: Index) -> None:
        """A cursor of another index may stand between two ticks of this one: what comes after it is complete."""
        start, tick = self.sample().first_at, self.tick
        records = [self.sample(reference=f"ref-{n}", first_at=start + n * tick) for n in range(3)]
        index.put(records)
        nanoseconds = (start - EPOCH) // timedelta(microseconds=1) * 1000 + tick // timedelta(microseconds=1) * 1500
        assert index.search(Query(after=Position(nanoseconds, "zzz"))) == [records[1], records[0]]

    def test_deleted_records_are_gone_from_every_search(self, index: Index) -> None:
        """A record that was deleted is found no more, by whatever it was found before, and others stay."""
        gone, stays = self.sample(reference="gone"), self.sample(reference="stays")
        index.put([gone, stays])
        index.delete(["gone", "unknown"])
        assert index.find("gone") is None
        for query in (
            Query(),
            Query(segment="commodity"),
            Query(all_tags=("product:9",)),
            Query(trace_id=gone.trace_id),
        ):
            assert index.search(query) == [stays]
        assert index.expired(gone.expires_at) == [stays]

    def test_expired_records(self, index: Index) -> None:
        """A record is expired from `expires_at` on, each by its own; no more than asked for are given."""
        start = self.sample().first_at
        records = [self.sample(reference=f"ref-{n}", expires_at=start + timedelta(days=n)) for n in range(5)]
        index.put(records)
        by_reference = sorted(index.expired(start + timedelta(days=2)), key=lambda record: record.reference)
        assert by_reference == records[:3]
        assert index.expired(start - timedelta(microseconds=1)) == []
        assert len(index.expired(start + timedelta(days=9), limit=2)) == 2
        for days in (-1, 0, 2, 9):
            now = start + timedelta(days=days)
            assert index.count_expired(now) == len(index.expired(now))

    def test_setup_and_check_harm_nothing(self, index: Index) -> None:
        """Setting up again, checking and repairing leave the records."""
        record = self.sample()
        index.put([record])
        index.setup()
        index.check()
        index.repair()
        assert index.search(Query()) == [record]

    def test_random_records_and_searches(self, index: Index) -> None:
        """Random searches over random records find what a plain list of them says, page by page."""
        chance = random.Random(20_261_124)
        records = [self.kept(random_record(chance, number, self.tick)) for number in range(150)]
        for start in range(0, 150, 77):
            index.put(records[start : start + 77])
        for _ in range(self.searches):
            query = random_query(chance, self.tick)
            wanted = expected(records, query)
            found = list(pages(index, query))
            assert [record for page in found for record in page] == wanted
            assert all(len(page) == query.limit for page in found[:-1])

    def test_threads_may_use_it_at_once(self, index: Index) -> None:
        """Threads that put and search at once see whole records, and nothing is lost."""
        batches = [[self.sample(reference=f"{n}-{m}", first_at=START) for m in range(20)] for n in range(8)]
        run_at_once([lambda batch=batch: (index.put(batch), index.search(Query(limit=5))) for batch in batches])
        assert len(index.search(Query(limit=1000))) == 160
