"""Log records in the running trace, and its reference in log records."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import loguru
import pytest
import structlog
from celery import Celery
from celery.app.log import Logging
from celery.utils.log import get_task_logger

import trifle_otel as trifle
from trifle_otel import Archive
from trifle_otel.integrations import logging as integration
from trifle_otel.runtime import runtime


@pytest.fixture
def archive() -> Archive:
    """An archive in memory that this process records into."""
    return trifle.configure("memory:")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of this test's own; what `instrument` did ends with it."""
    found = logging.getLogger("shop.prices")
    found.setLevel(logging.DEBUG)
    yield found
    integration.uninstrument()
    found.setLevel(logging.NOTSET)


def lines(archive: Archive) -> list[tuple[str, str, str]]:
    """Type, state and message of each line of the only trace but its first."""
    assert trifle.flush(5)
    (record,) = archive.search().records
    return [(entry.type, entry.state, entry.message) for entry in archive.entries(record)][1:]


def test_records_become_lines_with_their_levels_states(archive: Archive, logger: logging.Logger) -> None:
    """A record is a line of the block that is running, and changes no trace's state."""
    integration.instrument(level="DEBUG")
    with trifle.tracer("a/job"):
        logger.debug("rate of %s", "EUR")
        logger.info("priced")
        logger.warning("old rate")
        with trifle.block("Step"):
            logger.critical("no rate")
    assert lines(archive)[:3] == [
        ("text", "debug", "shop.prices: rate of EUR"),
        ("text", "success", "shop.prices: priced"),
        ("text", "warning", "shop.prices: old rate"),
    ]
    assert lines(archive)[4] == ("text", "error", "shop.prices: no rate")
    (record,) = archive.search().records
    assert record.state == "success"


def test_an_exceptions_traceback_follows_its_record(archive: Archive, logger: logging.Logger) -> None:
    """`logger.exception` leaves two lines."""
    integration.instrument()
    with trifle.tracer("a/job"):
        try:
            raise ValueError("no rate")
        except ValueError:
            logger.exception("pricing failed")
    text, raw = lines(archive)
    assert text == ("text", "error", "shop.prices: pricing failed")
    assert raw[:2] == ("raw", "success")
    assert raw[2].startswith("Traceback")
    assert raw[2].endswith("ValueError: no rate")


def test_levels_below_are_left_out(archive: Archive, logger: logging.Logger) -> None:
    """The level given counts; INFO is the usual one."""
    integration.instrument()
    with trifle.tracer("a/job"):
        logger.debug("too fine")
        logger.info("fine")
    assert lines(archive) == [("text", "success", "shop.prices: fine")]


def test_instrumenting_twice_records_once(archive: Archive, logger: logging.Logger) -> None:
    """The second call takes the place of the first, and `uninstrument` ends both."""
    integration.instrument()
    integration.instrument()
    with trifle.tracer("a/job"):
        logger.info("once")
        integration.uninstrument()
        logger.info("never")
    assert lines(archive) == [("text", "success", "shop.prices: once")]


def test_a_wrong_level_is_said_and_changes_nothing(archive: Archive, logger: logging.Logger) -> None:
    """What was set up before stays."""
    integration.instrument()
    with pytest.raises(ValueError, match="LOUD"):
        integration.instrument(level="LOUD")
    with trifle.tracer("a/job"):
        logger.info("still here")
    assert lines(archive) == [("text", "success", "shop.prices: still here")]


def test_outside_of_a_trace_nothing_happens(archive: Archive, logger: logging.Logger) -> None:
    """There is nowhere to put a record then."""
    integration.instrument()
    logger.info("nobody is there")
    assert trifle.flush(5)
    assert archive.search().records == []


def test_a_record_that_cannot_be_formatted_stops_nobody(archive: Archive, logger: logging.Logger) -> None:
    """It is counted; logging's own handlers say the rest."""
    handler = integration.TraceHandler()
    with trifle.tracer("a/job"):
        handler.handle(logging.LogRecord("shop", logging.INFO, "", 1, "%d of %d", ("one",), None))
        trifle.trace("after")
    assert lines(archive) == [("text", "success", "after")]
    assert runtime().troubles.counts["a log record could not be put into a trace"] == 1


def test_secrets_in_records_are_screened(archive: Archive, logger: logging.Logger) -> None:
    """Log lines are messages like any other."""
    integration.instrument()
    with trifle.tracer("a/job"):
        logger.info("login with password=hunter2secret")
    assert "hunter2secret" not in lines(archive)[0][2]


def test_records_carry_the_reference(archive: Archive, logger: logging.Logger) -> None:
    """Every record of the process can be formatted with it, inside a trace and outside."""
    integration.instrument()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(trifle_reference)s|%(trifle_trace_id)s] %(message)s"))
    logger.addHandler(handler)
    try:
        with trifle.tracer("a/job") as job:
            logger.info("inside")
        logger.info("outside")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == f"[{job.reference}|{job.trace_id}] inside\n[|] outside\n"


def test_the_filter_alone_marks_what_its_handler_sees(archive: Archive, logger: logging.Logger) -> None:
    """For whoever wants the reference in one handler's records only."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(integration.ReferenceFilter())
    handler.setFormatter(logging.Formatter("%(trifle_reference)s"))
    logger.addHandler(handler)
    try:
        with trifle.tracer("a/job") as job:
            logger.info("inside")
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue() == f"{job.reference}\n"


def test_anothers_factory_around_ours_stays(archive: Archive, logger: logging.Logger) -> None:
    """Who set up a factory after us keeps it when we go."""
    before = logging.getLogRecordFactory()
    integration.instrument()
    ours = logging.getLogRecordFactory()

    def theirs(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return ours(*args, **kwargs)

    logging.setLogRecordFactory(theirs)
    try:
        integration.uninstrument()
        assert logging.getLogRecordFactory() is theirs
    finally:
        logging.setLogRecordFactory(before)


def test_structlog(archive: Archive) -> None:
    """One processor records events, the other gives them the reference."""
    seen: list[dict[str, Any]] = []

    def last(logger: Any, method: str, event: dict[str, Any]) -> str:
        seen.append(event)
        raise structlog.DropEvent

    processors: list[Any] = [integration.record_event, integration.add_reference, last]
    log = structlog.wrap_logger(None, processors=processors)
    with trifle.tracer("a/job") as job:
        log.warning("old rate", currency="EUR", days=3)
    log.info("outside")
    assert lines(archive) == [("text", "warning", "old rate currency='EUR' days=3")]
    assert [event.get("trifle_reference") for event in seen] == [job.reference, None]
    assert seen[0]["trifle_trace_id"] == job.trace_id


def test_fields_of_our_own_names_stop_no_record(archive: Archive, logger: logging.Logger) -> None:
    """What structlog, or the job itself, hands to `logging` under our names counts, and raises nothing into the job."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("[%(trifle_reference)s] %(message)s %(days)s"))
    logger.addHandler(handler)
    integration.instrument(logger=logger)
    processors: list[Any] = [integration.add_reference, structlog.stdlib.render_to_log_kwargs]
    log = structlog.wrap_logger(logger, processors=processors)
    try:
        with trifle.tracer("a/job") as job:
            log.warning("old rate", days=3)
        logger.info("theirs", extra={"trifle_reference": "another", "days": 4})
        logger.handle(logger.makeRecord("x", 20, "", 0, "made", (), None, extra={"trifle_trace_id": "1", "days": 5}))
        integration.uninstrument()
        logger.info("as ever", extra={"trifle_reference": "another", "days": 6})
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue().splitlines() == [
        f"[{job.reference}] old rate 3",
        "[another] theirs 4",
        "[] made 5",
        "[another] as ever 6",
    ]


@pytest.fixture
def celerys() -> Iterator[Logging]:
    """What sets logging up in a worker; all is put back as it was."""
    loggers = [logging.getLogger(name) for name in (None, "celery", "celery.task", "celery.redirected")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    setup = Logging._setup
    Logging._setup = False
    app = Celery(set_as_current=False)
    yield Logging(app)
    app.close()
    Logging._setup = setup
    logging.captureWarnings(False)
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


SAID = ["shop.task: of the task", "shop: of the module"]


def say() -> None:
    """Log by Celery's logger of tasks and by another, in a trace."""
    with trifle.tracer("a/job"):
        get_task_logger("shop.task").warning("of the task")
        logging.getLogger("shop").warning("of the module")


@pytest.mark.parametrize("first", ["before", "after"])
@pytest.mark.parametrize("hijack", [True, False])
def test_celery_sets_logging_up(archive: Archive, celerys: Logging, first: str, hijack: bool) -> None:
    """Before or after us, with what it takes for its own: each record is one line, and none when all is taken back."""
    celerys.app.conf.worker_hijack_root_logger = hijack
    if first == "before":
        celerys.setup_logging_subsystem(logging.INFO)
    integration.instrument()
    if first == "after":
        celerys.setup_logging_subsystem(logging.INFO)
    say()
    assert [line for _, _, line in lines(archive)] == SAID
    integration.uninstrument()
    handlers = [*logging.getLogger().handlers, *logging.getLogger("celery.task").handlers]
    assert not any(isinstance(handler, integration.TraceHandler) for handler in handlers)


def test_tasks_records_that_reach_the_root_logger_are_recorded_once(archive: Archive, celerys: Logging) -> None:
    """As where a receiver of Celery's signal says so."""
    integration.instrument()
    celerys.setup_logging_subsystem(logging.INFO)
    logging.getLogger("celery.task").propagate = True
    say()
    assert [line for _, _, line in lines(archive)] == SAID


def test_one_loggers_records_stay_the_only_ones_with_celery(archive: Archive, celerys: Logging) -> None:
    """Its handler stays where it is, and no other is added."""
    integration.instrument(logger=logging.getLogger("shop"))
    celerys.setup_logging_subsystem(logging.INFO)
    say()
    assert [line for _, _, line in lines(archive)] == SAID[1:]


def test_without_us_celerys_logging_is_as_it_is(archive: Archive, celerys: Logging) -> None:
    """Once it has been taken back, what follows Celery's signals does nothing."""
    integration.instrument()
    integration.uninstrument()
    celerys.setup_logging_subsystem(logging.INFO)
    say()
    assert lines(archive) == []


def test_loguru(archive: Archive) -> None:
    """It takes our handler as it is."""
    number = loguru.logger.add(integration.TraceHandler(), format="{message}", catch=False)
    try:
        with trifle.tracer("a/job"):
            loguru.logger.warning("old rate")
    finally:
        loguru.logger.remove(number)
    ((kind, state, message),) = lines(archive)
    assert (kind, state) == ("text", "warning")
    assert message.endswith("old rate")
