"""Secrets out of texts and structures, before they reach a span or the disk.

`Redactor.texts` screens all lines of a part in one pass: an automaton over a few literals says
which lines can hold a secret, and only those meet the rules (`redaction_rules` for what is known
by its form, `redaction_text` for what is known by its key). There are no rules about
randomness: numbers, ids and hashes are the evidence that an archive is kept for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from itertools import accumulate
from operator import attrgetter
from typing import Any, NamedTuple

from trifle_otel import redaction_rules as forms
from trifle_otel import redaction_text
from trifle_otel.errors import UsageError
from trifle_otel.interruptions import let_pass
from trifle_otel.records import CLOSED, OPENED, RESULT
from trifle_otel.redaction_keys import KEY_LITERALS, Key, KeyRules, is_kept, slug, words_of
from trifle_otel.redaction_rules import marker
from trifle_otel.strict_json import to_json

try:
    import ahocorasick_rs
except ImportError:  # plain Python finds the same, more slowly
    ahocorasick_rs = None  # type: ignore[assignment]

CUSTOM_FAILED = marker("custom-failed")
FAILED = marker("failed")

_KEY, _CARD, _TOKEN, _SCHEME = 1, 2, 4, 8  # flags: what a literal may be the sign of
_BETWEEN = "\0\0"  # two, so that what is found at the end of one text takes nothing from the next
_PASSES = 4
_WINDOW = 1 << 20  # characters of a text that are made plain at once
_ARROWS = (OPENED[-1], CLOSED[-1], RESULT[0])
_start = attrgetter("start")
_SMALLEST_CARD, _LARGEST_CARD = 10**14, 10**16


class Redactor:
    """Replaces secrets by `[redacted:<rule>]`. Screening a screened text again changes nothing.

    Args:
        keys: more names of keys whose values are secret, also as the last words of a longer name
            (`iban` covers `customer_iban` and `customerIban`).
        values: more patterns of secrets: the rule's name, and a regular expression. They are
            searched in every text, so their cost is the caller's.
        safe: what is never redacted: names of keys, or values; in full, without regard to case, `*`
            and `?` standing for anything.
        custom: a last step, text to text, for every text. Where it raises, or returns no str, the
            whole text becomes `[redacted:custom-failed]`: what it would have removed must not stay.
        defaults: whether the built-in rules apply.

    Raises:
        UsageError: a pattern does not compile, or an argument is of a wrong kind.
    """

    def __init__(
        self,
        *,
        keys: Iterable[str] = (),
        values: Mapping[str, str] | None = None,
        safe: Iterable[str] = (),
        custom: Callable[[str], str] | None = None,
        defaults: bool = True,
    ) -> None:
        names = _strings("keys", keys)
        self._safe = _Safe(_strings("safe", safe))
        self._rules = KeyRules(names, self._safe, defaults=defaults)
        self._patterns = [(slug(name), _compiled(name, pattern)) for name, pattern in (values or {}).items()]
        self._custom = custom
        self._defaults = defaults
        words = [max(split, key=len) for split in map(words_of, names) if split]
        self._foreign = _foreign([word for word in words if not word.isascii()])
        self._finder = _Finder([word for word in words if word.isascii()], defaults=defaults)
        self._each = bool(self._patterns or self._foreign or custom)

    def text(self, text: str) -> str:
        """One text without its secrets; the same object when nothing matched.

        Raises nothing: where a rule of ours fails, the text becomes `[redacted:failed]`.
        """
        try:
            screened = self._screened(text)
        except Exception as error:
            let_pass(error)
            return FAILED
        return screened if self._custom is None else self._customised(screened, self._custom)

    def texts(self, texts: list[str]) -> list[str]:
        """All texts without their secrets, in one pass; the same list object when nothing matched."""
        try:
            suspects: Iterable[int] = range(len(texts)) if self._each else self._suspects(texts)
        except Exception as error:
            let_pass(error)
            suspects = range(len(texts))
        result = texts
        for row in suspects:
            screened = self.text(texts[row])
            if screened is not texts[row]:
                result = list(texts) if result is texts else result
                result[row] = screened
        return result

    def structure(self, value: Any) -> Any:
        """A JSON-able structure without its secrets, by key and by value; the same object when nothing matched."""
        try:
            return value if self._is_clean(value) else self._structure(value)
        except Exception as error:
            let_pass(error)
            return FAILED

    def _is_clean(self, value: Any) -> bool:
        """Whether nothing in a structure can be a secret: one look at all of it, as it will be written.

        An escape (of a newline, say) would stand between a secret and the blank before it: then each is looked at.
        """
        if self._each:
            return False
        written = to_json(value).decode()
        return "\\" not in written and not self._suspects([written])

    def _structure(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            items = [self._structure(item) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, int) and _SMALLEST_CARD <= value < _LARGEST_CARD:
            digits = str(value)
            screened = self.text(digits)
            return value if screened is digits else screened
        return value

    def _mapping(self, value: dict[Any, Any]) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        changed = False
        for key, member in value.items():
            new_key = key if self._is_name(key) else self.text(key)
            new = self._member(key, member)
            changed = changed or new is not member or new_key is not key
            while new_key in result:
                new_key += " "
            result[new_key] = new
        return result if changed else value

    def _is_name(self, key: Any) -> bool:
        """Whether a key is too short and plain to hold a secret, as nearly all are (the shortest has 18 letters)."""
        return not isinstance(key, str) or (len(key) < 16 and key.isidentifier() and not self._each)

    def _member(self, name: Any, member: Any) -> Any:
        key = self._rules.find(name) if isinstance(name, str) and len(name) <= 200 else None
        if key is None or member is None or isinstance(member, bool) or member in ({}, [], ()):
            return self._structure(member)
        return member if self._harmless(member, key) else marker(key.rule)

    def _harmless(self, member: Any, key: Key) -> bool:
        if isinstance(member, (dict, list, tuple)):
            return False
        return is_kept(str(member), key) or self._safe(str(member))

    def _suspects(self, texts: list[str]) -> Iterable[int]:
        """The rows that can hold a secret. This is the whole cost for most parts."""
        joined = _BETWEEN.join(("", *texts, ""))
        hits = self._finder.hits(joined)
        rows: set[int] = set()
        if hits:
            ends = list(accumulate(len(text) + len(_BETWEEN) for text in texts))
            rows.update(bisect_right(ends, hit.start - 1) for hit in hits)
        if self._defaults and _may_hold_url(joined):
            rows.update(row for row, text in enumerate(texts) if _may_hold_url(text))
        return sorted(row for row in rows if row < len(texts)) if rows else ()

    def _screened(self, text: str) -> str:
        for rule, pattern in self._patterns:
            text = _replaced(text, rule, pattern, self._safe)
        for _ in range(_PASSES):
            screened = self._once(text)
            if screened == text:
                break
            text = screened
        return text

    def _once(self, text: str) -> str:
        hits = self._finder.hits(f"{_BETWEEN}{text}{_BETWEEN}")
        screened = self._by_form(text, _all_signs(hits)) if self._defaults else text
        if screened is not text and screened != text:
            hits = self._finder.hits(f"{_BETWEEN}{screened}{_BETWEEN}")
        places = sorted(self._places(screened, hits))
        return redaction_text.redact(screened, places, self._rules, self._safe) if places else screened

    def _by_form(self, text: str, signs: int) -> str:
        if "-----BEGIN" in text:
            text = forms.private_keys(text, self._safe)
        if signs & _TOKEN:
            text = forms.tokens(text, self._safe)
        if signs & _SCHEME:
            text = forms.schemes(text, self._safe)
        if _may_hold_url(text):
            text = forms.url_credentials(text, self._safe)
        if signs & _CARD:
            text = forms.cards(text, self._safe)
        return text

    def _places(self, text: str, hits: list[_Hit]) -> Iterator[tuple[int, int]]:
        shift = len(_BETWEEN)
        for hit in hits:
            if hit.signs & _KEY:
                yield _without_blanks(text, hit.start - shift, hit.end - shift)
        for found in self._foreign.finditer(text) if self._foreign else ():
            yield found.span()

    @staticmethod
    def _customised(text: str, custom: Callable[[str], str]) -> str:
        try:
            result = custom(text)
        except Exception as error:
            let_pass(error)
            return CUSTOM_FAILED
        if not isinstance(result, str):
            return CUSTOM_FAILED
        plain = str.__str__(result)  # without a subclass's code
        return text if plain == text else plain


class _Hit(NamedTuple):
    """A literal in a text: what it may be the sign of, and where it stands (characters)."""

    signs: int
    start: int
    end: int


class _Finder:
    """Finds the literals without which no built-in rule can match, in a text made plain.

    Plain means one byte for each character: letters in lower case, each digit a 0, a dot itself,
    anything else a blank. So `API_KEY`, `api-key` and `apiKey` take two literals, and a card is a
    literal too: blank, sixteen zeros, blank. The automaton scans some gigabytes a second; without
    the package the same literals are searched one after the other.
    """

    def __init__(self, words: Iterable[str], *, defaults: bool) -> None:
        groups = [_frequent_literals(), _rare_literals()] if defaults else [{}]
        for word in map(_plain, words):
            groups[-1][word] = groups[-1].get(word, 0) | _KEY
        self._searches = [(_search(list(group)), list(group.values())) for group in groups if group]
        self._longest = max((len(literal) for group in groups for literal in group), default=0)

    def hits(self, text: str) -> list[_Hit]:
        """Where the literals stand, in order of their start."""
        if len(text) > _WINDOW:
            found = list(self._in_windows(text))
        else:
            plain = _plain(text)
            found = []
            for search, signs in self._searches:
                for index, start, end in search(plain):
                    found.append(_Hit(signs[index], start, end))
        found.sort(key=_start)
        return found

    def _in_windows(self, text: str) -> Iterator[_Hit]:
        """The same of a long text, of which no whole copy is made: it may be a result of any size."""
        done = [0] * len(self._searches)  # each search goes on behind its last find
        for at in range(0, len(text), _WINDOW):
            border = at + _WINDOW
            plain = _plain(text[at : border + self._longest])
            for number, (search, signs) in enumerate(self._searches):
                skip = max(done[number] - at, 0)
                for index, start, end in search(plain[skip:]):
                    if (first := at + skip + start) < border:
                        done[number] = at + skip + end
                        yield _Hit(signs[index], first, done[number])


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    """The place of a literal without the signs that were its blanks, which may lie outside of the text."""
    start, end = max(start, 0), min(end, len(text))
    while start < end and not text[start].isalnum():
        start += 1
    while start < end and not text[end - 1].isalnum():
        end -= 1
    return start, end


def _all_signs(hits: Iterable[_Hit]) -> int:
    signs = 0
    for hit in hits:
        signs |= hit.signs
    return signs


def _search(literals: list[bytes]) -> Callable[[bytes], Iterable[tuple[int, int, int]]]:
    """The search for some literals: (number of the literal, start, end) of each that is found."""
    if ahocorasick_rs is not None:
        # only the leftmost matches: then it skips ahead with vector instructions, a dozen times as fast
        kind = ahocorasick_rs.MatchKind.LeftmostFirst
        return ahocorasick_rs.BytesAhoCorasick(literals, matchkind=kind).find_matches_as_indexes

    def search(plain: bytes) -> Iterator[tuple[int, int, int]]:
        for index, literal in enumerate(literals):
            start = plain.find(literal)
            while start >= 0:
                yield index, start, start + len(literal)
                start = plain.find(literal, start + 1)

    return search


class _Safe:
    """The safe list, as a function: whether a key's name or a value is on it."""

    def __init__(self, entries: Iterable[str]) -> None:
        lowered = [entry.lower() for entry in entries]
        self._exact = {entry for entry in lowered if not set("*?") & set(entry)}
        globs = [entry.replace("[", "[[]") for entry in lowered if entry not in self._exact]
        self._globs = [re.compile(translate(glob)) for glob in globs]

    def __call__(self, text: str) -> bool:
        if not self._exact and not self._globs:
            return False
        text = text.lower()
        return text in self._exact or any(glob.match(text) for glob in self._globs)


def _frequent_literals() -> dict[bytes, int]:
    """One half of the built-in rules' literals: with more than 64, an automaton stops using vector instructions."""
    return {
        **dict.fromkeys(map(_plain, KEY_LITERALS), _KEY),
        b"pass ": _KEY | _CARD,  # its last blank may be the first of a card; so not to meet "passed", "author"
        b"auth ": _KEY | _CARD,
        **dict.fromkeys((b"bearer", b"basic"), _SCHEME),
        **dict.fromkeys(_card_literals(b" "), _CARD),
    }


def _rare_literals() -> dict[bytes, int]:
    """The other half; among them cards behind a line break or a tab in a repr, which leave a letter there."""
    return {
        **dict.fromkeys(map(_plain, ("eyj", *forms.VENDOR_LITERALS)), _TOKEN),
        **dict.fromkeys((*_card_literals(b"n"), *_card_literals(b"t")), _CARD),
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


def _may_hold_url(text: str) -> bool:
    return "@" in text and ("://" in text or ":\\/" in text)


def _foreign(words: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, words)), re.IGNORECASE) if words else None


def _strings(name: str, values: Iterable[str]) -> list[str]:
    entries = [values] if isinstance(values, str) else list(values)
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            raise UsageError(f"{name} of the redaction must be texts that are not empty, not {entry!r}")
    return entries


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UsageError(f"the redaction's pattern {name!r} is no regular expression: {error}") from error


def _replaced(text: str, rule: str, pattern: re.Pattern[str], allowed: Callable[[str], bool]) -> str:
    """The text with all matches replaced; one that cuts into a marker takes it whole, one inside a marker is none."""
    pieces: list[str] = []
    done = 0
    markers = [found.span() for found in forms.MARKER.finditer(text)] if "[redacted:" in text else []
    for found in pattern.finditer(text):
        start, end = found.span()
        if start == end or start < done or allowed(found.group()):
            continue
        if any(begin <= start and end <= stop for begin, stop in markers):
            continue
        for begin, stop in markers:
            if begin < end and start < stop:
                start, end = min(start, begin), max(end, stop)
        pieces += (text[done:start], marker(rule))
        done = end
    return "".join(pieces) + text[done:] if pieces else text
