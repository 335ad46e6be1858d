"""Jobs over processes: one that kills its process is named, the others are done."""

import os
import signal
import time
from functools import partial

import pytest

from pipelines.runtime.parallel import Crashed, available_cores, run_jobs


def square(number: int) -> int:
    return number * number


def crash_on(bad: int, number: int) -> int:
    if number == bad:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSEGV)
    return number * number


def fail(number: int) -> int:
    raise ValueError(f"job {number}")


def test_one_worker_works_in_order_in_this_process() -> None:
    assert list(run_jobs(square, [1, 2, 3], 1)) == [(1, 1), (2, 4), (3, 9)]


def test_a_job_that_crashes_is_named_and_the_others_are_done() -> None:
    results = dict(run_jobs(partial(crash_on, 2), list(range(6)), 2))
    assert isinstance(results.pop(2), Crashed)
    assert results == {0: 0, 1: 1, 3: 9, 4: 16, 5: 25}


def test_an_exception_in_a_job_reaches_the_caller() -> None:
    with pytest.raises(ValueError, match="job"):
        list(run_jobs(fail, [1, 2], 2))


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1
