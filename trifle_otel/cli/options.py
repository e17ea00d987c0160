"""The options that every command takes, and the archive that they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

from cyclopts import Parameter

from trifle_otel import configuration
from trifle_otel.archive import Archive
from trifle_otel.errors import NotFound

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
Many = Annotated[list[str] | None, Parameter(negative=(), show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Place:
    """Which archive a command is about."""

    archive: str | None = None
    """URL of the archive: a folder, or as in file:///var/traces [default: TRIFLE_ARCHIVE, else ./traces]."""
    index: str | None = None
    """URL of the index, as in sqlite:///var/index.sqlite [default: TRIFLE_INDEX, else beside the archive]."""

    @property
    def name(self) -> str:
        """The archive as it was named."""
        return self.archive if self.archive is not None else configuration.default_archive()


def open_new(place: Place) -> Archive:
    """The archive, which need not be there yet. Raises `ConfigurationError`."""
    return Archive.open(place.name, place.index or configuration.default_index())


@contextmanager
def opened(place: Place | None) -> Iterator[Archive]:
    """The archive, closed at the end. Raises `NotFound` where it is a folder that is not there."""
    place = place or Place()
    with open_new(place) as archive:
        url = urlsplit(archive.url)
        if url.scheme == "file" and not Path(unquote(url.path)).is_dir():
            raise NotFound(
                f"there is no archive at {place.name}; name one with --archive or TRIFLE_ARCHIVE,"
                " or run `trifle-otel demo` for one to look at"
            )
        yield archive
