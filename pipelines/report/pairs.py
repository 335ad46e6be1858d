"""Judges two arms of a campaign on the same slices or nodules: the rule of docs/decisions/0009.

Within a seed both arms are asked about the same items; the differences are averaged over the seeds, and the interval is
over patients. Holm's correction is over all comparisons of one endpoint that the file lists, run or not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.report.claims import NOT_TESTABLE
from pipelines.report.facts import Evidence, matches
from pipelines.runtime.page import Table
from pipelines.tracking.items import RANKS, RESIDUALS
from pipelines.tracking.reading import StoredRun
from probes.partial.effect import weighted_r2
from probes.statistics.bootstrap import patient_weights
from probes.statistics.checks import patient_index

SEEDS, DRAWS, LEVEL = 3, 10_000, 0.05
Items = Callable[[StoredRun], pd.DataFrame | None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSpec:
    """A claim that one arm exceeds another.

    Attributes:
        text: The claim.
        where: Facts of the runs that should be higher.
        than: Facts of those that they are compared with; empty: random weights of the same architecture.
    """

    text: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    than: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is compared.

    Attributes:
        entry_point: Whose runs measure it.
        keys: Columns that name an item.
        value: (table, weights (B, N), whether of random weights) -> the endpoint of each draw, (B,).
    """

    name: str
    entry_point: str
    path: str
    keys: tuple[str, ...]
    value: Callable[[pd.DataFrame, Floats, bool], Floats]


@dataclass(slots=True)
class Difference:
    """One comparison at one endpoint; `draws` is empty where it cannot be made, and `why` says so."""

    claim: str
    endpoint: str
    by_seed: tuple[float, ...] = ()
    draws: Floats = field(default_factory=lambda: np.zeros(0))
    why: str = ""

    @property
    def p(self) -> float:
        """Two-sided, from the bootstrap; 1 where the comparison cannot be made."""
        if not len(self.draws):
            return 1.0
        beyond = min(int((self.draws <= 0).sum()), int((self.draws >= 0).sum()))
        return min(1.0, 2 * (1 + beyond) / (len(self.draws) + 1))


def _hits(items: pd.DataFrame, weights: Floats, is_random: bool) -> Floats:
    hit = (items["random_rank" if is_random else "rank"] == 0).to_numpy(dtype=np.float64)
    return np.asarray(weights @ hit / weights.sum(axis=1))


def _over_twins(items: pd.DataFrame, weights: Floats, is_random: bool) -> Floats:
    """Partial R2 less that of the random twins, whose own difference is 0."""
    if is_random:
        return np.zeros(len(weights))
    observed = items["observed"].to_numpy()
    twins = [items[name].to_numpy() for name in items if str(name).startswith("random_")]
    ours = weighted_r2(items["features"].to_numpy(), observed, weights)
    return np.asarray(ours - np.mean([weighted_r2(one, observed, weights) for one in twins], axis=0))


ENDPOINTS = (
    Endpoint("retrieval top-1", "probe_retrieval", RANKS, ("volume_id", "slice_index"), _hits),
    Endpoint("partial R2 over random weights", "probe_malignancy", RESIDUALS, ("nodule_id",), _over_twins),
)


def compare_all(
    pairs: Sequence[PairSpec], evidence: Sequence[Evidence], items: Items
) -> dict[str, list[Difference]]:
    """Make every comparison at every endpoint, by the endpoint's name."""
    return {
        endpoint.name: [_compare(pair, endpoint, evidence, items) for pair in pairs] for endpoint in ENDPOINTS
    }


def _compare(pair: PairSpec, endpoint: Endpoint, evidence: Sequence[Evidence], items: Items) -> Difference:
    made = Difference(pair.text, endpoint.name)
    ours = _by_seed(pair.where, endpoint, evidence, items)
    theirs = _by_seed(pair.than, endpoint, evidence, items) if pair.than else ours
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < SEEDS:
        made.why = f"{len(seeds)} of {SEEDS} seeds"
        return made
    first = ours[seeds[0]]
    if not all(_same(first, side[seed], endpoint) for side in (ours, theirs) for seed in seeds):
        made.why = "the runs are not of the same slices or nodules"
        return made
    patients = patient_index(first["patient_id"].to_numpy(), len(first))
    values: list[list[Floats]] = []
    for weights in (np.ones((1, len(first))), *patient_weights(patients, DRAWS, 0)):
        values.append(
            [
                endpoint.value(ours[seed], weights, False)
                - endpoint.value(theirs[seed], weights, not pair.than)
                for seed in seeds
            ]
        )
    made.by_seed = tuple(float(one[0]) for one in values[0])
    made.draws = np.concatenate([np.mean(one, axis=0) for one in values[1:]])
    return made


def _by_seed(
    where: Mapping[str, Any], endpoint: Endpoint, evidence: Sequence[Evidence], items: Items
) -> dict[str, pd.DataFrame]:
    """Return the items of the newest run of each seed."""
    found: dict[str, pd.DataFrame] = {}
    for one in sorted(evidence, key=lambda own: own.run.started):
        if one.run.entry_point == endpoint.entry_point and not one.is_leaky and matches(one.facts, where):
            table = items(one.run)
            if table is not None:
                found[one.seed] = table
    return found


def _same(first: pd.DataFrame, other: pd.DataFrame, endpoint: Endpoint) -> bool:
    keys = list(endpoint.keys)
    return first[keys].reset_index(drop=True).equals(other[keys].reset_index(drop=True))


def pairs_table(made: Sequence[Difference]) -> Table:
    """Return the comparisons of one endpoint: the interval of each is as wide as Holm's correction asks."""
    order = sorted(range(len(made)), key=lambda number: made[number].p)
    rows: list[tuple[str, ...]] = [()] * len(made)
    still_rejects = True
    for rank, number in enumerate(order):
        level = LEVEL / (len(made) - rank)
        still_rejects = still_rejects and made[number].p < level
        rows[number] = _row(made[number], level, still_rejects)
    return Table(("claim", "difference by seed", "mean [interval, Holm]", "two-sided p", "verdict"), rows)


def _row(made: Difference, level: float, is_apart: bool) -> tuple[str, ...]:
    if not len(made.draws):
        return made.claim, made.why, "-", "-", NOT_TESTABLE
    low, high = np.quantile(made.draws, (level / 2, 1 - level / 2))
    ways = {np.sign(one) for one in made.by_seed}
    verdict = NOT_TESTABLE
    if is_apart and ways in ({1.0}, {-1.0}):
        verdict = "supported" if ways == {1.0} else "not supported"
    each = ", ".join(f"{one:+.3f}" for one in made.by_seed)
    return (
        made.claim,
        each,
        f"{np.mean(made.by_seed):+.3f} [{low:+.3f}, {high:+.3f}]",
        f"{made.p:.2g}",
        verdict,
    )
