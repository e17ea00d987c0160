"""Dramatiq's actors for `frameworks`; run as a program it is a worker of one thread."""

from __future__ import annotations

import signal

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks import framework_jobs as jobs

broker = RedisBroker(url=jobs.BROKER)
dramatiq.set_broker(broker)
if jobs.TRACED:
    from trifle_otel.integrations import dramatiq as ours

    ours.instrument(select=lambda job: job.name.endswith(".empty"))


@dramatiq.actor(queue_name=jobs.QUEUE)
def empty() -> None:
    """See `framework_jobs`."""
    jobs.empty()


@dramatiq.actor(queue_name=jobs.QUEUE)
def begin() -> None:
    """See `framework_jobs`."""
    jobs.begin()


@dramatiq.actor(queue_name=jobs.QUEUE)
def report() -> None:
    """See `framework_jobs`."""
    jobs.report()


def main() -> None:
    """Work until somebody says stop."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # of threads that are started from here on, too
    broker.emit_after("process_boot")
    worker = dramatiq.Worker(broker, worker_threads=1)
    worker.start()
    signal.sigwait(signals)
    worker.stop()


if __name__ == "__main__":
    main()
