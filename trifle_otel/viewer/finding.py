"""Which lines of a trace hold a text: what is stored beside them is looked into too, as far as a page may take.

What was found is kept for a while, since whoever goes from match to match asks for the same again.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from trifle_otel.archive import Archive
from trifle_otel.arrangement import Opened
from trifle_otel.unfolding import read_beside

MOST_BESIDE, MOST_BESIDE_FILES = 16_000_000, 100
"""Bytes and files of what is stored beside a trace that are looked into."""
MOST_KEPT, MOST_LINES = 32, 1_000_000
"""Answers that are kept, and lines in all of them together."""
AROUND = 60
"""Characters of a text that are shown before and after what was found in it."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What was found.

    Attributes:
        places: of the lines, in the order in which they are shown.
        excerpts: of what is stored beside the lines, the match with what is around it, by place.
        omitted: how many messages stored beside were not looked into, since they would have been too much.
        troubles: why others could not be read.
    """

    places: list[int] = field(default_factory=list)
    excerpts: dict[int, str] = field(default_factory=dict)
    omitted: int = 0
    troubles: list[str] = field(default_factory=list)


class Finder:
    """Looks for texts in traces. For any thread."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._lock = threading.Lock()  # guards _kept
        self._kept: OrderedDict[tuple[str, int, str], Matches] = OrderedDict()

    def find(self, trace: Opened, text: str) -> Matches:
        """The lines that hold a text, in whatever capitals."""
        key = trace.record.reference, len(trace.entries), text
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
                return kept
        found = self._found(trace, text)
        if not found.troubles and not trace.entries.damaged:  # what is missing now may be there later
            with self._lock:
                self._kept[key] = found
                lines = sum(len(each.places) for each in self._kept.values())
                while self._kept and (len(self._kept) > MOST_KEPT or lines > MOST_LINES):
                    lines -= len(self._kept.popitem(last=False)[1].places)
        return found

    def _found(self, trace: Opened, text: str) -> Matches:
        beside = read_beside(
            self.archive,
            trace.record,
            trace.entries,
            most_bytes=MOST_BESIDE,
            most_files=MOST_BESIDE_FILES,
            places=trace.offloaded,
        )
        excerpts = {
            place: excerpt for place, whole in beside.texts.items() if (excerpt := _excerpt(whole, text)) is not None
        }
        places = trace.only([*trace.matches(text), *excerpts])
        return Matches(places, excerpts, beside.omitted, beside.troubles)


def _excerpt(whole: str, text: str) -> str | None:
    found = first_match(whole, text)
    if found is None:
        return None
    start, end = max(found.start() - AROUND, 0), found.end() + AROUND
    return f"{'…' if start else ''}{' '.join(whole[start:end].split())}{'…' if end < len(whole) else ''}"


def first_match(whole: str, text: str) -> re.Match[str] | None:
    """Where a text is in another, in whatever capitals."""
    return re.search(re.escape(text), whole, re.IGNORECASE)
