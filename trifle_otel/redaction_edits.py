"""Replacements in a text, and the text that comes of them. What is replaced by what is decided by the rules.

A text may be a result of any size. So what is replaced is noted first, as places and what stands there then;
and the new text is put together in place, piece by piece, so that it is held once beside the one that it comes of.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

PIECE = 1 << 18
"""Characters of a text that are handled at once."""


class Edits:
    """Replacements in one text, in the order of their places: each of one character or more, none within another."""

    __slots__ = ("ends", "starts", "texts")

    def __init__(self) -> None:
        self.starts = array("q")  # not a list of triples: a hostile text has a secret every ten characters
        self.ends = array("q")
        self.texts: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.texts)

    def add(self, start: int, end: int, text: str) -> None:
        """Have `text` stand in the place of what goes from `start` to `end`."""
        self.starts.append(start)
        self.ends.append(end)
        self.texts.append(text)

    def applied(self, pieces: Iterable[str]) -> Iterator[str]:
        """The text that `pieces` make up, with these replacements, in pieces again."""
        places = iter(zip(self.starts, self.ends, self.texts, strict=True))
        nowhere = 1 << 62, 1 << 62, ""
        start, end, new = next(places, nowhere)
        at = done = 0
        for piece in pieces:
            behind = at + len(piece)
            kept: list[str] = []
            while start < behind:
                if done < start:
                    kept.append(piece[done - at : start - at])
                kept.append(new)
                done = end
                start, end, new = next(places, nowhere)
            if done < behind:
                kept.append(piece[done - at :])
                done = behind
            at = behind
            yield "".join(kept)


class Draft:
    """A text that is replaced in, step by step.

    Attributes:
        text: what it reads now; the source itself where nothing was replaced.
    """

    __slots__ = ("_source", "_steps", "text")

    def __init__(self, source: str) -> None:
        self._source = source
        self._steps: list[Edits] = []
        self.text = source

    def edit(self, edits: Edits) -> bool:
        """Replace in `text`; tells whether that was anything. Nobody else should hold `text` while this is done."""
        if not edits:
            return False
        if len(self._source) <= PIECE:
            (self.text,) = edits.applied((self.text,))
            return True
        self._steps.append(edits)
        whole = ""
        for piece in self.into_pieces():
            whole += piece  # in place, in CPython: `join` would hold all pieces beside the whole
        self.text = whole
        return True

    def into_pieces(self) -> Iterator[str]:
        """What it reads now, piece by piece; and let go of `text`, so that whoever takes the pieces has it alone.

        They are made of the source, by all steps again: made of what was before the last one, they would need that too.
        """
        text, self.text = self.text, ""
        source = self._source
        if len(source) <= PIECE:
            return iter((text,))
        pieces: Iterator[str] = (source[at : at + PIECE] for at in range(0, len(source), PIECE))
        for step in self._steps:
            pieces = step.applied(pieces)
        return pieces
