"""Which slices belong to which batch, and how the processes that read them end."""

import multiprocessing
import signal
import time

import pytest

from pipelines.training.loader import (
    BatchError,
    BatchPlan,
    _begin_worker,
)
from tests.processes import WAIT_S, wait_until


def test_loader_processes_end_when_their_parent_insists() -> None:
    fork = multiprocessing.get_context("fork")
    ready, lives_on = fork.Event(), fork.Event()

    def wait() -> None:
        _begin_worker(0)
        held_back = signal.getsignal(signal.SIGTERM)
        ready.set()
        wait_until(lambda: signal.getsignal(signal.SIGTERM) is not held_back)
        lives_on.set()
        time.sleep(10 * WAIT_S)

    loader = fork.Process(target=wait)
    loader.start()
    try:
        assert ready.wait(WAIT_S)
        loader.terminate()
        assert lives_on.wait(WAIT_S)
        loader.terminate()
        loader.join(WAIT_S)
        assert loader.exitcode == -signal.SIGTERM
    finally:
        loader.kill()
        loader.join()


def test_each_epoch_deals_every_slice_once_whatever_the_processes() -> None:
    alone = BatchPlan(n_slices=10, batch_size=4, accumulation=1, seed=3)
    dealt = [row for micro in range(5) for row in alone.rows(micro)]
    assert sorted(dealt[:10]) == sorted(dealt[10:]) == list(range(10))
    assert dealt[:10] != dealt[10:]
    shares = [BatchPlan(10, 4, 1, 3, rank, 2).rows(2).tolist() for rank in range(2)]
    assert shares[0] + shares[1] == alone.rows(2).tolist()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((3, 4, 1, 0), "cannot be drawn from 3 training slices"),
        ((30, 5, 1, 0, 0, 2), "shared evenly by 2 processes"),
    ],
)
def test_batches_that_cannot_be_are_refused(fields: tuple[int, ...], words: str) -> None:
    with pytest.raises(BatchError, match=words):
        BatchPlan(*fields)
