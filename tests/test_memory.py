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
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

import trifle_otel as trifle
from trifle_otel import packing, redaction, redaction_edits, redaction_literals
from trifle_otel.archive import Archive
from trifle_otel.redaction import Redactor, screened_pieces
from trifle_otel.runtime import runtime
from trifle_otel.strict_json import clean_text

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


@pytest.mark.parametrize("sampler", [ALWAYS_OFF, ALWAYS_ON], ids=["sampled out", "span records"])
@pytest.mark.parametrize("what", ["lines", "blocks", "blocks by hand", "states"])
def test_a_trace_that_no_archive_keeps_does_not_grow(
    monkeypatch: pytest.MonkeyPatch, sampler: Sampler, what: str
) -> None:
    """Its lines go to its span, or nowhere, however long it runs."""
    monkeypatch.setattr(otel, "_TRACER_PROVIDER", TracerProvider(sampler=sampler, shutdown_on_exit=False))
    assert runtime().sink is None

    @trifle.block("Freight")
    def freight() -> int:
        return 7

    def by_hand() -> None:
        with trifle.block("Freight") as step:
            step.result(7)

    step = {
        "lines": lambda: trifle.trace("Freight to zone 4"),
        "blocks": freight,
        "blocks by hand": by_hand,
        "states": trifle.warn,
    }[what]

    def job(times: int) -> None:
        with trifle.tracer("job"):
            for _ in range(times):
                step()

    job(10)
    few = peak_of(lambda: job(25_000))
    assert peak_of(lambda: job(50_000)) < few + (1 << 20)


SECRETS = {
    "key": "password=hunter2 ",
    "long value": "password='" + "hunter2" * 1000 + "' ",
    "token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.hunter2 ",
    "vendor": "ghp_" + "a1" * 18 + " ",
    "scheme": "Bearer hunter2hunter2 ",
    "url": "amqp://bob:hunter2@h ",
    "card": "4111 1111 1111 1111, ",
    "private key": "-----BEGIN PRIVATE KEY-----hunter2-----END PRIVATE KEY----- ",
}
FILLER = "24.80 EUR "


def long_text(where: str) -> str:
    """A text of `SIZE` with one of each secret at its beginning, in its middle, at its end, or of many of them."""
    secrets, filler = "".join(SECRETS.values()), FILLER * (SIZE // len(FILLER))
    if where == "everywhere":
        return (secrets + FILLER * 10_000) * (SIZE // (len(secrets) + 100_000))
    at = {"first": 0, "halfway": SIZE // 2, "last": SIZE}[where]
    return filler[:at] + secrets + filler[at:]


@pytest.mark.parametrize("configure", [ALWAYS_OFF], ids=["sampled out"], indirect=True)
@pytest.mark.parametrize(
    "where, serializer",
    [
        ("halfway", "repr"),
        pytest.param("first", "repr", marks=pytest.mark.slow),
        pytest.param("last", "repr", marks=pytest.mark.slow),
        pytest.param("halfway", "str", marks=pytest.mark.slow),
        pytest.param("halfway", "json", marks=pytest.mark.slow),
    ],
)
def test_a_large_result_with_secrets_is_held_twice_at_most(
    configure: Callable[..., Archive], where: str, serializer: str
) -> None:
    """As it is without: once as text and once as the bytes that are stored, or as what is screened so far."""
    archive = configure(serializer=serializer)
    value = long_text(where)

    def job() -> None:
        with trifle.tracer("job", mode="deferred"):
            trifle.trace("Loading the page", lambda: value)
        assert trifle.flush(60)

    job()
    assert peak_of(job) < 2 * SIZE + ROOM
    (record, _) = archive.search().records
    (large,) = [entry for entry in archive.entries(record) if entry.type == "media"]
    stored = archive.artifact(record, large.message).decode()
    leaked = "hunter2" in stored or "a1a1" in stored or "4111" in stored
    assert not leaked  # and no comparison of long texts, which would take pytest minutes
    assert stored.count(FILLER.strip()) == value.count(FILLER.strip())
    assert stored.count("[redacted:") == len(SECRETS)


@pytest.mark.parametrize("kind", [*SECRETS, pytest.param("everywhere", marks=pytest.mark.slow)])
def test_screening_makes_one_copy_of_a_long_text(kind: str) -> None:
    """Whatever is replaced in it, and however often: the text that comes of it is put together in place."""
    half = FILLER * (SIZE // 20)
    text = long_text("everywhere") if kind == "everywhere" else half + SECRETS[kind] + half
    redactor = Redactor()
    screened: list[str] = []
    assert peak_of(lambda: screened.append(redactor.text(text))) < SIZE + ROOM
    assert "[redacted:" in screened[0]


@pytest.mark.parametrize("value", ["'" + "x" * SIZE + "'", "(" + "x, " * (SIZE // 3), "x" * SIZE])
def test_a_value_of_any_size_is_not_copied_to_be_judged(value: str) -> None:
    """A secret that is nearly all of a text goes, and no copy is made of it."""
    text, redactor = f"token={value}", Redactor()
    assert peak_of(lambda: redactor.text(text)) < SIZE + ROOM
    assert len(redactor.text(text)) < 100


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


@given(st.text(alphabet="aé↳\0\ud800\U0001f600", max_size=40), st.integers(1, 7), st.sampled_from(["", "↳ "]))
def test_a_text_is_encoded_piece_by_piece_as_at_once(text: str, size: int, prefix: str) -> None:
    """The bytes of a large message are those of prefix and text together, with hostile text made clean."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert packing._encoded(prefix, pieces) == (prefix + clean_text(text)).encode()


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
    redactor = Redactor()
    (signs, keys), screened = redactor._finder.look(text), redactor.text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction_literals, "WINDOW", window)
        windowed, places = redactor._finder.look(text)
        assert (windowed, list(places)) == (signs, list(keys))
        assert redactor.text(text) == screened


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.integers(1, 60))
def test_a_text_is_screened_piece_by_piece_as_at_once(words: list[str], piece: int) -> None:
    """The pieces of a long text, and what they are put together to, are what a short one becomes."""
    text = "".join(words)
    redactor = Redactor()
    screened = redactor.text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction_edits, "PIECE", piece)
        assert "".join(screened_pieces(redactor, text)) == redactor.text(text) == screened


@given(st.lists(st.sampled_from(WORDS), max_size=30), st.integers(4, 60))
def test_many_lines_are_looked_at_some_at_a_time_as_at_once(lines: list[str], window: int) -> None:
    """However much text the lines of a part are, the same are screened."""
    redactor = Redactor()
    screened = redactor.texts(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "WINDOW", window)
        assert redactor.texts(lines) == screened


def test_pieces_are_screened_as_whole_texts_are() -> None:
    """Also where there is nothing to screen with, a step of one's own, or a rule that fails."""
    assert "".join(screened_pieces(None, "password=x")) == "password=x"
    assert "".join(screened_pieces(Redactor(custom=str.upper), "password=x a")) == "PASSWORD=[REDACTED:PASSWORD] A"
    broken = Redactor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broken, "_rules", None)
        assert list(screened_pieces(broken, "password=x")) == ["[redacted:failed]"] == [broken.text("password=x")]


def test_a_message_is_measured_as_it_is_screened(tmp_path: Path) -> None:
    """What screening makes small lies in the part, what it makes large beside it; each is screened once."""
    seen: list[str] = []

    def custom(text: str) -> str:
        seen.append(text)
        return text

    redaction = Redactor(custom=custom)
    archive = trifle.configure(tmp_path / "archive", redaction=redaction, payload_size_limit=1024)
    short, grown = "token='" + "x" * 2000 + "'", "a b " * 190 + "token='x' " * 25
    with trifle.tracer("job"):
        trifle.trace(short)
        trifle.trace(grown)
        trifle.trace("é" * 500)
    assert trifle.flush(30)
    (record,) = archive.search().records
    entries = [entry for entry in archive.entries(record) if entry.level == 0][1:]
    assert [entry.type for entry in entries] == ["text", "media", "text"]
    assert entries[0].message == "token='[redacted:token]'"
    assert archive.artifact(record, entries[1].message).decode() == grown.replace("'x'", "'[redacted:token]'")
    assert entries[2].message == "é" * 500
    assert [seen.count(text) for text in ("token='[redacted:token]'", "é" * 500)] == [1, 1]
    trifle.shutdown()
