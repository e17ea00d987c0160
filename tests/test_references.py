"""References, and what makes keys and names safe."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Callable
from datetime import datetime, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trifle_otel.references import (
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    MAX_PREFIX_BYTES,
    MAX_REFERENCE_BYTES,
    ReferenceGenerator,
    new_reference,
    reference_time,
    safe_key,
    safe_name,
    safe_reference,
    segments,
)

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
HOSTILE_TEXT = st.text(
    st.one_of(
        st.sampled_from("/./.\\ ~a\0\n\t\x7f\u2028\u202e\ud800\udfff\ufeffé💶"),
        st.characters(exclude_categories=[]),
    ),
    max_size=60,
)
HOSTILE = st.one_of(
    HOSTILE_TEXT,
    st.lists(HOSTILE_TEXT, max_size=50).map("/".join),
    st.tuples(HOSTILE_TEXT, st.integers(1, 400), st.sampled_from(["", "/x", ".json"])).map(
        lambda t: t[0] * t[1] + t[2]
    ),
    st.sampled_from(["artifacts", "record.json", "data_1.json", "DATA_12.JSON.GZ", "../../etc/passwd", "/", "//"]),
)


def set_clock(*milliseconds: int) -> Callable[[], int]:
    """A clock that shows these times, one a call, in nanoseconds."""
    times = iter(milliseconds)
    return lambda: next(times) * 1_000_000


def value(reference: str) -> int:
    """A ULID as a number of 130 bits, digit by digit."""
    number = 0
    for digit in reference:
        number = number * 32 + CROCKFORD.index(digit)
    return number


def problems(path: str) -> list[str]:
    """What would make a path dangerous, checked one rule at a time."""
    parts = path.split("/")
    found = []
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        found.append("a segment that is empty or begins with a dot")
    if any(len(part.encode("utf-8", "surrogatepass")) > 200 for part in parts):
        found.append("a segment that is too long")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 or char == "\\" or 0xD800 <= ord(char) < 0xE000 for char in path):
        found.append("a character that is not for paths")
    if any(part != part.strip() or part.endswith(".") for part in parts):
        found.append("a segment with a space around it or a dot at its end")
    if any(part in ("artifacts", "record.json") or (part.startswith("data_") and "~" not in part) for part in parts):
        found.append("a name of our own files")
    return found


# --- References


def test_a_reference_is_a_ulid_of_the_current_time() -> None:
    """A reference has 26 digits of Crockford's base 32, the first ten of which are the clock's milliseconds."""
    reference = ReferenceGenerator(clock_ns=set_clock(1_795_489_660_525))()
    assert len(reference) == 26
    assert set(reference) <= set(CROCKFORD)
    assert value(reference) >> 80 == 1_795_489_660_525


def test_the_random_bits_are_used() -> None:
    """All 80 random bits come from the source of random bytes."""
    zeros = ReferenceGenerator(clock_ns=set_clock(0), random_bytes=bytes)
    ones = ReferenceGenerator(clock_ns=set_clock(0), random_bytes=lambda count: b"\xff" * count)
    assert (value(zeros()), value(ones())) == (0, 2**80 - 1)


def test_random_bits_are_never_used_twice() -> None:
    """A thousand milliseconds give a thousand different random parts."""
    make = ReferenceGenerator(clock_ns=set_clock(*range(1000)))
    assert len({make()[10:] for _ in range(1000)}) == 1000


def test_within_a_millisecond_it_counts_up() -> None:
    """References of one millisecond differ by one, across the border of the lowest 20 bits too."""
    make = ReferenceGenerator(
        clock_ns=set_clock(*[7] * 4), random_bytes=lambda count: (b"\0" * 13 + b"\xff\xff\xfe").ljust(count, b"\0")
    )
    numbers = [value(make()) for _ in range(4)]
    assert [number - numbers[0] for number in numbers] == [0, 1, 2, 3]
    assert numbers[0] & 0xFFFFF == 0xFFFFE


def test_a_full_millisecond_goes_on_in_the_next() -> None:
    """Where all random bits are ones, the next reference takes the next millisecond, and sorts after."""
    make = ReferenceGenerator(clock_ns=set_clock(7, 7), random_bytes=lambda count: b"\xff" * count)
    first, second = make(), make()
    assert first < second
    assert value(second) >> 80 == 8


def test_a_clock_that_steps_back_keeps_the_order() -> None:
    """References sort in the order of the calls whatever the clock does, before 1970 too."""
    make = ReferenceGenerator(clock_ns=set_clock(-5, -7, 1000, 999, 0, 1000, 1001))
    made = [make() for _ in range(7)]
    assert made == sorted(set(made))
    assert all(len(reference) == 26 for reference in made)


@given(st.lists(st.integers(0, 2**48 - 2), min_size=1, max_size=20))
def test_any_clock_keeps_the_order(times: list[int]) -> None:
    """For any sequence of times, references sort in the order of the calls, without duplicates."""
    make = ReferenceGenerator(clock_ns=set_clock(*times))
    made = [make() for _ in times]
    assert made == sorted(set(made))


def test_threads_never_get_the_same_reference() -> None:
    """Eight threads that start together get 4,000 different references, each thread in order."""
    made: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def work(mine: list[str]) -> None:
        start.wait()
        mine.extend(new_reference() for _ in range(500))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reference for mine in made for reference in mine}) == 4000
    assert all(mine == sorted(mine) for mine in made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signals_handler_may_make_one_while_one_is_made() -> None:
    """It neither waits for itself, nor gets the one that is under way."""
    within: list[str] = []

    def interrupted(count: int) -> bytes:
        if not within:
            within.append("")
            within[0] = make()
        return os.urandom(count)

    make = ReferenceGenerator(clock_ns=lambda: 7_000_000_000, random_bytes=interrupted)
    found = [make(), make(), *within]
    assert len(set(found)) == 3
    assert all(reference_time(each) == reference_time(found[0]) for each in found)


def test_a_forked_child_makes_other_references() -> None:
    """After a fork, parent and child do not go on with the same random bits, although the clock stands still."""
    make = ReferenceGenerator(clock_ns=lambda: 7_000_000)
    before = make()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, make().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 26).decode()
    os.close(reading)
    os.close(writing)
    assert before < theirs
    assert theirs[10:] != make()[10:]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_held_at_the_fork_does_not_stop_the_child() -> None:
    """A child can make references although another thread was making one when the fork happened."""
    inside, go_on = threading.Event(), threading.Event()

    def slow_random(count: int) -> bytes:
        if threading.current_thread() is holder:
            inside.set()
            go_on.wait()
        return os.urandom(count)

    make = ReferenceGenerator(random_bytes=slow_random)
    holder = threading.Thread(target=make)
    holder.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if len(make()) == 26 else 1)
    go_on.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "reference, expected",
    [
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", datetime(2016, 7, 30, 23, 54, 10, 259000, tzinfo=timezone.utc)),
        ("01arz3ndektsv4rrffq69g5fav", datetime(2016, 7, 30, 23, 54, 10, 259000, tzinfo=timezone.utc)),
        ("507f1f77bcf86cd799439011", datetime(2012, 10, 17, 21, 13, 27, tzinfo=timezone.utc)),
        ("7ZZZZZZZZZZZZZZZZZZZZZZZZZ", None),
        ("81ARZ3NDEKTSV4RRFFQ69G5FAV", None),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAU", None),
        ("order-17", None),
        ("", None),
    ],
)
def test_a_reference_tells_its_time(reference: str, expected: datetime | None) -> None:
    """The ULID of the specification's and the ObjectId of MongoDB's documentation tell their times; other text none."""
    assert reference_time(reference) == expected


# --- Keys and names


@pytest.mark.parametrize(
    "key",
    ["commodity/calculate/one", "Space Job/ünï/one", "a", "order:17 (retry)", "a.b/v1.2/c-d_e", "💶/日本語", "x~y"],
)
def test_a_safe_key_stays_as_it_is(key: str) -> None:
    """Keys with spaces, punctuation and letters of any script come back as the same text."""
    assert safe_key(key) == key
    assert safe_name(key) == key


@pytest.mark.parametrize(
    "key, expected",
    [("/a/b", "a/b"), ("a//b", "a/b"), ("a/b/", "a/b"), ("///", "unnamed"), ("", "unnamed"), (None, "unnamed")],
)
def test_slashes_of_a_key_are_normalised(key: object, expected: str) -> None:
    """Leading, trailing and doubled slashes are dropped, and an empty key gets a name."""
    assert safe_key(key) == expected


@pytest.mark.parametrize(
    "key, beginning",
    [
        ("../../etc/passwd", "unnamed~"),
        ("a/../b", "a/unnamed~"),
        ("./a", "unnamed~"),
        (".spool/a", "_spool~"),
        ("a\0b", "a_b~"),
        ("a\nb\x1b[31m", "a_b_[31m~"),
        ("C:\\temp", "C:_temp~"),
        ("x\ud800y", "x_y~"),
        ("artifacts/a", "_artifacts~"),
        ("a/record.json", "a/_record~"),
        ("Data_3.json.gz", "_Data_3~"),
        ("dot.", "dot~"),
        (" around ", "around~"),
    ],
)
def test_a_hazard_is_made_harmless_and_stays_readable(key: str, beginning: str) -> None:
    """Each hazard is replaced, what is harmless stays, and a hash of the original follows."""
    assert safe_key(key).startswith(beginning)
    assert problems(safe_key(key)) == []


def test_the_extension_of_a_name_stays() -> None:
    """A name that was shortened or mended keeps its extension, so that it opens in the right program."""
    assert safe_name("x" * 1000 + ".csv").endswith(".csv")
    assert safe_name("a\nb.json.gz").endswith(".json.gz")


def test_what_is_no_text_becomes_a_key() -> None:
    """Numbers, bytes, and objects whose str() raises become keys too, and True is not mistaken for 1."""

    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Text(str):
        def __str__(self) -> str:
            return "other"

    assert [safe_key(1), safe_key(True), safe_key(b"a/b"), safe_key(Hostile())] == ["1", "True", "a/b", "Hostile"]
    assert type(safe_key(Text("mine"))) is str
    assert safe_key(Text("mine")) == "mine"
    assert safe_key(b"a\xff").startswith("a_~")


@given(HOSTILE)
@example("a/" * 6000)
@example("x" * 10_000)
@example("\ud800" * 10_000)
@example("💶" * 10_000 + "/" + "é" * 500 + ".txt")
@example(("b" * 190 + "/") * 3 + "artifacts" + "c" * 300)
def test_no_key_or_name_is_ever_dangerous(text: str) -> None:
    """Any text becomes a relative path without a hazard, within the limits, and stays the same the second time."""
    for make, limit in ((safe_key, MAX_KEY_BYTES), (safe_name, MAX_NAME_BYTES), (safe_reference, MAX_REFERENCE_BYTES)):
        safe = make(text)
        assert problems(safe) == []
        assert len(safe.encode()) <= limit
        assert len(safe.split("/")) <= 32
        assert make(safe) == safe
    assert "/" not in safe_reference(text)


@given(HOSTILE, HOSTILE)
@example("/a", "a/")
@example("a\0b", "a\nb")
@example("x" * 300 + "a", "x" * 300 + "b")
@example("a/" * 100 + "b", "a/" * 101 + "b")
@example("unnamed", "/")
def test_two_names_never_become_one(one: str, other: str) -> None:
    """Different names stay different, and so do different references and, slashes aside, different keys."""
    if one == other or not one or not other:
        return
    assert safe_name(one) != safe_name(other)
    assert safe_reference(one) != safe_reference(other)
    if [part for part in one.split("/") if part] != [part for part in other.split("/") if part]:
        # an empty key and one that is called so are the same on purpose
        assert safe_key(one) != safe_key(other) or "unnamed" in (one.strip("/"), other.strip("/"))


def test_a_reference_is_one_segment() -> None:
    """A slash in a caller's reference is no folder, and an empty reference is replaced by a new one."""
    assert safe_reference("order-17") == "order-17"
    assert safe_reference("a/b").startswith("a_b~")
    assert safe_reference("a/b") != safe_reference("a\0b")
    assert safe_reference("") != safe_reference("")
    assert reference_time(safe_reference(None)) is not None


def test_object_names_stay_within_what_s3_takes() -> None:
    """The longest key, reference, name and prefix together stay within 1,024 bytes."""
    name = "/".join(
        [
            "999999999",
            "p" * MAX_PREFIX_BYTES,
            safe_key("k/" * 900 + "é" * 900),
            safe_reference("é" * 900),
            "artifacts",
            safe_name("n" * 190 + "/" + "é" * 900),
        ]
    )
    assert (
        MAX_KEY_BYTES + MAX_REFERENCE_BYTES + MAX_NAME_BYTES + MAX_PREFIX_BYTES + len("999999999/////artifacts") <= 1024
    )
    assert len(name.encode()) <= 1024


def test_segments_are_every_prefix() -> None:
    """The segments of a key are its prefixes, shortest first."""
    assert segments("commodity/calculate/one") == ("commodity", "commodity/calculate", "commodity/calculate/one")
    assert segments("one") == ("one",)


def test_what_comes_of_long_keys_is_not_kept() -> None:
    """Very many long keys, each with very many prefixes, take no memory once nobody has them."""
    tracemalloc.start()
    try:
        for number in range(200):
            key = f"{number}/" + "x/" * 1000 + "y"
            assert len(segments(key)) == 1002
            safe_key(key)
            safe_name(key)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4_000_000
