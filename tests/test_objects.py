"""Object storage, against real S3-compatible servers: the contract, several buckets, faults, forks, lifecycle rules.

Google's and Azure's stores are proven as far as their URLs and the making of a client go: no server of theirs is here.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from ports import free_port
from s3_server import S3Server, is_installed, localbucket, moto

import trifle_otel
from trifle_otel import Archive
from trifle_otel.checkup import examine
from trifle_otel.errors import (
    ConfigurationError,
    DamagedArchive,
    MissingDependency,
    StoreUnavailable,
    TrifleError,
    UsageError,
)
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.records import Folder
from trifle_otel.stores.contract import OutOfReach, Store
from trifle_otel.stores.lifecycle import merged, rules
from trifle_otel.stores.object_driver import Refused, load_obstore, open_bucket, translated
from trifle_otel.stores.object_urls import ObjectLocation, parse_object_url
from trifle_otel.stores.objects import ObjectStore, open_objects
from trifle_otel.stores.parallel import at_once
from trifle_otel.testing import StoreContract, contents, local_folder, sample_record

pytest.importorskip("obstore", reason="the extra s3 is not installed")

REPOSITORY = Path(trifle_otel.__file__).parents[1]
FOLDER = Folder(7, "commodity/calculate/one", "01KDYAK3SEABCDEFGHJKMNPQRS")
KEY, SECRET, TOKEN = "AKIATESTKEYOFTESTS", "secret-of-the-tests", "token-of-the-tests"


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials from the environment, and nothing else of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # what boto3 looks at
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def running(server: S3Server, module: str, missing: Callable[[str], NoReturn]) -> Iterator[S3Server]:
    """A server while it is needed."""
    if not is_installed(module):
        missing(f"the package {module}")
    try:
        yield server.start()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server(server_missing: Callable[[str], NoReturn]) -> Iterator[S3Server]:
    """A server with bulk delete and lifecycle rules."""
    yield from running(moto(), "moto", server_missing)


@pytest.fixture
def lasting(tmp_path: Path, server_missing: Callable[[str], NoReturn]) -> Iterator[S3Server]:
    """A server whose objects outlive it."""
    folder = tmp_path / "buckets"
    folder.mkdir()
    yield from running(localbucket(folder), "localbucket", server_missing)


@pytest.fixture
def bucket(server: S3Server) -> str:
    """A new bucket."""
    return server.make_bucket(f"bucket-{secrets.token_hex(6)}")


@pytest.fixture
def store(server: S3Server, bucket: str) -> ObjectStore:
    """A store of one bucket."""
    return open_objects(f"s3://{bucket}?endpoint={server.endpoint}")


def store_of(server: S3Server, bucket: str, **options: Any) -> ObjectStore:
    """A store whose timeouts a test can wait for."""
    location = ObjectLocation("s3", (bucket,), endpoint=server.endpoint)
    return ObjectStore(location, **{"connect_timeout": 1.0, "request_timeout": 0.3, **options})


def raw_client(server: S3Server) -> Any:
    """boto3, for what is not to be asked of the code under test."""
    boto3 = pytest.importorskip("boto3")
    return boto3.client("s3", endpoint_url=server.endpoint)


def object_names(server: S3Server, bucket: str) -> list[str]:
    """Names of all objects, as another client sees them."""
    return [item["Key"] for item in raw_client(server).list_objects_v2(Bucket=bucket).get("Contents", [])]


class TestObjectStore(StoreContract):
    """Objects pass the contract on a server with bulk delete."""

    @pytest.fixture
    def store(self, server: S3Server, bucket: str) -> Store:
        """A store of an empty bucket."""
        return open_objects(f"s3://{bucket}/some/prefix?endpoint={server.endpoint}")


class TestObjectStoreWithoutBulkDelete(StoreContract):
    """Objects pass the contract on a server without it, and in two buckets."""

    @pytest.fixture
    def store(self, lasting: S3Server) -> Store:
        """A store of two empty buckets."""
        for name in ("one", "two"):
            lasting.make_bucket(f"bucket-{name}")
        return open_objects(f"s3://bucket-one,bucket-two?endpoint={lasting.endpoint}&bulk_delete=false")


# --- URLs


@pytest.mark.parametrize(
    "url, expected",
    [
        ("s3://bucket", ObjectLocation("s3", ("bucket",), "traces")),
        ("s3://bucket/", ObjectLocation("s3", ("bucket",), "traces")),
        ("s3://a1,b2/jobs/trace%20s/", ObjectLocation("s3", ("a1", "b2"), "jobs/trace s")),
        (
            "s3://bucket?endpoint=http://127.0.0.1:9000/&region=eu-central-1&path_style=true&bulk_delete=False",
            ObjectLocation(
                "s3",
                ("bucket",),
                endpoint="http://127.0.0.1:9000",
                region="eu-central-1",
                path_style=True,
                bulk_delete=False,
            ),
        ),
        ("gs://bucket/prefix", ObjectLocation("gs", ("bucket",), "prefix")),
        ("az://container/prefix?account=acc", ObjectLocation("az", ("container",), "prefix", account="acc")),
    ],
)
def test_urls(url: str, expected: ObjectLocation) -> None:
    """A URL names buckets, a prefix, and how they are reached."""
    assert parse_object_url(url) == expected


@pytest.mark.parametrize(
    "url, match",
    [
        ("s3://", "no bucket's name"),
        ("s3://a1,,b2", "no bucket's name"),
        ("s3://a1,a1", "twice"),
        ("s3://under/../x", "prefix"),
        ("s3://bucket/a%00b", "prefix"),
        ("s3://bucket/a%0Ab", "control characters"),
        ("s3://bucket?endpont=http://x", "did you mean endpoint"),
        ("s3://bucket?endpoint=localhost:9000", "no http:// or https:// address"),
        ("s3://bucket?endpoint=http://host:port", "endpoint"),
        ("s3://bucket?endpoint=", "empty"),
        ("s3://bucket?path_style=maybe", "true or false"),
        ("s3://bucket#x", "fragment"),
        ("gs://bucket?region=x", "takes none"),
        ("az://bucket?region=x", "account, endpoint"),
        ("ftp://bucket", "s3, gs, az"),
        ("s3://[bucket", "cannot be read"),
    ],
)
def test_wrong_urls_say_what_is_allowed(url: str, match: str) -> None:
    """Each mistake in a URL is a `ConfigurationError` that says what is wrong."""
    with pytest.raises(ConfigurationError, match=match):
        open_objects(url)


@pytest.mark.parametrize(
    "url",
    [
        f"s3://{KEY}:{SECRET}@bucket",
        f"s3://{KEY}@bucket,other/prefix",
        f"s3://bucket?access_key_id={SECRET}",
        f"s3://bucket?session_token={SECRET}",
        f"s3://bucket?endpoint=http://{KEY}:{SECRET}@127.0.0.1:9000",
        f"az://bucket?sas={SECRET}",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    """A URL with credentials is refused by a message that holds none of them."""
    with pytest.raises(ConfigurationError, match=r"leave (it|them) out") as caught:
        open_objects(url)
    assert SECRET not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["gs://bucket/prefix", "az://container/prefix?account=acc"])
def test_google_and_azure_clients_can_be_made(url: str) -> None:
    """Clients of Google's and Azure's stores are made from their URLs, without connecting to anything."""
    store = open_objects(url)
    location = store.location
    assert type(open_bucket(location, location.buckets[0], 5, 30)).__name__ in ("GCSStore", "AzureStore")
    assert store.uri(FOLDER) == f"{url.partition('/prefix')[0]}/7/prefix/{FOLDER.key}/{FOLDER.reference}"


def test_an_azure_url_without_an_account() -> None:
    """A client that cannot be made is a `ConfigurationError` that says what is missing."""
    with pytest.raises(ConfigurationError, match=r"[Aa]ccount"):
        open_objects("az://container").names(FOLDER)


@pytest.mark.parametrize(
    "options, endpoint, virtual",
    [
        ({}, None, None),
        ({"endpoint": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000", "false"),
        ({"endpoint": "https://s3.host/", "path_style": False}, "https://bucket.s3.host/", "true"),
        ({"path_style": False}, None, "true"),
    ],
)
def test_path_style(options: dict[str, Any], endpoint: str | None, virtual: str | None) -> None:
    """The bucket stands in the path by default, and before the endpoint's host where that is asked for."""
    client = open_bucket(ObjectLocation("s3", ("bucket",), **options), "bucket", 5, 30)
    assert client.config.get("endpoint") == endpoint
    assert client.config.get("virtual_hosted_style_request") == virtual


def test_a_missing_package_names_the_extra() -> None:
    """Without obstore, opening says what to install."""
    script = """
    import sys
    sys.modules["obstore"] = None
    from importlib import util
    found = util.find_spec
    util.find_spec = lambda name: None if name == "obstore" else found(name)
    from trifle_otel.errors import MissingDependency
    from trifle_otel.stores.objects import open_objects
    try:
        open_objects("s3://bucket")
    except MissingDependency as error:
        print(error)
    """
    assert "pip install 'trifle-otel[s3]'" in run_script(script)


# --- what is where


def test_the_layout_is_triflelike(server: S3Server, bucket: str, store: ObjectStore) -> None:
    """Objects are named `<retention>/<prefix>/<key>/<reference>/<name>`, as Ruby's S3 driver names them."""
    store.write(FOLDER, "data_1.json.gz", b"part")
    store.write(FOLDER._replace(retention=14, key="Space Job/ünï 日本"), "artifacts/sub dir/a+b?&#%.txt", b"artifact")
    assert object_names(server, bucket) == [
        "14/traces/Space Job/ünï 日本/01KDYAK3SEABCDEFGHJKMNPQRS/artifacts/sub dir/a+b?&#%.txt",
        "7/traces/commodity/calculate/one/01KDYAK3SEABCDEFGHJKMNPQRS/data_1.json.gz",
    ]
    assert store.uri(FOLDER) == f"s3://{bucket}/7/traces/commodity/calculate/one/01KDYAK3SEABCDEFGHJKMNPQRS"


def test_a_trace_lies_in_the_bucket_that_it_names(server: S3Server) -> None:
    """Traces are spread over the buckets, each in its own; no bucket means the first; an unknown one is told."""
    names = [server.make_bucket(f"bucket-{secrets.token_hex(6)}") for _ in range(3)]
    store = open_objects(f"s3://{','.join(names)}?endpoint={server.endpoint}")
    random.seed(20_261_124)
    assert {store.pick_bucket() for _ in range(100)} == set(names)
    folders = [FOLDER._replace(reference=f"ref-{name}", bucket=name) for name in names]
    for folder in folders:
        store.write(folder, "data_1.json", folder.reference.encode())
    for name in names:
        assert object_names(server, name) == [f"7/traces/commodity/calculate/one/ref-{name}/data_1.json"]
    assert sorted(store.folders()) == sorted(folders)
    assert store.names(folders[0]._replace(bucket=None)) == ["data_1.json"]
    assert store.names(folders[1]._replace(bucket=None)) == []
    for call in (store.names, store.delete, lambda folder: store.write(folder, "record.json", b"")):
        with pytest.raises(ConfigurationError, match=r"'elsewhere'.*add it"):
            call(FOLDER._replace(bucket="elsewhere"))


def test_a_bucket_that_the_url_names_no_more_is_told(server: S3Server, bucket: str) -> None:
    """Reading such a trace, and `doctor`, name the bucket and what to do; other traces are read."""
    with closing(Archive(open_objects(f"s3://{bucket}?endpoint={server.endpoint}"), MemoryIndex())) as archive:
        now = datetime.now(timezone.utc)
        here, gone = (
            sample_record(reference=name, bucket_name=name, parts=1, first_at=now) for name in (bucket, "dropped")
        )
        archive.store.write(here.folder, "data_1.json", b"[]")
        archive.index.put([here, gone])
        assert archive.entries(here) == []
        for read in (archive.entries, lambda record: archive.artifact(record, "a.txt")):  # as viewer and commands do
            with pytest.raises(ConfigurationError, match=rf"in the bucket 'dropped', which s3://{bucket}.* add it"):
                read(gone)
        found = {finding.what: finding for finding in examine(archive)}
        assert found["archive"].state == "success"
        assert found["payloads"].state == "error"
        assert re.search(r"in the bucket 'dropped', .* add it", found["payloads"].message)


class PanicException(BaseException):
    """What pyo3 makes of a panic in Rust."""


def test_a_panic_of_obstore_is_an_error_of_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no outage, which would hold up others, and ends no thread; an interruption passes."""
    store = open_objects("s3://bucket?endpoint=http://127.0.0.1:9")

    def put(client: Any, path: str, *arguments: Any, **options: Any) -> None:
        if "ref-00000" in path:
            raise PanicException("index out of bounds")

    monkeypatch.setattr(load_obstore(), "put", put)
    moves = batch_of(tmp_path, 3)
    errors = store.take_many(moves)
    assert [type(error) for error in errors] == [TrifleError, type(None), type(None)]
    assert [local.exists() for _, local in moves] == [True, False, False]

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load_obstore(), "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write(FOLDER, "record.json", b"{}")


def test_only_traces_are_folders(server: S3Server, bucket: str, store: ObjectStore) -> None:
    """Other prefixes, strange retention classes, markers of folders and loose objects are passed over."""
    store.write(FOLDER, "data_1.json", b"x")
    client = raw_client(server)
    names = (
        *(
            "7/other/a/ref/data_1.json",
            "7/traces2/a/ref/data_1.json",
            "07/traces/a/ref/data_1.json",
            "x/traces/a/r/data_1.json",
        ),
        *(
            "7/traces/ref/data_1.json",
            "7/traces/data_1.json",
            "7/traces/a/empty/notes.txt",
            "7/traces/a/marker/",
            "data_1.json",
        ),
        f"7/traces/{FOLDER.key}/{FOLDER.reference}/artifacts/a/b/data_1.json",
    )
    for name in names:
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    assert list(store.folders()) == [FOLDER._replace(bucket=bucket)]


def test_a_name_that_no_folder_could_have_is_damage(server: S3Server, bucket: str, store: ObjectStore) -> None:
    """An object of somebody else whose name climbs out is told when listing, rather than passed over."""
    store.write(FOLDER, "data_1.json", b"x")
    raw_client(server).put_object(Bucket=bucket, Key="7/traces/a/../../x/data_1.json", Body=b"")
    with pytest.raises(DamagedArchive, match=r"7/traces"):
        list(store.folders())


@pytest.mark.parametrize("changes", [{"key": "a\nb"}, {"reference": "a\x7fb"}])
def test_control_characters_are_refused(store: ObjectStore, changes: dict[str, Any]) -> None:
    """Names that object stores do not take are `UsageError` before anything is sent."""
    with pytest.raises(UsageError, match="control characters"):
        store.write(FOLDER._replace(**changes), "data_1.json", b"x")
    with pytest.raises(UsageError, match="control characters"):
        store.write(FOLDER, "artifacts/a\x1fb", b"x")


def test_a_name_that_is_too_long_does_not_pass_for_an_outage(store: ObjectStore) -> None:
    """What the store will never take is `UsageError`: waiting would not help, and hold others up."""
    with pytest.raises(UsageError, match="longer than 1024 bytes"):
        store.write(FOLDER, "artifacts/" + "ü" * 480, b"x")


# --- large and many


def test_a_large_file_is_stored_in_pieces(server: S3Server, bucket: str, store: ObjectStore, tmp_path: Path) -> None:
    """A file of several pieces is stored whole, and read as it was, in pieces too."""
    source = tmp_path / "large"
    piece = random.Random(1).randbytes(1 << 20)
    with source.open("wb") as stream:
        for number in range(21):
            stream.write(bytes([number]) + piece[1:])
    store.write(FOLDER, "artifacts/large", source)
    head = raw_client(server).head_object(
        Bucket=bucket, Key=f"7/traces/{FOLDER.key}/{FOLDER.reference}/artifacts/large"
    )
    assert head["ContentLength"] == 21 << 20
    assert re.fullmatch('"[0-9a-f]{32}-3"', head["ETag"])  # three pieces
    with store.open(FOLDER, "artifacts/large") as stream:
        for number in range(21):
            assert stream.read(1 << 20) == bytes([number]) + piece[1:]
        assert stream.read() == b""


@pytest.mark.slow
def test_memory_does_not_grow_with_an_object(lasting: S3Server, tmp_path: Path) -> None:
    """A file of 300 MB is stored and read by a process whose memory grows by less than 100 MB."""
    lasting.make_bucket("bucket-one")
    source = tmp_path / "large"
    with source.open("wb") as stream:
        stream.truncate(300_000_000)
    script = """
    import resource, sys
    from pathlib import Path
    from trifle_otel.records import Folder
    from trifle_otel.stores.objects import open_objects
    store, folder = open_objects(sys.argv[1]), Folder(7, "a", "ref")
    store.write(folder, "small", b"x")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store.write(folder, "large", Path(sys.argv[2]))
    size = 0
    with store.open(folder, "large") as stream:
        while chunk := stream.read(1 << 16):
            size += len(chunk)
    print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    size, growth = map(int, run_script(script, f"s3://bucket-one?endpoint={lasting.endpoint}", str(source)).split())
    assert size == 300_000_000
    assert growth < 100_000 * (1 if sys.platform != "darwin" else 1024)


@pytest.mark.parametrize("count", [1_010, pytest.param(2_500, marks=pytest.mark.slow)])
def test_more_objects_than_one_request_deletes(server: S3Server, bucket: str, store: ObjectStore, count: int) -> None:
    """A trace of more objects than a request deletes is listed and deleted in full, and its neighbour stays."""
    stays = FOLDER._replace(reference="neighbour")
    store.write(stays, "record.json", b"r")
    names = sorted(["record.json", *(f"artifacts/{number:04}" for number in range(count - 1))])
    at_once([partial(store.write, FOLDER, name, b"x") for name in names], 8)
    assert store.names(FOLDER) == names
    store.delete(FOLDER)
    assert store.names(FOLDER) == []
    assert object_names(server, bucket) == [f"7/traces/{stays.key}/neighbour/record.json"]


@pytest.mark.slow
def test_many_traces_are_listed_in_bounded_memory(lasting: S3Server, tmp_path: Path) -> None:
    """All folders of 10,000 traces of two objects are found by a process whose memory grows by less than 8 MB."""
    lasting.make_bucket("bucket-one")
    for number in range(10_000):
        place = tmp_path / f"buckets/bucket-one/7/traces/job-{number % 50}/ref-{number:06}"
        place.mkdir(parents=True)
        for name in ("data_1.json.gz", "record.json"):
            (place / name).touch()
    script = """
    import resource, sys
    from trifle_otel.records import Folder
    from trifle_otel.stores.objects import open_objects
    store = open_objects(sys.argv[1])
    store.names(Folder(7, "job-1", "ref-000001"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(sum(1 for _ in store.folders()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    found, growth = map(int, run_script(script, f"s3://bucket-one?endpoint={lasting.endpoint}").split())
    assert found == 10_000
    assert growth < 8_000 * (1 if sys.platform != "darwin" else 1024)


# --- what goes wrong


def test_nobody_listens() -> None:
    """A server that is not there is `StoreUnavailable` for every call, soon, with the driver's error as its cause."""
    store = open_objects(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}")
    for call in (store.names, store.delete, lambda folder: store.write(folder, "record.json", b"x")):
        with pytest.raises(StoreUnavailable, match="connection is refused") as caught:
            call(FOLDER)
        assert type(caught.value.__cause__).__name__ == "GenericError"
    with pytest.raises(StoreUnavailable):
        list(store.folders())
    with pytest.raises(StoreUnavailable) as unreachable:
        store.check()
    assert not isinstance(unreachable.value, Refused)


def test_a_server_that_hangs(server: S3Server, bucket: str) -> None:
    """A server that accepts connections and says nothing is `StoreUnavailable` after the timeout, and works again."""
    store = store_of(server, bucket)
    server.hang()
    try:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable, match="no answer came in time"):
            store.write(FOLDER, "record.json", b"x")
        assert time.monotonic() - begun < 12
    finally:
        server.go_on()
    other = FOLDER._replace(reference="other")  # what was given up may still arrive late
    store.write(other, "record.json", b"y")
    assert contents(store, other) == {"record.json": b"y"}


def test_a_hanging_server_is_tried_once_for_a_batch(server: S3Server, bucket: str, tmp_path: Path) -> None:
    """Of a batch of thirty traces each is `StoreUnavailable` in the time of one, and none is lost."""
    store = store_of(server, bucket, at_once=2)
    moves = batch_of(tmp_path, 30)
    server.hang()
    try:
        begun = time.monotonic()
        errors = store.take_many(moves)
        assert time.monotonic() - begun < 20
    finally:
        server.go_on()
    assert [type(error) for error in errors] == [OutOfReach] * 30
    assert store.take_many(moves) == [None] * 30
    assert sum(1 for _ in store.folders()) == 30


def test_a_bucket_that_is_missing(server: S3Server, tmp_path: Path) -> None:
    """A missing bucket is a configuration error when checking; traces wait for somebody to make it."""
    name = f"missing-{secrets.token_hex(6)}"
    store = open_objects(f"s3://{name}?endpoint={server.endpoint}")
    with pytest.raises(ConfigurationError, match=f"{name}.*the bucket is not there"):
        store.check()
    local = local_folder(tmp_path, {"data_1.json": b"x", "record.json": b"r"})
    for call in (store.names, store.delete, lambda folder: store.take(folder, local)):
        with pytest.raises(StoreUnavailable, match="the bucket is not there"):
            call(FOLDER)
    with pytest.raises(StoreUnavailable):
        store.open(FOLDER, "data_1.json")
    with pytest.raises(StoreUnavailable):
        list(store.folders())
    server.make_bucket(name)
    store.take(FOLDER, local)
    assert contents(store, FOLDER) == {"data_1.json": b"x", "record.json": b"r"}


def test_one_bucket_of_several_is_missing(server: S3Server, bucket: str, tmp_path: Path) -> None:
    """Checking looks at every bucket; traces of the others are stored."""
    store = open_objects(f"s3://{bucket},missing-bucket?endpoint={server.endpoint}")
    with pytest.raises(ConfigurationError, match="missing-bucket"):
        store.check()
    moves = [
        (folder._replace(bucket=name), local)
        for folder, local in batch_of(tmp_path, 4)
        for name in [(bucket, "missing-bucket")[int(folder.reference[-1]) % 2]]
    ]
    assert [type(error) for error in store.take_many(moves)] == [type(None), Refused, type(None), Refused]


@pytest.fixture
def guarded(server: S3Server) -> Iterator[S3Server]:
    """The server, asking for credentials that it knows: ours it does not."""
    server.request("POST", "/moto-api/reset-auth", b"0")
    try:
        yield server
    finally:
        server.request("POST", "/moto-api/reset-auth", b"1000000000")


def test_wrong_credentials(bucket: str, guarded: S3Server, tmp_path: Path) -> None:
    """Refused credentials are a configuration error when checking, and traces wait; no message holds them."""
    store = open_objects(f"s3://{bucket}?endpoint={guarded.endpoint}")
    errors: list[TrifleError] = []
    with pytest.raises(ConfigurationError, match="403 InvalidAccessKeyId") as caught:
        store.check()
    errors.append(caught.value)
    for call in (store.names, store.delete, lambda folder: store.write(folder, "record.json", b"x")):
        with pytest.raises(StoreUnavailable, match="403 InvalidAccessKeyId") as waiting:
            call(FOLDER)
        errors.append(waiting.value)
    local = local_folder(tmp_path, {"data_1.json": b"x"})
    assert [type(error) for error in store.take_many([(FOLDER, local)])] == [Refused]
    assert (local / "data_1.json").exists()
    for error in errors:
        text = "".join(traceback.format_exception(error)) + repr(error)
        assert not [word for word in (KEY, SECRET) if word in text]


def test_answers_that_repeat_keys_and_tokens_are_not_passed_on() -> None:
    """Of a server's answer the message and the cause keep the code alone: it can hold the session's token."""
    answer = (
        "Generic S3 error: Error performing PUT http://h/b/7/x in 3ms - Server returned non-2xx status code: "
        f"400 Bad Request: <Error><Code>InvalidToken</Code><Token-0>{TOKEN}</Token-0>"
        f"<AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>\n\nDebug source: {TOKEN}"
    )
    error = translated(load_obstore().exceptions.GenericError(answer), "s3://b/7/x")
    assert type(error) is Refused
    assert str(error) == "s3://b/7/x: the store answered 400 InvalidToken"
    text = "".join(traceback.format_exception(error))
    assert "Error performing PUT" in text
    assert not [word for word in (KEY, TOKEN) if word in text]


STATUS = "Generic S3 error: Error performing PUT http://h/b/x in 3ms - Server returned non-2xx status code: "


@pytest.mark.parametrize(
    "answer, kind",
    [
        ("503 Service Unavailable: <Error><Code>SlowDown</Code></Error>", OutOfReach),
        ("500 Internal Server Error: ", OutOfReach),
        ("429 Too Many Requests: ", OutOfReach),
        ("400 Bad Request: <Error><Code>ExpiredToken</Code></Error>", OutOfReach),
        ("400 Bad Request: <Error><Code>RequestTimeout</Code></Error>", OutOfReach),
        ("403 Forbidden: <Error><Code>AccessDenied</Code></Error>", Refused),
        ("403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>", Refused),
        ("301 Moved Permanently: <Error><Code>PermanentRedirect</Code></Error>", Refused),
        ("501 Not Implemented: <Error><Code>NotImplemented</Code></Error>", Refused),
        ("400 Bad Request: <Error><Code>KeyTooLongError</Code></Error>", UsageError),
        ("400 Bad Request: <Error><Code>EntityTooLarge</Code></Error>", UsageError),
    ],
)
def test_what_may_pass_is_told_from_what_cannot(answer: str, kind: type[Exception]) -> None:
    """Throttling, outages and expired tokens wait; refusals wait for somebody; bad requests do not wait."""
    assert type(translated(load_obstore().exceptions.GenericError(STATUS + answer), "s3://b/x")) is kind


def test_no_credentials_anywhere() -> None:
    """Where neither the environment nor the instance gives credentials, the message says so."""
    text = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1s - HTTP error"
    error = translated(load_obstore().exceptions.GenericError(text), "s3://b/x")
    assert type(error) is OutOfReach
    assert "no credentials were found" in str(error)


def test_nothing_shows_credentials(store: ObjectStore) -> None:
    """The store's own texts hold no credentials."""
    store.names(FOLDER)
    assert not [word for word in (KEY, SECRET) if word in f"{store!r}{store.location!r}{vars(store)!r}"]


def test_a_writer_that_may_not_delete(server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checking passes for one who may put and get alone, as lifecycle rules make enough."""
    policy = {"Action": ["s3:PutObject", "s3:GetObject", "s3:ListBucket"], "Effect": "Allow", "Resource": "*"}
    boto3 = pytest.importorskip("boto3")
    iam = boto3.client("iam", endpoint_url=server.endpoint)
    name = f"writer-{secrets.token_hex(4)}"
    iam.create_user(UserName=name)
    document = json.dumps({"Version": "2012-10-17", "Statement": [policy]})
    iam.put_user_policy(UserName=name, PolicyName="write", PolicyDocument=document)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
    store = open_objects(f"s3://{bucket}?endpoint={server.endpoint}")
    server.request("POST", "/moto-api/reset-auth", b"0")
    try:
        store.check()
        store.write(FOLDER, "record.json", b"x")
        with pytest.raises(StoreUnavailable, match="AccessDenied"):
            store.delete(FOLDER)
    finally:
        server.request("POST", "/moto-api/reset-auth", b"1000000000")


def test_taking_goes_on_where_it_stopped(lasting: S3Server, tmp_path: Path) -> None:
    """After the server was killed amid a trace, the next take finishes it, and its record comes last."""
    lasting.make_bucket("bucket-one")
    store = store_of(lasting, "bucket-one")
    local = local_folder(tmp_path, {**{f"data_{n}.json": b"%d" % n for n in range(1, 9)}, "record.json": b"r"})

    class Dying(ObjectStore):
        left = 4

        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            self.left -= 1
            if not self.left:
                lasting.kill()
            super().write(folder, name, data)

    with pytest.raises(StoreUnavailable):
        Dying(store.location, at_once=1).take(FOLDER, local)
    lasting.start()
    there = store.names(FOLDER)
    assert 0 < len(there) < 8
    assert "record.json" not in there
    store.take(FOLDER, local)
    assert contents(store, FOLDER) == {**{f"data_{n}.json": b"%d" % n for n in range(1, 9)}, "record.json": b"r"}
    assert not local.exists()


@pytest.mark.fault
def test_a_server_killed_and_restarted_under_load(lasting: S3Server, tmp_path: Path) -> None:
    """While the server is killed and started three times, every trace arrives, whole, by trying again."""
    lasting.make_bucket("bucket-one")
    store = store_of(lasting, "bucket-one")
    waiting = batch_of(tmp_path, 600)
    done, rounds = 0, 0
    while waiting:
        assert rounds < 200, "no progress"
        batch, waiting = waiting[:64], waiting[64:]
        killer = None
        if rounds in (1, 3, 5):
            killer = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "import os, signal, sys, time; time.sleep(0.02); os.kill(int(sys.argv[1]), 9)",
                    str(lasting.pid),
                ]
            )
        errors = store.take_many(batch)
        if killer is not None:
            killer.wait()
            lasting.kill()
            lasting.start()
        waiting += [move for move, error in zip(batch, errors, strict=True) if error is not None]
        assert {type(error) for error in errors} <= {type(None), OutOfReach}
        done += errors.count(None)
        rounds += 1
    assert done == 600
    found = listed(store)
    assert len(found) == 600
    wrong: list[Folder] = []

    def look(folder: Folder) -> None:
        number = int(folder.reference.removeprefix("ref-"))
        for name, data in (("data_1.json.gz", b"%d" % number * 300), ("record.json", b"%d" % number)):
            with store.open(folder, name) as stream:
                if stream.read() != data:
                    wrong.append(folder)

    at_once([partial(look, folder) for folder in found], 16)
    assert wrong == []


def listed(store: ObjectStore) -> list[Folder]:
    """All folders, as soon as no connection to the server that was killed is in the way: reading is tried by hand."""
    for _ in range(20):
        try:
            return list(store.folders())
        except OutOfReach:
            continue
    return list(store.folders())


def batch_of(where: Path, count: int) -> list[tuple[Folder, Path]]:
    """Traces of two small files each, as a spool hands them to a store."""
    moves = []
    for number in range(count):
        place = where / f"spool/{number}"
        place.mkdir(parents=True)
        files = {"data_1.json.gz": b"%d" % number * 300, "record.json": b"%d" % number}
        moves.append((FOLDER._replace(reference=f"ref-{number:05}"), local_folder(place, files)))
    return moves


# --- threads, forks and the end of a process


def run_script(script: str, *arguments: str) -> str:
    """Run a script in a process of its own; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_no_more_than_the_bound_is_under_way(server: S3Server, bucket: str, tmp_path: Path) -> None:
    """A batch has as many uploads under way as its bound allows, and at once."""
    meeting = threading.Barrier(4, timeout=20)
    under_way: list[int] = []
    most: list[int] = []

    class Watched(ObjectStore):
        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            under_way.append(1)
            most.append(len(under_way))
            meeting.wait()  # all four, or the test fails
            super().write(folder, name, data)
            under_way.pop()

    location = ObjectLocation("s3", (bucket,), endpoint=server.endpoint)
    assert Watched(location, at_once=4).take_many(batch_of(tmp_path, 8)) == [None] * 8
    assert max(most) == 4


def test_large_files_are_not_all_in_memory_at_once(server: S3Server, bucket: str, tmp_path: Path) -> None:
    """Of large files two are under way at once, however many requests may be."""
    under_way: list[int] = []
    most: list[int] = []
    lock = threading.Lock()

    class Watched(ObjectStore):
        def write(self, folder: Folder, name: str, data: bytes | Path) -> None:
            with lock:
                under_way.append(1)
                most.append(len(under_way))
            super().write(folder, name, data)
            under_way.pop()

    local = local_folder(tmp_path, {f"artifacts/{number}": bytes(1 << 20) for number in range(8)})
    Watched(ObjectLocation("s3", (bucket,), endpoint=server.endpoint)).take(FOLDER, local)
    assert len(most) == 8
    assert max(most) <= 2


def test_without_threads_one_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, as at the interpreter's end, the tasks are done one after the other."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    at_once([partial(done.append, number) for number in range(20)], 8)
    assert done == list(range(20))


def test_taking_at_the_end_of_a_process(lasting: S3Server, tmp_path: Path) -> None:
    """What runs at exit can still ship."""
    lasting.make_bucket("bucket-one")
    local_folder(tmp_path, {"data_1.json": b"1", "data_2.json": b"2", "record.json": b"r"})
    script = """
    import atexit, sys
    from pathlib import Path
    from trifle_otel.records import Folder
    from trifle_otel.stores.objects import open_objects
    store = open_objects(sys.argv[1])
    atexit.register(lambda: store.take(Folder(7, "a", "ref"), Path(sys.argv[2])))
    """
    url = f"s3://bucket-one?endpoint={lasting.endpoint}"
    run_script(script, url, str(tmp_path / "local"))
    assert open_objects(url).names(Folder(7, "a", "ref")) == ["data_1.json", "data_2.json", "record.json"]


@pytest.mark.fault
def test_a_process_may_end_amid_uploads(lasting: S3Server) -> None:
    """Of twenty processes that end while threads upload, none is aborted."""
    lasting.make_bucket("bucket-one")
    script = """
    import sys, threading, time
    from trifle_otel.records import Folder
    from trifle_otel.stores.objects import open_objects
    store = open_objects(sys.argv[1])
    begun = threading.Event()
    def upload():
        while True:
            store.write(Folder(7, "a", "ref"), "data_1.json", b"x")
            begun.set()
    for _ in range(6):
        threading.Thread(target=upload, daemon=True).start()
    begun.wait()
    """
    for _ in range(20):
        run_script(script, f"s3://bucket-one?endpoint={lasting.endpoint}")


FORKING = """
import os, sys, threading
from trifle_otel.records import Folder
from trifle_otel.stores.objects import open_objects
store = open_objects(sys.argv[1])
used = sys.argv[2] == "used"
stop = threading.Event()
def write(name):
    store.write(Folder(7, "a", name), "record.json", name.encode())
def keep_busy():
    while not stop.is_set():
        write("busy")
threads = [threading.Thread(target=keep_busy) for _ in range(3 if used else 0)]
for thread in threads:
    thread.start()
if used:
    write("parent-before")
child = os.fork()
if not child:
    write("child")
    grandchild = os.fork()
    if not grandchild:
        write("grandchild")
        sys.exit(0)
    sys.exit(os.waitpid(grandchild, 0)[1] != 0)
status = os.waitpid(child, 0)[1]
stop.set()
for thread in threads:
    thread.join()
write("parent-after")
sys.exit(status != 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("use", ["used", "unused"])
def test_forked_children_store(lasting: S3Server, use: str) -> None:
    """A child and its child store, though threads of their parent were storing when it forked, or had not yet."""
    lasting.make_bucket("bucket-one")
    url = f"s3://bucket-one?endpoint={lasting.endpoint}"
    run_script(FORKING, url, use)
    found = {folder.reference for folder in open_objects(url).folders()}
    assert found >= {"child", "grandchild", "parent-after"} | ({"parent-before"} if use == "used" else set())


def test_nothing_is_loaded_or_connected_to_before_the_first_call() -> None:
    """Making a store neither loads obstore nor opens a connection."""
    script = """
    import sys, threading
    from trifle_otel.stores.objects import open_objects
    store = open_objects("s3://bucket?endpoint=http://127.0.0.1:9")
    store.pick_bucket(); repr(store); store.setup(); store.close()
    print("obstore" in sys.modules, threading.active_count())
    """
    assert run_script(script).split() == ["False", "1"]


# --- lifecycle rules

RULE_7 = {"ID": "trifle-traces-7d", "Filter": {"Prefix": "7/traces/"}, "Status": "Enabled", "Expiration": {"Days": 7}}
RULE_180 = {
    "ID": "trifle-traces-180d",
    "Filter": {"Prefix": "180/traces/"},
    "Status": "Enabled",
    "Expiration": {"Days": 180},
}
OTHERS = {"ID": "theirs", "Filter": {"Prefix": "logs/"}, "Status": "Disabled", "Expiration": {"Days": 30}}


def test_rules_as_plain_data() -> None:
    """The rules for another tool are those of the Trifle format: id, prefix and days, each class once."""
    store = open_objects("s3://bucket")
    assert store.lifecycle_rules([180, 7, 7]) == [RULE_7, RULE_180]
    assert json.loads(json.dumps(store.lifecycle_rules([7]))) == [RULE_7]
    assert open_objects("s3://bucket/a/b").lifecycle_rules([3])[0]["Filter"] == {"Prefix": "3/a/b/"}
    with pytest.raises(ConfigurationError, match="0 days"):
        store.lifecycle_rules([7, 0])


def test_rules_are_put_beside_others(server: S3Server, bucket: str, store: ObjectStore) -> None:
    """Each class gets its rule, others' rules stay as they are, and doing it again changes nothing."""
    client = raw_client(server)
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [OTHERS]})

    def there() -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        return answer

    before = there()
    store.lifecycle([7])
    store.lifecycle([180, 7])
    after = there()
    assert after[: len(before)] == before
    assert after[len(before) :] == [RULE_7, RULE_180]
    store.lifecycle([7])
    assert there() == after


def test_rules_are_put_on_every_bucket(server: S3Server) -> None:
    """Every bucket of the archive gets the rules, one without any rules too."""
    names = [server.make_bucket(f"bucket-{secrets.token_hex(6)}") for _ in range(2)]
    open_objects(f"s3://{','.join(names)}?endpoint={server.endpoint}").lifecycle([7])
    for name in names:
        assert raw_client(server).get_bucket_lifecycle_configuration(Bucket=name)["Rules"] == [RULE_7]


def test_a_rule_that_was_changed_is_put_right() -> None:
    """Ours with other days or switched off is put right, in its place and with what else it says."""
    changed = {**RULE_7, "Status": "Disabled", "Expiration": {"Days": 9}, "NoncurrentVersionExpiration": {"Days": 1}}
    assert merged([changed, OTHERS], [RULE_7]) == [{**RULE_7, "NoncurrentVersionExpiration": {"Days": 1}}, OTHERS]


def test_two_archives_in_one_bucket_have_a_rule_each() -> None:
    """The rule of an archive with another prefix stays, though the format gives it the same id."""
    ours = rules([7], "jobs")
    both = merged([RULE_7], ours)
    assert both == [RULE_7, {**ours[0], "ID": "trifle-traces-7d-7-jobs-"}]
    assert merged(both, ours) == both


def test_rules_of_the_older_form_are_kept_in_it() -> None:
    """Beside rules whose prefix stands outside a filter, which S3 does not mix, ours take that form."""
    older = {"ID": "theirs", "Prefix": "logs/", "Status": "Enabled", "Expiration": {"Days": 1}}
    new = {"ID": "trifle-traces-7d", "Prefix": "7/traces/", "Status": "Enabled", "Expiration": {"Days": 7}}
    assert merged([older], [RULE_7]) == [older, new]
    assert merged([older, new], [RULE_7]) == [older, new]


def test_rules_without_boto3_or_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without boto3 the extra is named; Google's and Azure's own tools are referred to, with the prefixes."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingDependency, match=r"pip install 'trifle-otel\[s3-setup\]'"):
        open_objects("s3://bucket").lifecycle([7])
    with pytest.raises(ConfigurationError, match="7/traces/ after 7 days"):
        open_objects("gs://bucket").lifecycle([7])


def test_rules_of_a_missing_bucket_and_of_no_server(server: S3Server) -> None:
    """A missing bucket is a configuration error, a server that is not there `StoreUnavailable`."""
    pytest.importorskip("boto3")
    with pytest.raises(ConfigurationError, match="NoSuchBucket"):
        open_objects(f"s3://no-such-bucket?endpoint={server.endpoint}").lifecycle([7])
    with pytest.raises(StoreUnavailable):
        open_objects(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}").lifecycle([7])
