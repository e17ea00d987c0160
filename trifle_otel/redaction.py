"""Secrets out of texts and structures, before they reach a span or the disk.

`Redactor.texts` screens all lines of a part in one pass: an automaton over a few literals (`redaction_literals`) says
which lines can hold a secret, and only those meet the rules (`redaction_rules` for what is known
by its form, `redaction_text` for what is known by its key); what they find is replaced by `redaction_edits`. There are
no rules about randomness: numbers, ids and hashes are the evidence that an archive is kept for.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from itertools import accumulate
from typing import Any

from trifle_otel import redaction_rules as forms
from trifle_otel import redaction_text
from trifle_otel.errors import UsageError
from trifle_otel.interruptions import let_pass
from trifle_otel.redaction_edits import Draft, Edits
from trifle_otel.redaction_keys import Key, KeyRules, is_kept, slug, words_of
from trifle_otel.redaction_literals import BEFORE_CARD, CARD, KEY, SCHEME, TOKEN, WINDOW, Finder
from trifle_otel.redaction_rules import marker
from trifle_otel.strict_json import to_json

CUSTOM_FAILED = marker("custom-failed")
FAILED = marker("failed")
UNSETTLED = marker("unsettled")

_NUL = "\0"
_BETWEEN = 2 * _NUL  # two, so that what is found at the end of one text takes nothing from the next
_LONGEST_NAME = 200  # characters of a key's name
_FEW = 4  # places in a text, before each of which it is quicker to count separators than to add up all lengths
_PASSES = 8  # no text that was not made for it takes more than four
_NOWHERE = (1 << 62, 1 << 62)
_SMALLEST_CARD, _LARGEST_CARD = 10**14, 10**16


class Redactor:
    """Replaces secrets by `[redacted:<rule>]`. Screening a screened text again changes nothing.

    What is replaced may bring more into reach, which then goes too. Where that finds no end, as in a text made for it
    alone, the whole text becomes `[redacted:unsettled]`.

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
        listed = _strings("safe", safe)
        self._safe = _Safe(listed)
        self._allowed = self._safe if listed else None
        self._rules = KeyRules(names, self._safe, defaults=defaults)
        self._patterns = [(slug(name), _compiled(name, pattern)) for name, pattern in (values or {}).items()]
        self._custom = custom
        self._defaults = defaults
        words = [max(split, key=len) for split in map(words_of, names) if split]
        self._foreign = _foreign([word for word in words if not word.isascii()])
        self._finder = Finder([word for word in words if word.isascii()], defaults=defaults)
        self._each = bool(self._patterns or self._foreign or custom)

    def text(self, text: str) -> str:
        """One text without its secrets; the same object when nothing matched.

        Raises nothing: where a rule of ours fails, the text becomes `[redacted:failed]`.
        """
        try:
            screened = self._draft(text).text
        except Exception as error:
            let_pass(error)
            return FAILED
        return screened if self._custom is None else self._customised(screened, self._custom)

    def texts(self, texts: list[str]) -> list[str]:
        """All texts without their secrets, in one pass; the same list object when nothing matched."""
        try:
            suspects: Sequence[int] = range(len(texts)) if self._each else self._suspects(texts)
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
            items = list(self._items(value))
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        if isinstance(value, int) and _SMALLEST_CARD <= value < _LARGEST_CARD:
            digits = str(value)
            screened = self.text(digits)
            return value if screened is digits else screened
        return value

    def _items(self, value: Sequence[Any]) -> Iterator[Any]:
        """Items, screened: `--password` says what the next one is, and a name what the other one of a pair is."""
        is_pair = len(value) == 2
        key: Key | None = None
        for item in value:
            if key is not None and isinstance(item, str) and not item.startswith("--"):
                yield item if self._harmless(item, key) else key.marker
                key = None
                continue
            key = None
            if isinstance(item, str) and len(item) <= _LONGEST_NAME and (is_pair or item.startswith("--")):
                key = self._rules.find(item)
            yield self._structure(item)

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
        key = self._rules.find(name) if isinstance(name, str) and len(name) <= _LONGEST_NAME else None
        if key is None or member is None or isinstance(member, bool) or member in ({}, [], ()):
            return self._structure(member)
        return member if self._harmless(member, key) else key.marker

    def _harmless(self, member: Any, key: Key) -> bool:
        if isinstance(member, (dict, list, tuple)):
            return False
        return is_kept(str(member), key) or self._safe(str(member))

    def _suspects(self, texts: list[str]) -> list[int]:
        """The rows that can hold a secret. This is the whole cost for most parts."""
        joined = _BETWEEN.join(["", *texts, ""])
        if len(joined) > WINDOW:
            del joined
            return list(self._suspects_among_many(texts))
        hits = self._finder.starts(joined)
        rows: set[int] = set()
        if hits:
            rows.update(_rows_of(hits, joined, texts))
        if self._defaults and _may_hold_url(joined):
            rows.update(row for row, text in enumerate(texts) if _may_hold_url(text))
        return sorted(row for row in rows if 0 <= row < len(texts)) if rows else []

    def _suspects_among_many(self, texts: list[str]) -> Iterator[int]:
        """The same of much text, some at a time; what is alone, for its size, is looked at when it is screened."""
        for first, behind in _portions(texts):
            if behind - first == 1:
                yield first
            else:
                yield from (first + row for row in self._suspects(texts[first:behind]))

    def _draft(self, text: str) -> Draft:
        """A text in which all that the rules find is replaced, so that they find nothing more."""
        draft = Draft(text)
        for rule, pattern in self._patterns:
            draft.edit(_own(draft.text, rule, pattern, self._safe))
        return draft if self._settle(draft) else Draft(UNSETTLED)

    def _settle(self, draft: Draft) -> bool:
        """Replace what the rules find, which may bring more to light, until they find nothing; False where they do."""
        keyed = True
        for number in range(_PASSES):
            signs, keys = self._finder.look(draft.text)
            signs = self._with_cards(draft.text, signs)
            may_have_form = self._defaults and self._may_have_form(draft.text, signs)
            formed = may_have_form and self._by_form(draft, signs, number > 0)
            if formed:
                _, keys = self._finder.look(draft.text)
            elif not keyed:
                return True  # it is as it was when no key was found
            edits, all_plain = self._by_key(draft.text, keys)
            keyed = draft.edit(edits)
            if not formed and (not keyed or (all_plain and not may_have_form)):
                return True
        return False

    def _by_key(self, text: str, keys: Iterable[tuple[int, int]]) -> tuple[Edits, bool]:
        if self._foreign:
            keys = sorted([*keys, *(found.span() for found in self._foreign.finditer(text))])
        return redaction_text.edits(text, keys, self._rules, self._allowed)

    @staticmethod
    def _with_cards(text: str, signs: int) -> int:
        """The signs, with that of cards where one may stand behind what hides its first blank."""
        if not signs & BEFORE_CARD:
            return signs
        return signs - BEFORE_CARD | (CARD if forms.has_digits_of_card(text) else 0)

    @staticmethod
    def _may_have_form(text: str, signs: int) -> bool:
        return signs > KEY or "-----BEGIN" in text or _may_hold_url(text)

    def _by_form(self, draft: Draft, signs: int, again: bool) -> bool:
        changed = "-----BEGIN" in draft.text and draft.edit(forms.private_keys(draft.text, self._safe))
        if signs & TOKEN:
            changed |= draft.edit(forms.tokens(draft.text, self._safe))
            changed |= draft.edit(forms.vendor_keys(draft.text, self._safe))
        if signs & SCHEME:
            changed |= draft.edit(forms.schemes(draft.text, self._safe))
        if _may_hold_url(draft.text):
            changed |= draft.edit(forms.url_credentials(draft.text, self._safe, again=again))
        if signs & CARD:
            changed |= draft.edit(forms.cards(draft.text, self._safe))
        return changed

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


def screened_pieces(redactor: Redactor | None, text: str) -> Iterator[str]:
    """A text without its secrets, piece by piece: nobody holds the whole of it, whatever its size."""
    if redactor is None or redactor._custom is not None:  # the custom step gets and gives whole texts
        return Draft(text if redactor is None else redactor.text(text)).into_pieces()
    try:
        return redactor._draft(text).into_pieces()
    except Exception as error:
        let_pass(error)
        return iter((FAILED,))


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


def _rows_of(places: list[int], joined: str, texts: list[str]) -> Iterator[int]:
    """The texts in which places of `joined` lie; of a place between two, the one behind it."""
    if len(places) <= _FEW and joined.count(_NUL) == len(_BETWEEN) * (len(texts) + 1):  # none is of a text
        return (joined.count(_NUL, 0, place + 1) // len(_BETWEEN) - 1 for place in places)
    ends = list(accumulate(len(text) + len(_BETWEEN) for text in texts))
    return (bisect_right(ends, place - 1) for place in places)


def _portions(texts: list[str]) -> Iterator[tuple[int, int]]:
    """From where to where texts are about a window long together, or one of any length alone."""
    first = size = 0
    for row, text in enumerate(texts):
        if size + len(text) > WINDOW // 2 and row > first:
            yield first, row
            first, size = row, 0
        size += len(text) + len(_BETWEEN)
    if texts:
        yield first, len(texts)


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


def _own(text: str, rule: str, pattern: re.Pattern[str], allowed: Callable[[str], bool]) -> Edits:
    """What a pattern of one's own finds; a match that cuts into a marker takes it whole, one inside one is none."""
    edits = Edits()
    markers = forms.MARKER.finditer(text)
    begin, stop = _next_span(markers)
    done = 0
    for found in pattern.finditer(text):
        start, end = found.span()
        if start == end or start < done or allowed(found.group()):
            continue
        while stop <= start:
            begin, stop = _next_span(markers)
        if begin <= start and end <= stop:
            continue
        while begin < end:
            start, end = min(start, begin), max(end, stop)
            begin, stop = _next_span(markers)
        edits.add(start, end, marker(rule))
        done = end
    return edits


def _next_span(matches: Iterator[re.Match[str]]) -> tuple[int, int]:
    found = next(matches, None)
    return found.span() if found else _NOWHERE
