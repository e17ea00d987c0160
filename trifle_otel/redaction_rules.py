"""Secrets that are known by their own form: private keys, JWTs, cards, vendors' keys, credentials in URLs.

Each rule takes a text and gives it back with what it found replaced by a marker. Every expression
here is linear on hostile input: runs are entered at their start alone, other repetitions are
bounded. Secrets known by the name of their key are in `redaction_keys`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable

Allowed = Callable[[str], bool]
"""Whether a text that a rule found is on the safe list."""

MARKER = re.compile(r"\[redacted:[a-z0-9-]+\]")
_ESCAPED_BREAK = r"(?<=\\[nrt])"  # in a repr, a line break is a backslash and a letter: no word goes on there
_START = rf"(?:(?<![\w-])|{_ESCAPED_BREAK})"

_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_JWT = re.compile(_START + r"eyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*){0,3}", re.ASCII)
_SCHEME = re.compile(_START + r"(bearer|basic)([ \t]{1,8})([\w.~+/-]{6,}={0,2})", re.ASCII | re.IGNORECASE)
_VENDOR = re.compile(
    rf"(?:(?<![A-Za-z0-9])|{_ESCAPED_BREAK})(?:"
    r"A[KS]IA[0-9A-Z]{16}(?![A-Za-z0-9])"
    r"|AIza[\w-]{35}"
    r"|gh[oprsu]_[A-Za-z0-9]{30,255}|github_pat_\w{30,255}|glpat-[\w-]{20,}"
    r"|xox[abeoprs]-[\w-]{10,}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{10,}|sk-(?:proj|ant|svcacct)-[\w-]{20,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}"
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r")",
    re.ASCII,
)
VENDOR_LITERALS = (
    *("akia", "asia", "aiza", "ghp", "gho", "ghr", "ghs", "ghu", "github pat", "glpat", "xox"),
    *("sk live", "sk test", "rk live", "rk test", "sk proj", "sk ant", "sk svcacct", "npm", "pypi", "shp"),
)

_SLASHES = re.compile(r":(?:\\?/){2}")
_USER = re.compile(r"""[^\s:/?#@"'<>\[\](){}\\,;]{0,256}:""")
_PORT = re.compile(r"""\d{1,5}(?=[/?#\s"'<>,;)\]}\\]|\Z)""", re.ASCII)
_LONGEST_PASSWORD = 1024
_NO_URL = re.compile(r"""[\s"'<>]""")
_PATH = re.compile(r"[/?#]")
_MORE_AUTHORITY = re.compile(r"""(?:[^\s"'<>/?#@]{0,256}@){0,8}""")

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


def private_keys(text: str, allowed: Allowed) -> str:
    """PEM blocks of private keys; one without an end goes to the end of the text."""
    pieces: list[str] = []
    done = 0
    while begin := _PEM_BEGIN.search(text, done):
        found = _PEM_END.search(text, begin.end())
        end = found.end() if found else len(text)
        block = text[begin.start() : end]
        pieces += (text[done : begin.start()], block if allowed(block) else marker("private-key"))
        done = end
    return "".join(pieces) + text[done:] if pieces else text


def tokens(text: str, allowed: Allowed) -> str:
    """JWTs, and the keys of well-known vendors by their prefixes."""
    if "eyJ" in text:
        text = _JWT.sub(lambda found: _replaced(found, "jwt", allowed), text)
    return _VENDOR.sub(lambda found: _replaced(found, "api-key", allowed), text)


def schemes(text: str, allowed: Allowed) -> str:
    """`Bearer …` and `Basic …` wherever they stand, unless what follows is a word of prose."""

    def replaced(found: re.Match[str]) -> str:
        scheme, space, credentials = found.groups()
        real = _is_basic(credentials) if scheme.lower() == "basic" else _is_bearer(credentials)
        if not real or allowed(credentials):
            return found.group()
        return f"{scheme}{space}{marker('authorization')}"

    return _SCHEME.sub(replaced, text)


def url_credentials(text: str, allowed: Allowed) -> str:
    """The password of `scheme://user:password@host`; the user stays."""
    pieces: list[str] = []
    done = 0
    for slashes in _SLASHES.finditer(text):
        user = _USER.match(text, slashes.end())
        if slashes.start() < done or not user or _PORT.match(text, user.end()):
            continue
        password = _url_password(text, user.end())
        if password and not is_marker(password) and password.strip("*") and not allowed(password):
            pieces += (text[done : user.end()], marker("url-password"))
            done = user.end() + len(password)
    return "".join(pieces) + text[done:] if pieces else text


def cards(text: str, allowed: Allowed) -> str:
    """Card numbers: 15 or 16 digits in an issuer's grouping, with an issuer's prefix and the right check digit.

    A number that goes on (a digit, a letter, a decimal point, a sign, one more group) is none.
    """

    def replaced(found: re.Match[str]) -> str:
        number = found.group()
        return marker("card") if _is_card(found) and not allowed(number) else number

    return _CARD.sub(replaced, text)


def _replaced(found: re.Match[str], rule: str, allowed: Allowed) -> str:
    return found.group() if allowed(found.group()) else marker(rule)


def _is_bearer(credentials: str) -> bool:
    return len(credentials) >= 8 and (len(credentials) >= 24 or any(map(str.isdigit, credentials)))


def _is_basic(credentials: str) -> bool:
    try:
        plain = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    return ":" in plain and plain.isprintable()


def _url_password(text: str, start: int) -> str:
    """What stands before the last @ of the authority; before the first one where a slash was not escaped."""
    at = text.find("@", start, start + _LONGEST_PASSWORD)
    password = text[start : max(at, start)]
    if not password or _NO_URL.search(password):
        return ""
    if _PATH.search(password):
        return "" if password.startswith(("/", "\\")) else password  # a slash in a password: no port stood here
    more = _MORE_AUTHORITY.match(text, at + 1)
    return text[start : more.end() - 1] if more else password


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
