"""Traces that were read, kept for the next page: a reader of a long trace asks for many pages of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from trifle_otel.archive import Archive
from trifle_otel.arrangement import Opened, opened
from trifle_otel.records import TraceRecord

MOST_LINES = 300_000


class Shelf:
    """The traces that were read last, as many as have a bounded number of lines together. For any thread."""

    def __init__(self, archive: Archive, most_lines: int = MOST_LINES) -> None:
        self.archive = archive
        self.most_lines = most_lines
        self._lock = threading.Lock()  # guards _kept
        self._kept: OrderedDict[tuple[object, ...], Opened] = OrderedDict()

    def open(self, record: TraceRecord) -> Opened:
        """A trace, read now or before. A record that has grown is another one.

        What a record says besides, as how long a trace that runs has taken, is always that of the record given here:
        it changes without a new line, and then the lines need not be read again.
        """
        key = (record.reference, record.state, record.parts, record.length, record.folder)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                if found.record != record:
                    found = self._kept[key] = replace(found, record=record)
                self._kept.move_to_end(key)
                return found
        read = opened(record, self.archive.entries(record))
        if not read.entries.damaged:  # what is damaged or missing now may be there later
            self._keep(key, read)
        return read

    def _keep(self, key: tuple[object, ...], read: Opened) -> None:
        with self._lock:
            self._kept[key] = read
            for other in [other for other in self._kept if other[0] == key[0] and other != key]:
                del self._kept[other]  # the same trace, as it was
            lines = sum(len(each.entries) for each in self._kept.values())
            while lines > self.most_lines and self._kept:
                lines -= len(self._kept.popitem(last=False)[1].entries)
