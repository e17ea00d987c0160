"""The values of secret keys in serialised text: `'password': 'x'`, `token=x`, `Cookie: x`, `--password x`.

A value that is plainly written is read by one expression. Any other is read to its end by hand, since a marker must
never stop inside a secret; where the end is in doubt, more is replaced rather than less. Each step goes forward or is
bounded, so all of it is linear on hostile input. Which names mean a secret is decided in `redaction_keys`, what is
replaced at once is put together in `redaction_edits`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from trifle_otel.redaction_edits import Edits
from trifle_otel.redaction_keys import Key, KeyRules, is_kept
from trifle_otel.redaction_rules import Allowed

_WINDOW = 64  # characters of a name on each side of a literal
_PAIR_LIMIT = 4096  # characters
_ASCII_NAME = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_REST = re.compile(rf"[\w-]{{0,{_WINDOW}}}")
_ESCAPE = re.compile(r"[nrtbfv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}")

_QUOTE = r"""(\\{0,16}["'])"""
_ASSIGN = r"(?:=>|:=|!=|={1,3}|:(?![:/]))"
_SEPARATOR = re.compile(rf"\]?[ \t]{{0,8}}{_ASSIGN}[ \t]{{0,8}}")
_QUOTED_SEPARATOR = re.compile(rf"{_QUOTE}\]?\s{{0,64}}{_ASSIGN}\s{{0,64}}")
_ANNOTATION = re.compile(r"(?:str|bytes|SecretStr|Optional\[str\]|str \| None) ?= ?")
_PAIR = re.compile(rf"{_QUOTE},\s{{0,8}}")
_PAIR_END = re.compile(r" ?,? ?[)\]]")
_OPTION = re.compile(rf"(?:{_QUOTE},\s{{0,8}}|[ \t]{{1,8}})(?!-)")
_ELEMENT = re.compile(r"(?:[ \t][^<>]{0,200})?>")
_VALUE_QUOTE = re.compile(r"""[bBrRuUfF]{0,2}(\\{0,16})(["'])""")
_NEXT_LITERAL = re.compile(r"""[ \t]{0,200}\n[ \t]{0,200}(?=[bBrRuUfF]{0,2}["'])""")
_BRACKET_OR_QUOTE = re.compile(r"""[()\[\]{}"']""")
_QUOTE_ENDS = r"""(?:\Z|[\s,;.:)\]}>&"'\\])"""
_BARE = re.compile(
    r"""(?:[^\s,;&|)\]}>"'\\(\[{]+"""
    r"""|[,;&|](?![\w.-]{1,64}[=:]|\s|\Z|["'\\)\]}])"""  # goes on unless the next name or an end follows
    r"""|[)\]}>](?!\Z|[\s,;.:)\]}>"'\\])"""
    rf"""|["'](?!{_QUOTE_ENDS})"""
    rf"""|\\(?![nrt](?:[\s\\"']|\Z|[\w-]{{1,64}}[:= ])|["']{_QUOTE_ENDS}))*""",
    re.ASCII,
)
_OPENING = ("(", "[", "{")
_QUOTE_SIGNS, _SEPARATOR_SIGNS, _GAP_SIGNS = {"\\", "'", '"'}, {"=", ":", "!", "]", " ", "\t"}, {">", " ", "\t"}
_SIGNS_BEHIND_KEY = _QUOTE_SIGNS | _SEPARATOR_SIGNS | _GAP_SIGNS
_SCHEME = re.compile(r"([A-Za-z][\w-]{0,30})[ \t]{1,4}(?=[^\s,;])", re.ASCII)
_MANY_PARTS = ("digest", "aws4-", "oauth", "hawk", "signature", "mac", "ntlm")  # schemes with a list of parameters
_HEADER_END = re.compile(r"""(?:\\r)?\\n|\\?["'](?=\Z|[\s)\]}])|[\r\n]""")
_COOKIE = re.compile(r"""[^\s=;,"']{1,256}=""")

# A value that is plainly written, from behind its key's literal: in quotes, without an escape, or up to a sign that
# surely ends it; not long, and without what another key may be followed by, so that many keys in a row are not read to
# the end of the row each. The groups: the rest of the key, its quote, the value.
_SURE_END = (
    r"""(?=[\s,;&|)\]}>"'\\]|\Z)(?=\s|\Z|[,;&|](?:\s|\Z|["'\\)\]}]|[\w.-]{1,64}[=:])|[)\]}>](?:\Z|[\s,;.:)\]}>"'\\])"""
    rf"""|["']{_QUOTE_ENDS}|\\(?:[nrt](?:[\s\\"']|\Z|[\w-]{{1,64}}[:= ])|["']{_QUOTE_ENDS}))"""
)
_MARKER = r"\[redacted:[a-z0-9-]+\]"
_PLAINLY = re.compile(
    r"""((?:[\w-]{0,63}\w)?)(["']?) ?[:=] ?(?:"""
    r"""(?:"([^"\\\n]{1,128})"|'([^'\\\n]{1,128})')(?![ \t]{0,200}\n)"""
    rf"""|(?:({_MARKER})|((?!/|str|bytes|SecretStr|Optional|[bBrRuUfF]{{1,2}}\\{{0,16}}["'])"""
    rf"""(?=[!-~])[^\s,;:=&|)\]}}>"'\\(\[{{]{{1,128}})){_SURE_END}"""
    r""")""",
    re.ASCII,
)
_MARKER_GROUP, _BARE_GROUP = 5, 6
_NEVER_PLAIN = ("cookie", "authorization")  # rules whose values go on behind a blank
_LONG = 4096  # characters of a value that nobody means to keep
_EDGE = 64


class _Value(NamedTuple):
    """The value of a secret key: where it stands, and the quote that its marker needs to be a string there."""

    start: int
    end: int
    key: Key
    quote: str = ""


class _Text:
    """A text, with the ends of what can begin in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._line_end = -1
        self._element = -1

    def line_end(self, start: int) -> int:
        """Where the line ends; remembered, so that many values on a long line cost one search."""
        if start > self._line_end:
            end = self.text.find("\n", start)
            self._line_end = end if end >= 0 else len(self.text)
        return self._line_end

    def element_end(self, start: int) -> int:
        """Where the next element begins or ends; the line, where none does. Remembered likewise."""
        if start > self._element:
            end = self.text.find("<", start)
            self._element = end if end >= 0 else len(self.text) + 1
        return self._element if self._element <= len(self.text) else self.line_end(start)

    def quoted_end(self, start: int, depth: int, quote: str, limit: int) -> int:
        """The next quote with no more backslashes than the opening one had (`depth`), or the limit.

        A quote with more belongs to the value, on whatever level the value was escaped.
        """
        while (end := self.text.find(quote, start, limit)) >= 0:
            escapes = self.text[max(end - depth - 1, 0) : end]
            if end == 0 or len(escapes) <= depth or escapes.strip("\\"):
                return end
            start = end + 1
        return limit

    def without_escapes(self, end: int, floor: int) -> int:
        """Where the backslashes begin that belong to the quote at `end`, if one stands there."""
        if self.text[end : end + 1] in ("'", '"'):
            while end > floor and self.text[end - 1] == "\\":
                end -= 1
        return end

    def balanced_end(self, start: int, limit: int) -> int:
        """Behind the bracket that closes the one at `start`, or the limit where none does."""
        depth = 0
        while found := _BRACKET_OR_QUOTE.search(self.text, start, limit):
            sign, start = found.group(), found.end()
            if sign in "([{":
                depth += 1
            elif sign in ")]}":
                depth -= 1
                if depth <= 0:
                    return start
            else:
                start = self._behind_quoted(found.start(), sign, limit)
        return limit

    def bare_end(self, start: int) -> int:
        """The end of a value without quotes: at a blank, or at a comma and the like with something new behind it."""
        end, limit = start, len(self.text)
        while found := _BARE.match(self.text, end):
            end = found.end()
            if self.text[end : end + 1] not in _OPENING:
                break
            end = self.balanced_end(end, limit if end == start else self.line_end(end))
        return end

    def _behind_quoted(self, start: int, quote: str, limit: int) -> int:
        before = self.text[max(start - 16, 0) : start]
        depth = len(before) - len(before.rstrip("\\"))
        line_end = min(self.line_end(start), limit)
        return min(self.quoted_end(start + 1, depth, quote, line_end) + 1, limit)


def edits(text: str, places: Iterable[tuple[int, int]], rules: KeyRules, allowed: Allowed | None) -> tuple[Edits, bool]:
    """What is to be replaced: the values of secret keys.

    Args:
        text: any.
        places: where (start, end) a literal of a key stands, in order.
        rules: which names are secret.
        allowed: whether a value is on the safe list; None where that is empty.

    Returns:
        The replacements; and whether all values were plainly written: then the same are found in what comes of it,
        as markers, and no others.
    """
    found = Edits()
    whole = _Text(text)
    all_plain = True
    looked = 0
    for literal, behind in places:  # up to a million times, so that calls are spared
        if literal < looked:
            continue
        begin = literal
        if literal > looked and ((before := text[literal - 1]).isalnum() or before in "_-"):
            begin = _beginning(text, literal, looked)
        plain = _PLAINLY.match(text, behind)
        looked = plain.end(1) if plain else _ending(text, literal, behind)
        name = text[begin:looked].lstrip("-")
        key = rules.find(name) or (text[begin - 1 : begin] == "\\" and _key_behind_escape(name, rules))
        if not key or (name == "redacted" and text[begin - 1 : begin] == "["):  # of a marker, which is no pair
            continue
        if plain and (key.rule not in _NEVER_PLAIN or plain.lastindex == _MARKER_GROUP):
            start, looked = plain.span(plain.lastindex or 0)
            quote = plain[2] if plain.lastindex == _BARE_GROUP else ""
            all_plain = all_plain and not quote  # a string that comes into being may go on with one on the next line
        elif text[looked : looked + 1] not in _SIGNS_BEHIND_KEY:
            continue
        else:
            all_plain = False
            value = _value_of(whole, begin, looked, key)
            if value is None:
                continue
            start, looked, quote = value.start, max(looked, value.end), value.quote
        long = looked - start > _LONG
        stays = _stays(text, start, looked, key) if long else is_kept(text[start:looked], key)
        if not stays and not (allowed and allowed(text[start:looked])):
            found.add(start, looked, quote + key.marker + quote if quote else key.marker)
    return found, all_plain


def _beginning(text: str, start: int, floor: int) -> int:
    """Where the name begins that a literal is part of; a longer one than names are is cut."""
    if start == floor or not (text[start - 1].isalnum() or text[start - 1] in "_-"):
        return start
    floor = max(start - _WINDOW, floor)
    before = text[floor:start].rstrip(_ASCII_NAME)
    while before and before[-1].isalnum():
        before = before[:-1].rstrip(_ASCII_NAME)
    return floor + len(before)


def _ending(text: str, start: int, end: int) -> int:
    """Where that name ends."""
    rest = _REST.match(text, end)
    end = rest.end() if rest else end
    while end > start and text[end - 1] == "-":
        end -= 1
    return end


def _stays(text: str, start: int, end: int, key: Key) -> bool:
    """The same of a long value, as `is_kept` tells it: nearly always its edges do, without a copy of it."""
    edges = text[start : start + _EDGE] + text[end - _EDGE : end]
    return is_kept(edges, key) and is_kept(text[start:end], key)


def _key_behind_escape(name: str, rules: KeyRules) -> Key | None:
    """The key of a name whose first letter, behind a backslash, is a line break's in a repr."""
    escape = _ESCAPE.match(name)
    return rules.find(name[escape.end() :]) if escape else None


def _value_of(text: _Text, begin: int, end: int, key: Key) -> _Value | None:
    """The value that belongs to a key, or None where what follows makes it none."""
    sign = text.text[end : end + 1]
    if sign in _QUOTE_SIGNS:
        if found := _QUOTED_SEPARATOR.match(text.text, end):
            return _assigned(text, found.end(), key, quote=found.group(1))
        return _option(text, begin, end, key) or _pair(text, begin, end, key)
    if sign in _SEPARATOR_SIGNS and (found := _SEPARATOR.match(text.text, end)):
        return _assigned(text, found.end(), key, header=":" in found.group())
    if sign in _GAP_SIGNS:
        return _option(text, begin, end, key) or _element(text, begin, end, key)
    return None


def _assigned(text: _Text, start: int, key: Key, *, quote: str = "", header: bool = False) -> _Value | None:
    """What follows `=` or `:`; a `header` is a name without quotes before a colon, which may be prose."""
    if header and (annotation := _ANNOTATION.match(text.text, start)):
        start = annotation.end()
    value = _quoted(text, start, key)
    if value is None and text.text.startswith(_OPENING, start):
        value = _Value(start, text.bare_end(start), key, quote)
    if value is not None:
        return value if key.rule != "cookie" or not header or _has_cookie(text.text, value) else None
    if key.rule == "cookie":
        return _cookies(text, start, key, quote)
    if key.rule == "authorization":
        return _credentials(text, start, key, quote, header)
    if key.name.lower() == "pwd" and text.text.startswith("/", start):
        return None  # the working directory
    return _Value(start, text.bare_end(start), key, quote)


def _has_cookie(text: str, value: _Value) -> bool:
    return text.startswith(_OPENING, value.start) or text.find("=", value.start, value.end) >= 0


def _cookies(text: _Text, start: int, key: Key, quote: str) -> _Value | None:
    """A cookie header to the end of its line; a cookie that one can eat has no `=`."""
    if not _COOKIE.match(text.text, start):
        return _Value(start, text.bare_end(start), key, quote) if quote else None
    return _Value(start, _header_end(text, start), key, quote)


def _credentials(text: _Text, start: int, key: Key, quote: str, header: bool) -> _Value | None:
    """A scheme and what follows it."""
    scheme = _SCHEME.match(text.text, start)
    name = scheme.group(1).lower() if scheme else ""
    if name.startswith(_MANY_PARTS):
        return _Value(start, _header_end(text, start), key, quote)
    if header and not key.name.lower().endswith("authorization") and name not in ("bearer", "basic", "token"):
        return None  # prose, as in "auth: failed"
    return _Value(start, text.bare_end(scheme.end() if scheme else start), key, quote)


def _header_end(text: _Text, start: int) -> int:
    found = _HEADER_END.search(text.text, start)
    return found.start() if found else len(text.text)


def _quoted(text: _Text, start: int, key: Key, limit: int | None = None) -> _Value | None:
    """A string literal, with those that follow it on the next lines (as pprint writes long ones)."""
    opening = _VALUE_QUOTE.match(text.text, start)
    if not opening:
        return None
    escapes, quote = opening.groups()
    begin = opening.end()
    if text.text.startswith(quote * 2, begin):
        end = text.text.find(quote * 3, begin + 2)
        return _Value(begin + 2, end if end >= 0 else len(text.text), key)
    end = text.quoted_end(begin, len(escapes), quote, limit or text.line_end(begin))
    while more := _NEXT_LITERAL.match(text.text, end + 1):
        following = _VALUE_QUOTE.match(text.text, more.end())
        if not following:
            break
        escapes, quote = following.groups()
        end = text.quoted_end(following.end(), len(escapes), quote, text.line_end(following.end()))
    return _Value(begin, text.without_escapes(end, max(end - len(escapes), begin)), key)


def _option(text: _Text, begin: int, end: int, key: Key) -> _Value | None:
    """`--password x`, and the same in a list of arguments."""
    if not text.text.startswith("--", begin):
        return None
    gap = _OPTION.match(text.text, end)
    if not gap:
        return None
    return _quoted(text, gap.end(), key) or _Value(gap.end(), text.bare_end(gap.end()), key)


def _element(text: _Text, begin: int, end: int, key: Key) -> _Value | None:
    """`<password>x</password>`, with a namespace and attributes or without."""
    gap = _ELEMENT.match(text.text, end) if text.text[begin - 1 : begin] in ("<", ":") else None
    if not gap:
        return None
    return _Value(gap.end(), text.element_end(gap.end()), key)


def _pair(text: _Text, begin: int, end: int, key: Key) -> _Value | None:
    """`('authorization', 'Bearer x')`, as headers are listed; in a longer list a name is just a name."""
    opened = text.text[max(begin - 20, 0) : begin].rstrip("\\\"'bB")
    gap = _PAIR.match(text.text, end) if opened.endswith(("(", "[")) else None
    value = _quoted(text, gap.end(), key, gap.end() + _PAIR_LIMIT) if gap else None
    if not gap or not value:
        return None
    behind = value.end + len(gap.group(1))
    return value if _PAIR_END.match(text.text, behind) else None
