"""Which names of keys mean a secret: `password`, `dbPassword`, `X-Api-Key`, never `monkey` or `token_count`.

Names and values by themselves; how a key and its value are found in serialised text is in
`redaction_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from trifle_otel.redaction_rules import is_marker, marker

KEY_LITERALS = (
    *("passw", "passphrase", "pwd", "secret", "token", "credential", "authoriz", "cookie", "srf", "sessid"),
    *("api key", "apikey", "access key", "accesskey", "private key", "privatekey", "signing key", "signingkey"),
    *(
        "encryption key",
        "encryptionkey",
        "session key",
        "sessionkey",
        "sessionid",
        "session id",
        "card number",
        "cardnumber",
        "cvv",
        "cvc",
        "amz signature",
    ),
)
"""What a text must hold, in lower case and with a space for each other sign, for a key to be in it."""

_SUFFIXES = {
    "password": "password",
    "passwords": "password",
    "passwd": "password",
    "passphrase": "password",
    "secret": "secret",
    "secrets": "secret",
    "token": "token",
    "apikey": "api-key",
    "apikeys": "api-key",
    "accesskey": "api-key",
    "secretkey": "secret",
    "privatekey": "private-key",
    "sessionid": "session",
    "sessid": "session",
    "cardnumber": "card",
}
_WORDS = {
    "pwd": "password",
    "authorization": "authorization",
    "auth": "authorization",
    "cookie": "cookie",
    "cookies": "cookie",
    "setcookie": "cookie",
    "credential": "credentials",
    "credentials": "credentials",
    "csrf": "token",
    "xsrf": "token",
    "cvv": "card",
    "cvv2": "card",
    "cvc": "card",
    "cvc2": "card",
}
_KEY_KINDS = {
    "api": "api-key",
    "access": "api-key",
    "secret": "secret",
    "private": "private-key",
    "signing": "secret",
    "encryption": "secret",
    "auth": "authorization",
    "session": "session",
}
_PHRASES: dict[tuple[str, ...], str] = {
    ("session", "id"): "session",
    ("card", "number"): "card",
    ("amz", "signature"): "secret",
    ("auth", "header"): "authorization",
    **{(kind, plural): rule for kind, rule in _KEY_KINDS.items() for plural in ("key", "keys")},
    **{(kind, "tokens"): "token" for kind in ("access", "api", "auth", "refresh", "bearer", "session")},
    **{
        (kind, "pass"): "password"
        for kind in ("db", "database", "user", "smtp", "mail", "mysql", "pg", "redis", "ftp", "admin", "root", "login")
    },
}
_NEUTRAL = {"confirmation", "confirm", "again", "repeat", "value", "hash", "digest", "base", "raw", "plain"}
_HARMLESS_TOKENS = {"page", "next", "continuation", "pagination"}  # where a listing goes on
_PLURAL = {"passwords", "secrets", "tokens", "cookies", "cookie", "credentials", "keys", "apikeys"}
_ONE_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

_KEPT = {"", "none", "null", "nil", "true", "false", "undefined", "str", "..."}
_KEPT |= {"?", "%s", *(f"${number}" for number in range(1, 10))}  # where a statement has a parameter
_LONGEST_KEPT = max(map(len, _KEPT))
_NUMBER = re.compile(r"-?\d{1,12}(?:\.\d{1,12})?", re.ASCII)


class Key(NamedTuple):
    """A key that means a secret: its name as it stands, the rule, its marker, and whether a mere number is none."""

    name: str
    rule: str
    marker: str
    countable: bool


class KeyRules:
    """Which names of keys mean a secret, by whole words: `dbPassword`, `X-Api-Key`, but not `monkey`, `token_count`.

    Args:
        extra: names of one's own; each also as the last words of a longer name.
        safe: whether a name is never to be redacted.
        defaults: whether the usual names count.
    """

    def __init__(self, extra: Iterable[str], safe: Callable[[str], bool], *, defaults: bool = True) -> None:
        self._extra = {words: slug("-".join(words)) for words in map(words_of, extra) if words}
        self._lengths = sorted({len(words) for words in self._extra}, reverse=True)
        self._safe = safe
        self._defaults = defaults
        self.find = lru_cache(maxsize=1024)(self._find)
        """The key of that name (at most some 130 characters), or None where it is harmless."""

    def _find(self, name: str) -> Key | None:
        words = words_of(name)
        rule = self._own(words) or (_usual(words) if self._defaults else None)
        if rule is None or self._safe(name):
            return None
        return Key(name, rule, marker(rule), words[-1] in _PLURAL)

    def _own(self, words: tuple[str, ...]) -> str | None:
        for length in self._lengths:
            if rule := self._extra.get(words[-length:]):
                return rule
        return None


def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: `dbPassword`, `db-password` and `DB_PASSWORD` alike."""
    if name.isascii():
        return tuple(map(str.lower, _ONE_WORD.findall(name)))
    return tuple(re.findall(r"[^\W_]+", name.lower()))


def slug(name: str) -> str:
    """A rule's name as markers carry it: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "custom"


def is_kept(value: str, key: Key) -> bool:
    """Whether a value is no secret whatever its key: nothing, a truth value, a mask, a marker, a count."""
    plain = value.strip()
    if len(plain) <= _LONGEST_KEPT and plain.lower() in _KEPT:
        return True
    if plain[0] in "[*" and (is_marker(plain) or not plain.strip("*")):
        return True
    return key.countable and _NUMBER.fullmatch(plain) is not None


def _usual(words: tuple[str, ...]) -> str | None:
    while len(words) > 1 and (words[-1] in _NEUTRAL or words[-1].isdigit()):
        words = words[:-1]
    if not words:
        return None
    last = words[-1]
    if last == "token" and _HARMLESS_TOKENS.intersection(words[-2:-1]):
        return None
    if rule := _PHRASES.get(words[-2:]) or _WORDS.get(last):
        return rule
    return next((rule for suffix, rule in _SUFFIXES.items() if last.endswith(suffix)), None)
