"""Messages as a page shows them: harmless, cut where they are long, with what was looked for marked."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup, escape

from trifle_otel.wording import size, visible_lines


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it is shown.

    Attributes:
        text: as HTML.
        rest: how long the whole is, where this is only its beginning.
    """

    text: Markup
    rest: str = ""


def shown(text: str, most: int, find: str = "") -> Shown:
    """A text of about that many characters at most; of several lines the end too, which tells what an exception was."""
    if len(text) <= most:
        return Shown(marked(text, find))
    beginning = text[:most]
    if "\n" in beginning:
        beginning = f"{text[: most // 2]}\n…\n{text[-most // 2 :]}"
    return Shown(marked(beginning, find), size(len(text.encode(errors="replace"))))


def marked(text: str, find: str = "") -> Markup:
    """A text as HTML, with each occurrence of what was looked for marked."""
    lines = "\n".join(visible_lines(text))
    if not find:
        return escape(lines)
    done = Markup()
    at = 0
    for found in re.finditer(re.escape(find), lines, re.IGNORECASE):
        done += escape(lines[at : found.start()]) + Markup("<mark>{}</mark>").format(found[0])
        at = found.end()
    return done + escape(lines[at:])


def preview(text: str, most: int) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text[: most * 2].split())
    return f"{line[:most]}…" if len(line) > most or len(text) > most * 2 else line
