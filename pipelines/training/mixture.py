"""Which of several cohorts each sample of a training comes from: shares by weight, shuffled by key.

Of every 1000 samples in order, each cohort has its share, and within a cohort every slice comes once before any comes
again. Both follow from (seed, position) alone, so a resumed run draws the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import CohortError
from pipelines.cohort.union import CohortUnion

BLOCK = 1000


@dataclass(frozen=True, slots=True)
class Mixture:
    """Slices of each cohort, and how many of every 1000 samples come from it.

    Attributes:
        rows: By cohort, rows of the index.
        counts: Of 1000 samples.
    """

    rows: tuple[NDArray[np.int64], ...]
    counts: tuple[int, ...]

    @classmethod
    def of(
        cls, index: SliceIndex, cohort: Cohort, weights: Sequence[float], batch_size: int
    ) -> "Mixture | None":
        """Divide an index by cohort; None without weights: then every slice is drawn as often as any other.

        Raises:
            CohortError: If weights are given for one cohort, a share is below 0.001, or a cohort has fewer training
                slices than a batch.
        """
        if not weights:
            return None
        if not isinstance(cohort, CohortUnion) or len(cohort.parts) != len(weights):
            n_parts = len(cohort.parts) if isinstance(cohort, CohortUnion) else 1
            raise CohortError(
                f"cohort_weights has {len(weights)} number(s) for {n_parts} cohort(s): give one for each"
            )
        of_slice = cohort.part_of(index.volume_ids)[index.volume]
        rows = tuple(np.flatnonzero(of_slice == number) for number in range(len(weights)))
        exact = np.array(weights) / sum(weights) * BLOCK
        counts = np.floor(exact).astype(int)
        counts[np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]] += (
            1  # the largest remainders
        )
        for part, own, count in zip(cohort.parts, rows, counts, strict=True):
            if not count:
                raise CohortError(
                    f"the weight of cohort {part.root} is below a thousandth of all: leave it out"
                )
            if len(own) < batch_size:
                raise CohortError(
                    f"cohort {part.root} has {len(own)} training slices, fewer than the {batch_size} of a batch, which "
                    "would hold one twice; prepare more series or leave it out"
                )
        return cls(rows, tuple(int(count) for count in counts))

    def row(self, position: int, seed: int) -> int:
        """The row of the index at a position of the run."""
        block, offset = divmod(position, BLOCK)
        of_sample, place = _block(seed, block, self.counts)
        part = int(of_sample[offset])
        own = self.rows[part]
        epoch, at = divmod(block * self.counts[part] + int(place[offset]), len(own))
        return int(own[_order(seed, part, epoch, len(own))[at]])


@lru_cache(maxsize=4)
def _block(seed: int, block: int, counts: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cohort of each of 1000 samples, and how many of the block before it are of the same cohort."""
    of_sample = _generator(seed, block, 1, 0).permutation(np.repeat(np.arange(len(counts)), counts))
    place = np.empty(BLOCK, dtype=np.int64)
    for part, count in enumerate(counts):
        place[of_sample == part] = np.arange(count)
    return of_sample, place


@lru_cache(maxsize=16)
def _order(seed: int, part: int, epoch: int, n: int) -> NDArray[np.int64]:
    return _generator(seed, epoch, 2, part).permutation(n)


def _generator(seed: int, number: int, use: int, part: int) -> np.random.Generator:
    key = np.array([seed, number], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, use, part], np.uint64)))
