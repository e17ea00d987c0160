"""Values to text and to plain JSON: complete for what is honest, harmless for what is hostile."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trifle_otel.errors import UsageError
from trifle_otel.values import json_of, jsonable, repr_of, serializer, text_of

HERE = f"{__name__}."


class Raises:
    """Neither str nor repr."""

    def __repr__(self) -> str:
        raise ValueError("secret detail")


class RaisesStr:
    """A repr, but no str."""

    def __str__(self) -> str:
        raise RuntimeError

    def __repr__(self) -> str:
        return "RaisesStr()"


class NoText:
    """A repr that is no text."""

    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


class Endless:
    """A repr that never comes to an end."""

    def __repr__(self) -> str:
        return repr(self)


class Interrupts:
    """Somebody presses Ctrl-C just now."""

    def __repr__(self) -> str:
        raise KeyboardInterrupt


class Loud(str):
    """A text that would run code in our encoder."""

    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError("ran the value's code")

    __eq__ = __hash__ = None  # type: ignore[assignment]


class Liar:
    """Says that it is a dict, and raises when asked for anything."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return dict
        raise AssertionError(f"ran the value's code: {name}")

    def __repr__(self) -> str:
        return "Liar()"


class Color(Enum):
    """An Enum of texts."""

    RED = "red"


class Level(IntEnum):
    """An Enum of ints."""

    HIGH = 3


@dataclass
class Price:
    """A dataclass with a field that was never set."""

    amount: float
    notes: list[str] = field(default_factory=list)
    missing: int = field(init=False)


@dataclass(slots=True)
class Slotted:
    """A dataclass without a __dict__."""

    amount: int


Point = namedtuple("Point", "x y")


class LikeAttrs:
    """A class as attrs makes them."""

    __attrs_attrs__ = (SimpleNamespace(name="a"), SimpleNamespace(name="b"))

    def __init__(self) -> None:
        self.a = 1
        self.b = [2]


class LikePydantic:
    """A model whose own methods must not be called."""

    def model_dump(self) -> dict[str, int]:
        raise AssertionError("ran the value's code")

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("ran the value's code")

    def __repr__(self) -> str:
        return "LikePydantic()"


@pytest.mark.parametrize(
    "value, text",
    [
        ("as it is ↴", "as it is ↴"),
        (None, ""),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (bytearray(b"x"), "x"),
        (memoryview(b"x"), "x"),
        (5, "5"),
        (Decimal("1.50"), "1.50"),
        (RaisesStr(), "RaisesStr()"),
        (Raises(), f"<{HERE}Raises: repr raised ValueError>"),
        (NoText(), f"<{HERE}NoText: repr raised TypeError>"),
        (Endless(), f"<{HERE}Endless: repr raised RecursionError>"),
        ("lone \udc80", "lone \udc80"),
    ],
)
def test_a_message_is_text_whatever_it_was(value: object, text: str) -> None:
    """A message becomes text by str, then repr, then a description of its type."""
    assert text_of(value) == text


def test_a_text_is_handed_on_as_the_same_object() -> None:
    """A message that is a str is neither copied nor changed; a subclass loses its own code."""
    text = "x" * 10
    assert text_of(text) is text
    assert type(text_of(Loud("abc"))) is str
    assert type(repr_of(Loud("abc"))) is str


def test_an_interrupt_passes() -> None:
    """What is no Exception is never caught, in any serializer."""
    for make in (text_of, repr_of, jsonable, *map(serializer, ("repr", "str", "json"))):
        with pytest.raises(KeyboardInterrupt):
            make(Interrupts())


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.1, ("0.1", "0.1", "0.1")),
        ("a'b", ('"a\'b"', "a'b", '"a\'b"')),
        (None, ("None", "None", "null")),
        (True, ("True", "True", "true")),
        (
            [1, "two", None, {"three": 3.0}],
            ("[1, 'two', None, {'three': 3.0}]",) * 2 + ('[1,"two",null,{"three":3.0}]',),
        ),
        (float("nan"), ("nan", "nan", '"NaN"')),
        ("żółć", ("'żółć'", "żółć", '"żółć"')),
        (Raises(), (f"<{HERE}Raises: repr raised ValueError>",) * 2 + (f'"<{HERE}Raises: repr raised ValueError>"',)),
    ],
)
def test_the_named_serializers(value: object, expected: tuple[str, str, str]) -> None:
    """`repr`, `str` and `json` give what their names say, and a description where the value fails."""
    assert tuple(serializer(name)(value) for name in ("repr", "str", "json")) == expected


def test_an_own_serializer_that_fails_falls_back_to_repr() -> None:
    """One's own serializer is used as it is; where it raises, repr is; what is no text becomes text."""

    def picky(value: Any) -> Any:
        return value["text"]

    assert serializer(picky)({"text": "x"}) == "x"
    assert serializer(picky)({"text": b"\xff"}) == "\\xff"
    assert serializer(picky)([1]) == "[1]"
    assert serializer(picky)(Raises()) == f"<{HERE}Raises: repr raised ValueError>"


@pytest.mark.parametrize("which", ["yaml", "", 5, None])
def test_an_unknown_serializer_is_refused(which: Any) -> None:
    """The error names what is allowed."""
    with pytest.raises(UsageError, match="'repr', 'str', 'json'"):
        serializer(which)


def test_results_are_complete_however_large() -> None:
    """A list of a million elements, a long text and an int of many digits are given in full."""
    million = list(range(1_000_000))
    assert serializer("repr")(million) == repr(million)
    assert json.loads(serializer("json")(million)) == million
    assert serializer("repr")(10**5000) == hex(10**5000)
    assert len(text_of(b"x" * 10_000_000)) == 10_000_000


def test_recursive_values_have_a_text() -> None:
    """Containers within themselves, and nesting past every limit, give a text in each serializer."""
    endless: list[Any] = [1]
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert serializer("repr")(endless) == "[1, [...]]"
    assert serializer("json")(endless) == '[1,"<cycle>"]'
    assert "RecursionError" in serializer("repr")(deep)
    assert "RecursionError" in serializer("json")(deep)
    while deep:  # taken apart by hand: freeing it at once would recurse as deep
        deep = deep[0]


def test_a_generator_is_not_consumed() -> None:
    """To describe a generator, nothing is taken out of it."""
    numbers = (n for n in range(3))
    for make in (text_of, json_of, serializer("repr")):
        assert "<generator object" in make(numbers)
    assert list(numbers) == [0, 1, 2]


@pytest.mark.parametrize(
    "value, plain",
    [
        ([1, 2.5, "x", None, True], [1, 2.5, "x", None, True]),
        ((9, 133554920), [9, 133554920]),
        ([math.nan, math.inf, -math.inf, -0.0], ["NaN", "Infinity", "-Infinity", -0.0]),
        (datetime(2026, 10, 6, 12, 30, tzinfo=timezone.utc), "2026-10-06T12:30:00Z"),
        (datetime(2026, 10, 6, 12, 30, 0, 5, tzinfo=timezone(timedelta(hours=2))), "2026-10-06T12:30:00.000005+02:00"),
        ([date(2026, 10, 6), time(12, 30), timedelta(hours=2)], ["2026-10-06", "12:30:00", "2:00:00"]),
        ([Decimal("1.50"), Fraction(1, 3)], ["1.50", "1/3"]),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("/a/b"), "/a/b"),
        ([2**63 - 1, -(2**63), 2**63, 10**30], [2**63 - 1, -(2**63), "9223372036854775808", "1" + "0" * 30]),
        ([Color.RED, Level.HIGH, {Color.RED: 1}], ["red", 3, {"red": 1}]),
        (Price(2.5, ["x"]), {"amount": 2.5, "notes": ["x"]}),
        (Slotted(5), {"amount": 5}),
        (Point(1, [2]), {"x": 1, "y": [2]}),
        (LikeAttrs(), {"a": 1, "b": [2]}),
        ([{3, 1, 2}, frozenset("ba")], [[1, 2, 3], ["a", "b"]]),
        ({None, "a", 1}, [None, 1, "a"]),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (deque([1, 2]), [1, 2]),
        ({1: "a", "1": "b", 1.5: "c", None: "d"}, {"1": "a", "1 (2)": "b", "1.5": "c", "null": "d"}),
        ({(1, 2): "a", b"k": "b", "n\0": "c"}, {"(1, 2)": "a", "k": "b", "n␀": "c"}),
        (["nul \0", "lone \udc80"], ["nul ␀", "lone \\udc80"]),
        ([LikePydantic(), RaisesStr()], ["LikePydantic()", "RaisesStr()"]),
        ({"bad": Raises()}, {"bad": f"<{HERE}Raises: repr raised ValueError>"}),
        (int, "<class 'int'>"),
        (Price, f"<class '{HERE}Price'>"),
    ],
)
def test_values_become_plain_json(value: object, plain: object) -> None:
    """Each kind of value has one JSON form, and no code of the value's class is run but its repr."""
    assert jsonable(value) == plain


def test_a_value_that_lies_about_its_class_is_described() -> None:
    """The type is looked at, never the value's own idea of it; a text's subclass loses its code."""
    for make in (text_of, jsonable, serializer("repr")):
        assert make(Liar()) == "Liar()"
    assert json_of([Liar(), Loud("abc")]) == '["Liar()","abc"]'


def test_a_mock_is_described_and_not_asked() -> None:
    """An object that answers everything (numpy arrays and mocks do) is neither iterated nor converted."""
    mock = MagicMock(spec=list)
    assert jsonable({"m": mock}) == {"m": repr(mock)}
    assert not mock.__iter__.called


def test_a_time_whose_zone_raises_is_described() -> None:
    """A broken time zone costs the ISO form, not the value."""

    class Broken(tzinfo):
        def utcoffset(self, moment: datetime | None) -> timedelta | None:
            raise ValueError

        dst = utcoffset

        def tzname(self, moment: datetime | None) -> str | None:
            raise ValueError

        def __repr__(self) -> str:
            return "Broken()"

    assert jsonable([datetime(2026, 1, 2, tzinfo=Broken())]) == ["datetime.datetime(2026, 1, 2, 0, 0, tzinfo=Broken())"]


def test_cycles_and_shared_values_are_told_apart() -> None:
    """A container within itself is cut there; one that merely stands in two places is written twice."""
    shared = [1]
    loop: dict[str, Any] = {"a": shared, "b": shared}
    loop["self"] = loop
    loop["list"] = [loop]
    assert jsonable(loop) == {"a": [1], "b": [1], "self": "<cycle>", "list": ["<cycle>"]}


def test_what_is_too_deep_becomes_its_repr() -> None:
    """Below the limit of depth nothing is lost: it stands there as text."""
    assert jsonable([[[[1, "x"]]]], max_depth=2) == [["[[1, 'x']]"]]
    deep: Any = "end"
    for _ in range(200):
        deep = [deep]
    text = json.dumps(jsonable(deep))
    assert "end" in text
    assert text.index('"') == 50


def test_containers_that_multiply_are_bounded() -> None:
    """Sixty containers that hold one another twice would be 2**60 values: it stops, and says so."""
    value: Any = "x"
    for _ in range(45):
        value = [value, value]
    assert "<cut: more than 1000 values>" in json.dumps(jsonable(value, max_items=1000))
    assert jsonable({"a": [1, 2, 3], "b": 4}, max_items=3) == {
        "a": [1, "<cut: more than 3 values>"],
        "...": "<cut: more than 3 values>",
    }


def test_many_keys_that_become_equal_are_all_kept() -> None:
    """Ten thousand keys with one repr are numbered, in time proportional to their number."""

    class Same:
        def __repr__(self) -> str:
            return "same"

    plain = jsonable({Same(): n for n in range(10_000)})
    assert sorted(plain.values()) == list(range(10_000))
    assert plain["same (10000)"] == 9_999


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None)
@given(PLAIN)
def test_plain_json_stays_what_it_is(value: Any) -> None:
    """What is plain JSON already comes out equal, and so does the JSON text of it when read again."""
    assert jsonable(value) == value
    assert json.loads(json_of(value)) == value


@settings(deadline=None)
@given(st.text(st.characters(), max_size=8), st.integers(), st.floats(), st.binary(max_size=8))
def test_whatever_comes_out_is_strict_json(text: str, number: int, real: float, raw: bytes) -> None:
    """Any text, number and bytes, as keys and as values, give JSON that a strict parser and UTF-8 take."""
    value = {text: [number, real, raw], number: {raw: text}, real: (text, {number, text})}
    encoded = json.dumps(jsonable(value), allow_nan=False, ensure_ascii=False).encode()
    assert b"\0" not in encoded
    assert json.loads(encoded) == jsonable(value)
