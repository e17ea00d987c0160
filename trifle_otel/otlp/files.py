"""Files of OTLP JSON lines, read as spans: what the collector's file exporter and the SDK's `otlp_json_file` write.

A line is a request; it is read when it is asked for, and one that is damaged is named by its number and left out.
Lines with metrics or logs are left out too. What becomes of the spans is `importing`'s business.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import cast

from trifle_otel.errors import UsageError
from trifle_otel.otlp.spans import JSON, MalformedRequest, parse_request, spans_of, value_from_json
from trifle_otel.span_data import SpanData

MAX_LINE = 64 * 1024 * 1024
"""Bytes of a line; the collector's own receivers take requests of 20 MiB."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BOM = b"\xef\xbb\xbf"
_STEP = 1 << 20
_SIGNALS = {"resourceSpans", "resourceLogs", "resourceMetrics", "resourceProfiles"}
_TRACE_DIGITS, _SPAN_DIGITS = 32, 16


class OtlpFile:
    """A file of OTLP JSON lines, plain or with gzip. A context manager that closes it.

    Args:
        path: its path, which may be a pipe's; `-` for the standard input.
        damaged: called with the number of a line (from 1) and what is wrong with it.

    Raises `OSError` where it cannot be read, `UsageError` where it is of another format.

    Attributes:
        position: bytes of the file that were read so far.
        damaged_lines: how many lines were left out since they are damaged.
        refused_spans: how many spans were left out since they have no ids.
    """

    def __init__(self, path: str, damaged: Callable[[int, str], object]) -> None:
        self.damaged_lines = 0
        self.refused_spans = 0
        self._path = path
        self._damaged = damaged
        self._file = cast("BufferedReader", sys.stdin.buffer) if path == "-" else Path(path).open("rb")  # noqa: SIM115 - closed by exit
        self._read = 0
        self._lines = self._opened()

    @property
    def position(self) -> int:
        return self._read if self._lines is self._file or not self._file.seekable() else self._file.tell()

    def __enter__(self) -> OtlpFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def __iter__(self) -> Iterator[list[SpanData]]:
        """The spans of each line that has some."""
        for number, line in self._numbered():
            try:
                spans = _spans(line)
            except MalformedRequest as error:
                self._leave_out(number, str(error))
                continue
            good = [span for span in spans if _has_ids(span)]
            self.refused_spans += len(spans) - len(good)
            if len(good) < len(spans):
                self._damaged(number, f"{len(spans) - len(good)} spans have no valid ids")
            if good:
                yield good

    def _opened(self) -> BufferedReader | gzip.GzipFile:
        start = self._file.peek(8)  # a pipe does not go back
        if start.startswith(_GZIP):
            return gzip.GzipFile(fileobj=self._file)
        if _ZSTD in (start[:4], start[4:8]):
            self._close()
            raise UsageError(f"{self._path} is compressed with zstd; unpack it, or let the collector write it plain")
        return self._file

    def _close(self) -> None:
        if self._path != "-":
            self._file.close()

    def _numbered(self) -> Iterator[tuple[int, bytes]]:
        number = 0
        while True:
            number += 1
            try:
                line = self._lines.readline(MAX_LINE + 1)
                self._read += len(line)
                whole = len(line) <= MAX_LINE or self._skip()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self._leave_out(number, f"the compressed data is damaged, and nothing after it can be read: {error}")
                return
            if not line:
                return
            if not whole:
                self._leave_out(number, f"it is longer than {MAX_LINE:,} bytes")
                continue
            line = line.removeprefix(_BOM) if number == 1 else line
            if not line.isspace():
                yield number, line

    def _skip(self) -> bool:
        """Read to the end of a line that is too long. Gives False: it is no whole line."""
        while True:
            piece = self._lines.readline(_STEP)
            self._read += len(piece)
            if not piece or piece.endswith(b"\n"):
                return False

    def _leave_out(self, number: int, why: str) -> None:
        self.damaged_lines += 1
        self._damaged(number, why)


def _spans(line: bytes) -> list[SpanData]:
    """The spans of a line. Raises `MalformedRequest` for what is none of OTLP's."""
    spans = spans_of(parse_request(line, JSON))
    if not spans:
        value = value_from_json(line)
        if not isinstance(value, dict) or not _SIGNALS & value.keys():
            raise MalformedRequest("it is no OTLP: there is no `resourceSpans` in it")
    return spans


def _has_ids(span: SpanData) -> bool:
    for text, digits in ((span.trace_id, _TRACE_DIGITS), (span.span_id, _SPAN_DIGITS)):
        if len(text) != digits or not text.strip("0"):
            return False
    return True
