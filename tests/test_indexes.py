"""The indexes: each passes the contract and finds what a plain list finds; SQLite's file survives kills and damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import trifle_otel
from trifle_otel.errors import ConfigurationError, DamagedArchive, StoreUnavailable
from trifle_otel.indexes import sqlite_rows
from trifle_otel.indexes.contract import Index
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.records import Query, TraceRecord
from trifle_otel.testing import START, IndexContract, expected, pages, sample_record

REPOSITORY = Path(trifle_otel.__file__).parents[1]
LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)


class TestSQLiteIndex(IndexContract):
    """SQLite passes the contract."""

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        """An index in a new file, in a folder that is not there yet."""
        with closing(SQLiteIndex(tmp_path / "new" / "index.sqlite")) as index:
            yield index


class TestMemoryIndex(IndexContract):
    """Memory passes the contract."""

    @pytest.fixture
    def index(self) -> Index:
        """A new index."""
        return MemoryIndex()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the index's file is."""
    return tmp_path / "index.sqlite"


@pytest.fixture
def index(path: Path) -> Iterator[SQLiteIndex]:
    """An index in SQLite that waits half a second for locks."""
    with closing(SQLiteIndex(path, timeout=0.5)) as index:
        yield index


KEYS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
TAGS = st.lists(st.sampled_from(["p", "q", "r", "ü'\"%_"]), max_size=3, unique=True).map(
    lambda tags: tuple(sorted(tags))
)
STATES = st.sampled_from(["running", "success", "warning", "error"])
MOMENTS = st.integers(-3, 3).map(lambda n: START + timedelta(microseconds=n))
DURATIONS = st.one_of(st.sampled_from([0, 9, 10, 29, 30, 1_000, 3_599_999, 3_600_000]), st.integers(0, 2**62))
TRACE_IDS = st.sampled_from(["a" * 32, "b" * 32])


@st.composite
def records(draw: st.DrawFn) -> list[TraceRecord]:
    """Up to forty records that share keys, tags, moments and trace ids."""
    references = draw(st.lists(st.text("0123456789ABCxyzü", min_size=1, max_size=4), max_size=40, unique=True))
    return [
        sample_record(
            reference=reference,
            key=draw(KEYS),
            tags=draw(TAGS),
            state=draw(STATES),
            duration=draw(DURATIONS),
            first_at=draw(MOMENTS),
            context=draw(st.one_of(st.just({}), TRACE_IDS.map(lambda trace_id: {"trace_id": trace_id}))),
        )
        for reference in references
    ]


QUERIES = st.builds(
    Query,
    segment=st.none() | KEYS,
    any_tags=TAGS,
    all_tags=TAGS,
    state=st.none() | STATES,
    since=st.none() | MOMENTS,
    until=st.none() | MOMENTS,
    min_duration=st.none() | DURATIONS,
    trace_id=st.none() | TRACE_IDS,
    limit=st.integers(1, 9),
)


@pytest.fixture(scope="module", params=["sqlite", "memory"])
def kept_index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """An index of each kind, emptied by each example."""
    kind = SQLiteIndex(tmp_path_factory.mktemp("index") / "i.sqlite") if request.param == "sqlite" else MemoryIndex()
    with closing(kind) as index:
        yield index


def empty(index: Index) -> None:
    """Delete all records."""
    for page in list(pages(index, Query(limit=1000))):
        index.delete([record.reference for record in page])
    assert index.search(Query()) == []


@given(stored=records(), queries=st.lists(QUERIES, min_size=1, max_size=5))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_hold_what_matches_once_and_in_order(
    kept_index: Index, stored: list[TraceRecord], queries: list[Query]
) -> None:
    """The pages of any search, one after the other, are the matching records in order: none twice, none left out."""
    empty(kept_index)
    kept_index.put(stored)
    for query in queries:
        found = list(pages(kept_index, query))
        assert [record for page in found for record in page] == expected(stored, query)
        assert all(len(page) <= query.limit for page in found)


@given(history=st.lists(records(), min_size=1, max_size=4), query=QUERIES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_searches_after_replacements(kept_index: Index, history: list[list[TraceRecord]], query: Query) -> None:
    """After any sequence of batches a search finds the records that the rule of replacement leaves, and no others."""
    empty(kept_index)
    model: dict[str, TraceRecord] = {}
    for batch in history:
        kept_index.put(batch)
        for record in batch:
            old = model.get(record.reference)
            if old is None or record.state != "running" or old.state == "running":  # all samples have as many parts
                model[record.reference] = record
    found = [record for page in pages(kept_index, query) for record in page]
    assert found == expected(model.values(), query)


def test_new_records_do_not_disturb_pages(index: SQLiteIndex) -> None:
    """While new traces come in, the pages of a search go on without repeating or leaving out an older one."""
    old = [sample_record(reference=f"old-{n:02}", first_at=START + timedelta(seconds=n)) for n in range(30)]
    index.put(old)
    found = []
    for number, page in enumerate(pages(index, Query(limit=7))):
        found += page
        index.put([sample_record(reference=f"new-{number}", first_at=START + timedelta(days=1))])
    assert found == old[::-1]


PUTTER = """
import sys
from datetime import timedelta
from pathlib import Path
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.testing import START, sample_record
index = SQLiteIndex(Path(sys.argv[1]), timeout=30)
name, batches, size = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
number = 0
while number < batches or not batches:
    index.put([sample_record(reference=f"{name}-{number:04}-{n:03}", tags=(name, f"{name}-{number}"),
        first_at=START + timedelta(seconds=n)) for n in range(size)])
    print(number, flush=True)
    number += 1
index.close()
"""


def putter(path: Path, name: str, batches: int, size: int) -> subprocess.Popen[str]:
    """A process that puts batches and prints the number of each when it is done; without end where `batches` is 0."""
    command = [sys.executable, "-c", PUTTER, str(path), name, str(batches), str(size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


def count_rows(path: Path, sql: str) -> int:
    """A number asked of the file by plain SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute(sql).fetchone()[0])


def test_four_processes_put_at_once(path: Path, index: SQLiteIndex) -> None:
    """Four processes that make the file and write to it at once lose nothing and raise nothing."""
    processes = [putter(path, name, 12, 50) for name in "abcd"]
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert count_rows(path, "SELECT count(*) FROM traces") == 4 * 12 * 50
    assert sum(len(page) for page in pages(index, Query(all_tags=("c",), limit=100))) == 600
    assert count_rows(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'") == 0


@pytest.mark.parametrize("after", range(4))
def test_a_process_killed_while_putting(path: Path, index: SQLiteIndex, after: int) -> None:
    """A process killed while it writes leaves a sound file: all batches that were done, of the last all or none."""
    process = putter(path, "x", 0, 256)
    assert process.stdout is not None
    done = [process.stdout.readline() for _ in range(after + 1)]
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL
    said = len(done) + rest.count("\n")
    rows = count_rows(path, "SELECT count(*) FROM traces")
    assert rows in (said * 256, (said + 1) * 256)
    assert count_rows(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'") == 0
    index.put([sample_record(reference="after")])
    assert sum(len(page) for page in pages(index, Query(limit=1000))) == rows + 1


def test_a_locked_index_is_unavailable_for_writing(path: Path, index: SQLiteIndex) -> None:
    """While another process holds the lock, putting is `StoreUnavailable` after the wait, and reading goes on."""
    record = sample_record()
    index.put([record])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked") as caught:
            index.put([sample_record(reference="later")])
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert index.search(Query()) == [record]
        other.execute("ROLLBACK")
    index.put([sample_record(reference="later")])
    assert index.find("later") is not None


def test_a_file_that_is_no_database_is_damage(path: Path, index: SQLiteIndex) -> None:
    """A file of other bytes is `DamagedArchive`, which names the command that helps, for reading and writing."""
    path.write_bytes(b"this is no database, it is a letter to a friend" * 100)
    with pytest.raises(DamagedArchive, match="trifle-otel reindex") as caught:
        index.search(Query())
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    with pytest.raises(DamagedArchive, match="trifle-otel reindex"):
        index.put([sample_record()])


@pytest.mark.parametrize(
    "column,value",
    [("tags", "x"), ("segments", 5), ("first_at", 2**62), ("context", "7"), ("counters", "[1]"), ("meta", "{")],
)
def test_a_row_that_nobody_of_ours_wrote_is_damage(path: Path, index: SQLiteIndex, column: str, value: object) -> None:
    """A row that cannot be read is `DamagedArchive`, whoever wrote the file; putting the record again mends it."""
    record = sample_record()
    index.put([record])
    with closing(sqlite3.connect(path)) as other, other:
        other.execute(f"UPDATE traces SET {column} = ?", (value,))
    for read in (lambda: index.find(record.reference), lambda: index.search(Query()), lambda: index.expired(LATER)):
        with pytest.raises(DamagedArchive, match=f"{record.reference}.*trifle-otel reindex"):
            read()
    index.put([record])
    assert index.search(Query()) == [record]


def test_a_path_that_cannot_be_looked_at_is_unavailable(tmp_path: Path) -> None:
    """Reading an index whose path the system refuses is `StoreUnavailable`, not the system's own error."""
    with pytest.raises(StoreUnavailable, match="too long"):
        SQLiteIndex(tmp_path / ("x" * 300)).search(Query())


def damage(path: Path) -> None:
    """Overwrite all pages of a database but the first."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def test_damaged_pages_are_damage(path: Path, index: SQLiteIndex) -> None:
    """A database with pages overwritten is `DamagedArchive` when it is searched."""
    index.put([sample_record(reference=f"ref-{n}") for n in range(500)])
    index.close()
    damage(path)
    with pytest.raises(DamagedArchive, match="trifle-otel reindex"):
        index.search(Query())


def test_repair_sets_a_damaged_file_aside(path: Path, index: SQLiteIndex) -> None:
    """Repairing keeps the damaged file under another name, and leaves an empty index that works."""
    index.put([sample_record(reference=f"ref-{n}") for n in range(500)])
    index.close()
    damage(path)
    bytes_before = path.read_bytes()
    index.repair()
    assert index.search(Query()) == []
    index.put([sample_record()])
    assert index.search(Query()) == [sample_record()]
    assert path.with_name("index.sqlite.damaged").read_bytes() == bytes_before


def test_another_programs_database_is_refused(path: Path, index: SQLiteIndex) -> None:
    """A database that somebody else made is `ConfigurationError`, and stays byte for byte as it is."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE traces (reference TEXT, note TEXT)")
        connection.commit()
    before = path.read_bytes()
    for call in (index.setup, lambda: index.put([sample_record()]), lambda: index.search(Query()), index.repair):
        with pytest.raises(ConfigurationError, match="another program"):
            call()
    assert path.read_bytes() == before


def test_a_newer_versions_database_is_refused(path: Path, index: SQLiteIndex) -> None:
    """A file whose version is higher than we know is `ConfigurationError`, and is not changed."""
    index.put([sample_record()])
    index.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9999")
    with pytest.raises(ConfigurationError, match="newer version"):
        index.search(Query())
    assert count_rows(path, "SELECT count(*) FROM traces") == 1


def test_reading_makes_no_file(path: Path, index: SQLiteIndex) -> None:
    """Where there is no index yet, reading finds nothing and leaves no file."""
    assert index.search(Query()) == []
    assert index.find("x") is None
    assert index.expired(START) == []
    assert not path.exists()


def test_a_file_that_vanishes_is_made_anew(path: Path, index: SQLiteIndex) -> None:
    """After the file was deleted under it, an index forgets what was in it and goes on in a new file."""
    index.put([sample_record(reference="before")])
    for name in ("", "-wal", "-shm"):
        Path(f"{path}{name}").unlink(missing_ok=True)
    assert index.search(Query()) == []
    index.put([sample_record(reference="after")])
    assert count_rows(path, "SELECT count(*) FROM traces") == 1
    assert [record.reference for record in index.search(Query())] == ["after"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Where a file stands in the place of the index's folder, putting is `StoreUnavailable`."""
    (tmp_path / "file").write_text("")
    with closing(SQLiteIndex(tmp_path / "file" / "index.sqlite")) as index, pytest.raises(StoreUnavailable):
        index.put([sample_record()])


def test_a_full_disk_is_unavailable(tmp_path: Path) -> None:
    """Records that no longer fit on the disk are `StoreUnavailable`, and those before them stay found."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, check=False, text=True
    )
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        with closing(SQLiteIndex(place / "index.sqlite")) as index:
            index.put([sample_record(reference="first")])
            with pytest.raises(StoreUnavailable, match="full"):
                index.put([sample_record(reference=f"ref-{n}") for n in range(2000)])
            assert index.find("first") is not None
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def test_a_read_only_disk(tmp_path: Path) -> None:
    """On a read-only file system an index is read, and putting is `StoreUnavailable`."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False, text=True
    )
    if done.returncode:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        with closing(SQLiteIndex(place / "index.sqlite")) as index:
            index.put([sample_record()])
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        with closing(SQLiteIndex(place / "index.sqlite")) as index:
            assert index.search(Query(segment="commodity")) == [sample_record()]
            with pytest.raises(StoreUnavailable, match=r"readonly|unable to open"):
                index.put([sample_record(reference="other")])
    finally:
        subprocess.run(["umount", "-l", place], check=False)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_takes_a_connection_does_not_stop_the_child(index: SQLiteIndex) -> None:
    """What a thread of the parent holds at that moment is not held in the child, where that thread is not."""
    index.put([sample_record()])
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with index._lock():
            inside.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if index.find(sample_record().reference) == sample_record() else 1)
    go_on.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(path: Path) -> None:
    """Parent and child of a fork both put and find after it, and the file stays sound."""
    script = """
import os, sys
from pathlib import Path
from trifle_otel.indexes.sqlite import SQLiteIndex
from trifle_otel.records import Query
from trifle_otel.testing import sample_record
index = SQLiteIndex(Path(sys.argv[1]))
index.put([sample_record(reference="before")])
child = os.fork()
for n in range(50):
    index.put([sample_record(reference=f"{'child' if child == 0 else 'parent'}-{n:02}")])
    assert index.find("before") is not None
index.close()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, cwd=REPOSITORY)
    assert count_rows(path, "SELECT count(*) FROM traces") == 101
    assert count_rows(path, "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'") == 0


def test_labels_follow_the_rows(path: Path, index: SQLiteIndex) -> None:
    """After changes and deletions, what searches walk through holds the words of the records that are there alone."""
    running = [sample_record(reference=f"ref-{n}", state="running", tags=("a",), duration=n) for n in range(5)]
    index.put(running)
    index.put([replace(record, state="error", tags=("b", "c"), duration=99_999) for record in running[:3]])
    index.put([replace(running[3], first_at=START + timedelta(days=1))])
    index.delete(["ref-0", "ref-4"])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab (main, labels, row)")
        counts = [count for (count,) in connection.execute("SELECT doc FROM words")]
    # shared by the three that are left: three segments and the trace id; by two: the error's, b, c, and
    # three for the duration; by one: running, a, and three for its duration
    assert sorted(counts) == [1] * 5 + [2] * 6 + [3] * 4
    index.delete(["ref-1", "ref-2", "ref-3"])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab (main, labels, row)")
        assert connection.execute("SELECT * FROM words").fetchall() == []


def test_thousands_in_one_millisecond(index: SQLiteIndex) -> None:
    """Traces that all began at once, as where times are whole seconds, are kept apart, in order, and replaced."""
    batch = [sample_record(reference=f"{n:05}", tags=(f"n:{n % 2}",)) for n in range(6_000)]
    index.put(batch[:3_000])
    index.put(batch[3_000:])
    index.put([replace(record, state="error") for record in batch[::1_000]])
    found = [record.reference for page in pages(index, Query(all_tags=("n:1",), limit=1000)) for record in page]
    assert found == [f"{n:05}" for n in range(5_999, 0, -2)]
    assert [record.reference for record in index.search(Query(state="error"))] == [
        f"{n:05}" for n in range(5_000, -1, -1_000)
    ]


def test_a_record_that_moves_in_time(index: SQLiteIndex) -> None:
    """A record that comes again with another beginning is found there, and no longer in its old place."""
    record = sample_record()
    index.put([record, sample_record(reference="other")])
    moved = replace(record, first_at=START - timedelta(days=1))
    index.put([moved])
    assert index.search(Query(until=START)) == [moved]
    assert [each.reference for each in index.search(Query(since=START))] == ["other"]
    assert index.search(Query(all_tags=("product:9",), until=START)) == [moved]


@pytest.mark.parametrize("year", [1, 1969, 2109, 2110, 9998])
def test_times_far_away(index: SQLiteIndex, year: int) -> None:
    """Traces of any year that a date can have are found and ordered, to the microsecond."""
    moments = [START.replace(year=year) + timedelta(microseconds=n) for n in (0, 1, 2_000)]
    records = [sample_record(reference=f"ref-{n}", first_at=moment) for n, moment in enumerate(moments)]
    index.put(records)
    index.put([sample_record(reference="now", first_at=START)])
    assert index.search(Query(segment="commodity", since=moments[0], until=moments[2])) == [records[1], records[0]]
    found = [record for page in pages(index, Query(limit=1)) for record in page]
    assert [record.reference for record in found if record.reference != "now"] == ["ref-2", "ref-1", "ref-0"]


@pytest.mark.parametrize("duration", [0, 1, 9, 10, 99, 100, 999, 1_000, 2_500, 10**9 - 1, 10**9, 10**10, 2**62])
def test_durations_around_a_bound(index: SQLiteIndex, duration: int) -> None:
    """`min_duration` finds its own duration and longer ones, and none that is a millisecond shorter."""
    durations = {d for d in (duration - 1, duration, duration + 1, duration * 10 + 1) if 0 <= d < 2**63}
    index.put([sample_record(reference=str(d), duration=d) for d in durations])
    found = {record.duration for record in index.search(Query(min_duration=duration))}
    assert found == {d for d in durations if d >= duration}


def test_a_hundred_tags(index: SQLiteIndex) -> None:
    """As many tags as a search may have are searched for at once."""
    tags = tuple(f"tag:{n}" for n in range(100))
    index.put([sample_record(tags=tags), sample_record(reference="less", tags=tags[:99])])
    assert index.search(Query(all_tags=tags, any_tags=tags)) == [sample_record(tags=tags)]


def test_values_that_sqlite_cannot_hold(index: SQLiteIndex) -> None:
    """Lone surrogates and NULs are stored readably, numbers beyond 64 bits as the largest; the batch is not refused."""
    odd = sample_record(reference="odd", key="a\udc80", tags=("t\0",), meta="\ud800", duration=2**70, length=2**64)
    index.put([odd, sample_record(reference="plain")])
    found = index.find("odd")
    assert found is not None
    assert (found.key, found.tags, found.meta) == ("a\\udc80", ("t\u2400",), "\\ud800")
    assert (found.duration, found.length) == (2**63 - 1, 2**63 - 1)
    assert index.find("lone \udc80") is None
    assert [record.reference for record in index.search(Query(all_tags=("t\0",)))] == ["odd"]
    assert index.find("plain") is not None


def test_a_state_that_the_format_does_not_have(index: SQLiteIndex) -> None:
    """A record with a foreign state is kept as it is, and found by everything but its state."""
    record = sample_record(state="paused")
    index.put([record])
    assert index.search(Query(segment="commodity", min_duration=1)) == [record]


def test_another_process_makes_the_tables_between_two_looks(tmp_path: Path) -> None:
    """Whoever looks at a file while its tables are made does not take it for another program's."""
    path = tmp_path / "index.sqlite"

    class Raced(sqlite3.Connection):
        """After the first look at the version, somebody else makes the tables."""

        looks = 0

        def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
            found = super().execute(statement, *parameters)
            if statement == "PRAGMA user_version":
                self.looks += 1
                if self.looks == 1:
                    row = found.fetchone()
                    SQLiteIndex(path).setup()
                    return super().execute("SELECT ?", row)
            return found

    connection = sqlite3.connect(path, factory=Raced, isolation_level=None)
    sqlite_rows.prepare_schema(connection, str(path), 1.0)
    assert isinstance(connection, Raced)
    assert connection.looks == 2
    connection.close()
