"""The exceptions that this library raises, cut by what the reader can do about them.

Raised when configuring and when reading. Recording never raises: what goes wrong there is
counted and handed to the setting `error_handler`. The causes (a driver's own errors) stay
reachable as `__cause__`.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrifleError(Exception):
    """The root of all errors of this library."""


class UsageError(TrifleError, ValueError):
    """The caller gave something that is not allowed; the message names what is."""


class ConfigurationError(UsageError):
    """A setting or URL is wrong, or what it points at cannot be used."""


class MissingDependency(ConfigurationError, ImportError):
    """An optional package is not installed; the message names the extra to install."""


class InvalidCursor(UsageError):
    """A search cursor does not decode; take the one that the page before gave."""


class NotFound(TrifleError, LookupError):
    """No trace, part or artifact of that name is there."""


class StoreUnavailable(TrifleError):
    """A payload store or an index cannot be reached or written just now; trying again may help."""


class DamagedArchive(TrifleError):
    """A stored part, record or index cannot be read.

    Attributes:
        reference: the trace it belongs to, or None.
        part: the number of the part, from 1, or None.
        salvaged: the entries (as stored) that could still be read out of it.
    """

    def __init__(
        self,
        message: str,
        *,
        reference: str | None = None,
        part: int | None = None,
        salvaged: Sequence[dict[str, object]] = (),
    ) -> None:
        super().__init__(message)
        self.reference = reference
        self.part = part
        self.salvaged = salvaged
