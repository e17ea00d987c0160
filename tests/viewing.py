"""Archives for tests of the viewer: executions with something of everything, hostile ones, one that still runs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from trifle_otel.archive import Archive
from trifle_otel.encoding import artifact_name, encode_part, encode_record, part_name
from trifle_otel.records import RUNNING, TraceRecord
from trifle_otel.references import segments

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=timezone.utc)
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFklEQVR42mNkaPjPgA0wMeAAQ1oCABtUAQ9mbmpTAAAAAElFTkSuQmCC"
)
SCRIPT = "<script>window.hacked=1</script>"
HOSTILE = (
    SCRIPT,
    "<img src=x onerror=window.hacked=1>",
    "javascript:window.hacked=1",
    '"><svg onload=window.hacked=1>',
    "{{ 7*7 }} {% raw %} ${7*7}",
    "\u202etxt.exe\u202c reversed \u2066isolated\u2069 \u200bhidden\ufeff",
    "\x1b[31mred\x1b[0m \x07bell \x00nul \x9bcsi",
    "</details></div></body></html>",
    "a\u0300\u0301\u0302" * 40,
)


class Trace:
    """Makes the entries of a trace by hand, each a millisecond after the one before."""

    def __init__(self, key: str, *, number: int, minutes_ago: float = 0, meta: Any = None, tags: Iterable[str] = ()):
        self.key = key
        self.reference = f"01KTEST{number:019}"
        self.meta = meta
        self.tags = tuple(sorted(tags))
        self.began = NOW - timedelta(minutes=minutes_ago)
        self.ns = int(self.began.timestamp() * 1_000_000) * 1000
        self.step_ns = 1_000_000
        self.entries: list[dict[str, Any]] = []
        self.artifacts: dict[str, bytes] = {}
        self.open: list[str] = []
        self.spans = 0
        self.line(f"Tracer has been initialized for {key}")

    def line(self, message: str, state: str = "success", kind: str = "text", **more: Any) -> Trace:
        """Add a line."""
        self.ns += self.step_ns
        span = self.open[-1] if self.open else "f" * 16
        level = len(self.open)
        entry = {"at": self.ns // 10**9, "message": message, "state": state, "type": kind, "level": level}
        self.entries.append({**entry, **more, "ns": self.ns, "span": span})
        return self

    def opens(self, message: str, *, head: bool = False) -> Trace:
        """Open a block."""
        self.spans += 1
        parent = self.open[-1] if self.open else "f" * 16
        self.line(f"{message} ↴", kind="head" if head else "text", parent=parent)
        self.open.append(f"{self.spans:016x}")
        self.entries[-1]["span"] = self.open[-1]
        return self

    def closes(self, result: str, state: str = "success") -> Trace:
        """Close the block that was opened last."""
        opening = next(entry for entry in self.entries if entry["span"] == self.open[-1])
        level = len(self.open) - 1
        self.line(opening["message"].replace(" ↴", " ↵"), state)
        self.entries[-1]["level"] = level
        self.line(f"↳ {result}", kind="raw")
        self.entries[-1]["level"] = level
        self.open.pop()
        return self

    def artifact(self, name: str, data: bytes) -> Trace:
        """Add an artifact."""
        self.artifacts[name] = data
        return self.line(name, kind="media", size=len(data))

    def offloaded(self, text: str, kind: str = "text") -> Trace:
        """Add a message that is stored beside the lines."""
        name = f"part_row_01k{len(self.artifacts):023}.txt"
        return self.artifact(name, text.encode(errors="surrogatepass"))

    def record(self, state: str = "success", **changes: Any) -> TraceRecord:
        """The row for the index."""
        states = dict.fromkeys(("success", "warning", "error", "debug"), 0)
        for entry in self.entries:
            states[entry["state"]] = states.get(entry["state"], 0) + 1
        duration = (self.ns - int(self.began.timestamp() * 1_000_000) * 1000) // 10**6
        fields: dict[str, Any] = {
            "reference": self.reference,
            "key": self.key,
            "segments": segments(self.key),
            "state": state,
            "tags": self.tags,
            "meta": self.meta,
            "context": {"trace_id": TRACE_ID, "span_id": "b7ad6b7169203331", "service": "prices"},
            "duration": duration,
            "counters": {"states": states, "types": {}, "max_level": 3},
            "length": len(self.entries),
            "parts": 1,
            "first_at": self.began,
            "last_at": self.began + timedelta(milliseconds=duration),
            "retention": 7,
            "expires_at": self.began + timedelta(days=7),
        }
        return TraceRecord(**{**fields, **changes})

    def store(self, archive: Archive, state: str = "success", *, parts: int = 1, **changes: Any) -> TraceRecord:
        """Put it into an archive, as so many parts."""
        record = self.record(state, parts=parts, **changes)
        size = -(-len(self.entries) // parts)
        for number in range(parts):
            data = encode_part(self.entries[number * size : (number + 1) * size])
            archive.store.write(record.folder, part_name(number + 1), data)
        for name, data in self.artifacts.items():
            archive.store.write(record.folder, artifact_name(name), data)
        archive.store.write(record.folder, "record.json", encode_record(record))
        archive.index.put([record])
        return record


def price(number: int, *, minutes_ago: float, rate: int = 19, fails: bool = False) -> Trace:
    """One calculation, like yesterday's but for its tax rate."""
    net, tax = 100, rate
    trace = Trace(
        "prices/landed/good",
        number=number,
        minutes_ago=minutes_ago,
        meta=[9, ["DE", "FR"]],
        tags=["product:9", "store:7"],
    )
    trace.line("Product 9 -> landed prices", kind="head")
    trace.opens("Loading the product").line("from the catalogue").closes(
        json.dumps({"id": 9, "net": net, "name": "A stone" * 20})
    )
    trace.opens("Tax", head=True).opens("Rate of the country").closes(str(rate))
    trace.line("rounded half up").closes(str(tax))
    if fails:
        trace.line("The margin is thin", "warning")
        trace.opens("Publishing").line("Exception: no connection", "error").closes("None", "error")
    else:
        trace.opens("Publishing").closes("True")
    trace.line("Price", kind="head").opens("Calculation result").closes(
        repr({"net": net, "gross": net + tax, "parts": [net, tax] * 20})
    )
    return trace


def full(number: int = 50) -> Trace:
    """Something of everything that a page shows."""
    trace = price(number, minutes_ago=1)
    trace.opens("Pictures and files")
    trace.artifact("chart.png", PNG).artifact("page.html", f"<h1>Hi</h1>{SCRIPT}".encode())
    trace.artifact("logo.svg", f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>".encode())
    trace.artifact("sub dir/übersicht.txt", "Zażółć\n\tgęślą\n".encode()).artifact("raw.bin", bytes(range(256)))
    trace.artifact("fake.png", b"<script>window.hacked=1</script>").artifact("data.json", b'{"a": [1, 2, {"b": null}]}')
    trace.closes("5")
    trace.offloaded("x" * 150_000 + "\nthe end of it")
    trace.line("y" * 1_000_000)
    trace.opens("Invalid JSON").closes('{"a": [1, 2' + "," * 200)
    trace.line('Traceback (most recent call last):\n  File "job.py", line 1, in <module>\nValueError: no')
    trace.line("only a hint", "debug")
    return trace


def hostile(number: int = 60) -> Trace:
    """Texts that would run, steer or hide something, wherever texts are shown."""
    trace = Trace(
        f"hostile/{SCRIPT.replace('/', '|')}", number=number, minutes_ago=2, meta={SCRIPT: list(HOSTILE)}, tags=HOSTILE
    )
    for text in HOSTILE:
        trace.opens(text, head=True).line(text, "error").line(text, "warning", "raw").closes(text)
        trace.line(text, text)
    trace.artifact(f"x{SCRIPT.replace('/', '|')}.png", PNG)
    trace.line("deep").entries[-1]["level"] = 10**9
    return trace


def running(number: int = 70) -> Trace:
    """A trace that has not ended."""
    trace = Trace("import/products", number=number, minutes_ago=3, meta=[133554920])
    return trace.opens("Importing").opens("Page 1").line("20 rows").closes("20").opens("Page 2").line("working on it")


def at_once(number: int = 80) -> Trace:
    """Two blocks that ran at the same time, so that their lines are mixed."""
    trace = Trace("sync/stock", number=number, minutes_ago=4)
    trace.opens("Both").opens("Shop A")
    first = trace.open.pop()
    trace.opens("Shop B")
    second = trace.open.pop()
    for turn in range(3):
        for span, name in ((first, "A"), (second, "B")):
            trace.open.append(span)
            trace.line(f"{name} {turn}")
            trace.open.pop()
    for span, name in ((first, "A"), (second, "B")):
        trace.open.append(span)
        trace.closes(name)
    return trace.closes("done")


def long(lines: int, number: int = 90, *, minutes_ago: float = 5) -> Trace:
    """A trace of about so many lines, in blocks, with an error near the end."""
    trace = Trace("import/catalogue", number=number, minutes_ago=minutes_ago)
    trace.step_ns = 1000
    for item in range((lines - 3) // 6):
        trace.opens(f"Item {item}", head=item % 50 == 0).line("Loading").opens("Price").closes(
            json.dumps({"net": item})
        )
        trace.closes("True")
    return trace.line("Item is missing", "error").line("done")


def everything(folder: Path) -> Archive:
    """An archive with all of that."""
    archive = Archive.open(folder)
    price(1, minutes_ago=24 * 60).store(archive)
    price(2, minutes_ago=60, rate=21).store(archive)
    price(3, minutes_ago=30, fails=True).store(archive, "error")
    full().store(archive, "warning")
    hostile().store(archive, "error")
    running().store(archive, RUNNING)
    at_once().store(archive)
    long(2_500).store(archive, "error", parts=3)
    return archive


class Answer(NamedTuple):
    """What an application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


class Client:
    """Asks an ASGI application, in this process, for paths just as they are given.

    Args:
        app: the application.
        client: the address that requests come from.
        root: the path that it is mounted at, as servers tell it.
    """

    def __init__(self, app: Any, *, client: str = "127.0.0.1", root: str = "") -> None:
        self.app = app
        self.client = client
        self.root = root

    def get(self, url: str, **headers: str) -> Answer:
        """The answer to a request; names of headers with `_` for `-`."""
        return self.ask("GET", url, **headers)

    def post(self, url: str, form: str = "", **headers: str) -> Answer:
        """The answer to a form."""
        return self.ask("POST", url, form.encode(), **headers)

    def ask(self, method: str, url: str, body: bytes = b"", /, **headers: str) -> Answer:
        """The answer to a request of any method."""
        path, _, query = url.partition("?")
        given = {"host": "localhost:8420", **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": self.root,
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": (self.client, 50_000),
            "server": ("localhost", 8420),
        }
        return asyncio.run(self._answer(scope, body))

    async def _answer(self, scope: dict[str, Any], body: bytes) -> Answer:
        sent: list[dict[str, Any]] = []
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not waiting:
                await never.wait()
            return waiting.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        headers = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))
