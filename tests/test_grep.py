"""Searching payloads: every line that matches, with its number, out of parts of all kinds, damage included."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from viewing import Trace

from trifle_otel import grep, part_lines
from trifle_otel.archive import Archive
from trifle_otel.encoding import encode_part
from trifle_otel.errors import StoreUnavailable, UsageError
from trifle_otel.indexes.memory import MemoryIndex
from trifle_otel.patterns import Pattern
from trifle_otel.records import RUNNING, Folder, TraceRecord
from trifle_otel.stores.contract import OutOfReach
from trifle_otel.stores.memory import MemoryStore
from trifle_otel.testing import sample_record


@pytest.fixture
def archive() -> Archive:
    """An empty one in memory."""
    return Archive(MemoryStore(), MemoryIndex())


def one(archive: Archive, record: TraceRecord, pattern: Pattern, *, artifacts: bool = False) -> grep.Found:
    """What is found in a trace."""
    (found,) = grep.search(archive.store, [record], pattern, artifacts=artifacts)
    assert found.record == record
    return found


def trace_of(number: int, *messages: str) -> Trace:
    """A trace with these lines after its first."""
    trace = Trace("prices/one", number=number)
    for message in messages:
        trace.line(message)
    return trace


@pytest.fixture(params=["msgspec", "standard library"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read a part."""
    if request.param == "standard library":
        monkeypatch.setattr(part_lines, "decode", part_lines._decode_plainly)
        monkeypatch.setattr(part_lines, "decode_one", part_lines._decode_one_plainly)
        monkeypatch.setattr(part_lines, "count", part_lines._count_plainly)
    else:
        pytest.importorskip("msgspec")


def test_lines_are_numbered_through_all_parts(archive: Archive, decoder: None) -> None:
    """A line's number counts from the trace's first line, however many parts were passed over before it."""
    trace = trace_of(1, *(f"item {number}" for number in range(1, 40)), "needle", "item 41")
    trace.line("a needle as a warning", "warning")
    record = trace.store(archive, parts=7)
    found = one(archive, record, Pattern("needle"))
    assert found.hits == [
        grep.Hit(41, "needle", "success"),
        grep.Hit(43, "a needle as a warning", "warning"),
    ]
    assert found.damaged == []
    assert found.size > sum(len(entry["message"]) for entry in trace.entries)


def test_each_line_of_a_message_is_looked_at_by_itself(archive: Archive, decoder: None) -> None:
    """`^` and `$` are the ends of a line, and the line that matches is given, with the number of its message."""
    record = trace_of(1, "Traceback:\n  File one\nValueError: no\n  File two").store(archive)
    assert [hit.text for hit in one(archive, record, Pattern("^ +File")).hits] == ["  File one", "  File two"]
    assert one(archive, record, Pattern("File one$")).hits == [grep.Hit(2, "  File one", "success")]
    assert one(archive, record, Pattern(r"one\s+Value")).hits == []


@pytest.mark.parametrize("escaped", [False, True])
def test_other_ways_to_write_json_hide_nothing(archive: Archive, decoder: None, escaped: bool) -> None:
    """Uncompressed parts, a byte order mark, letters as codes, unknown and missing fields: as the reader reads them."""
    record = trace_of(1).store(archive)
    entries = [
        {"message": 'Größe "ä/b"', "more": [{"at": 1}, {"message": "ä"}]},
        {"at": 1, "message": None, "state": None, "level": "high"},
        {"at": 1, "message": 4711, "state": "success", "type": "text", "level": 0},
        {"at": 1.5, "message": "ä", "type": "raw"},
    ]
    text = json.dumps(entries, ensure_ascii=escaped)
    data = b"\xef\xbb\xbf" + text.replace("/", "\\/" if escaped else "/").encode()
    archive.store.delete(record.folder)
    archive.store.write(record.folder, "data_1.json", data)
    assert [hit.number for hit in one(archive, record, Pattern('"ä/b"', fixed=True)).hits] == [1]
    assert [hit.number for hit in one(archive, record, Pattern("ä")).hits] == [1, 4]
    assert [hit.number for hit in one(archive, record, Pattern("4711")).hits] == [3]


def test_long_messages_are_searched_where_they_lie(archive: Archive, decoder: None) -> None:
    """What is stored beside a trace is found under the number of its line; its file's name is not."""
    trace = trace_of(1, "before").offloaded("↳ " + "x" * 200_000 + "\nthe needle\nmore", "raw").line("after")
    record = trace.store(archive, parts=2)
    found = one(archive, record, Pattern("needle|after"))
    assert found.hits == [grep.Hit(3, "the needle", "success"), grep.Hit(4, "after", "success")]
    assert one(archive, record, Pattern("part_row")).hits == []


def test_artifacts_are_searched_when_asked_for(archive: Archive, decoder: None) -> None:
    """Their names always match; their lines have numbers of their own; of binary ones it is said that they match."""
    trace = trace_of(1).artifact("sub/needles.csv", b"a,b\nneedle,1\r\n\xff needle").artifact("raw.bin", b"\0needle")
    trace.artifact("other.txt", b"nothing")
    record = trace.store(archive)
    assert one(archive, record, Pattern("needle")).hits == [grep.Hit(2, "sub/needles.csv", "success")]
    assert one(archive, record, Pattern("needle"), artifacts=True).hits == [
        grep.Hit(2, "sub/needles.csv", "success"),
        grep.Hit(2, "needle,1", "success", "sub/needles.csv"),
        grep.Hit(3, "\\xff needle", "success", "sub/needles.csv"),
        grep.Hit(0, grep.BINARY, "success", "raw.bin"),
    ]


FRAGMENTS = [
    "needle",
    "},{",
    '"at":',
    '{"at":1',
    '[{"at":',
    "at",
    "message",
    ',{"at":',
    "\\",
    '"',
    "}]",
    "ne",
    "edle",
    "ä",
    "x" * 50,
]
MESSAGES = st.lists(st.sampled_from(FRAGMENTS), max_size=5).map("".join)
MORE = st.sampled_from([{}, {}, {}, {"more": [{"at": 2}, {"at": 3}]}, {"more": {"at": [{"at": 1}]}}, {"ns": 5}])


@given(
    parts=st.lists(st.lists(st.tuples(MESSAGES, MORE), max_size=12), min_size=1, max_size=3),
    wanted=st.sampled_from(["needle", '{"at":1', "at", "edle|x", "},{", "mess", "ne+dle", "\\\\", "$"]),
    first=st.booleans(),
    dense=st.sampled_from([0, part_lines.DENSE]),  # 0: places are always made use of
)
def test_whatever_parts_hold_lines_are_numbered_right(
    parts: list[list[tuple[str, dict[str, object]]]], wanted: str, first: bool, dense: int
) -> None:
    """Texts that look like ends of entries, and others' fields that hold lists, change neither hits nor numbers."""
    archive = Archive(MemoryStore(), MemoryIndex())
    entries = [[{"at": 1, "message": text, **more} for text, more in part] for part in parts]
    if not first:
        entries = [[{"message": entry["message"], **entry} for entry in part] for part in entries]
    record = sample_record(parts=len(parts), length=sum(map(len, parts)), counters={"types": {"media": 0}})
    for number, part in enumerate(entries, 1):
        archive.store.write(record.folder, f"data_{number}.json.gz", encode_part(part))
    messages = [text for part in parts for text, _ in part]
    expected = [(number, text) for number, text in enumerate(messages, 1) if re.search(wanted, text)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(part_lines, "DENSE", dense)
        found = one(archive, record, Pattern(wanted))
    assert [(hit.number, hit.text) for hit in found.hits] == expected


def test_what_the_counters_rule_out_is_not_looked_for(archive: Archive) -> None:
    """A trace that has ended, and has no file beside it by its counters, is not parsed for the names of files."""
    record = trace_of(1).artifact("a.txt", b"needle").store(archive, counters={"types": {"media": 0}})
    assert one(archive, record, Pattern("needle"), artifacts=True).hits == []


def test_a_running_trace_may_have_more_parts_than_its_record_says(archive: Archive) -> None:
    """A part is stored before the record says so: it is searched."""
    record = trace_of(1, "needle 1").store(archive, RUNNING)
    archive.store.write(record.folder, "data_2.json.gz", encode_part([{"at": 1, "message": "needle 2"}]))
    assert [hit.number for hit in one(archive, record, Pattern("needle")).hits] == [2, 3]


def test_damage_is_told_and_the_rest_searched(archive: Archive, decoder: None) -> None:
    """A missing part, a damaged one, an artifact that is not there: each is named, what can be read is searched."""
    trace = trace_of(1, *(f"needle {number}" for number in range(8))).artifact("gone.txt", b"needle")
    record = trace.store(archive, parts=5)
    archive.store.write(record.folder, "data_2.json.gz", b"not gzip")
    archive.store.write(record.folder, "data_3.json.gz", encode_part([])[:5])
    store = archive.store
    kept = {name: store.open(record.folder, name).read() for name in store.names(record.folder)}
    store.delete(record.folder)
    for name, data in kept.items():
        if name not in ("data_4.json.gz", "artifacts/gone.txt"):
            store.write(record.folder, name, data)
    found = one(archive, record, Pattern("needle"), artifacts=True)
    assert [hit.text for hit in found.hits] == ["needle 0", "needle 7"]
    assert [re.sub(":.*", "", problem) for problem in found.damaged] == [
        f"part 2 of trace {record.reference} is damaged",
        f"part 3 of trace {record.reference} is damaged",
        f"part 4 of trace {record.reference} is missing",
        f"gone.txt of trace {record.reference} cannot be read",
    ]


def test_what_is_wrong_is_told_once(archive: Archive, decoder: None) -> None:
    """Of a trace that is searched again the long way, since a later part is damaged, nothing is told twice."""
    trace = trace_of(1, "needle").artifact("gone.txt", b"needle")
    record = trace.store(archive, parts=2)
    archive.store.write(record.folder, "data_3.json.gz", encode_part([1]))  # type: ignore[list-item]
    kept = {name: archive.store.open(record.folder, name).read() for name in archive.store.names(record.folder)}
    archive.store.delete(record.folder)
    for name, data in kept.items():
        if name != "artifacts/gone.txt":
            archive.store.write(record.folder, name, data)
    found = one(archive, replace(record, parts=3), Pattern("needle|1"), artifacts=True)
    assert [re.sub(":.*", "", problem) for problem in found.damaged] == [
        f"part 3 of trace {record.reference} is damaged",
        f"gone.txt of trace {record.reference} cannot be read",
    ]


def test_a_record_that_leads_elsewhere_is_told(tmp_path: Path) -> None:
    """An index may come from others: a folder outside of the archive is refused, and the others are searched."""
    with Archive.open(tmp_path / "traces") as archive:
        good = trace_of(1, "needle").store(archive)
        bad = sample_record(key="../../etc", reference="passwd")
        results = list(grep.search(archive.store, [bad, good], Pattern("needle")))
        assert [len(found.hits) for found in results] == [0, 1]
        assert "unsafe path" in results[0].damaged[0]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_the_order_of_the_traces(archive: Archive, threads: int) -> None:
    """However many threads search, and however long each takes."""
    records = [trace_of(number, f"needle {number}").store(archive) for number in range(200)]
    found = list(grep.search(archive.store, iter(records), Pattern("needle"), threads=threads))
    assert [each.record for each in found] == records
    assert [each.hits[0].text for each in found] == [f"needle {number}" for number in range(200)]


def test_traces_are_asked_for_as_the_search_gets_on(archive: Archive) -> None:
    """Whoever stops early has not listed a million traces before."""
    record = trace_of(1, "needle").store(archive)
    asked = 0

    def records() -> Iterator[TraceRecord]:
        nonlocal asked
        while True:
            asked += 1
            yield record

    found = grep.search(archive.store, records(), Pattern("needle"), threads=2)
    assert next(found).hits
    found.close()
    assert asked < 500


class Away(MemoryStore):
    """A store that cannot read some traces, or is out of reach."""

    def __init__(self, error: StoreUnavailable) -> None:
        super().__init__()
        self.error = error

    def open(self, folder: Folder, name: str) -> BinaryIO:
        """Fail for keys with `away` in them."""
        if "away" in folder.key:
            raise self.error
        return super().open(folder, name)


def test_a_trace_that_cannot_be_read_does_not_end_the_search() -> None:
    """It is told; only a store that is out of reach ends all of it."""
    for error, ends in ((StoreUnavailable("no permission"), False), (OutOfReach("no network"), True)):
        archive = Archive(Away(error), MemoryIndex())
        records = [sample_record(key="away"), trace_of(1, "needle").store(archive)]
        search = grep.search(archive.store, records, Pattern("needle"))
        if ends:
            with pytest.raises(OutOfReach):
                list(search)
        else:
            assert [(len(found.hits), len(found.damaged)) for found in search] == [(0, 1), (1, 0)]


def test_a_wrong_expression_is_told_before_anything_is_read(archive: Archive) -> None:
    """At the call, not at the first result."""
    with pytest.raises(UsageError):
        grep.search(archive.store, [], Pattern("("))


@pytest.mark.parametrize("case", ["plain/deferred", "gzip/live", "gzip/deferred-json", "plain/live-two-parts-warning"])
def test_what_ruby_wrote_is_searched(golden: Path, own_folder: Path, case: str) -> None:
    """Every line of an archive of Ruby's is found under its number."""
    shutil.copytree(golden / case / "archive", "ruby")
    expected = json.loads((golden / case / "entries.json").read_text(encoding="utf-8"))
    with Archive.open("ruby") as archive:
        archive.reindex()
        (record,) = archive.search().records
        found = one(archive, record, Pattern(""))
        numbers = {hit.number: hit for hit in found.hits}
        for number, entry in enumerate(expected, 1):
            if entry["type"] != "media":
                assert entry["message"].split("\n")[-1] == numbers[number].text
        for entry in expected[:: max(len(expected) // 20, 1)]:
            assert one(archive, record, Pattern(entry["message"].split("\n")[0], fixed=True)).hits or entry["size"]
