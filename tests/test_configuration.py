"""`configure`: what it takes from arguments and the environment, and what it refuses; first use, again, and `reset`."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

import trifle_otel as trifle
from trifle_otel import Archive, configuration
from trifle_otel import runtime as surroundings
from trifle_otel.errors import ConfigurationError, TrifleError
from trifle_otel.plain_files import make_folders
from trifle_otel.references import MAX_PREFIX_BYTES
from trifle_otel.runtime import runtime
from trifle_otel.settings import Settings


def settings_in_force() -> Settings:
    """What recording reads."""
    return runtime().settings


def record_one(key: str = "a/job") -> str:
    """Record a trace; its reference."""
    with trifle.tracer(key) as job:
        trifle.trace("line")
    return job.reference


# --- what is refused


def test_an_unknown_setting_names_the_near_one_and_all_that_there_are() -> None:
    """A misspelt keyword is answered with what was meant."""
    with pytest.raises(ConfigurationError) as raised:
        trifle.configure("memory:", retentoin=7)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    message = str(raised.value)
    assert "'retentoin'" in message
    assert "did you mean 'retention'?" in message
    for field in dataclasses.fields(Settings):
        assert field.name in message


@pytest.mark.parametrize(
    "url, told",
    [
        ("gopher://host/traces", ["gopher", "folder", "file:///", "memory:"]),
        ("mongodb://host/db", ["mongodb", "memory:"]),
        ("memory:?size=1", ["options", "takes none"]),
        ("file:///traces?gzip=0", ["options", "takes none"]),
        ("file://elsewhere/traces", ["three slashes"]),
        ("file://", ["no path"]),
        ("http://[half", ["not a URL"]),
        ("", ["folder", "memory:"]),
        ("./nul\0", ["NUL"]),
        ("./lone\udc80", ["no path"]),
        ("~nobody-of-that-name/traces", ["no path"]),
    ],
)
def test_a_wrong_archive_says_what_is_allowed(url: str, told: list[str]) -> None:
    """Unknown schemes and options, and what is no URL or path, are errors that name what is wrong and allowed."""
    with pytest.raises(ConfigurationError) as raised:
        trifle.configure(url)
    for text in told:
        assert text in str(raised.value)


@pytest.mark.parametrize(
    "url", ["gopher://host", "redis://host", "sqlite:", "sqlite:///a?mode=ro", "sqlite://host/a", "a.db"]
)
def test_a_wrong_index_says_what_is_allowed(url: str) -> None:
    """So for the index, whose errors name it as that."""
    with pytest.raises(ConfigurationError) as raised:
        trifle.configure("memory:", index=url)
    assert "index" in str(raised.value)
    assert "sqlite:" in str(raised.value)


@pytest.mark.parametrize(
    "setting, value, allowed",
    [
        ("archive", 7, "a path or a URL"),
        ("archive", b"./traces", "a path or a URL"),
        ("index", 7, "None or a URL"),
        ("spool", 7, "None or a folder"),
        ("default_mode", "lively", "'live' or 'deferred'"),
        ("retention", 0, "whole days"),
        ("retention", 7.5, "whole days"),
        ("retention", "7", "whole days"),
        ("retention", True, "whole days"),
        ("retention", 10**9, "whole days"),
        ("bump_every", 0, "seconds"),
        ("bump_every", float("nan"), "seconds"),
        ("bump_every", "15", "seconds"),
        ("payload_size_limit", 10, "1024"),
        ("payload_size_limit", 5000.5, "whole number"),
        ("spool_limit", 0, "bytes"),
        ("spool_age", 0, "seconds"),
        ("spool_age", "7d", "seconds"),
        ("exit_timeout", -1, "seconds"),
        ("gzip", "no", "True or False"),
        ("fsync", 1, "True or False"),
        ("max_spans", -1, "whole number"),
        ("span_events", 1.5, "whole number"),
        ("span_value_limit", 0, "bytes"),
        ("events_budget", -1, "bytes"),
        ("redaction", "on", "Redactor"),
        ("redaction", None, "Redactor"),
        ("serializer", "xml", "'repr', 'str', 'json'"),
        ("serializer", [], "'repr', 'str', 'json'"),
        ("service", 7, "a text or None"),
        ("context", [1], "a mapping or a callable"),
        ("error_handler", 7, "a callable"),
        ("tracer_provider", 7, "TracerProvider"),
        ("logger_provider", 7, "LoggerProvider"),
        ("events", "spans", "'span', 'log' or 'both'"),
        ("events", [], "'span', 'log' or 'both'"),
        ("pending_span", 1, "True or False"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(setting: str, value: Any, allowed: str) -> None:
    """Wrong values show when configuring, not when a job runs; what was configured before stays in force."""
    before = trifle.configure("memory:before")
    wrong: Any = {"archive": "memory:", setting: value}
    with pytest.raises(ConfigurationError) as raised:
        trifle.configure(**wrong)
    assert f"{setting}={value!r}" in str(raised.value)
    assert allowed in str(raised.value)
    reference = record_one()
    assert before.find(reference).state == "success"


def test_an_archive_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """Where something else stands in the folder's place, the error names it."""
    (tmp_path / "traces").write_text("a file")
    for path in ("traces", "traces/deeper"):
        with pytest.raises(ConfigurationError, match="traces"):
            trifle.configure(tmp_path / path)
    assert (tmp_path / "traces").read_text() == "a file"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="a folder that refuses even root is Linux's")
def test_an_archive_that_cannot_be_written_is_refused() -> None:
    """A folder in which nothing can be made is an error of configuring, with the system's own as its cause."""
    with pytest.raises(ConfigurationError, match=r"/proc/traces"):
        trifle.configure("/proc/traces")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_archive_that_is_read_only_is_refused(tmp_path: Path) -> None:
    """So is a folder without permission, and nothing of ours is left in it."""
    folder = tmp_path / "traces"
    folder.mkdir(mode=0o500)
    with pytest.raises(ConfigurationError, match="cannot be written"):
        trifle.configure(folder)
    assert list(folder.iterdir()) == []


def test_a_corrupt_index_is_told_with_the_remedy(tmp_path: Path) -> None:
    """An index that is no database is an error that says how to rebuild it."""
    (tmp_path / "index.sqlite").write_bytes(b"this is no database at all, however long it may be" * 100)
    with pytest.raises(TrifleError, match="trifle-otel reindex"):
        trifle.configure(tmp_path)


def test_a_locked_index_is_no_error_and_its_rows_wait(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another process that holds the index delays rows and nothing else."""
    archive = trifle.configure(tmp_path / "traces")
    record_one()
    assert trifle.flush(5)
    lock = sqlite3.connect(tmp_path / "traces" / "index.sqlite", isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")
        reference = record_one()
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert trifle.flush(10)
    assert archive.find(reference).state == "success"


# --- arguments, environment, defaults


def test_the_defaults_are_trifles() -> None:
    """Without arguments and environment the archive is `./traces`, with Trifle's own defaults."""
    archive = trifle.configure()
    assert Path("traces").is_dir()
    assert archive.url == Path("traces").absolute().as_uri()
    settings = settings_in_force()
    assert (settings.retention, settings.default_mode, settings.bump_every) == (7, "live", 15)
    assert (settings.payload_size_limit, settings.serializer, settings.gzip) == (102_400, "repr", True)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is read from its name in capitals after TRIFLE_, as the type of its default."""
    values = {
        "ARCHIVE": "memory:environment",
        "INDEX": f"sqlite://{tmp_path}/elsewhere.sqlite",
        "RETENTION": "30",
        "DEFAULT_MODE": "deferred",
        "BUMP_EVERY": "2.5",
        "PAYLOAD_SIZE_LIMIT": "2048",
        "SERIALIZER": "json",
        "GZIP": "off",
        "FSYNC": "Yes",
        "REDACTION": "false",
        "SPOOL": str(tmp_path / "spool"),
        "SPOOL_LIMIT": "1000",
        "SPOOL_AGE": "3600",
        "EXIT_TIMEOUT": "1",
        "MAX_SPANS": "10",
        "SPAN_EVENTS": "64",
        "SPAN_VALUE_LIMIT": "512",
        "EVENTS_BUDGET": "9999",
        "SERVICE": "prices",
        "EVENTS": "both",
        "PENDING_SPAN": "on",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TRIFLE_{name}", value)
    archive = trifle.configure()
    assert archive.url == "memory:environment"
    assert settings_in_force() == Settings(
        archive="memory:environment",
        index=f"sqlite://{tmp_path}/elsewhere.sqlite",
        retention=30,
        default_mode="deferred",
        bump_every=2.5,
        payload_size_limit=2048,
        serializer="json",
        gzip=False,
        fsync=True,
        redaction=False,
        spool=str(tmp_path / "spool"),
        spool_limit=1000,
        spool_age=3600.0,
        exit_timeout=1.0,
        max_spans=10,
        span_events=64,
        span_value_limit=512,
        events_budget=9999,
        service="prices",
        events="both",
        pending_span=True,
    )
    assert {type(settings_in_force().retention), type(settings_in_force().exit_timeout)} == {int, float}


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given in code counts; an empty variable is none."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:environment")
    monkeypatch.setenv("TRIFLE_RETENTION", "30")
    monkeypatch.setenv("TRIFLE_GZIP", "")
    assert trifle.configure("memory:argument", retention=3).url == "memory:argument"
    assert (settings_in_force().retention, settings_in_force().gzip) == (3, True)


@pytest.mark.parametrize(
    "variable, value, told",
    [
        ("TRIFLE_RETENTION", "week", "a number"),
        ("TRIFLE_RETENTION", "0", "whole days"),
        ("TRIFLE_RETENTION", "7.5", "a number"),
        ("TRIFLE_GZIP", "maybe", "true or false"),
        ("TRIFLE_BUMP_EVERY", "soon", "a number"),
        ("TRIFLE_DEFAULT_MODE", "lively", "'live' or 'deferred'"),
        ("TRIFLE_SERIALIZER", "xml", "'repr', 'str', 'json'"),
        ("TRIFLE_ARCHIVE", "gopher://host", "memory:"),
        ("TRIFLE_REDACTION", "some", "true or false"),
        ("TRIFLE_EVENTS", "logs", "'span', 'log' or 'both'"),
        ("TRIFLE_PENDING_SPAN", "perhaps", "true or false"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    """An error names the variable's value and what it may be."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as raised:
        trifle.configure()
    assert repr(value) in str(raised.value) or value in str(raised.value)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    "variable, told",
    [
        ("TRIFLE_RETENTOIN", "did you mean 'retention'?"),
        ("TRIFLE_ERROR_HANDLER", "error_handler is set in code, by configure"),
        ("TRIFLE_CONTEXT", "context is set in code, by configure"),
    ],
)
def test_a_variable_that_is_no_setting_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, told: str
) -> None:
    """It may be somebody else's, so it stops nothing; what can be set in code alone is not offered."""
    monkeypatch.setenv(variable, "7")
    trifle.configure("memory:")
    assert variable in caplog.text
    assert told in caplog.text
    assert "error_handler, " not in caplog.text


@pytest.mark.parametrize("path", ["", "/proc/nowhere/at/all"])
def test_folders_that_cannot_be_made_are_an_error_and_no_endless_attempt(path: str) -> None:
    """A file system may say that what is above is missing, though it is there."""
    if path and not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    with pytest.raises(FileNotFoundError):
        make_folders(path)


def test_what_a_first_trace_would_import_is_there_once_it_is_configured() -> None:
    """A child that is forked while another thread imports it would wait for that thread, which it does not have."""
    code = "import sys, trifle_otel; trifle_otel.configure('memory:'); assert 'importlib.metadata' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_opentelemetry_s_own_variables_set_the_limits_and_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that the SDK obeys are obeyed here, and the service is named as its resource is."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "40")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1000")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "500")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "a=b,service.name=price%20job")
    trifle.configure("memory:")
    settings = settings_in_force()
    assert (settings.span_events, settings.span_value_limit, settings.service) == (40, 500, "price job")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
    monkeypatch.setenv("TRIFLE_SPAN_EVENTS", "50")
    trifle.configure("memory:", span_value_limit=4000)
    settings = settings_in_force()
    assert (settings.span_events, settings.span_value_limit, settings.service) == (50, 4000, "named")


@pytest.mark.parametrize("value", ["", "many", "-5", "²"])
def test_a_limit_of_opentelemetry_s_that_is_no_number_is_left_to_the_sdk(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """It is not ours to complain about."""
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", value)
    trifle.configure("memory:")
    assert settings_in_force().span_events == 128


# --- archives


@pytest.mark.parametrize("form", ["path object", "relative", "absolute", "URL", "spaces and umlauts"])
def test_an_archive_is_a_folder_however_it_is_named(tmp_path: Path, form: str) -> None:
    """Paths, path objects and file URLs name folders; what is recorded can be read by another `Archive.open`."""
    folder = tmp_path / ("tra ces ü%20" if form == "spaces and umlauts" else "traces")
    names: Mapping[str, str | Path] = {
        "path object": folder,
        "relative": "./traces",
        "absolute": str(folder),
        "URL": f"file://{folder}",
        "spaces and umlauts": folder.as_uri(),
    }
    archive = trifle.configure(names[form])
    reference = record_one()
    assert trifle.flush(5)
    assert archive.url == folder.as_uri()
    assert (folder / "7" / "a" / "job" / reference / "record.json").is_file()
    with Archive.open(folder) as other:
        assert [entry.message for entry in other.entries(reference)][1:] == ["line"]


def test_a_memory_archive_is_shared_by_its_name_in_this_process() -> None:
    """What was recorded into `memory:name` can be opened by that name, and is not in another."""
    trifle.configure("memory:one")
    reference = record_one()
    assert trifle.flush(5)
    assert Archive.open("memory:one").find(reference).key == "a/job"
    assert Archive.open("memory:two").search().records == []


def test_an_index_may_lie_elsewhere(tmp_path: Path) -> None:
    """The index's URL goes before the one beside the archive."""
    trifle.configure(tmp_path / "traces", index=f"sqlite://{tmp_path}/elsewhere/index.sqlite")
    reference = record_one()
    assert trifle.flush(5)
    assert not (tmp_path / "traces" / "index.sqlite").exists()
    with Archive.open(tmp_path / "traces", f"sqlite://{tmp_path}/elsewhere/index.sqlite") as archive:
        assert archive.find(reference).key == "a/job"


def test_reading_sees_what_was_just_recorded(tmp_path: Path) -> None:
    """The archive that `configure` gives ships what waits before it answers."""
    archive = trifle.configure(tmp_path)
    reference = record_one()
    assert archive.find(reference).state == "success"


def test_gzip_off_stores_plain_parts(tmp_path: Path) -> None:
    """Parts are plain JSON then, and read as well."""
    archive = trifle.configure(tmp_path, gzip=False)
    reference = record_one()
    assert [entry.message for entry in archive.entries(reference)][1:] == ["line"]
    assert (tmp_path / "7" / "a" / "job" / reference / "data_1.json").read_bytes().startswith(b'[{"at":')


# --- twice, and first use


def test_configuring_again_goes_on_in_the_new_archive(tmp_path: Path) -> None:
    """What waited for the old archive is shipped there, what follows goes to the new one."""
    old = trifle.configure(tmp_path / "old")
    first = record_one()
    new = trifle.configure(tmp_path / "new")
    second = record_one()
    assert trifle.flush(5)
    assert [record.reference for record in old.search().records] == [first]
    assert [record.reference for record in new.search().records] == [second]


@pytest.mark.parametrize("where", ["memory", "files"])
def test_a_trace_that_runs_while_configure_is_called_ends_where_it_began(tmp_path: Path, where: str) -> None:
    """Nothing of it is lost: its lines before and after are in the archive of its start."""
    old = trifle.configure("memory:old" if where == "memory" else tmp_path / "old")
    with trifle.tracer("a/job") as job:
        trifle.trace("before")
        trifle.artifact("before.txt", b"before")
        new = trifle.configure("memory:new" if where == "memory" else tmp_path / "new")
        trifle.trace("after")
        inner = record_one("inner")
    assert trifle.flush(5)
    assert [record.reference for record in new.search().records] == [inner]
    messages = [entry.message for entry in old.entries(job.reference)]
    assert messages[1:] == ["before", "before.txt", "after"]
    assert old.find(job.reference).state == "success"
    assert old.artifact(job.reference, "before.txt") == b"before"


@pytest.mark.parametrize("mode", ["live", "deferred"])
@pytest.mark.parametrize(
    "again",
    [lambda: trifle.configure("a", bump_every=0.05), lambda: trifle.shutdown(5)],
    ids=["configured again", "shut down"],
)
def test_a_trace_that_runs_meanwhile_is_flushed_on_and_adopted_by_nobody(again: Callable[[], Any], mode: str) -> None:
    """Configuring again and shutting down neither stop its timer nor have it taken for a dead process's."""
    trifle.configure("a", bump_every=0.05)
    with trifle.tracer("jobs/long", mode=mode) as job:
        trifle.trace("before")
        until(lambda: flushed(job.reference) > 0)
        again()
        subprocess.run([sys.executable, "-m", "trifle_otel", "recover", "--archive", "a"], check=True)
        before = flushed(job.reference)
        trifle.trace("after")
        until(lambda: flushed(job.reference) > before)
    with trifle.tracer("jobs/next"):
        pass
    assert trifle.flush(30)
    with Archive.open("a") as archive:
        until(lambda: archive.find(job.reference).finished)  # shipped by whoever was in force at its start
        record = archive.find(job.reference)
        assert record.state == "success"
        assert [entry.message for entry in archive.entries(record)][1:] == ["before", "after"]
    trifle.configure("b")
    assert list(Path("a/.spool").iterdir()) == []


def flushed(reference: str) -> int:
    """How often a running trace has been flushed or journaled: parts in the archive, journals in the spool."""
    return len({path.name for path in Path("a").rglob(f"*{reference}/*_*.json*")})


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_configuring_the_same_archive_again_keeps_what_it_has(tmp_path: Path) -> None:
    """A second `configure` with other settings adds to the same archive."""
    trifle.configure(tmp_path)
    record_one()
    archive = trifle.configure(tmp_path, retention=3)
    record_one()
    assert sorted(record.retention for record in archive.search().records) == [3, 7]


def test_the_first_use_configures_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRIFLE_ARCHIVE a job that never calls `configure` is archived."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "./from-environment")
    monkeypatch.setenv("TRIFLE_RETENTION", "3")
    reference = record_one()
    assert trifle.flush(5)
    assert Path("from-environment/3/a/job", reference, "record.json").is_file()


def test_a_first_use_while_another_thread_configures_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither waits for the other in a circle, and what was configured in code is in force afterwards."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:environment")
    configuring, using = threading.Event(), threading.Event()

    def first_use() -> None:
        using.set()
        configuration.configure_from_environment()

    def configure() -> None:
        with configuration._lock:
            configuring.set()
            using.wait()
            trifle.configure("memory:code")

    monkeypatch.setattr(surroundings, "_first_use", first_use)
    threads = [threading.Thread(target=work, daemon=True) for work in (configure, record_one)]
    for thread in threads:
        thread.start()
        configuring.wait()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert settings_in_force().archive == "memory:code"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("held", ["configuring", "looking for what is in force", "counting a fault"])
def test_a_lock_that_another_thread_holds_at_a_fork_does_not_stop_the_child(
    monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    """A forked child records, though its parent's threads were in the middle of something."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:")
    if held == "counting a fault":
        trifle.configure("memory:")
        lock = runtime().troubles._lock
    else:
        lock = configuration._lock if held == "configuring" else surroundings._lock
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            inside.set()
            go_on.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        with trifle.tracer("a/job", context=lambda: {"none": 1 // 0}):  # type: ignore[arg-type]  # a fault to count
            pass
        os._exit(0 if runtime().troubles.counts.total() == 1 else 1)
    go_on.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_without_the_variable_nothing_is_created() -> None:
    """No archive appears because something was traced."""
    record_one()
    assert trifle.flush(5)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "name, value", [("TRIFLE_ARCHIVE", "gopher://host"), ("TRIFLE_RETENTION", "week"), ("TRIFLE_INDEX", "gopher:x")]
)
def test_a_wrong_environment_at_first_use_stops_no_job(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """The job runs on, unrecorded; what is wrong is logged once."""
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:")
    monkeypatch.setenv(name, value)
    with trifle.tracer("a/job"):
        assert trifle.trace("Step", lambda: 5) == 5
    record_one()
    told = [record for record in caplog.records if "not configured" in record.getMessage()]
    assert len(told) == 1
    assert value in told[0].getMessage()


LONG_PREFIX = "p" * (MAX_PREFIX_BYTES - 1) + "é"


def test_a_prefix_that_leaves_no_room_for_long_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not when the first long key is lost: at `configure`, and at first use. Reading asks for no room."""
    pytest.importorskip("obstore", reason="the extra s3 is not installed")
    url = f"s3://bucket/{LONG_PREFIX}?endpoint=http://127.0.0.1:9"
    with pytest.raises(ConfigurationError, match=f"has {MAX_PREFIX_BYTES + 1} bytes; no more than {MAX_PREFIX_BYTES}"):
        trifle.configure(url, index="memory:")
    monkeypatch.setenv("TRIFLE_ARCHIVE", url)
    monkeypatch.setenv("TRIFLE_INDEX", "memory:")
    record_one()
    assert "take a shorter one" in caplog.text
    with trifle.Archive.open(url, "memory:") as archive:
        assert archive.search().records == []


def test_the_longest_prefix_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is refused that leaves room."""
    pytest.importorskip("obstore", reason="the extra s3 is not installed")
    with trifle.Archive.open(f"s3://bucket/{'p' * MAX_PREFIX_BYTES}", "memory:") as archive:
        archive.store.check_names()


def test_a_corrupt_index_at_first_use_costs_no_payload(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A job that was never told otherwise is archived; its rows wait until the index is rebuilt."""
    folder = tmp_path / "traces"
    folder.mkdir()
    (folder / "index.sqlite").write_bytes(b"this is no database at all, however long it may be" * 100)
    monkeypatch.setenv("TRIFLE_ARCHIVE", str(folder))
    monkeypatch.setenv("TRIFLE_EXIT_TIMEOUT", "0.1")
    reference = record_one()
    assert not trifle.flush(0.1)
    assert "trifle-otel reindex" in caplog.text
    configuration.reset()
    with Archive.open(folder) as archive:
        archive.recover()
        archive.reindex()
        assert [entry.message for entry in archive.entries(reference)][1:] == ["line"]


def test_configure_finds_the_applications_provider_whenever_it_is_set() -> None:
    """A provider given as a setting is used; `configure` never sets a global one."""
    from opentelemetry import trace as otel

    before = otel.get_tracer_provider()
    provider = TracerProvider(shutdown_on_exit=False)
    trifle.configure("memory:", tracer_provider=provider)
    with trifle.tracer("a/job"):
        assert otel.get_current_span().is_recording()
    assert otel.get_tracer_provider() is before


# --- reset


def test_reset_forgets_all_that_was_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, callbacks, memory archives and the first use from the environment begin anew."""
    seen: list[str] = []
    trifle.on("liftoff", lambda trace: seen.append(trace.key))
    trifle.configure("memory:", retention=3)
    reference = record_one("before")
    configuration.reset()
    assert Archive.open("memory:").search().records == []
    assert trifle.current() is None
    record_one("unrecorded")
    configuration.reset()
    monkeypatch.setenv("TRIFLE_ARCHIVE", "memory:")
    record_one("after")
    assert trifle.flush(5)
    [record] = Archive.open("memory:").search().records
    assert record.reference != reference
    assert (record.key, record.retention) == ("after", 7)
    assert seen == ["before"]


def test_reset_ships_what_waits_and_stops_the_threads(tmp_path: Path) -> None:
    """Nothing that was recorded is lost, and no thread of ours is left."""
    import threading

    trifle.configure(tmp_path)
    reference = record_one()
    configuration.reset()
    with Archive.open(tmp_path) as archive:
        assert archive.find(reference).state == "success"
    for thread in threading.enumerate():
        if thread.name.startswith("trifle-"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.parametrize("timeout", [math.inf, 1e12])
def test_whoever_waits_without_end_waits_as_long_as_a_thread_can(tmp_path: Path, timeout: float) -> None:
    """No timeout is too long: until all is shipped, by hand and where the setting says so."""
    trifle.configure(tmp_path / "first", exit_timeout=timeout)
    record_one()
    assert trifle.flush(timeout)
    record_one()
    archive = trifle.configure(tmp_path / "second", exit_timeout=timeout)
    record_one()
    assert trifle.shutdown(timeout)
    assert len(archive.search().records) == 1


@pytest.mark.parametrize("given, seconds", [("", 15), ("often", 15), ("2.5", 2.5), ("nan", 15), ("inf", 15), ("-1", 0)])
def test_commands_take_the_beat_of_who_records_from_here(
    monkeypatch: pytest.MonkeyPatch, given: str, seconds: float
) -> None:
    """Where that is no number of seconds, the default."""
    monkeypatch.setenv("TRIFLE_BUMP_EVERY", given)
    assert configuration.default_bump_every() == seconds


def test_reset_with_nothing_configured_does_nothing() -> None:
    """It may be called at any time, and twice."""
    configuration.reset()
    configuration.reset()


# --- the process's start and end


def test_importing_and_tracing_touches_no_file_and_loads_no_driver() -> None:
    """In a fresh interpreter, a job with nothing configured leaves its folder empty and imports no storage."""
    script = (
        "import sys, os, trifle_otel as t\n"
        "with t.tracer('a/job'), t.block('b'): t.trace('c')\n"
        "assert os.listdir() == [], os.listdir()\n"
        "loaded = {'sqlite3', 'trifle_otel.shipper', 'trifle_otel.archive', 'opentelemetry.sdk'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=30)


def test_the_end_of_the_process_ships_what_waits(tmp_path: Path) -> None:
    """A script that records and ends, without a flush, is in the archive and its index, and logs nothing."""
    script = (
        "import trifle_otel as t\n"
        "t.configure('./traces')\n"
        "with t.tracer('a/job') as job: t.trace('line')\n"
        "print(job.reference)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=True, timeout=30, capture_output=True, text=True
    )
    assert done.stderr == ""
    with Archive.open(tmp_path / "traces") as archive:
        assert archive.find(done.stdout.strip()).state == "success"


def test_the_log_names_what_cannot_be_spooled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the spool's place is taken, another is found, traces are archived all the same, and a warning says so."""
    (tmp_path / "blocked").write_text("a file")
    with caplog.at_level(logging.WARNING), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        archive = trifle.configure(tmp_path / "traces", spool=str(tmp_path / "blocked" / "spool"))
        reference = record_one()
        assert archive.find(reference).state == "success"
    assert "blocked" in caplog.text
