"""Secrets that are known by their own form: private keys, JWTs, cards, vendors' keys, credentials in URLs.

Each rule takes a text and tells what in it is to be replaced by a marker. Every expression
here is linear on hostile input: runs are entered at their start alone, other repetitions are
bounded. Secrets known by the name of their key are in `redaction_keys`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

from trifle_otel.redaction_edits import Edits

Allowed = Callable[[str], bool]
"""Whether a text that a rule found is on the safe list."""

MARKER = re.compile(r"\[redacted:[a-z0-9-]+\]")
_ESCAPED_BREAK = r"(?<=\\[nrt])"  # in a repr, a line break is a backslash and a letter: no word goes on there
_START = rf"(?:(?<![\w-])|{_ESCAPED_BREAK})"

_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_JWT = re.compile(_START + r"eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*){0,3}", re.ASCII)
_SCHEME = re.compile(_START + r"(bearer|basic)[ \t]{1,8}([\w.~+/-]{6,}={0,2})", re.ASCII | re.IGNORECASE)
_VENDOR = re.compile(
    rf"(?:(?<![A-Za-z0-9])|{_ESCAPED_BREAK})(?:"
    r"A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])"
    r"|AIza[\w-]{35}"
    r"|gh[oprsu]_[A-Za-z0-9]{30,255}|github_pat_\w{30,255}|glpat-[\w-]{20,}"
    r"|xox[abeoprs]-[\w-]{10,}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{10,}|sk-(?:proj|ant|svcacct)-[\w-]{20,}"
    r"|whsec_[A-Za-z0-9+/]{24,}|hf_[A-Za-z]{30,}|do[opr]_v1_[0-9a-f]{64}|(?<=AccountKey=)[A-Za-z0-9+/]{86}=="
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}"
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r")",
    re.ASCII,
)
VENDOR_LITERALS = (
    *("akia", "asia", "aiza", "ghp ", "gho ", "ghr ", "ghu ", "github pat", "glpat", "xox"),
    *("sk live", "sk test", "rk live", "rk test", "sk proj", "sk ant", "sk svcacct", "npm", "pypi", "shp"),
    *("whsec", "hf ", "dop v", "doo v", "dor v", "accountkey"),
)

_USER = re.compile(
    r""":(?:\\?/){2}(?=([^\s:/?#@"'<>\[\](){}\\,;]{0,256}:)(?![0-9]{1,5}(?:[/?#\s"'<>,;)\]}\\]|\Z)))"""  # no port
)
_LONGEST_PASSWORD = 1024
_NO_URL = re.compile(r"""[\s"'<>]""")
_NO_PASSWORD = re.compile(r"""[\s"'<>@]""")
_SLASHES = ("/", "\\")
_PATH = re.compile(r"[/?#]")
_NEXT_AT = r"""[^\s"'<>/?#@]{0,256}@"""
_PLAIN_PASSWORD = re.compile(rf"""[^\s"'<>/?#@]{{1,{_LONGEST_PASSWORD - 1}}}@(?!{_NEXT_AT})""")  # as nearly all are
_MORE_AUTHORITY = re.compile(rf"(?:{_NEXT_AT}){{1,8}}")

_CARD = re.compile(
    rf"(?:(?<![\w.])|{_ESCAPED_BREAK})"
    r"(?:\d{15,16}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{5})(?!\w)",
    re.ASCII,
)
_BEFORE_NUMBER = re.compile(r"(?:\d-|\A[+-]|[^A-Za-z0-9][+-]|\d[eE][+-]|(?:\A|\D)0,)\Z", re.ASCII)
_AFTER_NUMBER = re.compile(r"-\d|\.(?!\s*\Z|\s*\n|\s+[^\W\d])", re.ASCII)
_EXPIRY = re.compile(r" {1,4}\d{1,2}[/-]\d{2}(?:\d\d)?(?![\d/-])", re.ASCII)
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def marker(rule: str) -> str:
    """What stands where a secret stood: it names the rule, never the match."""
    return f"[redacted:{rule}]"


def is_marker(text: str) -> bool:
    """Whether the whole text is such a marker."""
    return MARKER.fullmatch(text) is not None


def private_keys(text: str, allowed: Allowed) -> Edits:
    """PEM blocks of private keys; one without an end goes to the end of the text."""
    edits = Edits()
    done = 0
    while begin := _PEM_BEGIN.search(text, done):
        found = _PEM_END.search(text, begin.end())
        done = found.end() if found else len(text)
        if not allowed(text[begin.start() : done]):
            edits.add(begin.start(), done, marker("private-key"))
    return edits


def tokens(text: str, allowed: Allowed) -> Edits:
    """JWTs."""
    return _matches(_JWT, text, marker("jwt"), allowed) if "eyJ" in text else Edits()


def vendor_keys(text: str, allowed: Allowed) -> Edits:
    """The keys of well-known vendors by their prefixes."""
    return _matches(_VENDOR, text, marker("api-key"), allowed)


def schemes(text: str, allowed: Allowed) -> Edits:
    """`Bearer …` and `Basic …` wherever they stand, unless what follows is a word of prose."""
    edits = Edits()
    for found in _SCHEME.finditer(text):
        scheme, credentials = found.group(1, 2)
        real = _is_basic(credentials) if scheme.lower() == "basic" else _is_bearer(credentials)
        if real and not allowed(credentials):
            edits.add(*found.span(2), marker("authorization"))
    return edits


def url_credentials(text: str, allowed: Allowed, *, again: bool = False) -> Edits:
    """The password of `scheme://user:password@host`; the user stays.

    How far a password reaches is bounded, and what is replaced in it brings more into reach: the next @, or another
    URL's password that this one is in. `again`, once all else was replaced as well, that is followed to its end.
    """
    edits = Edits()
    new = marker("url-password")
    done, first, last = 0, 0, -_LONGEST_PASSWORD  # from the first to the last one each is in reach of the next
    for user in _USER.finditer(text):
        if user.start() < done:
            continue
        start = user.end(1)
        reached = start - last + len(new) < _LONGEST_PASSWORD and not _NO_PASSWORD.search(text, last, start)
        begin = first if again and reached else start
        end = _end_of_password(text, start, again)
        if end > start:
            last = -_LONGEST_PASSWORD
            if not _is_harmless(password := text[start:end]) and not allowed(password):
                edits.add(begin, end, new)
                done = end
        elif not text.startswith(_SLASHES, start):
            first, last = begin, start
    return edits


def cards(text: str, allowed: Allowed) -> Edits:
    """Card numbers: 15 or 16 digits in an issuer's grouping, with an issuer's prefix and the right check digit.

    A number that goes on (a digit, a letter, a decimal point, a sign, one more group) is none.
    """
    edits = Edits()
    for found in _CARD.finditer(text):
        if _is_card(found) and not allowed(found.group()):
            edits.add(*found.span(), marker("card"))
    return edits


def has_digits_of_card(text: str) -> bool:
    """Whether as many digits as a card has stand anywhere."""
    return _CARD.search(text) is not None


def _matches(pattern: re.Pattern[str], text: str, new: str, allowed: Allowed) -> Edits:
    edits = Edits()
    for found in pattern.finditer(text):
        if not allowed(found.group()):
            edits.add(*found.span(), new)
    return edits


def _is_harmless(password: str) -> bool:
    return password[0] in "[*" and (is_marker(password) or not password.strip("*"))


def _is_bearer(credentials: str) -> bool:
    return len(credentials) >= 8 and (len(credentials) >= 24 or any(map(str.isdigit, credentials)))


def _is_basic(credentials: str) -> bool:
    try:
        plain = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    return ":" in plain and plain.isprintable()


def _end_of_password(text: str, start: int, again: bool) -> int:
    """The last @ of the authority, or the first one where a slash was not escaped; `start` where there is no password.

    The next @ is at most 256 signs behind the one before.
    """
    if plain := _PLAIN_PASSWORD.match(text, start):
        return plain.end() - 1
    at = text.find("@", start, start + _LONGEST_PASSWORD)
    if at <= start or _NO_URL.search(text, start, at):
        return start
    if _PATH.search(text, start, at):  # a slash in a password: no port stood here
        return start if text.startswith(_SLASHES, start) else at
    while more := _MORE_AUTHORITY.match(text, at + 1):
        at = more.end() - 1
        if not again:
            break
    return at


def _is_card(found: re.Match[str]) -> bool:
    text, start, end = found.string, found.start(), found.end()
    separator = found.group(1) or found.group(2) or ""
    digits = found.group().replace(separator, "") if separator else found.group()
    if not (_has_issuer(digits) and _luhn(digits)):
        return False
    if separator:
        return not _more_groups(text, start, end, separator)
    return not (_BEFORE_NUMBER.search(text[max(start - 3, 0) : start]) or _AFTER_NUMBER.match(text, end))


def _more_groups(text: str, start: int, end: int, separator: str) -> bool:
    """Whether more numbers stand beside the groups: a row of numbers is no card (but an expiry date may follow)."""
    before = text[max(start - 5, 0) : start]
    if before.endswith(separator) and before.rstrip(separator)[-1:].isdigit():
        return True
    after = text[end : end + 5].lstrip(separator)
    follows = text.startswith(separator, end) and after[:1].isdigit()
    return bool(_AFTER_NUMBER.match(text, end)) or (follows and not _EXPIRY.match(text, end))


def _has_issuer(digits: str) -> bool:
    if len(digits) == 15:
        return digits.startswith(("34", "37"))  # American Express
    if digits.startswith(("4", "51", "52", "53", "54", "55", "62", "65", "6011")):
        return True  # Visa, Mastercard, UnionPay, Discover
    four = int(digits[:4])
    return 2221 <= four <= 2720 or 2200 <= four <= 2204 or 3528 <= four <= 3589 or 6440 <= four <= 6499


def _luhn(digits: str) -> bool:
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(_DOUBLED[int(digit)] for digit in even)) % 10 == 0
