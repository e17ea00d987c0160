"""Whatever keys, names and times: each trace has a place of its own in every store, and is found there again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trifle_otel.encoding import artifact_name
from trifle_otel.records import Folder
from trifle_otel.references import derived_reference, reference_time, safe_key, safe_name, safe_reference, segments
from trifle_otel.stores.contract import Store
from trifle_otel.stores.files import FileStore
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.stores.object_urls import parse_object_url
from trifle_otel.stores.objects import ObjectStore

LAST_MS = (1 << 48) - 1
TEXTS = st.text(max_size=30) | st.text("./\\ aZ~_0", max_size=12)


@pytest.fixture(params=["memory", "files"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind that needs no server."""
    return MemoryStore() if request.param == "memory" else FileStore(tmp_path / "archive")


@given(
    key=TEXTS,
    reference=TEXTS.filter(bool),
    names=st.lists(TEXTS, min_size=1, max_size=3, unique_by=lambda name: safe_name(name).casefold()),
    retention=st.integers(0, 1_000_000),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_trace_is_found_where_it_was_put(
    store: Store, key: str, reference: str, names: list[str], retention: int
) -> None:
    """Its folder is listed as it was written, with all its files, and is gone when it is deleted."""
    folder = Folder(retention, safe_key(key), safe_reference(reference))
    stored = {artifact_name(safe_name(name)): name.encode("utf-8", "surrogatepass") for name in names}
    stored = {
        name: data
        for name, data in stored.items()
        if not any(other.casefold().startswith(f"{name.casefold()}/") for other in stored)  # one cannot lie in a file
    }
    store.write(folder, "record.json", b"{}")
    for name, data in stored.items():
        store.write(folder, name, data)
    assert list(store.folders()) == [folder]
    assert store.names(folder) == sorted([*stored, "record.json"])
    for name, data in stored.items():
        with store.open(folder, name) as stream:
            assert stream.read() == data
    store.delete(folder)
    assert list(store.folders()) == []


@given(key=TEXTS, reference=TEXTS.filter(bool), retention=st.integers(0, 1_000_000))
def test_objects_lie_below_their_class_and_prefix(key: str, reference: str, retention: int) -> None:
    """`<retention>/<prefix>/<key>/<reference>`, within what S3 allows."""
    folder = Folder(retention, safe_key(key), safe_reference(reference), "bucket")
    uri = ObjectStore(parse_object_url("s3://bucket/my/prefix")).uri(folder)
    assert uri == f"s3://bucket/{retention}/my/prefix/{folder.key}/{folder.reference}"


@given(key=st.lists(st.text("abü ", min_size=1, max_size=4), min_size=1, max_size=8).map("/".join))
def test_segments_are_all_prefixes(key: str) -> None:
    """As many as the key has parts, each the one before it with one part more; the last is the key."""
    found = segments(key)
    assert len(found) == key.count("/") + 1
    assert found[-1] == key
    assert [each.rpartition("/")[0] for each in found[1:]] == list(found[:-1])


@given(one=st.integers(0, LAST_MS), other=st.integers(0, LAST_MS), name=st.text(max_size=5))
def test_derived_references_sort_by_their_time(one: int, other: int, name: str) -> None:
    """An earlier time is a smaller text, the same time and name the same reference; and it tells its time."""
    first, second = derived_reference(one, name), derived_reference(other, name)
    assert (first < second) == (one < other)
    assert (first == second) == (one == other)
    last = (datetime.max.replace(tzinfo=timezone.utc) - datetime(1970, 1, 1, tzinfo=timezone.utc)) / timedelta(
        milliseconds=1
    )
    moment = reference_time(first)
    if one <= last:
        assert moment == datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=one)
    else:
        assert moment is None
