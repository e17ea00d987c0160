"""Counts over time: the arithmetic, and each index against a plain count of the same records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NoReturn

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifle_otel.indexes import sqlite_search
from trifle_otel.indexes.contract import Index
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.records import Query, TraceRecord
from trifle_otel.tallies import WIDTHS, Slot, Tally, merged, percentile, tally_records, two_digits
from trifle_otel.testing import START, sample_record

DAY = 86_400
KINDS = ("memory", "sqlite", "paged", "postgres")


class Paged(MemoryIndex):
    """An index of somebody who knows nothing of tallies: the contract's own counting."""

    tallied = Index.tallied
    tally = Index.tally


@pytest.fixture(params=KINDS)
def index(request: pytest.FixtureRequest, tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[Index]:
    """An empty index of each kind."""
    if request.param == "postgres":
        pytest.importorskip("psycopg")
        from trifle_otel.indexes.postgres import PostgresIndex

        try:
            found: Index = PostgresIndex(servers.postgres().url(), table="tallies")
        except servers.ServerMissingError as missing:
            server_missing(str(missing))
    else:
        found = {"memory": MemoryIndex, "paged": Paged}.get(request.param, lambda: SQLiteIndex(tmp_path / "i.sqlite"))()
    found.setup()
    yield found
    emptied(found)
    found.close()


def emptied(index: Index) -> Index:
    """The index, without the records that are in it."""
    while records := index.search(Query(limit=1000)):
        index.delete([record.reference for record in records])
    return index


def records(*seconds: float, **changes: object) -> list[TraceRecord]:
    """Traces that began so many seconds after `START`."""
    return [
        sample_record(reference=f"{number:026}", first_at=START + timedelta(seconds=second), **changes)
        for number, second in enumerate(seconds)
    ]


def start_of(second: float, width: int) -> int:
    """The beginning of the slot that a trace of that second after `START` is in."""
    return int((START + timedelta(seconds=second)).timestamp()) // width * width


def test_traces_are_counted_by_slot_and_state(index: Index) -> None:
    """Each slot has its traces by state, their lines, and the durations of those that have ended."""
    made = records(0, 1, 1, 50)
    made[1] = replace(made[1], state="error", length=5, duration=123)
    made[2] = replace(made[2], state="running", length=7, duration=456)
    index.put(made)
    found = index.tally(Query(), slots=60)
    assert (found.width, found.partial, found.oldest) == (1, False, START)
    assert found.slots == {
        start_of(0, 1): Slot({"success": 1}, 316, {1200: 1}),
        start_of(1, 1): Slot({"error": 1, "running": 1}, 12, {120: 1}),
        start_of(50, 1): Slot({"success": 1}, 316, {1200: 1}),
    }


def test_slots_are_as_wide_as_needed(index: Index) -> None:
    """Time from the oldest to the newest trace is cut into at most as many slots as were asked for."""
    index.put(records(0, 90 * DAY))
    found = index.tally(Query(), slots=60)
    assert found.width == 604_800
    assert list(found.slots) == [start_of(0, 604_800), start_of(90 * DAY, 604_800)]


def test_what_a_query_finds_is_counted(index: Index) -> None:
    """Every condition of a search holds for a tally; its limit and its cursor do not."""
    made = records(0, 1, 2, 3, 4)
    made[1] = replace(made[1], key="other", segments=("other",))
    made[2] = replace(made[2], tags=("product:7",))
    made[3] = replace(made[3], duration=9, context={})
    index.put(made)
    queries = {
        Query(segment="commodity", limit=1): 4,
        Query(any_tags=("product:7", "none")): 1,
        Query(all_tags=("product:9", "store:133554920")): 4,
        Query(min_duration=10): 4,
        Query(state="error"): 0,
        Query(since=START + timedelta(seconds=2)): 3,
        Query(until=START + timedelta(seconds=2)): 2,
        Query(trace_id="0af7651916cd43dd8448eb211c80319c"): 4,
        Query(segment="commodity", all_tags=("product:9",), since=START + timedelta(seconds=1)): 2,
    }
    assert {query: index.tally(query).total.traces for query in queries} == queries


def test_only_the_newest_are_counted(index: Index) -> None:
    """A tally of more traces than it may count is of the newest, and says so, with the time back to which it goes."""
    if isinstance(index, SQLiteIndex):
        pytest.skip("it counts all")
    index.put(records(*range(0, 50, 10)))
    found = index.tally(Query(), most=3)
    assert found.partial
    assert found.oldest == START + timedelta(seconds=20)
    assert found.total.traces == 3
    assert not index.tally(Query(), most=6).partial


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[SQLiteIndex]:
    """An index that counts more traces than it takes lines and durations of."""
    found = SQLiteIndex(tmp_path / "i.sqlite")
    yield found
    found.close()


def test_all_are_counted_where_lists_can_be(counting: SQLiteIndex) -> None:
    """Of more traces than may be looked at each one is counted by state; lines and durations are estimates, as told."""
    made = records(*range(0, 60, 10), length=100, duration=50)
    made[0] = replace(made[0], state="error", tags=("a",))
    counting.put(made)
    found = counting.tally(Query(), slots=2, most=3)
    assert (found.width, found.partial, found.sampled, found.oldest) == (60, False, 3, START)
    assert found.slots == {start_of(0, 60): Slot({"success": 5, "error": 1}, 600, {50: 6})}
    apart = counting.tally(Query(), slots=6, most=5)
    assert (apart.sampled, [slot.traces for slot in apart.slots.values()]) == (1, [1] * 6)
    assert counting.tally(Query(state="success"), most=2).total.states == {"success": 5}
    assert counting.tally(Query(all_tags=("a",)), most=2) == replace(counting.tally(Query(all_tags=("a",))), sampled=0)
    assert counting.tally(Query(), most=6).sampled == 0
    whole = START.replace(microsecond=0)
    emptied(counting).put([replace(each, first_at=each.first_at.replace(microsecond=0)) for each in made])
    assert counting.tally(Query(since=whole + timedelta(seconds=20)), most=1).total.traces == 4
    assert counting.tally(Query(until=whole + timedelta(seconds=20)), most=1).total.traces == 2


@pytest.mark.parametrize("limit", ["time", "duration", "calendar"])
def test_what_cannot_be_counted_is_of_the_newest(
    counting: SQLiteIndex, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where counting would take too long, or lists do not tell, only the newest are counted, and that is said."""
    made = records(*range(0, 50, 10))
    query = Query()
    if limit == "time":
        monkeypatch.setattr(sqlite_search, "COUNTING_SECONDS", -1)
    elif limit == "duration":
        query = Query(min_duration=1)
    else:
        made[0] = replace(made[0], first_at=datetime(9999, 1, 1, tzinfo=timezone.utc))
    counting.put(made)
    found = counting.tally(query, most=3)
    assert (found.partial, found.sampled, found.total.traces) == (True, 0, 3)


@given(
    st.lists(
        st.tuples(st.integers(0, 3 * DAY * 1000), st.sampled_from(["running", "success", "warning", "error"])),
        min_size=2,
        unique_by=lambda each: each[0],
        max_size=30,
    ),
    st.integers(1, 70),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
def test_counting_lists_is_a_plain_count(
    counting: SQLiteIndex, given_records: Sequence[tuple[int, str]], slots: int
) -> None:
    """Whatever was recorded, lists give the slots and states that the records do, running ones that ended included."""
    emptied(counting).put(
        [
            sample_record(
                reference=f"{number:026}", first_at=START + timedelta(milliseconds=at), state=state, length=10
            )
            for number, (at, state) in enumerate(given_records)
        ]
    )
    whole = counting.tally(Query(), slots=slots)
    found = counting.tally(Query(), slots=slots, most=1)
    assert (whole.sampled, found.sampled, found.width) == (0, 1, whole.width)
    assert {start: slot.states for start, slot in found.slots.items()} == {
        start: slot.states for start, slot in whole.slots.items()
    }
    assert found.total.entries == whole.total.entries  # all have as many


def test_an_empty_selection_gives_an_empty_tally(index: Index) -> None:
    """Where nothing matches there is nothing, and no error."""
    assert index.tally(Query(segment="none")) == Tally(1, {}, None, False)


def test_extreme_values_are_counted(index: Index) -> None:
    """Durations and lengths up to the largest that can be stored, and times at both ends, break nothing."""
    early, late = datetime(1, 1, 2, tzinfo=timezone.utc), datetime(9999, 12, 30, tzinfo=timezone.utc)
    huge = 2**63 - 1
    first = sample_record(reference="a", first_at=early, expires_at=late, duration=huge, length=huge)
    second = sample_record(reference="b", first_at=late - timedelta(days=9), expires_at=late, duration=0, length=huge)
    index.put([first, second])
    found = index.tally(Query())
    assert found.total.traces == 2
    assert found.total.entries == 2 * 2**40
    assert found.total.durations == {99 * 10**13: 1, 0: 1}
    assert len(found.slots) == 2


many_records = st.lists(
    st.tuples(
        st.integers(0, 400 * DAY * 1000),
        st.sampled_from(["running", "success", "warning", "error"]),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
    ),
    unique_by=lambda each: each[0],
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(given_records=many_records, slots=st.integers(1, 100))
def test_a_tally_is_a_plain_count(index: Index, given_records: Sequence[tuple[int, str, int, int]], slots: int) -> None:
    """Whatever was recorded, each index counts as a loop over the records does."""
    emptied(index).put(
        [
            sample_record(
                reference=f"{number:026}",
                first_at=START + timedelta(milliseconds=at),
                state=state,
                duration=duration,
                length=length,
            )
            for number, (at, state, duration, length) in enumerate(given_records)
        ]
    )
    found = index.tally(Query(), slots=slots)
    states: dict[int, Counter[str]] = {}
    entries: Counter[int] = Counter()
    for at, state, _, length in given_records:
        start = start_of(at / 1000, found.width)
        states.setdefault(start, Counter())[state] += 1
        entries[start] += length
    assert {start: slot.states for start, slot in found.slots.items()} == states
    assert {start: slot.entries for start, slot in found.slots.items()} == {key: entries[key] for key in states}
    took = Counter(
        int(f"{str(each)[:2]:0<{len(str(each))}}") for _, state, each, _ in given_records if state != "running"
    )
    assert found.total.durations == took
    if states:
        steps = range(min(states), max(states) + 1, found.width)
        narrower = WIDTHS[WIDTHS.index(found.width) - 1] if found.width > 1 else None
        starts = [start_of(at / 1000, 1) for at, *_ in given_records]
        assert len(steps) <= slots
        assert narrower is None or max(starts) // narrower - min(starts) // narrower >= slots


@pytest.mark.parametrize("narrow, wide", [WIDTHS[place : place + 2] for place in range(len(WIDTHS) - 1)])
def test_each_width_is_a_multiple_of_the_one_before(narrow: int, wide: int) -> None:
    """Slots can be put together without cutting one."""
    assert wide % narrow == 0


@given(given_records=many_records, others=many_records)
def test_tallies_add_up(
    given_records: Sequence[tuple[int, str, int, int]], others: Sequence[tuple[int, str, int, int]]
) -> None:
    """The tallies of two selections merge into the one of both, whatever their widths."""
    parts = [
        [
            sample_record(first_at=START + timedelta(milliseconds=at), state=state, duration=duration, length=length)
            for at, state, duration, length in each
        ]
        for each in (given_records, others)
    ]
    both = tally_records([*parts[0], *parts[1]])
    found = merged([tally_records(part) for part in parts])
    assert found.widened(both.width).slots == both.slots
    assert (found.oldest, found.partial) == (both.oldest, False)


def test_a_merged_tally_is_right_as_far_back_as_each_part_is() -> None:
    """Where one part is cut off at some time, the whole is partial from there on."""
    short = replace(tally_records(records(100, 200)), partial=True)
    found = merged([short, tally_records(records(0, 300))])
    assert (found.partial, found.oldest) == (True, START + timedelta(seconds=100))
    assert merged([]) == Tally(1, {})


@given(st.dictionaries(st.integers(0, 10**6), st.integers(1, 50), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_reached_by_its_share(durations: dict[int, int], share: float) -> None:
    """At least the share asked for took that long or less, and without that value it would be less than the share."""
    found = percentile(durations, share)
    assert found is not None
    total = sum(durations.values())
    assert sum(count for each, count in durations.items() if each <= found) >= share * total
    assert sum(count for each, count in durations.items() if each < found) < share * total
    assert percentile({}, share) is None


@pytest.mark.parametrize(
    "duration, digits",
    [(-5, 0), (0, 0), (7, 7), (99, 99), (100, 100), (109, 100), (1_999, 1_900), (10**18, 99 * 10**13)],
)
def test_durations_keep_two_digits(duration: int, digits: int) -> None:
    """All but the first two digits are zeros; what is out of bounds is the bound."""
    assert two_digits(duration) == digits
