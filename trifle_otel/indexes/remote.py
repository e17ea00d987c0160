"""What indexes behind a network share: our options in a driver's URL, passwords kept out of messages, buckets.

Which options there are, how to connect, and what errors mean, is each index's own business.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from urllib.parse import unquote, unquote_plus

from trifle_otel.errors import ConfigurationError

logger = logging.getLogger("trifle_otel")

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 10

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_EARLIEST = datetime.min.replace(tzinfo=timezone.utc)
_LATEST = datetime.max.replace(tzinfo=timezone.utc)
_USER = re.compile(r"^([a-z0-9+]+://[^/?#:@]*):([^?]*)@")
_SECRET_OPTION = re.compile(r"[?&][a-z]*(?:password|properties)=([^&]+)", re.IGNORECASE)


def split_options(url: str, own: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A URL without the options named in `own`, for the driver, and those options.

    Raises `ConfigurationError` for one that is given twice or empty.
    """
    start, _, query = url.partition("?")
    options: dict[str, str] = {}
    rest = []
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        if name not in own:
            rest.append(pair)
        elif name in options or not value:
            raise ConfigurationError(f"the option {name} of {shown(url)} needs one value, as in {name}=…")
        else:
            options[name] = unquote_plus(value)
    return (f"{start}?{'&'.join(rest)}" if rest else start), options


def shown(url: str) -> str:
    """A URL as messages may show it: no password, no options."""
    return _USER.sub(r"\1@", url).partition("?")[0]


def without_secrets(text: str, url: str) -> str:
    """A driver's message, with every password of the URL made unreadable."""
    user = _USER.match(url)
    secrets = [user[2]] if user else []
    secrets += [match[1] for match in _SECRET_OPTION.finditer(url)]
    for secret in {form for each in secrets for form in (each, unquote(each), unquote_plus(each)) if form}:
        text = text.replace(secret, "***")
    return text.strip()


def time_of(nanoseconds: int) -> datetime:
    """Unix time in nanoseconds as a datetime, rounded down to the microsecond; an end of the calendar beyond it."""
    try:
        return EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return _EARLIEST if nanoseconds < 0 else _LATEST


class Buckets:
    """The names of an archive's buckets, for indexes that know a bucket by its position, as Ruby 2.0 does.

    A bucket that is not listed is stored as 0, which is said once.

    Args:
        names: in the order that Ruby is configured with; empty where there is one bucket or none.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.names = tuple(names)
        self._said = False

    def position(self, name: str | None) -> int:
        """The position of a bucket's name, 0 for None and for one that is not listed."""
        if name in self.names:
            return self.names.index(name)
        if name is not None and self.names and not self._said:
            self._said = True
            logger.warning("the bucket %r is not among the index's buckets %s: stored as the first", name, self.names)
        return 0

    def name(self, position: object) -> str | None:
        """The name at a position, None where there is none."""
        if isinstance(position, int) and 0 <= position < len(self.names):
            return self.names[position]
        return None
