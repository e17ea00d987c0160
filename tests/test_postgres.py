"""The index in PostgreSQL, on a real server: the contract, tables that others made, restarts, forks, wrong URLs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from itertools import count
from typing import Any, NoReturn

import pytest
import servers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_indexes import QUERIES, REPOSITORY, empty, records

from trifle_otel import Archive
from trifle_otel.errors import ConfigurationError, MissingDependency, StoreUnavailable
from trifle_otel.indexes.contract import Index
from trifle_otel.indexes.remote import Buckets
from trifle_otel.records import Position, Query, TraceRecord
from trifle_otel.testing import IndexContract, expected, pages, run_at_once, sample_record

psycopg = pytest.importorskip("psycopg")
from trifle_otel.indexes import postgres, postgres_table  # noqa: E402 - only where the driver is there
from trifle_otel.indexes.postgres import PostgresIndex, open_postgres  # noqa: E402

tables = (f"traces_{number}" for number in count(1))

RUBY = """
CREATE TABLE {table} (
    reference TEXT PRIMARY KEY, key TEXT NOT NULL, segments JSONB NOT NULL DEFAULT '[]'::jsonb,
    state VARCHAR(32) NOT NULL, tags JSONB NOT NULL DEFAULT '[]'::jsonb, meta JSONB,
    context JSONB NOT NULL DEFAULT '{{}}'::jsonb, duration BIGINT NOT NULL DEFAULT 0,
    counters JSONB NOT NULL DEFAULT '{{}}'::jsonb, length BIGINT NOT NULL DEFAULT 0, parts INTEGER NOT NULL DEFAULT 0,
    first_at TIMESTAMPTZ NOT NULL, last_at TIMESTAMPTZ NOT NULL, retention INTEGER NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL, {bucket}
)
"""
INDEXES = {
    "{table}_segments_gin": "USING gin (segments)",
    "{table}_tags_gin": "USING gin (tags)",
    "{table}_state_started": "(state, first_at DESC, reference DESC)",
    "{table}_started": "(first_at DESC, reference DESC)",
    "{table}_duration_started": "(duration, first_at DESC, reference DESC)",
    "{table}_expires_at": "(expires_at)",
}
RUBY_ROW = """
INSERT INTO {table} (reference, key, segments, state, tags, meta, context, duration, counters, length, parts,
    first_at, last_at, retention, expires_at, {bucket})
VALUES ('01M85RBZMWKQ5T057R2XGV9YXE', 'commodity/calculate/one',
    '["commodity","commodity/calculate","commodity/calculate/one"]', 'success', '["Alpha","Żaba"]', '[9,133554920]',
    '{{}}', '7', '{{"states":{{"success":70,"warning":6,"error":4,"debug":2}},
        "types":{{"text":54,"head":3,"raw":17,"media":8}},"max_level":3}}', '82', '1',
    '2026-11-24T03:07:40.572474Z', '2026-11-24T03:07:40.579841Z', '3', '2026-11-27T03:07:40.572474Z', {value})
"""
BUCKET_ID = "bucket_id INTEGER NOT NULL DEFAULT 0"
BUCKET_NAME = "bucket_name TEXT"
FROM_RUBY = TraceRecord(
    reference="01M85RBZMWKQ5T057R2XGV9YXE",
    key="commodity/calculate/one",
    segments=("commodity", "commodity/calculate", "commodity/calculate/one"),
    state="success",
    tags=("Alpha", "Żaba"),
    meta=[9, 133554920],
    context={},
    duration=7,
    counters={
        "states": {"success": 70, "warning": 6, "error": 4, "debug": 2},
        "types": {"text": 54, "head": 3, "raw": 17, "media": 8},
        "max_level": 3,
    },
    length=82,
    parts=1,
    first_at=datetime(2026, 11, 24, 3, 7, 40, 572474, tzinfo=timezone.utc),
    last_at=datetime(2026, 11, 24, 3, 7, 40, 579841, tzinfo=timezone.utc),
    retention=3,
    expires_at=datetime(2026, 11, 27, 3, 7, 40, 572474, tzinfo=timezone.utc),
)


@pytest.fixture(scope="module")
def server(server_missing: Callable[[str], NoReturn]) -> servers.Postgres:
    """The session's PostgreSQL, whose language would order references otherwise than we do."""
    try:
        return servers.postgres()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))


@pytest.fixture
def admin(server: servers.Postgres) -> Iterator[Any]:
    """A plain connection to the database."""
    with closing(psycopg.connect(server.url(), autocommit=True)) as connection:
        yield connection


@pytest.fixture
def table(admin: Any) -> Iterator[str]:
    """A table's name of this test's own."""
    name = next(tables)
    yield name
    admin.execute(f"DROP TABLE IF EXISTS {name}")


@pytest.fixture
def index(server: servers.Postgres, table: str) -> Iterator[PostgresIndex]:
    """An index in a table that is not there yet."""
    with closing(open_postgres(f"{server.url()}?table={table}")) as index:
        yield index


class TestPostgresIndex(IndexContract):
    """PostgreSQL passes the contract."""

    @pytest.fixture
    def index(self, server: servers.Postgres, table: str) -> Iterator[Index]:
        """An index in a new table."""
        with closing(PostgresIndex(server.url(), table=table)) as index:
            index.setup()
            yield index


@pytest.fixture(scope="module")
def kept_index(server: servers.Postgres) -> Iterator[Index]:
    """An index that each example empties."""
    with closing(PostgresIndex(server.url(), table="kept_traces")) as index:
        yield index


@given(stored=records(), queries=st.lists(QUERIES, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pages_hold_what_matches_once_and_in_order(
    kept_index: Index, stored: list[TraceRecord], queries: list[Query]
) -> None:
    """The pages of any search, one after the other, are the matching records in order: none twice, none left out."""
    kept_index.setup()
    empty(kept_index)
    kept_index.put(stored)
    for query in queries:
        found = list(pages(kept_index, query))
        assert [record for page in found for record in page] == expected(stored, query)
        assert all(len(page) <= query.limit for page in found)


@given(history=st.lists(records(), min_size=1, max_size=4), query=QUERIES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_searches_after_replacements(kept_index: Index, history: list[list[TraceRecord]], query: Query) -> None:
    """After any sequence of batches a search finds the records that the rule of replacement leaves, and no others."""
    kept_index.setup()
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


def columns(admin: Any, table: str) -> list[tuple[Any, ...]]:
    """A table's columns: names, types, what is demanded, defaults."""
    sql = """SELECT column_name, data_type, character_maximum_length, is_nullable, column_default
        FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position"""
    found: list[tuple[Any, ...]] = admin.execute(sql, (table,)).fetchall()
    return found


def indexes(admin: Any, table: str) -> dict[str, str]:
    """A table's indexes, with their definitions."""
    return dict(admin.execute("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s", (table,)).fetchall())


def make_as_ruby(admin: Any, table: str, bucket: str, indexed: bool = True) -> None:
    """A table with a row, as Ruby's (`bucket_id`) or Elixir's library (`bucket_name`) makes it."""
    admin.execute(RUBY.format(table=table, bucket=bucket))
    for name, on in INDEXES.items() if indexed else ():
        admin.execute(f"CREATE INDEX IF NOT EXISTS {name.format(table=table)} ON {table} {on}")
    name = bucket.split()[0]
    admin.execute(RUBY_ROW.format(table=table, bucket=name, value="NULL" if name == "bucket_name" else "1"))


def test_a_new_table_is_as_the_others_make_it(admin: Any, table: str, index: PostgresIndex) -> None:
    """Setup makes the table and the indexes that Ruby and Elixir make, and one index more."""
    index.setup()
    made = columns(admin, table), indexes(admin, table)
    admin.execute(f"DROP TABLE {table}")
    make_as_ruby(admin, table, BUCKET_NAME)
    assert made[0] == columns(admin, table)
    theirs = indexes(admin, table)
    assert {name: made[1][name] for name in theirs} == theirs
    assert made[1].keys() - theirs.keys() == {f"{table}_trace_id"}


def test_the_longest_durations_are_told_apart(admin: Any, table: str, index: PostgresIndex) -> None:
    """In a table of ours the planner knows how few of the longest hundredth a search for the longest few gives."""
    index.setup()
    statement = "SELECT attstattarget FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'duration'"
    assert admin.execute(statement, (table,)).fetchone() == (1000,)


@pytest.mark.parametrize("indexed", [True, False], ids=["indexed", "bare"])
@pytest.mark.parametrize("bucket", [BUCKET_ID, BUCKET_NAME], ids=["bucket_id", "bucket_name"])
def test_setup_harms_nothing_that_others_made(
    admin: Any, table: str, index: PostgresIndex, bucket: str, indexed: bool
) -> None:
    """Setup leaves a table's columns, rows and indexes as Ruby or Elixir made them, and adds the missing indexes."""
    make_as_ruby(admin, table, bucket, indexed)
    before, row, had = columns(admin, table), admin.execute(f"SELECT * FROM {table}").fetchall(), indexes(admin, table)
    index.setup()
    index.check()
    assert columns(admin, table) == before
    assert admin.execute(f"SELECT * FROM {table}").fetchall() == row
    now = indexes(admin, table)
    assert {name: now[name] for name in had} == had
    assert {name.format(table=table) for name in INDEXES} <= now.keys()


@pytest.mark.parametrize("bucket", [BUCKET_ID, BUCKET_NAME], ids=["bucket_id", "bucket_name"])
def test_rows_of_others_and_ours_are_found_together(admin: Any, table: str, index: PostgresIndex, bucket: str) -> None:
    """A row that Ruby or Elixir wrote is read in full, searched, replaced and deleted beside ours."""
    make_as_ruby(admin, table, bucket)
    ours = sample_record()
    index.put([ours])
    assert index.find(FROM_RUBY.reference) == FROM_RUBY
    assert index.search(Query(segment="commodity/calculate")) == [FROM_RUBY, ours]
    assert index.search(Query(all_tags=("Żaba",))) == [FROM_RUBY]
    assert index.search(Query(trace_id=ours.trace_id)) == [ours]
    changed = replace(FROM_RUBY, state="error", tags=())
    index.put([changed])
    assert index.search(Query(state="error")) == [changed]
    index.delete([FROM_RUBY.reference])
    assert index.search(Query()) == [ours]


def test_ruby_updates_our_row(admin: Any, table: str, index: PostgresIndex) -> None:
    """Ruby's own statement for a trace that goes on changes a row of ours, and its statement of a start takes ours."""
    index.put([sample_record(state="running", parts=1)])
    admin.execute(
        f"""UPDATE {table} SET state = 'success', tags = '["late"]'::jsonb, context = '{{"a":1}}'::jsonb, duration = 5,
        counters = '{{}}'::jsonb, length = 9, parts = 2, last_at = first_at, expires_at = first_at
        WHERE reference = %s""",
        (sample_record().reference,),
    )
    found = index.find(sample_record().reference)
    assert found is not None
    assert (found.state, found.tags, found.context, found.duration, found.parts) == (
        "success",
        ("late",),
        {"a": 1},
        5,
        2,
    )
    admin.execute(RUBY_ROW.format(table=table, bucket="bucket_name", value="NULL"))
    assert index.find(FROM_RUBY.reference) == FROM_RUBY


def test_buckets_by_position(admin: Any, server: servers.Postgres, table: str) -> None:
    """Where a table knows buckets by position, names are stored and read by the list that is given, else as 0."""
    make_as_ruby(admin, table, BUCKET_ID)
    wanted = {"1": "two", "2": "three", "3": None, "4": "unknown"}
    batch = [sample_record(reference=reference, bucket_name=name) for reference, name in wanted.items()]
    with closing(open_postgres(f"{server.url()}?table={table}&buckets=one,two,three")) as index:
        index.put(batch)
        assert index.find("1") == batch[0]
        assert index.find("2") == batch[1]
        ruby = index.find(FROM_RUBY.reference)
        assert ruby is not None
        assert ruby.bucket_name == "two"
    stored = dict(admin.execute(f"SELECT reference, bucket_id FROM {table}").fetchall())
    assert {reference: stored[reference] for reference in wanted} == {"1": 1, "2": 2, "3": 0, "4": 0}
    with closing(open_postgres(f"{server.url()}?table={table}")) as index:
        assert [record.bucket_name for record in index.search(Query())] == [None] * 5


def test_an_archive_tells_its_index_which_buckets_it_has(admin: Any, server: servers.Postgres, table: str) -> None:
    """Nobody has to name them twice; where the index's URL names some, these count."""
    pytest.importorskip("obstore")
    make_as_ruby(admin, table, BUCKET_ID)
    index = f"{server.url()}?table={table}"
    wanted = sample_record(bucket_name="two")
    url = "s3://one,two/traces?endpoint=http://127.0.0.1:9"
    with Archive.open(url, index=index) as archive:
        archive.index.put([wanted])
        assert archive.index.find(wanted.reference) == wanted
    with Archive.open(url, index=f"{index}&buckets=three,four") as archive:
        found = archive.index.find(wanted.reference)
        assert found is not None
        assert found.bucket_name == "four"


def test_both_generations_in_one_table(admin: Any, server: servers.Postgres, table: str) -> None:
    """A table with both columns gets both, for whoever reads one of them, and the one that is filled is read."""
    make_as_ruby(admin, table, f"{BUCKET_ID}, {BUCKET_NAME}")
    with closing(open_postgres(f"{server.url()}?table={table}&buckets=one,two")) as index:
        index.put([sample_record(bucket_name="two")])
        assert index.find(sample_record().reference) == sample_record(bucket_name="two")
        assert index.find(FROM_RUBY.reference) == replace(FROM_RUBY, bucket_name="two")
    sql = f"SELECT bucket_id, bucket_name FROM {table} WHERE reference = %s"
    assert admin.execute(sql, (sample_record().reference,)).fetchone() == (1, "two")


@pytest.mark.parametrize(
    "definition, said",
    [
        ("reference text PRIMARY KEY, note text", r"no column key \(text\).*no column first_at"),
        (RUBY.split("(", 1)[1].rsplit(")", 1)[0].replace("{bucket}", "other text"), "neither a column bucket_name"),
        (
            RUBY.split("(", 1)[1].rsplit(")", 1)[0].replace("{bucket}", "bucket_name text, owner text NOT NULL"),
            "column owner has to be filled",
        ),
        (
            RUBY.split("(", 1)[1].rsplit(")", 1)[0].replace("{bucket}", "bucket_name text").replace("PRIMARY KEY", ""),
            "reference is no primary key",
        ),
        (
            RUBY.split("(", 1)[1]
            .rsplit(")", 1)[0]
            .replace("{bucket}", "bucket_name text")
            .replace("tags JSONB", "tags JSON"),
            "column tags is json instead of jsonb",
        ),
    ],
    ids=["other", "no bucket", "demanding", "no key", "json"],
)
def test_a_table_of_another_shape_is_refused(
    admin: Any, table: str, index: PostgresIndex, definition: str, said: str
) -> None:
    """A table that cannot hold records is `ConfigurationError`, which says what is missing, and stays as it is."""
    definition = definition.replace("{{", "{").replace("}}", "}").replace("'[]'::jsonb", "'[]'")
    admin.execute(f"CREATE TABLE {table} ({definition})")
    before = columns(admin, table), indexes(admin, table)
    for call in (index.setup, index.check, lambda: index.put([sample_record()]), lambda: index.search(Query())):
        with pytest.raises(ConfigurationError, match=said):
            call()
    assert (columns(admin, table), indexes(admin, table)) == before


def test_a_missing_table(admin: Any, table: str, index: PostgresIndex) -> None:
    """Reading where there is no table is `ConfigurationError`; what is put makes it, also after it was dropped."""
    with pytest.raises(ConfigurationError, match=f"no table {table}.*trifle-otel setup"):
        index.search(Query())
    index.put([sample_record()])
    admin.execute(f"DROP TABLE {table}")
    with pytest.raises(ConfigurationError, match=f"no table {table}"):
        index.find("x")
    index.put([sample_record(reference="after")])
    assert [record.reference for record in index.search(Query())] == ["after"]


def test_a_table_that_changes_under_us(admin: Any, table: str, index: PostgresIndex) -> None:
    """When a table of the older generation is migrated to names while we run, records go on being put and found."""
    make_as_ruby(admin, table, BUCKET_ID)
    index.put([sample_record(reference="before")])
    admin.execute(f"ALTER TABLE {table} DROP COLUMN bucket_id, ADD COLUMN bucket_name TEXT")
    index.put([sample_record(reference="after", bucket_name="b")])
    assert index.find("after") == sample_record(reference="after", bucket_name="b")


def test_another_encoding_is_refused(admin: Any, server: servers.Postgres) -> None:
    """A database that cannot hold all letters is `ConfigurationError`."""
    admin.execute("DROP DATABASE IF EXISTS latin")
    admin.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'")
    with closing(PostgresIndex(server.url("latin"))) as index, pytest.raises(ConfigurationError, match="LATIN1"):
        index.setup()
    admin.execute("DROP DATABASE latin")


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", 'a"b', "traces;drop", "ü", "a.b", "traces\n"])
def test_a_name_that_is_no_tables_is_refused(name: str) -> None:
    """A table's name that the format does not allow is `ConfigurationError`."""
    with pytest.raises(ConfigurationError):
        PostgresIndex("postgresql://127.0.0.1/x", table=name)


def test_capitals_make_no_difference(admin: Any, table: str, server: servers.Postgres) -> None:
    """A name with capitals means the table that Ruby means by it, which does not quote it."""
    make_as_ruby(admin, table.upper(), BUCKET_NAME)
    with closing(PostgresIndex(server.url(), table=table.upper())) as index:
        assert index.search(Query()) == [FROM_RUBY]


SECRET = "s3cret"


@pytest.mark.parametrize(
    "url, error, said",
    [
        ("postgresql://trifle:s3cret@127.0.0.1:{port}/postgres", ConfigurationError, "password authentication failed"),
        ("postgresql://nobody:s3cret@127.0.0.1:{port}/postgres", ConfigurationError, "authentication failed"),
        ("postgresql://trifle@127.0.0.1:{port}/postgres?password=s3cret", ConfigurationError, "authentication failed"),
        ("postgresql://trifle:s3cret@127.0.0.1:1/postgres", StoreUnavailable, "refused"),
        (
            "postgresql://trifle:s3cret@127.0.0.1/x?tabel=y",
            ConfigurationError,
            "tabel.*own options are table and buckets",
        ),
        ("postgresql://trifle:s3cret x@127.0.0.1/x", ConfigurationError, "no URL"),
        ("postgresql://trifle:s3cret%zz@127.0.0.1/x", ConfigurationError, "no URL"),
        ("postgresql://trifle:s3cret@[::1/x", ConfigurationError, "no URL"),
        ("postgresql://trifle:s3cret@127.0.0.1/x?table=", ConfigurationError, "table"),
        ("postgresql://trifle:s3cret@127.0.0.1/x?table=a&table=b", ConfigurationError, "table"),
    ],
)
def test_wrong_urls_and_logins(server: servers.Postgres, url: str, error: type[Exception], said: str) -> None:
    """Each wrong login or URL has an error that says what is wrong, and never shows the password."""

    def use() -> None:
        with closing(open_postgres(url.format(port=server.port))) as index:
            assert SECRET not in repr(index)
            index.setup()

    with pytest.raises(error, match=said) as caught:
        use()
    shown: BaseException | None = caught.value
    while shown is not None:
        assert SECRET not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def test_a_missing_database_is_said(server: servers.Postgres) -> None:
    """A database that is not there is `ConfigurationError` with its name."""
    with closing(PostgresIndex(server.url("missing"))) as index, pytest.raises(ConfigurationError, match='"missing"'):
        index.setup()


def test_rights_that_are_missing(
    admin: Any, server: servers.Postgres, table: str, index: PostgresIndex, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may not read is told so; who may read and write, but not make indexes, is told the statement, and works."""
    make_as_ruby(admin, table, BUCKET_NAME)
    admin.execute("DROP ROLE IF EXISTS guest")
    admin.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    try:
        with closing(PostgresIndex(server.url(user="guest", password="guest"), table=table)) as guest:
            with pytest.raises(ConfigurationError, match="permission denied"):
                guest.search(Query())
            admin.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO guest")
            with caplog.at_level(logging.WARNING, "trifle_otel"):
                guest.setup()
            assert f'CREATE INDEX CONCURRENTLY IF NOT EXISTS "{table}_trace_id" ON "{table}"' in caplog.text
            guest.put([sample_record()])
            assert guest.search(Query(trace_id=sample_record().trace_id)) == [sample_record()]
        elsewhere = PostgresIndex(server.url(user="guest", password="guest"), table="elsewhere")
        with closing(elsewhere), pytest.raises(ConfigurationError, match="permission denied"):
            elsewhere.setup()
    finally:
        admin.execute("DROP OWNED BY guest")
        admin.execute("DROP ROLE guest")


def test_a_large_table_is_not_locked(
    admin: Any, table: str, index: PostgresIndex, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that a large table lacks is not made, which would hold up its writers, but said."""
    make_as_ruby(admin, table, BUCKET_NAME, indexed=False)
    monkeypatch.setattr(postgres_table, "_LARGE", 100)
    with caplog.at_level(logging.WARNING, "trifle_otel"):
        index.setup()
    assert indexes(admin, table).keys() == {f"{table}_pkey"}
    statements = [line.split("to make it: ")[1] for line in caplog.messages]
    assert len(statements) == 7
    for statement in statements:
        admin.execute(statement)
    assert {name.format(table=table) for name in INDEXES} < indexes(admin, table).keys()


def test_nothing_connects_before_it_must() -> None:
    """An index on a port where nobody listens is made, shown and closed; using it is `StoreUnavailable`."""
    index = open_postgres("postgresql://trifle@127.0.0.1:1/x")
    assert repr(index) == "PostgresIndex('postgresql://trifle@127.0.0.1:1/x', table='trifle_traces')"
    assert index.remote
    with pytest.raises(StoreUnavailable, match="refused") as caught:
        index.put([sample_record()])
    assert isinstance(caught.value.__cause__, psycopg.OperationalError)
    index.close()


def test_texts_that_no_database_takes(index: PostgresIndex) -> None:
    """NUL and lone surrogates in any field, or in a search, do no harm: they are shown as what they are."""
    index.put(
        [
            sample_record(
                reference="a\0b\udc80",
                key="k\0",
                tags=("t\0",),
                state="s" * 40,
                meta={"m\0": "\udc80"},
                context={"c\0": "\0"},
            )
        ]
    )
    (found,) = index.search(Query())
    assert (found.reference, found.key, found.tags) == ("a␀b\\udc80", "k␀", ("t␀",))
    assert (found.meta, found.context, found.state) == ({"m␀": "\\udc80"}, {"c␀": "␀"}, "s" * 32)
    assert index.find("a\0b\udc80") == found
    assert index.search(Query(segment="k\0", all_tags=("t\0",), any_tags=("t\0", "\udc80"))) == [found]
    assert index.search(Query(state="\0", trace_id="\0", after=Position(10**30, "\0"))) == []
    index.delete(["a\0b\udc80"])
    assert index.search(Query()) == []


def test_numbers_and_times_at_their_ends(index: PostgresIndex) -> None:
    """The largest numbers are stored as the largest that fit, the ends of the calendar as they are."""
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    record = replace(
        sample_record(
            context={"trace_id": "x" * 100_000}, meta=2**200, first_at=datetime(1, 1, 1, tzinfo=timezone.utc)
        ),
        duration=2**70,
        length=2**70,
        parts=2**40,
        retention=2**40,
        last_at=last,
        expires_at=last,
    )
    index.put([record])
    kept = replace(record, duration=2**63 - 1, length=2**63 - 1, parts=2**31 - 1, retention=2**31 - 1)
    assert index.find(record.reference) == kept
    assert index.search(Query(min_duration=2**80)) == [kept]
    assert index.search(Query(trace_id="x" * 100_000)) == [kept]
    assert index.search(Query(trace_id="x" * 99_999)) == []
    assert index.search(Query(after=Position(-(10**30), ""))) == []


def test_a_batch_of_many_megabytes(index: PostgresIndex) -> None:
    """A batch whose records are megabytes each is stored whole."""
    batch = [sample_record(reference=f"ref-{n}", meta="é" * 3_000_000) for n in range(5)]
    index.put(batch)
    assert index.search(Query()) == batch[::-1]


def plan(admin: Any, table: str, query: Query) -> str:
    """How PostgreSQL goes about a search."""
    shape = postgres_table.Table(table)
    rows = postgres_table.Rows(shape, shape.look(admin), Buckets())
    statement, values = postgres_table.search(rows, query)
    return "\n".join(row[0] for row in admin.execute("EXPLAIN " + statement.as_string(admin), values))


def test_searches_use_the_indexes(admin: Any, table: str, index: PostgresIndex) -> None:
    """Over fifty thousand rows each search goes by the index that is meant for it, none through the whole table."""
    index.setup()
    admin.execute(
        f"""INSERT INTO {table} (reference, key, segments, state, tags, context, duration, first_at, last_at, retention,
            expires_at)
        SELECT 'ref-' || n, 'k', jsonb_build_array('k', 'k/' || n % 5000),
            (ARRAY['success', 'error'])[1 + (n % 500 = 0)::int], jsonb_build_array('n:' || n),
            jsonb_build_object('trace_id', md5(n::text)), n, now() - n * interval '1 s', now(), 7, now()
        FROM generate_series(1, 50000) AS n"""
    )
    admin.execute(f"VACUUM ANALYZE {table}")
    first = admin.execute(f"SELECT context ->> 'trace_id' FROM {table} LIMIT 1").fetchone()[0]
    for query, wanted in (
        (Query(), "started"),
        (Query(after=Position(10**18, "x")), "started"),
        (Query(segment="k/77"), "segments_gin"),
        (Query(all_tags=("n:5",)), "tags_gin"),
        (Query(any_tags=("n:5", "n:7")), "tags_gin"),
        (Query(state="error"), "state_started"),
        (Query(min_duration=49_990), "duration_started"),
        (Query(trace_id=first), "trace_id"),
    ):
        found = plan(admin, table, query)
        assert f"{table}_{wanted}" in found, found
        assert "Seq Scan" not in found


def test_a_server_that_is_away(own_server: servers.Postgres) -> None:
    """While the server is stopped calls are `StoreUnavailable`; when it is back the same index goes on."""
    with closing(PostgresIndex(own_server.url())) as index:
        index.put([sample_record()])
        own_server.stop()
        for call in (lambda: index.put([sample_record()]), lambda: index.search(Query()), index.setup):
            with pytest.raises(StoreUnavailable):
                call()
        own_server.start()
        index.put([sample_record(reference="after")])
        run_at_once([lambda: index.search(Query())] * 4)  # several connections idle
        own_server.stop()
        own_server.start()
        assert len(index.search(Query())) == 2


@pytest.fixture
def own_server(server: servers.Postgres) -> Iterator[servers.Postgres]:
    """A server of a test's own, which it may take away."""
    own = servers.Postgres()
    own.start()
    with servers.removing(own):
        yield own


def test_a_server_that_hangs(own_server: servers.Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and answers nothing is `StoreUnavailable` within the limits of time."""
    monkeypatch.setattr(postgres, "_STALLED_SECONDS", 1)
    with closing(PostgresIndex(f"{own_server.url()}?connect_timeout=2")) as index:
        index.put([sample_record()])
        own_server.freeze()
        with pytest.raises(StoreUnavailable, match="no answer for 1 s"):
            index.search(Query())
        with pytest.raises(StoreUnavailable, match="timeout"):  # that connection was given up
            index.search(Query())
        own_server.thaw()
        assert index.search(Query()) == [sample_record()]


def test_a_statement_that_waits_too_long(
    admin: Any, server: servers.Postgres, table: str, index: PostgresIndex
) -> None:
    """A lock that somebody holds longer than statements may take is `StoreUnavailable`, and nothing is put."""
    with closing(PostgresIndex(f"{server.url()}?options=-c%20statement_timeout%3D500", table=table)) as hasty:
        hasty.setup()
        with admin.transaction():
            admin.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="statement timeout"):
                hasty.put([sample_record()])
        assert hasty.search(Query()) == []
        hasty.put([sample_record()])


PUTTER = """
import sys
from datetime import timedelta
from trifle_otel.indexes.postgres import open_postgres
from trifle_otel.testing import START, sample_record
index = open_postgres(sys.argv[1])
name = sys.argv[2]
for number in range(20):
    shared = [sample_record(reference=f"shared-{n:03}", state="running", parts=number, tags=(name,)) for n in range(40)]
    if number == 10:
        shared[7] = sample_record(reference="shared-007", parts=11)
    own = [sample_record(reference=f"{name}-{number:02}-{n:02}", tags=(name,), first_at=START + timedelta(seconds=n))
        for n in range(40)]
    batch = shared + own
    index.put(batch if name == "a" else batch[::-1])
index.close()
"""


def test_two_processes_put_at_once(table: str, server: servers.Postgres, index: PostgresIndex) -> None:
    """Two processes that make the table and put the same and other references at once lose nothing; the rule holds."""
    command = [sys.executable, "-c", PUTTER, f"{server.url()}?table={table}"]
    processes = [subprocess.Popen([*command, name], cwd=REPOSITORY) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    for name in "ab":
        own = [record for page in pages(index, Query(all_tags=(name,), state="success", limit=300)) for record in page]
        assert len(own) == 800
    shared = [record for page in pages(index, Query(limit=1000)) for record in page if "shared" in record.reference]
    assert len(shared) == 40
    assert {record.parts for record in shared if record.reference != "shared-007"} == {19}
    assert {record.state for record in shared if record.reference == "shared-007"} == {"success"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_connections_of_its_own(server: servers.Postgres, table: str, index: PostgresIndex) -> None:
    """Parent, child and grandchild of a fork all put and find after it, and one's end leaves the others' working."""
    script = """
import os, sys
from trifle_otel.indexes.postgres import open_postgres
from trifle_otel.testing import sample_record
index = open_postgres(sys.argv[1])
index.put([sample_record(reference="before")])
names, children = "parent", []
for generation in ("child", "grandchild"):
    child = os.fork()
    if child:
        children.append(child)
        break
    names = generation
for n in range(30):
    index.put([sample_record(reference=f"{names}-{n:02}")])
    assert index.find("before") is not None
for child in children:
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
    index.put([sample_record(reference=f"{names}-after")])
    assert index.find("before") is not None
index.close()
"""
    subprocess.run([sys.executable, "-c", script, f"{server.url()}?table={table}"], check=True, cwd=REPOSITORY)
    assert len(index.search(Query(limit=1000))) == 1 + 3 * 30 + 2


def test_a_missing_driver_names_the_extra() -> None:
    """Where psycopg is not installed, the module says which extra to install."""
    script = "import sys; sys.modules['psycopg'] = None; import trifle_otel.indexes.postgres"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert f"{MissingDependency.__name__}: " in done.stderr
    assert "trifle-otel[postgres]" in done.stderr


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_a_server_restarted_under_load(own_server: servers.Postgres) -> None:
    """While threads put and the server is restarted five times, all that was put without an error is found once."""
    with closing(PostgresIndex(own_server.url())) as index:
        load = servers.Load(index, sample_record())
        load.while_restarting(own_server, threads=4, restarts=5)
        found = [record for page in pages(index, Query(limit=1000)) for record in page]
    assert sorted(record.reference for record in found) == sorted(load.done)
    assert all(record == sample_record(reference=record.reference) for record in found)
    assert len(load.failures) >= 5
