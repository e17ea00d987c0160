"""What a caller gives of a trace (key, tags, context, days), as it is kept: plain, safe, and without its secrets.

Nothing here raises for what a job gives. Any value as text or
JSON is `values`' business, which texts are secret `redaction`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from trifle_otel.interruptions import let_pass
from trifle_otel.redaction import Redactor
from trifle_otel.references import safe_key
from trifle_otel.runtime import Runtime
from trifle_otel.settings import whole_days
from trifle_otel.values import plain_context

_REMEMBERED = 512  # characters: what comes of longer keys is not kept, which could take all memory


def plain_key(redactor: Redactor | None, key: str) -> str:
    """A key that is safe as a path and holds no secret. There are few keys, so the work is done once for each."""
    return _plain_key(redactor, key) if len(key) <= _REMEMBERED else _plain_key.__wrapped__(redactor, key)


@lru_cache(maxsize=1024)
def _plain_key(redactor: Redactor | None, key: str) -> str:
    safe = safe_key(key)
    return safe if redactor is None else safe_key(redactor.text(safe))


def screened(run: Runtime, text: str) -> str:
    """A text without its secrets."""
    return text if run.redactor is None else run.redactor.text(text)


def screened_pair(run: Runtime, meta: Any, fields: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Meta and a context's fields without their secrets, looked for in both at once."""
    if run.redactor is None:
        return meta, fields
    found = run.redactor.structure([meta, fields])
    return (found[0], found[1]) if isinstance(found, list) else (found, {})  # a text: it failed, and says so


def context_fields(run: Runtime, given: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Fields for the record's context, not screened yet."""
    try:
        fields = given() if callable(given) else given
        return plain_context(fields) if fields else {}
    except Exception as error:  # users' code: the trace is recorded without it
        run.troubles.report("a context could not be had, or is no mapping", error)
        return {}


def attributes_of(run: Runtime, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes of a span, without their secrets."""
    if not given:
        return {}
    try:
        fields = plain_context(given)
    except Exception as error:  # users' code: the trace is recorded without them
        run.troubles.report("the attributes of a trace's span are no mapping", error)
        return {}
    found = fields if run.redactor is None else run.redactor.structure(fields)
    return found if isinstance(found, dict) else {}


def labels_of(tags: Any) -> tuple[object, ...]:
    """Tags as they were given: several, one as a plain text, or none."""
    if tags is None or isinstance(tags, str | bytes):
        return () if tags is None else (tags,)
    try:
        return tuple(tags)
    except Exception as error:  # not iterable: it is one
        let_pass(error)
        return (tags,)


def days_of(run: Runtime, given: object) -> int | None:
    """Days that a payload is kept; None, reported, for what is no number of days."""
    try:
        return whole_days(given)
    except ValueError as error:
        run.troubles.report("a trace was given a retention that is no number of days", error)
        return None
