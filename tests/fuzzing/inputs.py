"""How the bytes of the fuzzer become what a target takes: several fields, texts, one of some choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

SEPARATOR = b"\xff\xff"
"""Stands in no text in UTF-8."""

_T = TypeVar("_T")


def fields(data: bytes, count: int) -> list[bytes]:
    """So many pieces of the input; the last has the rest, and pieces that are not there are empty."""
    pieces = data.split(SEPARATOR, count - 1)
    return pieces + [b""] * (count - len(pieces))


def joined(*pieces: bytes) -> bytes:
    """The input that has these pieces: for seeds."""
    return SEPARATOR.join(pieces)


def text(data: bytes) -> str:
    """A text as the command line has it: what is not UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def choice(data: bytes, choices: Sequence[_T]) -> tuple[_T, bytes]:
    """What the first byte chooses, and the rest of the input."""
    return choices[(data[0] if data else 0) % len(choices)], data[1:]
