"""Patterns: what is told from bytes before JSON is parsed, which must never hide a line that matches."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifle_otel.errors import UsageError
from trifle_otel.patterns import Pattern

LITERALS = {
    "NEEDLE-77": "NEEDLE-77",
    r"price: \d+ EUR": "price: ",
    r"^Loading .*product$": "Loading ",
    r"abcd?e": "abc",
    r"abcd*ef+gh": "abc",
    r"ab{2,3}cdef": "cdef",
    r"ab{x}": "ab{x}",
    r"1\.5 \(net\)": "1.5 (net)",
    r"[abc]longer[^]x]end": "longer",
    r"(?:one|two) three(?P<n>four)five": " three",
    r"a(b(c|\)d)e[)])fgh": "fgh",
    r"one|two": "",
    r"(?i)one": "",
    r"(?x) o n e": "",
    r"\x41bcdef": "",
    r"(a)\1bcd": "",
    r"\N{DIGIT ONE}bc": "",
    r"": "",
    r"\d\w\s": "",
    "two\nlines": "lines",
}


@pytest.mark.parametrize("expression", LITERALS)
def test_the_longest_plain_text_of_an_expression_is_found(expression: str) -> None:
    """It is a text that every match contains; none where that is not plain to see."""
    assert Pattern(expression).literal == LITERALS[expression]


def test_capitals_do_not_matter_where_they_need_not() -> None:
    """With `ignore_case` the text is in small letters, and without letters beyond ASCII."""
    assert Pattern("Größe ABC", ignore_case=True).literal == "e abc"
    assert Pattern("Größe ABC", fixed=True).literal == "Größe ABC"


def test_a_part_is_passed_over_only_where_nothing_can_match() -> None:
    """Escapes of JSON, in whatever way, hide nothing; a part without the text is passed over."""
    pattern = Pattern('say "a/b"', fixed=True)
    assert pattern.may_be_in(b'[{"message":"they say \\"a/b\\""}]')
    assert pattern.may_be_in(b'[{"message":"they say \\u0022a/b\\""}]')
    assert pattern.may_be_in(b'[{"message":"they say \\"a\\/b\\""}]')
    assert not pattern.may_be_in(b'[{"message":"they say \\"a-b\\" \\u001b[31m"}]')
    assert not Pattern("zone 2").may_be_in(b'[{"message":"zone\\/3"}]')


def test_letters_beyond_ascii_that_match_ascii_are_not_missed() -> None:
    """Python takes the Kelvin sign for a k, the long s for an s, and two letters of Turkish for an i."""
    for letter, text in (("k", "\u212aelvin"), ("s", "\u017fum"), ("i", "\u0130d"), ("i", "\u0131d")):
        pattern = Pattern(letter + text[1:], ignore_case=True)
        assert pattern.lines(text) == [text]
        assert pattern.may_be_in(json.dumps([{"message": text}], ensure_ascii=False).encode())
        assert pattern.may_be_in_text(text.encode())


PIECES = st.sampled_from(
    [
        *(
            "a",
            "B",
            "k",
            "s",
            "é",
            "ß",
            "İ",
            " ",
            '"',
            "/",
            "\\\\",
            "\\.",
            "1",
            "↳",
            "\\d",
            "\\w",
            ".",
            "[ab/]",
            "(a|b)",
        ),
        *("(?:é)", "a?", "b*", "k+", "s{1,2}", "^", "$", "\\b", "\\n", "|", "\\x41", "𝛑"),
    ]
)
TEXTS = st.lists(st.sampled_from(list('aAbBkKſsSéÉßİıi "/\\.1↳\n\x1b𝛑K')), max_size=12).map("".join)


def written(message: str, style: int) -> bytes:
    """A message in a part, as one library or another writes JSON."""
    text = json.dumps([{"at": 1, "message": message}], ensure_ascii=bool(style & 1))
    if style & 2:
        text = text.replace("/", "\\/")
    if style & 4:  # all letters of one kind as their codes
        text = text.replace("a", "\\u0061").replace("\\u0061t", "at").replace("mess\\u0061ge", "message")
    return text.encode()


@given(
    pieces=st.lists(PIECES, max_size=6),
    message=TEXTS,
    style=st.integers(0, 7),
    fixed=st.booleans(),
    ignore_case=st.booleans(),
)
def test_whatever_matches_is_never_passed_over(
    pieces: list[str], message: str, style: int, fixed: bool, ignore_case: bool
) -> None:
    """For any expression, any text and any way to write JSON: a part that is passed over has no line that matches."""
    pattern = Pattern("".join(pieces), fixed=fixed, ignore_case=ignore_case)
    try:
        expression = re.escape(pattern.text) if fixed else pattern.text
        plain = re.compile(expression, re.IGNORECASE if ignore_case else 0)
    except re.error:
        with pytest.raises(UsageError):
            _ = pattern.compiled
        return
    expected = [line for line in message.split("\n") if plain.search(line)]
    part = written(message, style)
    assert json.loads(part)[0]["message"] == message
    assert pattern.lines(message) == expected
    if expected:
        assert pattern.may_be_in(part)
        assert pattern.may_be_in_text(message.encode())


def test_a_wrong_expression_names_the_remedy() -> None:
    """What is no regular expression is wrong use, and the message says what else there is."""
    with pytest.raises(UsageError, match="--fixed-strings"):
        _ = Pattern("price (net").compiled


def test_matches_are_told_by_their_places() -> None:
    """From where to where, without those that are empty; those without a gap between are one."""
    assert list(Pattern("a+").spans("baab a")) == [(1, 3), (5, 6)]
    assert list(Pattern("x*").spans("abxx xb")) == [(2, 4), (5, 6)]
    assert list(Pattern("").spans("ab")) == []
    assert list(Pattern("[ab]").spans("abcab")) == [(0, 2), (3, 5)]
