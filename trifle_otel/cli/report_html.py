"""`show --html`: a trace as one page that needs nothing else, to be attached to a ticket.

The page loads nothing, runs nothing and sends nothing: its policy forbids all but its own style sheet and the pictures
in it. Whatever was recorded is escaped, blocks and values fold by themselves, and what is too long is cut and says so.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from trifle_otel import value_html, value_trees
from trifle_otel.archive import Archive
from trifle_otel.arrangement import Opened, opened
from trifle_otel.cli.terminal import ICONS
from trifle_otel.encoding import format_time, to_json
from trifle_otel.errors import NotFound, TrifleError
from trifle_otel.outline import Block
from trifle_otel.pictures import picture_type
from trifle_otel.reading import Entries
from trifle_otel.records import ERROR, OPENED, RESULT, RUNNING, SUCCESS, WARNING, Entry, TraceRecord
from trifle_otel.wording import call, count, duration, size, visible, visible_lines

ONE_LINE = 120
"""Characters of a value that is shown as it is; a longer one folds."""
FOLDED = 4_000
"""Characters of any other text, above which it folds."""
MOST_CHARACTERS, MOST_ALTOGETHER = 200_000, 20_000_000
"""Characters of one text, and of all long texts together, without `--full`."""
MOST_IMAGE, MOST_IMAGES = 2_000_000, 10_000_000
"""Bytes of a picture, and of all pictures together, that go into the page."""
MANY_LINES = 5_000
"""Above so many, blocks without a problem come folded."""
MOST_NAMED = 20
MOST_INDENT = 24
_KNOWN_STATES = (SUCCESS, WARNING, ERROR, RUNNING, "debug")


def write_report(archive: Archive, record: TraceRecord, entries: Entries, path: str, *, full: bool = False) -> None:
    """Write the page, a file whole or not at all. `path` may be `-`. Raises `OSError` where it cannot be written."""
    page = Report(archive, opened(record, entries), full=full).page()
    if path == "-":
        sys.stdout.buffer.writelines(piece.encode(errors="backslashreplace") for piece in page)
        return
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file")
    if target.exists() and not target.is_file():  # a pipe, a device: nothing may take its place
        with open(target, "wb") as stream:
            stream.writelines(piece.encode(errors="backslashreplace") for piece in page)
        return
    target = target.resolve()  # what a link leads to is written, not the link
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as stream:
            stream.writelines(piece.encode(errors="backslashreplace") for piece in page)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


class Said(NamedTuple):
    """A text, or the beginning of one, and the bytes of the whole where they are known."""

    text: str
    size: int | None = None


class Report:
    """A trace as a page, piece by piece."""

    def __init__(self, archive: Archive, trace: Opened, *, full: bool = False) -> None:
        self.archive = archive
        self.trace = trace
        self.full = full
        self.text_left = sys.maxsize if full else MOST_ALTOGETHER
        self.images_left = MOST_IMAGES
        self.long = len(trace.entries) > MANY_LINES
        self.troubled = _around_problems(trace)

    def page(self) -> Iterator[str]:
        """The page."""
        yield from self._beginning()
        yield f'<main class="lines{" long" if self.long else ""}">\n'
        yield from self._lines()
        yield "</main>\n"
        yield from self._artifacts()
        written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        yield f"<footer>Written by trifle-otel on {written}. This page loads nothing and runs nothing.</footer>\n"
        yield "</body>\n</html>\n"

    # --- What is above the lines

    def _beginning(self) -> Iterator[str]:
        record = self.trace.record
        style = _style()
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
        yield (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        )
        yield _html("<title>{}: {}</title>\n", visible(record.state), call(record))
        yield f"<style>{style}</style>\n</head>\n<body>\n<header>\n"
        yield _html("<h1>{} {}</h1>\n", _state(record.state), _isolated(call(record)))
        yield "<dl>\n"
        for name, value in self._facts():
            yield _html("<div><dt>{}</dt><dd>{}</dd></div>\n", name, value)
        yield "</dl>\n"
        yield from self._problems()
        yield from self._damage()
        yield "</header>\n"

    def _facts(self) -> Iterator[tuple[str, Markup | str]]:
        record, took = self.trace.record, self.trace.duration_ns
        yield "reference", _html("<code>{}</code>", visible(record.reference))
        yield "started", _time(record.first_at)
        yield "took", (duration(took) if took else "less than 1 ms") + ("" if record.finished else " so far")
        yield "lines", f"{len(self.trace.entries):,}{_counted(record)}"
        if record.tags:
            yield "tags", Markup(" ").join(_html('<span class="tag">{}</span>', visible(tag)) for tag in record.tags)
        if record.meta is not None:
            yield "meta", _value(record.meta)
        for name, value in record.context.items():
            yield visible(name), _value(value)

    def _problems(self) -> Iterator[str]:
        """Where errors and warnings are."""
        places = self.trace.problems
        for state, name in ((ERROR, "error"), (WARNING, "warning")):
            found = [place for place in places if self._state_at(place) == state]
            if not found:
                continue
            links = Markup(", ").join(_html('<a href="#L{0}">{0}</a>', place + 1) for place in found[:MOST_NAMED])
            more = f" and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
            where = "line" if len(found) == 1 else "lines"
            said = count(len(found), name)
            yield _html('<p class="is-{}"><b>{} {}</b>, {} {}{}</p>\n', state, ICONS[state], said, where, links, more)

    def _state_at(self, place: int) -> str:
        block = self.trace.outline.opening(place)
        return self.trace.entries[place].state if block is None else block.state

    def _damage(self) -> Iterator[str]:
        damaged = self.trace.entries.damaged
        if damaged:
            items = Markup().join(_html("<li>{}</li>", visible(str(each))) for each in damaged[:MOST_NAMED])
            more = f"<li>and {len(damaged) - MOST_NAMED:,} more</li>" if len(damaged) > MOST_NAMED else ""
            yield f'<div class="told"><p>Not all of it can be read:</p><ul>{items}{more}</ul></div>\n'

    # --- The lines

    def _lines(self) -> Iterator[str]:
        trace = self.trace
        around: list[Block] = []
        for place in trace.order:
            chain = _chain(trace, place)
            while len(around) > len(chain) or (around and around[-1] is not chain[len(around) - 1]):
                around.pop()
                yield "</div></details>\n"
            block = trace.outline.opening(place)
            if block is not None and trace.within(block) is block:
                around.append(block)
                yield self._opening(place, block, len(chain))
            else:
                yield self._line(place, len(chain))
        yield "</div></details>\n" * len(around)

    def _opening(self, place: int, block: Block, depth: int) -> str:
        entry = self.trace.entries[place]
        folded = self.long and block not in self.troubled
        said = self._said(entry)
        return _html(
            '<details class="block"{} id="L{}"><summary class="ln {}">{}<span class="tx">{}{}</span>{}</summary>'
            '<div class="in">\n',
            "" if folded else Markup(" open"),
            place + 1,
            _classes(block.state, entry.type == "head", depth),
            _number(place),
            _flag(block.state),
            self._shown(said._replace(text=said.text.removesuffix(OPENED))),
            self._took(place, block),
        )

    def _took(self, place: int, block: Block) -> Markup:
        since = self.trace.headings.get(place)
        said = f"+{duration(since)}" if since else ""
        if block.duration_ns is None:
            took = "open" if not self.trace.record.finished else "never ended"
        elif block.exact:
            took = duration(block.duration_ns)
        else:
            took = f"~{duration(block.duration_ns)}" if block.duration_ns else ""
        return _times(said, took)

    def _line(self, place: int, depth: int) -> str:
        entry = self.trace.entries[place]
        owner = self.trace.outline.owners[place]
        closes = owner is not None and owner.closed == place
        kind = _classes(entry.state, entry.type == "head", max(depth - closes, 0)) + (" closes" if closes else "")
        since = self.trace.headings.get(place)
        return _html(
            '<div class="ln {}" id="L{}">{}<div class="tx">{}{}</div>{}</div>\n',
            kind,
            place + 1,
            _number(place),
            _flag(entry.state),
            self._inside(place, entry, owner),
            _times(f"+{duration(since)}") if since else "",
        )

    def _inside(self, place: int, entry: Entry, owner: Block | None) -> Markup:
        if entry.type == "media" and not entry.offloaded:
            name = _isolated(visible(entry.message))
            return _html('<a href="#{}">{}</a> <span class="dim">{}</span>', _anchor(place), name, _amount(entry))
        said = self._said(entry)
        is_result = owner is not None and owner.result == place
        return self._result(said) if is_result else self._shown(said)

    def _said(self, entry: Entry) -> Said:
        """What an entry says, from beside the trace where it lies there."""
        if not entry.offloaded:
            return Said(entry.message)
        try:
            with self.archive.open_artifact(self.trace.record, entry.message) as stream:
                data = stream.read() if self.full else stream.read(4 * MOST_CHARACTERS)
        except TrifleError:
            return Said(f"{entry.message} ({_amount(entry)}) is missing")
        return Said(data.decode(errors="backslashreplace"), entry.size)

    def _result(self, said: Said) -> Markup:
        """A result: in one line, or folded, as a tree where it is one."""
        arrow, text = (RESULT, said.text[len(RESULT) :]) if said.text.startswith(RESULT) else ("", said.text)
        if len(text) <= ONE_LINE and "\n" not in text:
            return _html('<span class="value">{}</span>', visible(said.text))
        if len(text) <= self.text_left and (tree := value_trees.parse(text)) is not None:
            self.text_left -= len(text)
            return _folding(arrow, text, value_html.html(tree))
        return _folding(arrow, text, self._text(said._replace(text=text)))

    def _shown(self, said: Said) -> Markup:
        """Any other text, folded where it is long."""
        return _folding("", said.text, self._text(said)) if len(said.text) > FOLDED else self._text(said)

    def _text(self, said: Said) -> Markup:
        """A text, as long as it may be, and how long the whole is."""
        most = sys.maxsize if self.full else max(min(MOST_CHARACTERS, self.text_left), ONE_LINE)
        text = said.text[:most]
        if len(text) > ONE_LINE:
            self.text_left -= len(text)
        shown = escape("\n".join(visible_lines(text)))
        if len(said.text) <= most:
            return shown
        whole = said.size or len(said.text.encode(errors="replace"))
        return shown + _html(' <span class="rest">… ({} in all, --full takes it in)</span>', size(whole))

    # --- Artifacts

    def _artifacts(self) -> Iterator[str]:
        if not self.trace.artifacts:
            return
        yield '<section class="artifacts">\n<h2>Artifacts</h2>\n'
        for place in self.trace.artifacts:
            entry = self.trace.entries[place]
            yield _html(
                '<article id="{}"><h3>{} <span class="dim">{}, <a href="#L{}">line {}</a></span></h3>\n{}</article>\n',
                _anchor(place),
                _isolated(visible(entry.message)),
                _amount(entry),
                place + 1,
                place + 1,
                self._artifact(entry.message, entry.size),
            )
        yield "</section>\n"

    def _artifact(self, name: str, whole: int | None) -> Markup:
        most = sys.maxsize if self.full else max(MOST_IMAGE, 4 * MOST_CHARACTERS) + 1
        try:
            with self.archive.open_artifact(self.trace.record, name) as stream:
                data = stream.read(most if most < sys.maxsize else -1)
        except NotFound:
            return Markup('<p class="told">It is not in the archive.</p>')
        except TrifleError as error:
            return _html('<p class="told">{}</p>', visible(str(error)))
        kind = picture_type(data)
        if kind and len(data) <= min(MOST_IMAGE, self.images_left):
            self.images_left -= len(data)
            picture = base64.b64encode(data).decode()
            return _html('<img alt="{}" src="data:{};base64,{}">', visible(name), kind, picture)
        text = None if kind or b"\0" in data else data.decode(errors="backslashreplace")
        if text is None:
            return Markup('<p class="dim">Not in this page: it is no text, or a large picture.</p>')
        return _html("<details><summary>Contents</summary><pre>{}</pre></details>", self._text(Said(text, whole)))


# --- Pieces


def _style() -> str:
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return css + "\n".join(f".i{level} {{ --i: {level}; }}" for level in range(MOST_INDENT + 1))


def _folding(arrow: str, text: str, inside: Markup) -> Markup:
    beginning = visible(" ".join(text[: 2 * ONE_LINE].split()))[: ONE_LINE - 20]
    return _html(
        '<details{}><summary>{}{}…</summary><div class="whole">{}</div></details>',
        Markup(' class="value"') if arrow else "",
        arrow,
        beginning,
        inside,
    )


def _html(template: str, *values: object) -> Markup:
    return Markup(template).format(*values)


def _isolated(text: str) -> Markup:
    """Text whose direction of writing ends with it."""
    return _html("<bdi>{}</bdi>", text)


def _number(place: int) -> Markup:
    return _html('<a class="no" href="#L{0}">{0}</a>', place + 1)


def _anchor(place: int) -> str:
    return f"A{place + 1}"


def _kind(state: str) -> str:
    return f"is-{state if state in _KNOWN_STATES else 'other'}"


def _classes(state: str, head: bool, depth: int) -> str:
    return f"{_kind(state)} i{min(depth, MOST_INDENT)}" + (" head" if head else "")


def _state(state: str) -> Markup:
    return _html('<span class="state {}">{} {}</span>', _kind(state), ICONS.get(state, "?"), visible(state))


def _times(since: str, took: str = "") -> Markup:
    """The time since the section before, and how long a block took."""
    return _html('<span class="tm"><span>{}</span><span>{}</span></span>', since, took) if since or took else Markup()


def _flag(state: str) -> Markup:
    if state not in (WARNING, ERROR):
        return Markup()
    return _html('<span class="flag" aria-hidden="true">{}</span><span class="hidden">{}: </span>', ICONS[state], state)


def _time(moment: datetime) -> Markup:
    shown = moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return _html('<time datetime="{}">{}</time>', format_time(moment), shown)


def _value(value: Any) -> Markup | str:
    text = value if isinstance(value, str) else to_json(value).decode()
    tree = None if isinstance(value, str) else value_trees.parse(text)
    return _html('<div class="whole">{}</div>', visible(text) if tree is None else value_html.html(tree))


def _counted(record: TraceRecord) -> str:
    states = record.counters.get("states")
    said = [f"{n:,} {visible(state)}" for state, n in states.items() if n] if isinstance(states, Mapping) else []
    return f": {', '.join(said)}" if said else ""


def _amount(entry: Entry) -> str:
    return "size unknown" if entry.size is None else size(entry.size)


def _chain(trace: Opened, place: int) -> list[Block]:
    """The blocks around a line, the outermost first."""
    chain = []
    block = trace.container(place)
    while block is not None:
        chain.append(block)
        block = trace.within(block.parent)
    return chain[::-1]


def _around_problems(trace: Opened) -> set[Block]:
    """The blocks that ended badly, or have a line in them that tells of something bad."""
    found: set[Block] = set()
    for place in trace.problems:
        block = trace.outline.owners[place]
        while block is not None and block not in found:
            found.add(block)
            block = block.parent
    return found
