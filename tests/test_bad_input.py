"""Wrong URLs, wrong credentials, what is missing or of another shape, clocks that step back, payloads that are gone.

Each is a clear error when configuring or in `doctor`, and no trace is lost for it.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest
import s3_server
import servers

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.checkup import examine
from trifle_otel.errors import ConfigurationError, NotFound
from trifle_otel.records import TraceRecord
from trifle_otel.testing import sample_record


@pytest.mark.parametrize(
    "archive, index, told",
    [
        ("s4://bucket/x", None, "unknown scheme 's4'; it is a folder, file:///folder, s3://bucket/prefix"),
        ("http://bucket/x", None, "unknown scheme 'http'"),
        ("s3//bucket/x", None, "did you mean s3://bucket/x"),
        ("s3:/bucket/x", "memory:", "write s3://bucket,bucket/prefix"),
        ("S3://b/x?endpont=http://h", "memory:", "did you mean endpoint"),
        ("s3://bucket/x", None, "needs an index; name one: sqlite:///file"),
        ("file://traces", None, "write three slashes"),
        ("memory:?size=3", None, "has options; memory: takes none"),
        ("postgresql://h/d", None, "unknown scheme 'postgresql'; it is a folder"),
        ("memory:", "postgress://h/d", "unknown scheme 'postgress'; it is sqlite:///file, postgresql://"),
        ("memory:", "postgresql//h/d", "did you mean postgresql://h/d"),
        ("memory:", "mysql://h/d", "unknown scheme 'mysql'"),
        ("memory:", "sqlite://x.sqlite", "write three slashes"),
        ("memory:", "./index.sqlite", "it is sqlite:///file"),
        ("memory:", "postgresql://h/d?tabel=x", "our own options are table"),
        ("memory:", "mongodb://h", "names no database"),
        ("memory:", "mongodb://h/d?colection=x", "our own options are collection"),
    ],
)
def test_a_url_with_a_typo_is_an_error_that_says_what_is_allowed(
    archive: str, index: str | None, told: str, own_folder: Path
) -> None:
    """Configuring names what is wrong, makes nothing, and what was configured before goes on."""
    for driver in ("obstore", "psycopg", "pymongo"):
        if {"obstore": "s3", "psycopg": "postgresql:", "pymongo": "mongodb:"}[driver] in f"{archive} {index}".lower():
            pytest.importorskip(driver)
    before = trifle.configure("memory:before")
    with pytest.raises(ConfigurationError) as caught:
        trifle.configure(archive, index=index)
    assert told in str(caught.value)
    assert list(own_folder.iterdir()) == []
    with trifle.tracer("jobs/one") as job:
        pass
    assert trifle.flush(5)
    assert before.find(job.reference).state == "success"


@pytest.mark.parametrize(
    "archive, index",
    [
        ("postgres://joe:s3cr/et@h/d", None),
        ("memory:", "postgress://joe:s3cr/et@h/d"),
        ("memory:", "postgresql//joe:s3cr/et@h/d"),
        ("memory:", "redis://:s3cr/et@h/d"),
        ("http://joe:s3cr/et@h", None),
    ],
)
def test_the_password_of_a_wrong_url_is_not_repeated(archive: str, index: str | None) -> None:
    """Messages are logged: what they repeat of a URL has no password."""
    with pytest.raises(ConfigurationError) as caught:
        trifle.configure(archive, index=index)
    assert "s3cr" not in str(caught.value)
    assert "h" in str(caught.value)


def test_the_scheme_of_a_url_may_be_in_capitals(tmp_path: Path) -> None:
    """As in every URL, case means nothing there."""
    assert Archive.open(f"FILE://{tmp_path}/a", f"SQLite://{tmp_path}/i.sqlite").url == f"file://{tmp_path}/a"


# --- servers that refuse


@pytest.fixture
def bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_missing: Callable[[str], NoReturn]
) -> Iterator[tuple[s3_server.S3Server, str]]:
    """A server of object storage, and the name of a bucket that is not there."""
    pytest.importorskip("obstore")
    if not s3_server.is_installed("localbucket"):
        server_missing("the package localbucket")
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "buckets").mkdir()
    server = s3_server.localbucket(tmp_path / "buckets").start()
    yield server, f"missing-{secrets.token_hex(4)}"
    server.kill()


@pytest.fixture
def postgres(server_missing: Callable[[str], NoReturn]) -> servers.Postgres:
    """A PostgreSQL that asks for passwords."""
    pytest.importorskip("psycopg")
    try:
        return servers.postgres()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))


def errors(archive: str, index: str) -> dict[str, str]:
    """What `doctor` says is wrong."""
    with Archive.open(archive, index) as opened:
        return {finding.what: finding.message for finding in examine(opened) if finding.state == "error"}


def recorded(monkeypatch: pytest.MonkeyPatch, archive: str, index: str) -> str:
    """Record a trace as a job does that is configured by variables alone, where it cannot be stored; its reference."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", archive)
    monkeypatch.setenv("TRIFLE_INDEX", index)
    with trifle.tracer("jobs/one") as job:
        trifle.trace("line")
    assert not trifle.flush(0.3)
    return job.reference


def arrives(archive: str, index: str, reference: str) -> None:
    """What waited is in the archive once what was wrong is mended."""
    assert trifle.flush(20)
    with Archive.open(archive, index) as opened:
        assert [entry.message for entry in opened.entries(reference)][1:] == ["line"]


def test_a_bucket_that_is_missing(
    bucket: tuple[s3_server.S3Server, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Configuring and `doctor` name it; a job that was not configured in code loses nothing."""
    server, name = bucket
    archive, index = f"s3://{name}/x?endpoint={server.endpoint}", f"sqlite://{tmp_path}/i.sqlite"
    with pytest.raises(ConfigurationError, match=f"{name}.*the bucket is not there"):
        trifle.configure(archive, index=index)
    assert f"{name}" in errors(archive, index)["archive"]
    reference = recorded(monkeypatch, archive, index)
    server.make_bucket(name)
    arrives(archive, index, reference)


def test_a_database_that_refuses_the_password(
    postgres: servers.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, and nobody is shown the password."""
    import psycopg

    role = f"late_{secrets.token_hex(4)}"
    archive, index = str(tmp_path / "a"), f"{postgres.url(user=role, password='not this one')}?table={role}"
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'another'".encode())
        admin.execute(f"GRANT ALL ON SCHEMA public TO {role}".encode())
        with pytest.raises(ConfigurationError, match="password authentication failed") as caught:
            trifle.configure(archive, index=index)
        said = errors(archive, index)["index"]
        assert "password authentication failed" in said
        assert "not this one" not in said + str(caught.value)
        reference = recorded(monkeypatch, archive, index)
        admin.execute(f"ALTER ROLE {role} PASSWORD 'not this one'".encode())
        arrives(archive, index, reference)


def test_a_table_of_another_shape(postgres: servers.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for a table of somebody else, which stays as it is."""
    import psycopg

    table = f"shape_{secrets.token_hex(4)}"
    archive, index = str(tmp_path / "a"), f"{postgres.url()}?table={table}"
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute(f"CREATE TABLE {table} (reference text PRIMARY KEY, price numeric)".encode())
        with pytest.raises(ConfigurationError, match=table):
            trifle.configure(archive, index=index)
        assert table in errors(archive, index)["index"]
        reference = recorded(monkeypatch, archive, index)
        admin.execute(f"ALTER TABLE {table} RENAME TO {table}_theirs".encode())
        arrives(archive, index, reference)
        assert admin.execute(f"SELECT count(*) FROM {table}_theirs".encode()).fetchone() == (0,)


# --- payloads that are gone


@pytest.fixture
def gutted(tmp_path: Path) -> tuple[Path, str]:
    """An archive with two traces, one of them without its payload; its folder, and the reference of that one."""
    with trifle.configure(tmp_path / "a") as archive:
        references = []
        for _ in range(2):
            with trifle.tracer("jobs/one") as job:
                trifle.artifact("a.txt", "kept")
            references.append(job.reference)
        assert trifle.flush(5)
        archive.store.delete(archive.find(references[1]).folder)
    return tmp_path / "a", references[1]


def test_reading_a_trace_whose_payload_is_gone(gutted: tuple[Path, str]) -> None:
    """Its record is found; its entries are none, and what is missing is named; its artifact is not found."""
    folder, reference = gutted
    with Archive.open(folder) as archive:
        entries = archive.entries(reference)
        assert entries == []
        assert [f"part 1 of trace {reference} is missing" in str(damage) for damage in entries.damaged] == [True]
        with pytest.raises(NotFound, match=reference):
            archive.artifact(reference, "a.txt")
        archive.delete(reference)
        assert len(archive.search().records) == 1


def test_commands_on_a_trace_whose_payload_is_gone(
    gutted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`show` prints what is known and names what is missing, `--artifact` says so; both exit with 1."""
    pytest.importorskip("cyclopts")
    from trifle_otel.cli import main

    folder, reference = gutted
    for arguments in (["show", reference], ["show", reference, "--json"], ["show", reference, "--artifact", "a.txt"]):
        capsys.readouterr()
        assert main([*arguments, "--archive", str(folder)]) == 1
        out, err = capsys.readouterr()
        assert reference in err
        assert "Traceback" not in err
        assert (reference in out) is ("--artifact" not in arguments)


def test_doctor_names_traces_whose_payload_is_gone(gutted: tuple[Path, str]) -> None:
    """Of the newest traces it is looked whether their payload is there."""
    folder, reference = gutted
    with Archive.open(folder) as archive:
        (found,) = (finding for finding in examine(archive) if finding.what == "payloads")
    assert found.state == "error"
    assert reference in found.message
    assert "1 of the 2 newest traces" in found.message


# --- clocks


STEPPING = """
import sys, time
real, offset = time.time_ns, 0
time.time_ns = lambda: real() + offset
time.time = lambda: (real() + offset) / 1e9
import trifle_otel as trifle
archive = trifle.configure(sys.argv[1], bump_every=0.01)
with trifle.tracer("jobs/first") as job:
    print(job.reference)
offset -= 3600 * 10**9
with trifle.tracer("jobs/second") as job:
    print(job.reference)
for mode in ("live", "deferred"):
    with trifle.tracer("jobs/" + mode, mode=mode, tags=["t"]) as job:
        print(job.reference)
        trifle.trace("before")
        with trifle.block("step"):
            offset -= 3600 * 10**9
            trifle.trace("after")
assert trifle.flush(5)
"""


def test_a_clock_that_steps_back_spoils_nothing(tmp_path: Path) -> None:
    """References keep their order, durations are as long as the job took, pages go through all traces, none expires."""
    done = subprocess.run(
        [sys.executable, "-c", STEPPING, str(tmp_path / "a")], capture_output=True, text=True, timeout=150, check=True
    )
    references = done.stdout.split()
    assert references == sorted(references)
    with Archive.open(tmp_path / "a") as archive:
        records = [archive.find(reference) for reference in references]
        for record in records:
            assert 0 <= record.duration < 30_000
            assert record.first_at <= record.last_at
            assert record.expires_at == record.first_at + timedelta(days=7)
        for record in records[2:]:
            entries = archive.entries(record)
            assert [entry.message for entry in entries][1:] == ["before", "step ↴", "after", "step ↵", "↳ None"]
            assert entries.damaged == []
        found: list[TraceRecord] = []
        cursor = None
        for _ in range(9):
            page = archive.search(limit=1, cursor=cursor)
            found += page.records
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(record.reference for record in found) == references
        assert [record.first_at for record in found] == sorted((record.first_at for record in found), reverse=True)
        assert archive.cleanup() == 0


def test_doctor_tells_of_traces_from_the_future(tmp_path: Path) -> None:
    """A record that begins later than now means that a clock is wrong: it hides other traces, and expires late."""
    with Archive.open(tmp_path / "a") as archive:
        archive.setup()
        first = sample_record().first_at + timedelta(days=36_500)
        archive.index.put([sample_record(first_at=first, last_at=first, parts=0)])
        clocks = [finding for finding in examine(archive) if finding.what == "clock"]
    assert [finding.state for finding in clocks] == ["warning", "success"]
    assert sample_record().reference in clocks[0].message
