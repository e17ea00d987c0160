"""Headers behind a pickled message, for frameworks whose messages have no place for any.

`pickle` promises to ignore what lies behind the end of a pickle, so workers without us do not see them. Nothing is
unpickled here: headers are JSON, found by what stands before them. Whose message it is, is the framework's module's
business, as is that it is pickled: behind another format such bytes would spoil it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from trifle_otel.strict_json import from_json, to_json

_BEFORE: Final = b"\ntrifle_otel:"
_END: Final = b"."  # of a pickle


def put_behind(packed: Any, headers: Mapping[str, Any]) -> Any:
    """A pickled message with headers behind it; as it is where it does not look like one, or there are none."""
    if headers and isinstance(packed, bytes) and packed.endswith(_END):
        return packed + _BEFORE + to_json(dict(headers))
    return packed


def look_behind(packed: object) -> dict[str, Any]:
    """The headers behind a message; none where there are none."""
    if not isinstance(packed, bytes):
        return {}
    place = packed.rfind(_BEFORE)
    if place < 0:
        return {}
    try:
        headers = from_json(packed[place + len(_BEFORE) :])
    except ValueError:  # part of an argument
        return {}
    return headers if isinstance(headers, dict) else {}
