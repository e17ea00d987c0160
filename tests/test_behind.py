"""Headers behind pickled messages: they come back, and nothing else is taken for them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trifle_otel.integrations.behind import look_behind, put_behind

values = st.recursive(st.none() | st.integers() | st.text() | st.binary(), lambda inner: st.lists(inner, max_size=3))
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(
    values, st.dictionaries(texts, texts | st.integers(0, 9)), st.sampled_from(range(2, pickle.HIGHEST_PROTOCOL + 1))
)
def test_headers_come_back_and_the_message_is_read_as_ever(value: Any, headers: dict[str, Any], protocol: int) -> None:
    """Whatever the message holds, what looks like our own mark included."""
    value = [value, b"\ntrifle_otel:{}", "\ntrifle_otel:"]
    packed = put_behind(pickle.dumps(value, protocol), headers)
    assert pickle.loads(packed) == value  # noqa: S301 - written here
    assert look_behind(packed) == headers


@pytest.mark.parametrize("packed", [b'{"a":1}', b"", "text", None, [b"."]])
def test_behind_what_is_no_pickle_nothing_is_put(packed: Any) -> None:
    """It is given back as it is."""
    assert put_behind(packed, {"traceparent": "00"}) is packed
    assert look_behind(packed) == {}


def test_nothing_is_put_behind_where_there_are_no_headers() -> None:
    """The message is the framework's own, to the byte."""
    packed = pickle.dumps(7)
    assert put_behind(packed, {}) is packed


@pytest.mark.parametrize("found", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"a":NaN}'])
def test_what_cannot_be_read_is_no_headers(found: bytes) -> None:
    """An argument may hold anything."""
    assert look_behind(b"x\ntrifle_otel:" + found) == {}
