"""A small thread that looks at running traces often, and sleeps while there are none.

What it does at each beat is `delivery`'s business.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from trifle_otel.runtime import Troubles

BEAT: Final = 0.1
"""Seconds between two looks: a trace that records in a tight loop fills some ten megabytes in this time."""

_QUIET = 20  # beats without a running trace after which it sleeps: a worker's next job usually comes sooner


class Clock:
    """Calls `beat` every tenth of a second, as long as that says that there is something to watch. For one process.

    Args:
        beat: what to do; tells whether there is something to watch. Must not raise.
        troubles: told when the thread cannot be started.
    """

    def __init__(self, beat: Callable[[], bool], troubles: Troubles) -> None:
        self._beat = beat
        self._wake = threading.Event()
        self._stopped = False
        self._asleep = False
        self._begun = 0
        thread = threading.Thread(target=self._run, name="trifle-clock", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            if "shutdown" not in str(error):  # the interpreter's end, when a trace has not long to run
                troubles.report("the clock thread could not be started", error)

    def begin(self) -> None:
        """A trace begins: from now on there is something to watch."""
        self._begun += (
            1  # before the look at `_asleep`, as the thread looks at them in the other order: one sees the other
        )
        if self._asleep:
            self._wake.set()

    def stop(self) -> None:
        """Stop, without waiting for a beat that goes on."""
        self._stopped = True
        self._wake.set()

    def _run(self) -> None:
        quiet = begun = 0
        while not self._stopped:
            if quiet < _QUIET:
                self._wake.wait(BEAT)
            else:
                self._asleep = True
                if self._begun == begun:
                    self._wake.wait()
                self._asleep = False
            if self._stopped:
                return
            self._wake.clear()
            quiet = 0 if self._beat() or self._begun != begun else quiet + 1
            begun = self._begun
