"""What is new since the last look: traces that come early, late or end, and lines of one trace."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import pytest
from viewing import NOW, Trace

from trifle_otel import following
from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part
from trifle_otel.errors import NotFound, StoreUnavailable, UsageError
from trifle_otel.following import NewLines, NewTraces
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.records import ERROR, RUNNING, Folder, TraceRecord
from trifle_otel.stores.memory import MemoryStore


class Clock:
    """A clock that is set by hand."""

    now = NOW

    def __call__(self) -> datetime:
        """The time."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """At noon."""
    return Clock()


@pytest.fixture
def archive() -> Archive:
    """An empty one in memory."""
    return Archive(MemoryStore(), MemoryIndex())


def put(archive: Archive, number: int, *, ago: float = 0, state: str = "success", **changes: Any) -> TraceRecord:
    """A trace that began so many minutes ago, in the index alone."""
    record = Trace("job", number=number, minutes_ago=ago).record(state, **changes)
    archive.index.put([record])
    return record


def references(records: list[TraceRecord]) -> list[int]:
    """Their numbers."""
    return [int(record.reference.removeprefix("01KTEST")) for record in records]


def test_the_newest_that_are_there_come_first(archive: Archive, clock: Clock) -> None:
    """As many as are asked for, the oldest of them first, however old they are; then what comes."""
    for number in range(5):
        put(archive, number, ago=10_000 - number)
    news = NewTraces(archive, now=clock)
    assert references(news.begin(2)) == [3, 4]
    assert news.look() == []
    put(archive, 6)
    put(archive, 5, ago=1)
    assert references(news.look()) == [5, 6]
    assert news.look() == []


def test_none_of_those_that_are_there(archive: Archive, clock: Clock) -> None:
    """With 0 only what comes is told."""
    put(archive, 1)
    news = NewTraces(archive, now=clock)
    assert news.begin(0) == []
    put(archive, 2)
    assert references(news.look()) == [2]


def test_a_trace_that_ran_is_told_again_when_it_has_ended(archive: Archive, clock: Clock) -> None:
    """However many others have come since, and however long it ran; one that was thrown away is not."""
    put(archive, 1, ago=30, state=RUNNING)
    ignored = put(archive, 2, ago=30, state=RUNNING)
    news = NewTraces(archive, now=clock)
    news.begin(10)
    for number in range(10, 10 + 2 * following.QUICK):
        put(archive, number)
    news.look()
    clock.now += timedelta(hours=5)
    assert news.look() == []
    archive.index.delete([ignored.reference])
    put(archive, 1, ago=30, state=ERROR)
    found = news.look()
    assert [(record.state, record.duration) for record in found] == [(ERROR, 1)]
    assert references(found) == [1]
    assert news.look() == []


def test_a_trace_that_is_written_at_its_end_comes_late(archive: Archive, clock: Clock) -> None:
    """One that began before very many others is noticed by one of the deep looks, once."""
    news = NewTraces(archive, now=clock)
    news.begin(0)
    for number in range(10, 10 + 2 * following.QUICK):
        put(archive, number)
    news.look()
    put(archive, 1, ago=50)
    put(archive, 2, ago=70)  # longer ago than is looked at
    assert references([record for _ in range(2 * following.DEEP_EVERY) for record in news.look()]) == [1]


def test_only_what_a_search_finds(archive: Archive, clock: Clock) -> None:
    """The conditions hold for all that is told, also for a trace that ran and has ended."""
    put(archive, 1, ago=1, state=RUNNING)
    news = NewTraces(archive, {"state": RUNNING}, now=clock)
    assert references(news.begin(10)) == [1]
    put(archive, 2, state=RUNNING)
    put(archive, 3, state=ERROR)
    put(archive, 1, ago=1)
    assert references(news.look()) == [2]
    failed = NewTraces(archive, {"state": ERROR}, now=clock)
    assert references(failed.begin(10)) == [3]
    put(archive, 2, state=ERROR)
    assert references(failed.look()) == [2]


def test_wrong_conditions_are_told_at_once(archive: Archive) -> None:
    """Not after the first pause."""
    with pytest.raises(UsageError):
        NewTraces(archive, {"state": "broken"}).begin(1)


def test_what_is_known_does_not_grow_without_end(archive: Archive, clock: Clock) -> None:
    """Traces that ended long ago are forgotten, since they cannot be found again; those that run are kept."""
    put(archive, 0, state=RUNNING)
    news = NewTraces(archive, now=clock)
    news.begin(0)
    for number in range(1, 50):
        put(archive, number)
    news.look()
    assert len(news._known) == 50
    clock.now += timedelta(hours=3)
    assert news.look() == []
    assert list(news._known) == [f"01KTEST{0:019}"]


def test_of_more_than_can_be_known_the_rest_is_not_told_later(
    archive: Archive, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lay deeper than the first look went, and comes into sight since others were deleted, is not new."""
    monkeypatch.setattr(following, "DEEP", 2)
    monkeypatch.setattr(following, "MOST_PAGES", 2)
    records = [put(archive, number, ago=10 - number) for number in range(8)]
    news = NewTraces(archive, now=clock)
    news.begin(1)
    archive.index.delete([record.reference for record in records[4:]])
    assert news.look() == []


# --- Lines


def messages(entries: list[Any]) -> list[str]:
    """What entries say."""
    return [entry.message for entry in entries]


def grow(archive: Archive, record: TraceRecord, part: int, *lines: str, state: str = RUNNING) -> TraceRecord:
    """Store a further part of a trace, and then its record."""
    archive.store.write(record.folder, f"data_{part}.json.gz", encode_part([{"message": line} for line in lines]))
    record = replace(record, parts=part, length=record.length + len(lines), state=state)
    archive.index.put([record])
    return record


def test_lines_come_once_until_the_end(archive: Archive) -> None:
    """Each look gives what was stored since the last one; the last one says that it is over."""
    record = Trace("job", number=1).line("one").store(archive, RUNNING)
    news = NewLines(archive, record)
    assert messages(news.look()) == ["Tracer has been initialized for job", "one"]
    assert news.look() == []
    record = grow(archive, record, 2, "two")
    record = grow(archive, record, 3, "three", "four")
    assert messages(news.look()) == ["two", "three", "four"]
    assert not news.ended
    grow(archive, record, 4, "five", state="success")
    assert messages(news.look()) == ["five"]
    assert news.ended
    assert news.record.state == "success"
    assert news.damaged == []


def test_a_part_that_is_there_before_its_record_is_given_once(archive: Archive) -> None:
    """Parts are stored before the record: one that was read early does not come again."""
    record = Trace("job", number=1).store(archive, RUNNING)
    archive.store.write(record.folder, "data_2.json.gz", encode_part([{"message": "two"}]))
    news = NewLines(archive, record)
    assert len(news.look()) == 2
    grow(archive, record, 2, "two", state="success")
    assert news.look() == []
    assert news.ended


def test_lines_that_could_not_be_read_at_one_look_come_at_the_next(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that goes away in the middle of a look costs no line, and no damage is told twice."""
    record = Trace("job", number=1).store(archive, RUNNING)
    news = NewLines(archive, record)
    news.look()
    record = grow(archive, record, 3, "three")
    record = grow(archive, record, 4, "four")
    opened = archive.store.open

    def out_of_reach(folder: Folder, name: str) -> BinaryIO:
        if "data_4" in name:
            raise StoreUnavailable("the network is down")
        return opened(folder, name)

    monkeypatch.setattr(archive.store, "open", out_of_reach)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            news.look()
    monkeypatch.undo()
    assert messages(news.look()) == ["three", "four"]
    assert len(news.damaged) == 1


def test_parts_that_are_missing_are_told_and_passed_over(archive: Archive) -> None:
    """What comes after them is given; a record that claims very many parts is answered at once."""
    record = Trace("job", number=1).store(archive, RUNNING)
    news = NewLines(archive, record)
    news.look()
    grow(archive, record, 3, "three")
    assert messages(news.look()) == ["three"]
    archive.store.write(record.folder, "data_4.json.gz", b"[{")
    archive.index.put([replace(record, parts=10**9, state="success")])
    assert news.look() == []
    assert news.ended
    first, second, third = map(str, news.damaged)
    assert first == f"part 2 is missing of trace {record.reference}"
    assert second.startswith(f"part 4 of trace {record.reference} is damaged")
    assert third == f"parts 5 to 1000000000 are missing of trace {record.reference}"


def test_a_trace_that_was_thrown_away_is_not_there_any_more(archive: Archive) -> None:
    """Its end is an error that says so."""
    record = Trace("job", number=1).store(archive, RUNNING)
    news = NewLines(archive, record)
    news.look()
    archive.delete(record)
    with pytest.raises(NotFound):
        news.look()
