"""Figures that fault tests note, for the table that is printed at the end of `pytest -m fault`."""

from __future__ import annotations

noted: list[tuple[str, str]] = []


def note(what: str, figures: str) -> None:
    """Note what a test went through and what came of it."""
    noted.append((what, figures))
