"""What terminals alone need of text and times: JSON that cannot steer them, the zone of whoever reads.

The rest is `wording`'s, whose names are here as well: commands need one place for all of it.
"""

from __future__ import annotations

import json
import re
from datetime import datetime

from trifle_otel.wording import HAZARDS, call, compact, count, duration, size, visible, visible_lines

__all__ = [
    "call",
    "compact",
    "count",
    "duration",
    "json_line",
    "size",
    "visible",
    "visible_lines",
    "when",
    "zone",
]


def json_line(value: object) -> bytes:
    """A value as one line of JSON that means exactly what it meant (NUL too), and cannot steer a terminal either."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return (HAZARDS.sub(_escaped, text) if HAZARDS.search(text) else text).encode() + b"\n"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"


def when(moment: datetime) -> str:
    """A time in the zone of whoever reads, to the second."""
    return f"{_local(moment):%Y-%m-%d %H:%M:%S}"


def zone(moment: datetime) -> str:
    """The name of that zone at that time."""
    return visible(_local(moment).tzname() or "")


def _local(moment: datetime) -> datetime:
    try:
        return moment.astimezone()
    except (OverflowError, ValueError, OSError):  # the year 1 or 9999, at its edge
        return moment
