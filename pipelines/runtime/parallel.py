"""Jobs in parallel processes; a job that crashes its process does not affect the others."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


class Crashed:
    """Replaces the result of a job that ended its process (a decoder crashed, or memory ran out)."""


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[[J], R], jobs: Sequence[J], workers: int) -> Iterator[tuple[J, R | Crashed]]:
    """Yield each job with its result, in the order in which jobs end.

    Args:
        function: Called with one job; a module-level function, or a partial of one.
        jobs: Arguments of the calls, picklable.
        workers: Processes; 1 works in this process, where a crash ends everything.
    """
    if workers == 1 or len(jobs) < 2:
        yield from ((job, function(job)) for job in jobs)
        return
    waiting = dict(enumerate(jobs))
    while waiting:
        for number, result in _run_until_crash(function, waiting, workers):
            yield waiting.pop(number), result
        # Jobs start in order, so the one that crashed is among the first that have no result: try those alone.
        for number in list(waiting)[: 2 * workers]:
            ended = list(_run_until_crash(function, {number: waiting[number]}, 1))
            yield waiting.pop(number), ended[0][1] if ended else Crashed()


def _run_until_crash(function: Callable[[J], R], jobs: dict[int, J], workers: int) -> Iterator[tuple[int, R]]:
    """Yield results by job number as jobs end; stops early, without an error, when a process crashes."""
    context = multiprocessing.get_context("spawn")  # no copy of this process's threads and open databases
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_follow_parent) as pool:
        futures = {pool.submit(function, job): number for number, job in jobs.items()}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            return
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed, so that no orphan goes on writing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
