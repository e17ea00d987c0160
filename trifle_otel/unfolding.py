"""Messages that are stored beside a trace because they are long, read as far as that is not too much.

What they are read for is others' business: comparing, finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from trifle_otel.archive import Archive
from trifle_otel.errors import TrifleError
from trifle_otel.reading import read_at_most
from trifle_otel.records import RESULT, Entry, TraceRecord
from trifle_otel.stores.contract import OutOfReach


@dataclass(frozen=True, slots=True)
class Beside:
    """What messages beside a trace say.

    Attributes:
        texts: by the place of the entry that stands for them, those that were read whole.
        omitted: how many were not read, since they would have been too much.
        troubles: why others could not be read.
    """

    texts: dict[int, str] = field(default_factory=dict)
    omitted: int = 0
    troubles: list[str] = field(default_factory=list)

    def unfolded(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries of the trace, with these texts in their places."""
        return [_with_text(entry, self.texts.get(place)) for place, entry in enumerate(entries)]


def read_beside(
    archive: Archive,
    record: TraceRecord,
    entries: Sequence[Entry],
    *,
    most_bytes: int,
    most_files: int | None = None,
    places: Iterable[int] | None = None,
) -> Beside:
    """Read the messages beside a trace, those that come first, up to so many bytes and files altogether.

    `places` tells where they are, for whoever knows that already.

    Raises `StoreUnavailable` where the store is out of reach. What is missing or damaged is told in `troubles`.
    """
    found: dict[int, str] = {}
    troubles: list[str] = []
    omitted, bytes_left, files_left = 0, most_bytes, most_files
    for place in range(len(entries)) if places is None else places:
        entry = entries[place]
        if not entry.offloaded:
            continue
        if files_left == 0 or (entry.size or 0) > bytes_left:
            omitted += 1
            continue
        files_left = None if files_left is None else files_left - 1
        try:
            with archive.open_artifact(record, entry.message) as stream:
                data = read_at_most(stream, bytes_left + 1)
        except OutOfReach:
            raise
        except TrifleError as error:
            troubles.append(f"{entry.message} of trace {record.reference} cannot be read: {error}")
            continue
        if len(data) > bytes_left:  # of more bytes than its entry says
            omitted += 1
            continue
        bytes_left -= len(data)
        found[place] = data.decode(errors="backslashreplace")
    return Beside(found, omitted, troubles)


def _with_text(entry: Entry, text: str | None) -> Entry:
    if text is None:
        return entry
    return Entry({**entry.stored, "message": text, "type": "raw" if text.startswith(RESULT) else "text"})
