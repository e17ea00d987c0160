"""`reindex`, `cleanup`, `recover`, `setup`: keeping an archive in order."""

from __future__ import annotations

import json
import logging
import time
from types import TracebackType
from typing import Any

from trifle_otel.cli.options import Flag, Place, open_new, opened
from trifle_otel.cli.terminal import complain, progress
from trifle_otel.cli.visible import count, visible
from trifle_otel.errors import MissingDependency, UsageError
from trifle_otel.settings import LONGEST_WAIT


class Failures(logging.Handler):
    """While it is entered: notices that the library warns of something that it left out, which makes exit code 1."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.code = 0

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - what it says is printed elsewhere
        """Notice a warning."""
        self.code = 1

    def __enter__(self) -> Failures:
        logging.getLogger("trifle_otel").addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        logging.getLogger("trifle_otel").removeHandler(self)


def reindex(*, place: Place | None = None) -> int:
    """Fill the index from the stored traces, those that other libraries wrote too.

    An index that is damaged is made anew.
    """
    with Failures() as failures, opened(place) as archive, progress("Reading traces", None) as bar:
        found = archive.reindex(progress=lambda done: bar.update(bar.task_ids[0], completed=done))
        print(f"The index holds {count(found, 'trace')} of the store.")
    return failures.code


def cleanup(*, dry_run: Flag = False, place: Place | None = None) -> int:
    """Delete the traces whose retention is over, each judged by its own age.

    Parameters
    ----------
    dry_run
        Only say how many there are.
    """
    with opened(place) as archive:
        found = count(archive.cleanup(dry_run=dry_run), "trace")
        print(f"{found} would be deleted." if dry_run else f"Deleted {found}.")
    return 0


def recover(*, watch: Flag = False, every: float = 10, place: Place | None = None) -> int:
    """Ship into the archive what processes that died left in its spool.

    Parameters
    ----------
    watch
        Go on until interrupted: for a whole host, or a node's volume that containers share.
    every
        Seconds between two looks, with --watch.
    """
    if not 0 < every <= LONGEST_WAIT:
        raise UsageError(f"--every {every:g} is not allowed; it is seconds above 0")
    with Failures() as failures, opened(place) as archive:
        found = archive.recover()
        print(f"Recovered {count(found, 'trace')}.", flush=True)
        while watch:
            time.sleep(every)
            found = archive.recover()
            if found:
                print(f"Recovered {count(found, 'trace')}.", flush=True)
    return failures.code


def setup(*, days: list[int] | None = None, place: Place | None = None) -> int:
    """Create what the archive and its index need; what is there stays as it is.

    Parameters
    ----------
    days
        Retention classes, for object storage: each gets a lifecycle rule, beside the rules that the bucket has. Without
        the extra s3-setup the rules are printed, for a tool of your own.
    """
    with open_new(place or Place()) as archive:
        archive.setup()
        archive.store.check()  # a bucket is nobody's to make but its owner's: it has to be there
        lifecycle = getattr(archive.store, "lifecycle", None)
        if days and lifecycle is None:
            raise UsageError(f"--days is for object storage; the retention of {archive.url} is kept by `cleanup`")
        if days and not _set_lifecycle(archive.store, days):
            return 1
        print(visible(f"{archive.url} is ready."))
    return 0


def _set_lifecycle(store: Any, days: list[int]) -> bool:
    """Set the rules, or print them where nothing that could set them is installed."""
    try:
        store.lifecycle(days)
    except MissingDependency as error:
        complain(f"{error}; or give these rules to the bucket yourself:")
        print(json.dumps({"Rules": store.lifecycle_rules(days)}, indent=2))
        return False
    return True
