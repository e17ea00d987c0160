"""The bytes of parts, records and cursors, and the names of objects."""

from __future__ import annotations

import base64
import gzip
import json
import math
import subprocess
import sys
import zlib
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trifle_otel import encoding
from trifle_otel.errors import DamagedArchive, InvalidCursor
from trifle_otel.records import Position, TraceRecord

ANY_TEXT = st.text(st.characters(exclude_categories=[]))
CLEAN_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ENTRY = st.fixed_dictionaries(
    {
        "at": st.integers(0, 2**40),
        "message": CLEAN_TEXT,
        "state": st.sampled_from(["success", "warning", "error", "debug"]),
        "type": st.sampled_from(["text", "head", "raw"]),
        "level": st.integers(0, 9),
    },
    optional={"ns": st.integers(0, 2**62), "span": st.text("0123456789abcdef", min_size=16, max_size=16)},
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(ANY_TEXT, inner, max_size=5),
    max_leaves=20,
)


def entry(number: int, message: str = "a line") -> dict[str, Any]:
    """An entry as it is stored."""
    return {"at": 1_700_000_000 + number, "message": message, "state": "success", "type": "text", "level": 0}


def damage(data: bytes, *, compressed: bool = True, **options: int) -> DamagedArchive:
    """The error that decoding this part raises."""
    with pytest.raises(DamagedArchive) as caught:
        encoding.decode_part(data, compressed=compressed, **options)
    return caught.value


def strict(data: bytes) -> Any:
    """What a strict JSON parser reads."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(data.decode("utf-8"), parse_constant=refuse)


# --- JSON and texts


@given(ANY_JSON)
@example({"\0": "\0", "\ud800": ["\udfff", math.nan, math.inf, 2**200]})
@example("\\u0000")
@example(["\\" * 200 + "\0"])
def test_json_is_always_strict(value: object) -> None:
    """Any plain value becomes JSON that a strict parser reads, without NUL, lone surrogates or a newline."""
    data = encoding.to_json(value)
    texts = json.dumps(strict(data), ensure_ascii=False)
    assert texts.encode()
    assert "\\u0000" not in texts.replace("\\\\", "")
    assert b"\n" not in data


def test_json_is_compact_and_raw() -> None:
    """Keys keep their order, nothing is escaped but quotes, backslashes and control characters, as Ruby does."""
    assert encoding.to_json({"b": [1, 2.5, None, True], "a": "ü/\u2028\x7f💶"}) == (
        '{"b":[1,2.5,null,true],"a":"ü/\u2028\x7f💶"}'.encode()
    )
    assert encoding.to_json('"\\\b\f\n\r\t\x0b\x1f') == b'"\\"\\\\\\b\\f\\n\\r\\t\\u000b\\u001f"'


def test_what_json_does_not_know() -> None:
    """NaN and infinities become null, times ISO 8601 with Z, large integers stay exact, the rest its text."""

    class Colour(Enum):
        RED = "red"

    value = {
        "nan": [math.nan, math.inf, -math.inf],
        "time": datetime(2026, 11, 24, 4, 7, 40, 525, tzinfo=timezone(timedelta(hours=1))),
        "naive": datetime(2026, 11, 24),  # noqa: DTZ001 - a caller's
        "date": date(2026, 11, 24),
        "large": 2**70,
        "uuid": UUID(int=1),
        "decimal": Decimal("1.10"),
        "enum": Colour.RED,
        "tuple": (1, 2),
        "set": {3},
        1: "key",
    }
    assert strict(encoding.to_json(value)) == {
        "nan": [None, None, None],
        "time": "2026-11-24T03:07:40.000525Z",
        "naive": "2026-11-24T00:00:00.000000Z",
        "date": "2026-11-24",
        "large": 1180591620717411303424,
        "uuid": "00000000-0000-0000-0000-000000000001",
        "decimal": "1.10",
        "enum": "red",
        "tuple": [1, 2],
        "set": [3],
        "1": "key",
    }


def test_hostile_values_become_json() -> None:
    """Cycles, values nested a thousand deep, huge integers, and objects that cannot be shown do not raise."""

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    cycle: list[Any] = [1]
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    assert strict(encoding.to_json(cycle)) == [1, "<cycle>"]
    assert encoding.to_json(deep).count(b"[") <= 100
    assert strict(encoding.to_json(10**5000)) == hex(10**5000)
    assert strict(encoding.to_json([Hostile()])) == ["<Hostile>"]


def test_json_is_read_strictly() -> None:
    """NaN, single quotes, bytes that are no UTF-8, and endless nesting are refused; large integers stay exact."""
    assert encoding.from_json(b'{"a":123456789012345678901234567890}') == {"a": 123456789012345678901234567890}
    for data in (b"NaN", b"[Infinity]", b"{'a':1}", b'"\xff"', b"", b"[1] 2", b"[" * 100_000):
        with pytest.raises(ValueError):  # noqa: PT011 - its class is what is promised
            encoding.from_json(data)


def test_a_clean_text_is_the_same_object() -> None:
    """Clean texts cost nothing, NUL becomes its picture, a lone surrogate its escape."""
    text = "zażółć 💶 " + "x" * 10
    assert encoding.clean_text(text) is text
    assert encoding.clean_text("a\0b") == "a␀b"
    assert encoding.clean_text("a\udc80b") == "a\\udc80b"


@given(ANY_TEXT)
def test_any_text_can_be_cleaned(text: str) -> None:
    """A cleaned text can be encoded, has no NUL, and is clean."""
    clean = encoding.clean_text(text)
    assert b"\0" not in clean.encode()
    assert encoding.clean_text(clean) is clean


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2026-11-24T03:07:40.525351Z", datetime(2026, 11, 24, 3, 7, 40, 525351, tzinfo=timezone.utc)),
        ("2026-11-24T03:07:40Z", datetime(2026, 11, 24, 3, 7, 40, tzinfo=timezone.utc)),
        ("2026-11-24T03:07:40.5253519Z", datetime(2026, 11, 24, 3, 7, 40, 525351, tzinfo=timezone.utc)),
        ("2026-11-24 03:07:40.5+01:30", datetime(2026, 11, 24, 1, 37, 40, 500000, tzinfo=timezone.utc)),
        ("2026-11-24 03:07:40 -0100", datetime(2026, 11, 24, 4, 7, 40, tzinfo=timezone.utc)),
        ("2026-11-24T03:07:40", datetime(2026, 11, 24, 3, 7, 40, tzinfo=timezone.utc)),
    ],
)
def test_times_of_every_writer_are_read(text: str, expected: datetime) -> None:
    """Times with and without fractions and zones, as Ruby, Elixir and PostgreSQL write them, are read as UTC."""
    assert encoding.parse_time(text) == expected
    assert encoding.parse_time(text).tzinfo is timezone.utc


def test_a_time_at_the_edge_of_the_calendar_is_written() -> None:
    """Zones that lead out of the calendar do not raise."""
    assert encoding.format_time(datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))).startswith("9999-12-31")


# --- Parts


@given(st.lists(ENTRY, max_size=8), st.booleans())
def test_a_part_is_read_back(entries: list[dict[str, Any]], compress: bool) -> None:
    """What was encoded is decoded, keys in their order."""
    back = encoding.decode_part(encoding.encode_part(entries, compress=compress), compressed=compress)
    assert back == entries
    assert [list(item) for item in back] == [list(item) for item in entries]


def test_one_gzip_member_without_name_or_time() -> None:
    """A part is one gzip member without flags, name and time, the same bytes each time, and no newline in it."""
    entries = [entry(1), entry(2, "two\nlines")]
    data = encoding.encode_part(entries)
    reader = zlib.decompressobj(wbits=31)
    plain = reader.decompress(data)
    assert data[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
    assert (reader.eof, reader.unused_data) == (True, b"")
    assert plain == encoding.encode_part(entries, compress=False)
    assert plain.startswith(b'[{"at":1700000001,"message":"a line",')
    assert plain.endswith(b'"type":"text","level":0}]')
    assert data == encoding.encode_part(entries)


def test_a_part_with_an_unclean_entry_is_written() -> None:
    """A lone surrogate or NUL in one message loses neither that entry nor any other."""
    entries = [entry(1), entry(2, "bad \udcff and \0"), entry(3)]
    back = encoding.decode_part(encoding.encode_part(entries), compressed=True)
    assert [item["message"] for item in back] == ["a line", "bad \\udcff and ␀", "a line"]


def test_only_the_first_member_is_read() -> None:
    """What follows the first gzip member is ignored, as Ruby does."""
    first, second = gzip.compress(b'[{"a":1}]'), gzip.compress(b'[{"a":2}]')
    assert encoding.decode_part(first + second, compressed=True) == [{"a": 1}]
    assert encoding.decode_part(first + b"rubbish", compressed=True) == [{"a": 1}]


def test_json_of_every_style_is_read() -> None:
    """White space, escapes of any kind, a byte order mark, NaN and lone surrogates do not stop a reader."""
    assert encoding.decode_part(b' [ {"a" : "\\u00e9\\/\\ud83d\\udcb6"} ]\r\n', compressed=False) == [{"a": "é/💶"}]
    assert encoding.decode_part(b'\xef\xbb\xbf[{"a":1},{"b":2}]', compressed=False) == [{"a": 1}, {"b": 2}]
    assert encoding.decode_part(b'[{"a":NaN},{"b":"\\ud800"}]', compressed=False) == [{"a": None}, {"b": "\\ud800"}]
    assert encoding.decode_part(b"[ ]", compressed=False) == []


@given(st.lists(ENTRY, min_size=1, max_size=8), st.floats(0, 1, exclude_max=True), st.booleans())
def test_a_truncated_part_gives_its_beginning(entries: list[dict[str, Any]], share: float, compress: bool) -> None:
    """Cut anywhere, a part raises, and gives a prefix of its entries; without gzip exactly those that are whole."""
    data = encoding.encode_part(entries, compress=compress)
    cut = data[: int(len(data) * share)]
    salvaged = list(damage(cut, compressed=compress).salvaged)
    assert salvaged == entries[: len(salvaged)]
    if not compress:
        ends = [len(encoding.encode_part(entries[: count + 1], compress=False)) - 1 for count in range(len(entries))]
        assert len(salvaged) == sum(end <= len(cut) for end in ends)


def test_a_truncated_gzip_gives_all_that_was_packed_before() -> None:
    """Of 2,000 entries in a file cut at nine tenths, at least eight tenths come back."""
    entries = [entry(number, f"line {number * 7919 % 104729}") for number in range(2000)]
    data = encoding.encode_part(entries)
    salvaged = list(damage(data[: len(data) * 9 // 10]).salvaged)
    assert salvaged == entries[: len(salvaged)]
    assert len(salvaged) >= 1600


def test_a_missing_end_of_gzip_is_damage() -> None:
    """A file that only lacks its checksum, or has a wrong one, gives every entry, with an error."""
    entries = [entry(1), entry(2)]
    data = encoding.encode_part(entries)
    assert list(damage(data[:-8]).salvaged) == entries
    assert list(damage(data[:-8] + b"\0" * 4 + data[-4:]).salvaged) == entries


def test_damage_in_the_middle_gives_what_is_before() -> None:
    """Bytes overwritten in the middle of a gzip file leave the entries before them."""
    entries = [entry(number, f"line {number * 7919 % 104729}") for number in range(2000)]
    data = bytearray(encoding.encode_part(entries))
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff" * 40
    found = damage(bytes(data))
    # what comes right after the damage may unpack to something else before unpacking fails
    assert list(found.salvaged)[:700] == entries[:700]
    assert "2000" not in str(found)


@pytest.mark.parametrize(
    "data, salvaged, reason",
    [
        (b"", [], "bad JSON"),
        (b"null", [], "bad JSON"),
        (b'{"a":1}', [], "bad JSON"),
        (b'[{"a":1},2,{"b":3}]', [{"a": 1}, {"b": 3}], "no object"),
        (b'[{"a":1}]x', [{"a": 1}], "after the end"),
        (b'[{"a":1} {"b":2}]', [{"a": 1}], "bad JSON"),
        (b'[{"a":1},]', [{"a": 1}], "bad JSON"),
        (b'[{"a":1},{"b":"\xff"},{"c":3}]', [{"a": 1}, {"b": "\\udcff"}, {"c": 3}], "not UTF-8"),
        (b'[{"a":1},' + b"[" * 100_000, [{"a": 1}], "bad JSON"),
        (b'[{"a":"x\0y"}]', [], "bad JSON"),
    ],
)
def test_bad_json_gives_what_is_whole(data: bytes, salvaged: list[Any], reason: str) -> None:
    """What is no array of objects raises with the reason and the objects that are whole."""
    found = damage(data, compressed=False)
    assert list(found.salvaged) == salvaged
    assert reason in str(found)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b'[{"a":1}]', b"\0" * 100])
def test_what_is_no_gzip_is_damage(data: bytes) -> None:
    """Empty files, plain JSON under a gzip name and other rubbish raise, without entries."""
    assert list(damage(data).salvaged) == []


def test_a_gzip_bomb_stops_at_the_limit() -> None:
    """A part larger than the limit raises and gives the entries within the limit; one as large as it is read."""
    entries = [entry(number) for number in range(100)]
    data = encoding.encode_part(entries)
    size = len(encoding.encode_part(entries, compress=False))
    assert encoding.decode_part(data, compressed=True, limit=size) == entries
    assert list(damage(data, limit=size - 2).salvaged) == entries[:-1]
    assert list(damage(data, limit=size // 2).salvaged) == entries[:50]  # each of 100 has the same size
    assert "1,000 bytes" in str(damage(gzip.compress(b"[" + b" " * 50_000_000), limit=1000))


def test_the_standard_library_does_as_well() -> None:
    """Without orjson and isal the same bytes of JSON are written, and parts of either are read by the other."""
    entries = [entry(1, "ü \x0b \u2028"), entry(2, "\0\ud800"), {"at": 1, "n": 1.5, "x": math.nan, "t": (1, 2)}]
    ours = encoding.encode_part(entries)
    script = (
        "import sys; sys.modules['orjson'] = sys.modules['isal'] = None\n"
        "import ast; from trifle_otel import encoding\n"
        "entries, ours = eval(sys.stdin.read(), {'nan': float('nan')})\n"
        "theirs = encoding.encode_part(entries)\n"
        "print((encoding.encode_part(entries, compress=False), theirs, encoding.decode_part(ours, compressed=True),\n"
        '       encoding.decode_part(b\'[{"a":"\\\\ud800"}]\', compressed=False)))\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=ascii((entries, ours)),
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"},
    )
    plain, packed, read, surrogate = eval(done.stdout, {})  # noqa: S307 - what our own child printed
    assert plain == encoding.encode_part(entries, compress=False)
    assert packed[:8] == ours[:8]
    assert encoding.decode_part(packed, compressed=True) == read == encoding.decode_part(ours, compressed=True)
    assert surrogate == [{"a": "\\ud800"}]


# --- Names and paths


def test_names_of_parts() -> None:
    """Parts are called data_N.json, .gz when they are compressed, and nothing else is taken for one."""
    assert encoding.part_name(12) == "data_12.json.gz"
    assert encoding.part_name(1, compress=False) == "data_1.json"
    assert encoding.parse_part_name("data_12.json.gz") == (12, True)
    assert encoding.parse_part_name("data_1.json") == (1, False)
    for name in ("data_0.json", "data_01.json", "data_.json", "data_1.json.gz.tmp", "xdata_1.json", "data_١.json", ""):
        assert encoding.parse_part_name(name) is None
    assert encoding.artifact_name("a/b.csv") == "artifacts/a/b.csv"


# --- Records


def record(**changes: Any) -> TraceRecord:
    """A record with every field set."""
    fields: dict[str, Any] = {
        "reference": "01M85RBZMQTE7TVQ94F23XT8F2",
        "key": "a/b",
        "segments": ("a", "a/b"),
        "state": "error",
        "tags": ("x", "ż"),
        "meta": [1, {"a": None}],
        "context": {"trace_id": "0" * 32},
        "duration": 12,
        "counters": {
            "states": {"success": 1, "warning": 2, "error": 3, "debug": 4},
            "types": {"text": 5, "head": 6, "raw": 7, "media": 8},
            "max_level": 9,
        },
        "length": 10,
        "parts": 2,
        "first_at": datetime(2026, 11, 24, 3, 7, 40, 567643, tzinfo=timezone.utc),
        "last_at": datetime(2026, 11, 24, 3, 7, 40, tzinfo=timezone.utc),
        "retention": 3,
        "expires_at": datetime(2026, 11, 27, 3, 7, 40, 567643, tzinfo=timezone.utc),
        "bucket_name": "b",
    }
    return TraceRecord(**{**fields, **changes})


def test_a_record_is_written_in_the_order_of_the_format() -> None:
    """record.json holds every field in the order of the format, times in UTC with microseconds and Z."""
    assert (
        encoding.encode_record(record())
        == (
            '{"reference":"01M85RBZMQTE7TVQ94F23XT8F2","key":"a/b","segments":["a","a/b"],"state":"error",'
            '"tags":["x","ż"],"meta":[1,{"a":null}],"context":{"trace_id":"00000000000000000000000000000000"},'
            '"duration":12,"counters":{"states":{"success":1,"warning":2,"error":3,"debug":4},'
            '"types":{"text":5,"head":6,"raw":7,"media":8},"max_level":9},"length":10,"parts":2,'
            '"first_at":"2026-11-24T03:07:40.567643Z","last_at":"2026-11-24T03:07:40.000000Z","retention":3,'
            '"expires_at":"2026-11-27T03:07:40.567643Z","bucket_name":"b"}'
        ).encode()
    )


@given(
    meta=ANY_JSON,
    first_at=st.datetimes(timezones=st.just(timezone.utc)),
    tags=st.lists(CLEAN_TEXT, max_size=3).map(tuple),
)
def test_a_record_is_read_back(meta: Any, first_at: datetime, tags: tuple[str, ...]) -> None:
    """A record comes back as it was, its meta in the form that strict JSON gives it."""
    original = record(meta=meta, first_at=first_at, tags=tags)
    back = encoding.decode_record(encoding.encode_record(original))
    assert back == record(meta=strict(encoding.to_json(meta)), first_at=first_at, tags=tags)


def test_what_is_missing_in_a_record_gets_its_default() -> None:
    """A reference and a key are enough: the time comes from the reference, the rest from the format's defaults."""
    back = encoding.decode_record(
        b'{"reference":"01ARZ3NDEKTSV4RRFFQ69G5FAV","key":"a/b","new":1,"parts":"x","tags":3}'
    )
    moment = datetime(2016, 7, 30, 23, 54, 10, 259000, tzinfo=timezone.utc)
    assert back == TraceRecord(
        reference="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        key="a/b",
        segments=("a", "a/b"),
        state="running",
        first_at=moment,
        last_at=moment,
        retention=7,
        expires_at=moment + timedelta(days=7),
    )


def test_a_retention_beyond_the_calendar_ends_with_it() -> None:
    """A record that is to be kept for a million years can be read."""
    data = b'{"reference":"01ARZ3NDEKTSV4RRFFQ69G5FAV","key":"a","retention":365000000}'
    assert encoding.decode_record(data).expires_at.year == 9999


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"key":"a"}',
        b'{"reference":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}',
        b'{"reference":"mine","key":"a"}',
        b'{"reference":"mine","key":"a","first_at":"yesterday"}',
        b'{"reference":7,"key":"a"}',
        b"\xff",
    ],
)
def test_a_damaged_record_is_told(data: bytes) -> None:
    """What is no record, or has no reference, key or time, raises DamagedArchive."""
    with pytest.raises(DamagedArchive, match=r"record\.json"):
        encoding.decode_record(data)


# --- Cursors


def cursor(text: str) -> str:
    """URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(text.encode("utf-8", "surrogatepass")).decode().rstrip("=")


def test_a_cursor_is_what_ruby_makes() -> None:
    """A cursor is URL-safe base64 without padding of [seconds, nanoseconds, reference]."""
    position = Position(1_795_489_660_525_351_000, "01M85RBZKDGTKG1PMB5MB2PXTE")
    expected = cursor('[1795489660,525351000,"01M85RBZKDGTKG1PMB5MB2PXTE"]')
    assert encoding.encode_cursor(position) == expected
    assert encoding.decode_cursor(expected) == position
    assert encoding.decode_cursor(expected + "==") == position


@given(st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9), CLEAN_TEXT.filter(bool))
def test_a_cursor_is_read_back(nanoseconds: int, reference: str) -> None:
    """Any position comes back from its cursor, which needs no escaping in a URL."""
    text = encoding.encode_cursor(Position(nanoseconds, reference))
    assert encoding.decode_cursor(text) == Position(nanoseconds, reference)
    assert all(char.isalnum() or char in "-_" for char in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not a cursor",
        "!!!!",
        "a",
        "é",
        cursor("null"),
        cursor("[]"),
        cursor('[1,2,"r",3]'),
        cursor('{"a":1,"b":2,"c":3}'),
        cursor('["1",2,"r"]'),
        cursor('[true,2,"r"]'),
        cursor('[1.5,2,"r"]'),
        cursor('[1,1000000000,"r"]'),
        cursor('[1,-1,"r"]'),
        cursor('[99999999999999,0,"r"]'),
        cursor("[1,2,3]"),
        cursor('[1,2,""]'),
        cursor('[1,2,"\\u0000"]'),
        cursor('[NaN,2,"r"]'),
        cursor("[" * 1000),
        "A" * 100_000,
    ],
)
def test_a_cursor_from_elsewhere_is_the_callers_error(text: str) -> None:
    """Whatever is no cursor raises InvalidCursor, with a short message."""
    with pytest.raises(InvalidCursor) as caught:
        encoding.decode_cursor(text)
    assert len(str(caught.value)) < 300


@given(ANY_TEXT)
def test_no_text_breaks_the_reading_of_cursors(text: str) -> None:
    """Any text is a position or InvalidCursor, never another error."""
    try:
        assert isinstance(encoding.decode_cursor(text), Position)
    except InvalidCursor:
        pass
