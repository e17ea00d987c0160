"""Archives that Ruby wrote, read part by part and compared with what Ruby itself reads."""

from __future__ import annotations

import gzip
import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from trifle_otel import encoding
from trifle_otel.records import Folder

GOLDEN = Path(__file__).parent / "golden"
NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")  # escaped; after an odd number of backslashes it is text
CASES = sorted(path.parent for path in GOLDEN.glob("*/*/record.json"))


@pytest.fixture(params=CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def case(request: pytest.FixtureRequest) -> Path:
    """The folder of one golden archive."""
    folder: Path = request.param
    return folder


def expected_entries(case: Path) -> list[dict[str, Any]]:
    """What Ruby reads, by the standard library."""
    entries: list[dict[str, Any]] = json.loads((case / "entries.json").read_text(encoding="utf-8"))
    return entries


def expected_record(case: Path) -> dict[str, Any]:
    """The record as Ruby held it, by the standard library."""
    fields: dict[str, Any] = json.loads((case / "record.json").read_text(encoding="utf-8"))
    return fields


def parts(case: Path) -> list[Path]:
    """The files of the parts in the order of their numbers."""
    found = {}
    for path in (case / "archive").rglob("data_*"):
        named = encoding.parse_part_name(path.name)
        assert named is not None
        found[named[0]] = path
    return [found[number] for number in sorted(found)]


def test_all_cases_are_here() -> None:
    """The six archives are found, so that no test below passes for want of files."""
    assert [f"{case.parent.name}-{case.name}" for case in CASES] == [
        "gzip-deferred",
        "gzip-deferred-json",
        "gzip-live",
        "gzip-live-nothing-after-liftoff",
        "plain-deferred",
        "plain-live-two-parts-warning",
    ]


def test_every_part_is_read_as_ruby_reads_it(case: Path) -> None:
    """The parts, each decoded and put together, are the entries that Ruby reads, with their keys in the same order."""
    files = parts(case)
    read = [
        entry
        for path in files
        for entry in encoding.decode_part(path.read_bytes(), compressed=path.name.endswith(".gz"))
    ]
    expected = expected_entries(case)
    assert read == expected
    assert [list(entry) for entry in read] == [list(entry) for entry in expected]
    assert len(files) == expected_record(case)["parts"]
    assert len(read) == expected_record(case)["length"]


def test_a_part_lies_in_the_folder_of_its_trace(case: Path) -> None:
    """The path of a part is made of the record's retention, key and reference."""
    path = parts(case)[0].parent.relative_to(case / "archive").as_posix()
    fields = expected_record(case)
    assert path == Folder(fields["retention"], fields["key"], fields["reference"]).path


def test_every_artifact_of_an_entry_is_where_its_name_says(case: Path) -> None:
    """Each media entry's message is the name of a stored artifact with the entry's size."""
    media = [entry for entry in expected_entries(case) if entry["type"] == "media"]
    for entry in media:
        path = parts(case)[0].parent / encoding.artifact_name(entry["message"])
        assert path.stat().st_size == entry["size"]
    assert len(media) == expected_record(case)["counters"]["types"]["media"]


def test_every_field_of_a_record_is_read(case: Path) -> None:
    """The record is decoded field by field, its segments derived from the key, where Ruby's has none."""
    record = encoding.decode_record((case / "record.json").read_bytes())
    fields = expected_record(case)
    for name in ("reference", "key", "state", "meta", "context", "duration", "counters", "length", "parts"):
        assert getattr(record, name) == fields.pop(name)
    assert record.segments == ("commodity", "commodity/calculate", "commodity/calculate/one")
    assert record.tags == tuple(fields.pop("tags"))
    assert record.retention == fields.pop("retention") == 3
    assert record.bucket_name is fields.pop("bucket_name") is None
    for name in ("first_at", "last_at", "expires_at"):
        moment = datetime.strptime(fields.pop(name), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        assert getattr(record, name) == moment
    assert fields == {}


def test_a_record_is_written_as_ruby_holds_it(case: Path) -> None:
    """Ruby's record, decoded and encoded, has the same fields, values and order; the segments are added."""
    written = json.loads(encoding.encode_record(encoding.decode_record((case / "record.json").read_bytes())))
    assert written.pop("segments")[-1] == written["key"]
    assert list(written.items()) == list(expected_record(case).items())


def test_our_bytes_are_rubys_bytes(case: Path) -> None:
    """Each part that we encode anew is Ruby's JSON byte for byte, but for NUL, which is not for jsonb."""
    for path in parts(case):
        data = path.read_bytes()
        theirs = gzip.decompress(data) if path.name.endswith(".gz") else data
        entries = json.loads(theirs)
        assert encoding.encode_part(entries, compress=False) == NUL.sub(r"\1␀".encode(), theirs)
        assert gzip.decompress(encoding.encode_part(entries)) == encoding.encode_part(entries, compress=False)


def test_what_we_encode_is_read_back(case: Path) -> None:
    """The golden entries, encoded by us and read again, are the same but for NUL."""
    entries = expected_entries(case)
    for entry in entries:
        entry["message"] = entry["message"].replace("\0", "␀")
    for compress in (True, False):
        assert encoding.decode_part(encoding.encode_part(entries, compress=compress), compressed=compress) == entries
