"""The literals without which no built-in rule can match, and the search for them: what most texts are met with alone.

A text is made plain first: one byte for each character, letters in lower case, each digit a 0, a dot itself,
anything else a blank. So `API_KEY`, `api-key` and `apiKey` take two literals, and a card is a
literal too: blank, sixteen zeros, blank. The automaton scans some gigabytes a second; without
the package the same literals are searched one after the other. What a literal means is the rules' business.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter

from trifle_otel.records import CLOSED, OPENED, RESULT
from trifle_otel.redaction_keys import KEY_LITERALS
from trifle_otel.redaction_rules import VENDOR_LITERALS

try:
    import ahocorasick_rs
except ImportError:  # plain Python finds the same, more slowly
    ahocorasick_rs = None  # type: ignore[assignment]

KEY, TOKEN, SCHEME, CARD, BEFORE_CARD = 1, 2, 4, 8, 16
"""What a literal may be the sign of. The last one's blank may be the first one of a card, which is not found then."""
WINDOW = 1 << 20
"""Characters of a text that are made plain at once: of a result of any size no whole copy is made."""

_SHORT = 256
"""Bytes that are looked through for stems first: the texts of one block, say."""
STEMS = (
    b"pass|pwd|secret|token|credential|auth|cookie|srf|sess|key|card|cvv|cvc|amz|bearer|basic"
    b"|0000 0000|000000 0000|00000000000000"
    b"|eyj|akia|asia|aiza|ghp|gho|ghr|ghs |ghu|github|glpat|xox|k live|k test|k proj|k ant|k svc|npm|pypi|shp"
    b"|whsec|hf |dop v|doo v|dor v"
).split(b"|")
"""Each literal holds one of these. The automaton lets go of the interpreter's lock at each search: where another thread
waits for that, each block of a job would wake it in vain, which takes ten times as long as to look for these."""
_ARROWS = (OPENED[-1], CLOSED[-1], RESULT[0])
_MARGIN = b"  "  # around a text; two, so that what is found at the end of one takes nothing from the next

_Match = tuple[int, int, int]
"""The number of a literal, its start and its end."""


class Finder:
    """Finds the literals: the usual ones, where `defaults` apply, and `words` of one's own keys (ASCII alone)."""

    def __init__(self, words: Sequence[str], *, defaults: bool) -> None:
        groups = [_frequent_literals(), _rare_literals()] if defaults else [{}]
        for word in map(_plain, words):
            groups[-1][word] = groups[-1].get(word, 0) | KEY
        self._groups = [_Group(group) for group in groups if group]
        stems = [*(STEMS if defaults else ()), *map(_plain, words)]
        self._stem = re.compile(b"|".join(map(re.escape, stems))) if stems else None
        self._longest = max((len(literal) for group in groups for literal in group), default=0)

    def starts(self, texts: str) -> list[int]:
        """Where any literals stand, in no order; in texts that are joined with two other characters between."""
        plain = _plain(texts)
        found: list[int] = []
        if len(plain) < _SHORT and not (self._stem and self._stem.search(plain)):
            return found
        for group in self._groups:
            if matches := group.search(plain):
                found += [start for _, start, _ in matches]
        return found

    def look(self, text: str) -> tuple[int, Iterable[tuple[int, int]]]:
        """What the literals in a text of any size are the sign of, and where those stand that are parts of keys."""
        if len(text) > WINDOW:
            return self._look_window_by_window(text)
        plain = _MARGIN + _plain(text) + _MARGIN
        signs = 0
        keys: list[tuple[int, int]] = []
        for group in self._groups:
            if matches := group.search(plain):
                more, found = group.take(matches, -len(_MARGIN))
                signs, keys = signs | more, _merged(keys, found)
        return signs, keys

    def _look_window_by_window(self, text: str) -> tuple[int, Iterable[tuple[int, int]]]:
        signs = 0
        starts, ends = array("q"), array("q")  # no list of pairs: in a hostile text there may be very many
        done = [-len(_MARGIN)] * len(self._groups)  # each search goes on behind its last find
        for at in range(0, len(text), WINDOW):
            offset, plain = self._window(text, at)
            keys: list[tuple[int, int]] = []
            for number, group in enumerate(self._groups):
                base = max(done[number], offset)
                if matches := _before(at + WINDOW - base, group.search(plain[base - offset :])):
                    done[number] = base + matches[-1][2]
                    more, found = group.take(matches, base)
                    signs, keys = signs | more, _merged(keys, found)
            starts.extend([start for start, _ in keys])
            ends.extend([end for _, end in keys])
        return signs, zip(starts, ends, strict=True)

    def _window(self, text: str, at: int) -> tuple[int, bytes]:
        """A part of a text from `at` on, plain, and where its first byte would stand in the text."""
        stop = at + WINDOW + self._longest
        plain = _plain(text[at:stop])
        if stop >= len(text):
            plain += _MARGIN
        return (at, plain) if at else (-len(_MARGIN), _MARGIN + plain)


class _Group:
    """Literals that are searched together."""

    def __init__(self, literals: dict[bytes, int]) -> None:
        self.search = _search(list(literals))
        self._signs = list(literals.values())
        # of a key the letters alone: a blank at its end may be any sign, and outside of the text
        self._blanks = [len(literal) - len(literal.rstrip(b" ")) for literal in literals]

    def take(self, matches: list[_Match], base: int) -> tuple[int, list[tuple[int, int]]]:
        """All signs in what begins at `base`, and where keys stand."""
        signs, blanks = self._signs, self._blanks
        found = 0
        for index in {match[0] for match in matches}:
            found |= signs[index]
        if not found & KEY:
            return found, []
        return found, [(base + start, base + end - blanks[i]) for i, start, end in matches if signs[i] & KEY]


def _merged(keys: list[tuple[int, int]], more: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return sorted(keys + more) if keys and more else keys or more


def _before(border: int, matches: list[_Match]) -> list[_Match]:
    """Those of the matches, which are in order, that begin before a border."""
    if not matches or matches[-1][1] < border:
        return matches
    return [match for match in matches if match[1] < border]


def _search(literals: list[bytes]) -> Callable[[bytes], list[_Match]]:
    """The search for some literals, which gives all that is found, in order."""
    if ahocorasick_rs is not None:
        # only the leftmost matches: then it skips ahead with vector instructions, a dozen times as fast
        kind = ahocorasick_rs.MatchKind.LeftmostFirst
        return ahocorasick_rs.BytesAhoCorasick(literals, matchkind=kind).find_matches_as_indexes

    def search(plain: bytes) -> list[_Match]:
        found: list[_Match] = []
        for index, literal in enumerate(literals):
            start = plain.find(literal)
            while start >= 0:
                found.append((index, start, start + len(literal)))
                start = plain.find(literal, start + 1)
        return sorted(found, key=_start)

    return search


_start = itemgetter(1)


def _frequent_literals() -> dict[bytes, int]:
    """One half of the built-in rules' literals: with more than 64, an automaton stops using vector instructions."""
    return {
        **dict.fromkeys(map(_plain, KEY_LITERALS), KEY),
        b"pass ": KEY | BEFORE_CARD,  # with a blank, so as not to meet "passed", "author"
        b"auth ": KEY | BEFORE_CARD,
        **dict.fromkeys((b"bearer", b"basic"), SCHEME),
        **dict.fromkeys(_card_literals(b" "), CARD),
    }


def _rare_literals() -> dict[bytes, int]:
    """The other half; among them cards behind a line break or a tab in a repr, which leave a letter there."""
    return {
        **dict.fromkeys(map(_plain, ("eyj", *VENDOR_LITERALS)), TOKEN),
        **{before + b"ghs ": TOKEN for before in (b" ", b".", b"n", b"r", b"t")},  # so as not to meet "weighs"
        **dict.fromkeys((*_card_literals(b"n"), *_card_literals(b"t")), CARD | TOKEN),  # its end may be a token's blank
    }


def _card_literals(before: bytes) -> Iterator[bytes]:
    yield before + b"0000 0000 0000 0000"
    yield before + b"0000 000000 00000"
    for digits in (b"0" * 16, b"0" * 15):
        yield before + digits + b" "
        yield before + digits + b"."


_PLAIN = (
    bytes(
        ord(chr(code).lower())
        if chr(code).isalpha()
        else 0x30
        if chr(code).isdigit()
        else 0x2E
        if code == 0x2E
        else 0x20
        for code in range(128)
    )
    + b" " * 128
)


def _plain(text: str) -> bytes:
    for arrow in _ARROWS:  # nearly all that is not ASCII in most parts, and the encoder is slow at errors
        text = text.replace(arrow, " ")
    return text.encode("ascii", "replace").translate(_PLAIN)
