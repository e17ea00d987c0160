"""How much memory recording takes: long traces are let go of while they run, large results are not copied about.

Sizes are a tenth of those that `benchmarks/footprint.py` measures, and are read off `tracemalloc`, which counts the
same on a busy machine.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

import trifle_otel as trifle
from trifle_otel import packing, redaction
from trifle_otel.archive import Archive

SIZE = 16_000_000
ROOM = 6 << 20  # windows of 1 MiB and their copies, buffers of the compressor and of the index


@pytest.fixture(params=[ALWAYS_OFF, ALWAYS_ON], ids=["sampled out", "span records"])
def configure(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Archive]]:
    """`configure` with an archive on files, with spans that record and without."""

    def configured(**settings: object) -> Archive:
        provider = TracerProvider(sampler=request.param, shutdown_on_exit=False)
        return trifle.configure(tmp_path / "archive", tracer_provider=provider, **settings)  # type: ignore[arg-type]

    yield configured
    trifle.shutdown()


def peak_of(action: Callable[[], object]) -> int:
    """Bytes that were held at most while it ran, beyond what was held before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("serializer, mode", [("repr", "deferred"), ("str", "live"), ("json", "deferred")])
def test_a_large_result_is_held_twice_at_most(configure: Callable[..., Archive], serializer: str, mode: str) -> None:
    """Beside the job's own value there are its text and one copy: the bytes that are stored, or what is screened."""
    archive = configure(serializer=serializer)
    value = "24.80 EUR " * (SIZE // 10)

    def job() -> None:
        with trifle.tracer("job", mode=mode):
            trifle.trace("Loading the page", lambda: value)
        assert trifle.flush(30)

    job()  # what is loaded and made when it is first needed does not count
    assert peak_of(job) < 2 * SIZE + ROOM
    (record, _) = archive.search().records
    (large,) = [entry for entry in archive.entries(record) if entry.type == "media"]
    text = archive.artifact(record, large.message).decode()
    same = text.startswith("↳ ") and text.strip("↳ '\"") == value.strip()
    assert same  # and no comparison of them, which would take pytest minutes
    assert large.size == len(text.encode())


def test_a_long_live_trace_is_let_go_of_while_it_runs(configure: Callable[..., Archive]) -> None:
    """A live trace holds some ten thousand lines, however many it records; the archive has them all."""
    archive = configure()

    def job() -> None:
        with trifle.tracer("job", mode="live"):
            for number in range(60_000):
                trifle.trace(f"Freight to zone {number}: 24.80 EUR")
        assert trifle.flush(30)

    assert peak_of(job) < 24_000_000  # all of them take 36
    (record,) = archive.search().records
    assert record.length == 60_001


def test_large_messages_that_are_no_results_become_artifacts_too(configure: Callable[..., Archive]) -> None:
    """Lines, results and names of blocks above the limit lie beside the parts, whole, and are counted as media."""
    archive = configure(payload_size_limit=1024)
    with trifle.tracer("job"):
        trifle.trace("é" * 600)
        trifle.trace("ordinary")
        with trifle.block("b" * 1200) as step:
            step.result("\0" + "\ud800" + "r" * 1200)
    trifle.flush(30)
    (record,) = archive.search().records
    media = [entry for entry in archive.entries(record) if entry.type == "media"]
    stored = [archive.artifact(record, entry.message).decode() for entry in media]
    assert stored == ["é" * 600, "b" * 1200 + " ↴", "b" * 1200 + " ↵", "↳ '\\x00\\ud800" + "r" * 1200 + "'"]
    assert record.counters["types"]["media"] == 4
    assert sum(record.counters["types"].values()) == record.length == len(archive.entries(record))


@given(st.text(alphabet="aé↳\0\U0001f600", max_size=40), st.integers(1, 7), st.sampled_from(["", "↳ "]))
def test_a_text_is_encoded_window_by_window_as_at_once(text: str, window: int, prefix: str) -> None:
    """The bytes of a large message are those of prefix and text together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW", window)
        assert packing._encoded(prefix, text) == (prefix + text).encode()


WORDS = [
    "password",
    "=",
    "hunter2",
    " ",
    "4111 1111 1111 1111",
    "\n",
    "Bearer abcdefghijklmnop",
    "xyz",
    "é",
    "apikey: q",
]


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.integers(1, 60))
def test_a_text_is_searched_window_by_window_as_at_once(words: list[str], window: int) -> None:
    """What a long text is screened for is found at the same places as in a short one, also on a window's border."""
    text = "".join(words)
    redactor = redaction.Redactor()
    at_once, screened = redactor._finder.hits(text), redactor.text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_WINDOW", window)
        assert redactor._finder.hits(text) == at_once
        assert redactor.text(text) == screened
