"""Whether a trace that is said to be running was heard of lately: a job that died, or hangs, is seen from anywhere.

A live trace renews its record every `bump_every` seconds, whether it has something to say or not. A record that
says `running` and is older belongs to a process that died, cannot reach its archive, or was recorded by another
library, which renews it only when the job calls.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Final

from trifle_otel.records import TraceRecord

BEATS: Final = 3
"""So many times `bump_every` a record may be old: one flush may be late, and shipping takes its time."""

LEAST: Final = timedelta(seconds=60)
"""Younger than that, no trace is called silent: clocks differ, too."""


def silence(record: TraceRecord, bump_every: float, now: datetime | None = None) -> timedelta | None:
    """How long a running trace has not been heard of; None where it has ended, or was heard of lately.

    Args:
        record: as the index gives it.
        bump_every: the setting, in seconds. A record does not tell its writer's: the reader's own is taken.
        now: by default, now.
    """
    if record.finished:
        return None
    silent = (now or datetime.now(timezone.utc)) - record.last_at
    return silent if silent > max(LEAST, timedelta(seconds=BEATS * bump_every)) else None


def told(record: TraceRecord, bump_every: float, now: datetime | None = None) -> str:
    """The same in words, in whole minutes, hours or days: `silent for 2 h`; empty where there is nothing to say."""
    silent = silence(record, bump_every, now)
    if silent is None:
        return ""
    minutes = silent // timedelta(minutes=1)
    if minutes < 60:
        return f"silent for {minutes} min"
    return f"silent for {minutes // 60} h" if minutes < 48 * 60 else f"silent for {minutes // 1440:,} d"
