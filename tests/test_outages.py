"""A fleet's archive: payloads in S3, rows in PostgreSQL or MongoDB, and servers that are taken away in between."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import figures
import pytest

import trifle_otel as trifle
from trifle_otel import Archive

pytest.importorskip("obstore")
pytest.importorskip("psycopg")
pytest.importorskip("pymongo")

import s3_server
import servers

names = (f"outage_{number}" for number in itertools.count())
LINES = 20


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server_missing: Callable[[str], NoReturn]) -> Iterator[str]:
    """URL of an archive in a server whose objects outlive it; `s3.server` is the server."""
    if not s3_server.is_installed("localbucket"):
        server_missing("the package localbucket")
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "buckets"
    folder.mkdir()
    server = s3_server.localbucket(folder).start()
    running["s3"] = server
    bucket = server.make_bucket("outages")
    yield f"s3://{bucket}/traces?endpoint={server.endpoint}&bulk_delete=false"
    server.kill()


running: dict[str, s3_server.S3Server] = {}


def postgres(server_missing: Callable[[str], NoReturn]) -> tuple[servers.Server, str]:
    """PostgreSQL, and the URL of an index in it."""
    try:
        server = servers.postgres()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    return server, f"{server.url()}?table={next(names)}"


def mongo(server_missing: Callable[[str], NoReturn]) -> tuple[servers.Server, str]:
    """FerretDB, and the URL of an index in it."""
    try:
        server = servers.ferretdb()
    except servers.ServerMissingError as missing:
        server_missing(str(missing))
    return server, f"{server.url()}?collection={next(names)}"


class Jobs:
    """Threads that record traces as long as they are let, and never wait for a server."""

    def __init__(self) -> None:
        self.references: list[str] = []
        self.slowest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(2)]

    def __enter__(self) -> Jobs:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int) -> None:
        while not self._stop.wait(0.01):
            start = time.monotonic()
            with trifle.tracer(f"jobs/{number}", tags=["outage"]) as job:
                for line in range(LINES):
                    trifle.trace(f"line {line}")
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.references.append(job.reference)


def tell(what: str, jobs: Jobs) -> None:
    """Note the figures of a test that lost nothing."""
    figures.note(what, f"{len(jobs.references):,} traces, none lost or doubled; slowest {jobs.slowest * 1000:.0f} ms")


def check(archive: Archive, references: list[str]) -> None:
    """Every trace is found once, and whole."""
    found: list[str] = []
    cursor = None
    while True:
        page = archive.search(all_tags=["outage"], limit=500, cursor=cursor)
        found += [record.reference for record in page.records]
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(references)
    for reference in references[:: max(1, len(references) // 50)]:
        entries = archive.entries(reference)
        assert (entries.damaged, len(entries)) == ([], LINES + 1)


@pytest.mark.parametrize("index", [postgres, mongo])
def test_a_trace_goes_to_object_storage_and_a_database(
    s3: str,
    index: Callable[[Callable[[str], NoReturn]], tuple[servers.Server, str]],
    server_missing: Callable[[str], NoReturn],
) -> None:
    """What this process records is found and read by another archive at the same URLs, while it runs too."""
    _, url = index(server_missing)
    trifle.configure(s3, index=url, bump_every=0.2)
    with trifle.tracer("jobs/one", meta=[1, {"a": None}], tags=["outage"]) as job:
        trifle.trace("x" * 200_000)
        trifle.artifact("a.txt", "kept")
        time.sleep(1.5)
        with Archive.open(s3, url) as archive:
            assert archive.find(job.reference).state == "running"
            assert len(archive.entries(job.reference)) == 3
        trifle.trace("last")
    assert trifle.flush(10)
    with Archive.open(s3, url) as archive:
        record = archive.find(job.reference)
        assert (record.state, record.meta, record.bucket_name) == ("success", [1, {"a": None}], "outages")
        entries = archive.entries(record)
        assert (entries.damaged, entries[-1].message) == ([], "last")
        assert archive.artifact(record, "a.txt") == b"kept"
        assert archive.artifact(record, entries[1].message) == b"x" * 200_000
        assert archive.reindex() == 1
        archive.delete(record)
        assert list(archive.store.folders()) == []


def test_first_use_by_the_environment_waits_for_no_network(
    s3: str, server_missing: Callable[[str], NoReturn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that was configured by variables alone runs while S3 is down, and is archived when it is back."""
    _, url = postgres(server_missing)
    monkeypatch.setenv("TRIFLE_ARCHIVE", s3)
    monkeypatch.setenv("TRIFLE_INDEX", url)
    running["s3"].hang()
    start = time.monotonic()
    with trifle.tracer("jobs/one", tags=["outage"]) as job:
        trifle.trace("line")
    assert time.monotonic() - start < 2
    running["s3"].go_on()
    assert trifle.flush(30)
    with Archive.open(s3, url) as archive:
        assert len(archive.entries(job.reference)) == 2


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_s3_is_killed_for_30_seconds_under_load(s3: str, server_missing: Callable[[str], NoReturn]) -> None:
    """Jobs go on as if nothing were; all that they recorded is in the archive afterwards, once."""
    _, url = postgres(server_missing)
    archive = trifle.configure(s3, index=url)
    with Jobs() as jobs:
        time.sleep(1)
        running["s3"].kill()
        time.sleep(30)
        running["s3"].start()
        time.sleep(1)
    assert trifle.flush(60)
    assert jobs.slowest < 1
    check(archive, jobs.references)
    tell("the S3 server is killed for 30 s under load", jobs)


@pytest.mark.fault
@pytest.mark.timeout(300)
def test_s3_hangs_under_load(s3: str, server_missing: Callable[[str], NoReturn]) -> None:
    """A server that answers nothing holds up no job."""
    _, url = postgres(server_missing)
    archive = trifle.configure(s3, index=url)
    with Jobs() as jobs:
        time.sleep(1)
        running["s3"].hang()
        time.sleep(10)
        running["s3"].go_on()
        time.sleep(1)
    assert trifle.flush(60)
    assert jobs.slowest < 1
    check(archive, jobs.references)
    tell("the S3 server answers nothing for 10 s under load", jobs)


@pytest.mark.fault
@pytest.mark.timeout(300)
@pytest.mark.parametrize("index", [postgres, mongo])
def test_the_database_is_restarted_under_load(
    s3: str,
    index: Callable[[Callable[[str], NoReturn]], tuple[servers.Server, str]],
    server_missing: Callable[[str], NoReturn],
) -> None:
    """Rows wait and follow, each once."""
    server, url = index(server_missing)
    archive = trifle.configure(s3, index=url)
    with Jobs() as jobs:
        for _ in range(2):
            time.sleep(1)
            server.stop()
            time.sleep(2)
            server.start()
        time.sleep(1)
    assert trifle.flush(60)
    assert jobs.slowest < 1
    check(archive, jobs.references)
    tell(f"{index.__name__} is restarted under load", jobs)
