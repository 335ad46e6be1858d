"""The primary question of a probe: do features predict the rating beyond size and attenuation, and was that learned?

Fixed in docs/decisions/0005-the-primary-question.md before it was first run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.folds import Fold
from pipelines.probing.rows import Found, Inputs
from pipelines.runtime.progress import progress
from probes.partial.base import Attenuation, base_matrix, natural_spline
from probes.partial.cross_fit import Part
from probes.partial.effect import partial_effect, r2_over_twins
from probes.partial.nested import NestedResult, nested_tests
from probes.scoring import Pairs, Parts, as_pairs, of_repeat
from probes.statistics.estimate import Estimate

BASELINE_DRAWS = 999
CONTROL_DRAWS = 199
"""Of each permutation, whose p is not read."""
PERMUTATIONS = 20
LEAK_SPEARMAN = 0.95
FEW_NODULES = 100
"""Below this number the base has fewer columns."""


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """Result of the test for one row."""

    z: float
    p: float
    spearman: Estimate
    r2: Estimate

    def columns(self) -> dict[str, float]:
        """Return the numbers by the suffix of their metric."""
        found = {"nested_z": self.z, "nested_p": self.p}
        for name, one in (("partial_spearman", self.spearman), ("partial_r2", self.r2)):
            found |= {name: one.value, f"{name}_ci_low": one.ci_low, f"{name}_ci_high": one.ci_high}
        return found


@dataclass(frozen=True)
class Answer:
    """Result of the test for each row, and how far the backbone is above its random twins.

    Attributes:
        rows: `features`, `random` where there are random twins and, where they could be learned, `dictionary`,
            `random_words`, and `joined`, features and dictionary side by side.
        twins: Number of random twins.
        over_random_r2: Partial R2 of the features minus the mean of the twins; None without twins.
        over_diameter_z: Of the features over diameter alone, a weak base: descriptive, nothing is claimed from it. NaN
            where no diameter is known.
        permuted_z: Of the features given to other nodules of like diameter, 20 times: a control. It is below 0 on
            average, since useless features predict worse than none.
        dictionary_over_random_r2: Partial R2 of the dictionary minus the mean of the twins: whether patches without a
            network tell more than random weights do, so that the cohort can tell them apart. None without a dictionary.
        joined_over_dictionary_r2: Partial R2 of features and dictionary side by side minus that of the dictionary:
            whether the features add to it. None without a dictionary.
        residuals: One line per tested nodule, by which two runs of the same folds are compared: its `index` among the
            nodules of the probe, `observed`, the residual of the rating on the base, and what the rows predict of it:
            `features`, and each random twin, `random_0` and so on.
    """

    rows: dict[str, RowAnswer]
    twins: int
    over_random_r2: Estimate | None
    dictionary_over_random_r2: Estimate | None = None
    joined_over_dictionary_r2: Estimate | None = None
    over_diameter_z: float = float("nan")
    permuted_z: tuple[float, ...] = ()
    residuals: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def is_learned(self) -> bool:
        """Whether the claim holds: p below 0.05, and above the random twins with the interval above 0."""
        over = self.over_random_r2
        return self.rows["features"].p < 0.05 and over is not None and over.ci_low > 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log."""
        found = {f"probe/{name}": value for name, value in self.rows["features"].columns().items()}
        for name, row in self.rows.items():
            if name != "features":
                found |= {f"probe/{name}_nested_z": row.z} | row.r2.named(f"probe/{name}_partial_r2")
        if self.over_random_r2 is not None:
            found |= self.over_random_r2.named("probe/over_random_r2")
        if self.dictionary_over_random_r2 is not None:
            found |= self.dictionary_over_random_r2.named("probe/dictionary_over_random_r2")
        if self.joined_over_dictionary_r2 is not None:
            found |= self.joined_over_dictionary_r2.named("probe/joined_over_dictionary_r2")
        if np.isfinite(self.over_diameter_z):
            found["probe/over_diameter_z"] = self.over_diameter_z
        if self.permuted_z:
            found["probe/permuted_nested_z"] = float(np.mean(self.permuted_z))
        return found

    @property
    def holds_rating(self) -> bool:
        """Whether the features hold the rating itself, as no image does: readers do not agree that well."""
        return self.rows["features"].spearman.value > LEAK_SPEARMAN

    def table(self) -> pd.DataFrame:
        """Return a table with one line per row."""
        return pd.DataFrame([{"row": name} | row.columns() for name, row in self.rows.items()])

    def __str__(self) -> str:
        """Return the table, and the claim in one sentence."""
        lines = [
            f"{'beyond size and HU':25} {'z':>6} {'p':>7}  {'partial Spearman [95%]':24} partial R2 [95%]"
        ]
        lines += [
            f"{name:25} {row.z:6.2f} {row.p:7.4f}  {row.spearman!s:24} {row.r2}"
            for name, row in self.rows.items()
        ]
        if self.permuted_z:
            low, high = min(self.permuted_z), max(self.permuted_z)
            name = "permuted in diameter bins"
            lines.append(f"{name:25} {np.mean(self.permuted_z):6.2f} ({low:.2f} to {high:.2f}): a control")
        if np.isfinite(self.over_diameter_z):
            lines.append(f"features over diameter alone: z {self.over_diameter_z:.2f}, descriptive")
        if self.over_random_r2 is None:
            lines.append("no random twin: how much of this was learned cannot be said")
        else:
            claim = "learned" if self.is_learned else "not shown to have learned anything beyond them"
            lines.append(f"partial R2 above {self.twins} random twins: {self.over_random_r2}: {claim}")
        if self.dictionary_over_random_r2 is not None:
            lines.append(f"dictionary above them: {self.dictionary_over_random_r2}")
        if self.joined_over_dictionary_r2 is not None:
            lines.append(f"features and dictionary, above it: {self.joined_over_dictionary_r2}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Question:
    """What is asked of each row: to predict `rating` beyond `base`.

    Attributes:
        rows: Indices of the nodules that are asked about, (m,) of n.
        rating: (m,).
        base: (m, Q).
        patients: (m,).
        size_mm: Diameter, in the image where none is known, (m,).
        n: Number of nodules of the probe.
        n_bootstrap: Draws of patients.
        seed: Of signs, permutations and draws.
    """

    rows: NDArray[np.int64]
    rating: NDArray[np.float64]
    base: NDArray[np.float64]
    patients: NDArray[np.str_]
    size_mm: NDArray[np.float64]
    n: int
    n_bootstrap: int
    seed: int

    @classmethod
    def of(
        cls, config: ProbeConfig, nodules: NoduleSet, found: Found, rating: NDArray[np.float64]
    ) -> "Question":
        """Ask about a rating (n,) of the nodules of a probe; unknown ones (NaN) leave the question."""
        rows, base = base_of(nodules, found, np.isfinite(rating))
        size = np.where(np.isfinite(nodules.diameter_mm), nodules.diameter_mm, found.region.diameter_mm)
        return cls(
            rows,
            rating[rows],
            base,
            nodules.patient_ids[rows],
            size[rows],
            len(rating),
            config.n_bootstrap,
            config.seed,
        )

    def fewest(self, parts: Parts) -> int:
        """Return the number of nodules in the smallest training fold."""
        return min(len(train) for _, folds in parts for train, _ in self.among(folds))

    def among(self, folds: Pairs) -> list[Fold]:
        """Return the folds that test something as indices into the nodules that are asked about."""
        place = np.full(self.n, -1)
        place[self.rows] = np.arange(len(self.rows))
        found = [
            (place[train][place[train] >= 0], place[test][place[test] >= 0])
            for train, test in as_pairs(folds)
        ]
        return [(train, test) for train, test in found if len(test)]

    def test(self, parts: Parts, draws: int, order: NDArray[np.int64] | None = None) -> NestedResult:
        """Run the test on a row; with an order, each nodule has the features of another."""
        return self.tests(parts, draws, [self.rating], order)[0]

    def tests(
        self,
        parts: Parts,
        draws: int,
        ratings: Sequence[NDArray[np.float64]],
        order: NDArray[np.int64] | None = None,
    ) -> list[NestedResult]:
        """Run the test of a row on several ratings, (m,) each."""
        rows = self.rows if order is None else self.rows[order]
        made = [
            Part(np.asarray(features, dtype=np.float64)[rows], self.among(folds)) for features, folds in parts
        ]
        return nested_tests(made, ratings, self.base, self.patients, draws, self.seed)

    def residuals(self, results: Mapping[str, NestedResult]) -> pd.DataFrame:
        """Return the tested nodules' observed residual, and the predictions of each row, by its name."""
        observed = next(iter(results.values())).observed
        columns = {name: one.predicted for name, one in results.items()}
        made = pd.DataFrame({"index": self.rows, "observed": observed} | columns)
        return made[np.isfinite(observed)]

    def permuted(self, parts: Parts, repeats: int) -> tuple[float, ...]:
        """Return z of features that nodules of one tenth of the diameters exchange, each in one repeat's folds."""
        generator = np.random.default_rng(self.seed)
        tenths = np.array_split(np.argsort(self.size_mm, kind="stable"), 10)
        found = []
        for number in range(PERMUTATIONS):
            order = np.arange(len(self.rows))
            for own in tenths:
                order[own] = generator.permutation(own)
            once: Parts = [(own, of_repeat(list(folds), number % repeats, repeats)) for own, folds in parts]
            found.append(self.test(once, CONTROL_DRAWS, order).z)
        return tuple(found)

    def over_twins(
        self, results: Mapping[str, NestedResult], twins: Sequence[NestedResult]
    ) -> tuple[Estimate | None, Estimate | None, Estimate | None]:
        """Return partial R2 of features, and of the dictionary, minus that of the random twins, and of both minus it.

        None where there is no twin, and without a dictionary.
        """

        def over(name: str, others: Sequence[NestedResult]) -> Estimate | None:
            if name not in results or not others:
                return None
            return r2_over_twins(results[name], others, self.patients, self.n_bootstrap, self.seed)

        dictionary = [results["dictionary"]] if "dictionary" in results else []
        return over("features", twins), over("dictionary", twins), over("joined", dictionary)

    def answer(self, result: NestedResult) -> RowAnswer:
        """Return test and effect of a row."""
        effect = partial_effect(result, self.patients, self.n_bootstrap, self.seed)
        return RowAnswer(result.z, result.p, effect.spearman, effect.r2)


def ask(
    config: ProbeConfig,
    nodules: NoduleSet,
    inputs: Inputs,
    found: Found,
    rating: NDArray[np.float64],
) -> Answer | None:
    """Run the primary test on the features of the backbone, of random weights, and of the dictionaries.

    Args:
        config: Configuration of the probe.
        nodules: Nodules of the probe.
        inputs: Of the rows, one vector a nodule.
        found: The nodules in their images.
        rating: What is asked about, (n,).

    Returns:
        None, after printing why, if a training fold holds too few nodules for the base.
    """
    question = Question.of(config, nodules, found, rating)
    needed, fewest = 2 * question.base.shape[1], question.fewest(inputs.features)
    if fewest < needed:
        print(f"the primary question needs {needed} nodules in every training fold; one holds {fewest}")
        return None
    asked: dict[str, tuple[Parts, int]] = {"features": (inputs.features, config.draws)}
    asked |= {f"twin {number}": (twin, BASELINE_DRAWS) for number, twin in enumerate(inputs.twins)}
    # The base holds HU.
    asked |= {name: (parts, BASELINE_DRAWS) for name, parts in inputs.others.items() if name != "hu"}
    if "dictionary" in asked:
        asked["joined"] = side_by_side(inputs.features, inputs.others["dictionary"]), BASELINE_DRAWS
    bar = progress(asked.items(), desc="beyond size and HU", unit="row", leave=False)
    results = {name: question.test(*one) for name, one in bar}
    twins = [results.pop(name) for name in asked if name.startswith("twin ")]
    results = {"features": results.pop("features")} | dict(zip(("random",), twins, strict=False)) | results
    over_diameter_z = float("nan")
    if np.isfinite(nodules.diameter_mm).any():
        spline = natural_spline(np.log(question.size_mm))
        alone = replace(question, base=np.column_stack([np.ones(len(spline)), spline]))
        over_diameter_z = alone.test(inputs.features, BASELINE_DRAWS).z
    return Answer(
        {name: question.answer(result) for name, result in results.items()},
        len(twins),
        *question.over_twins(results, twins),
        over_diameter_z,
        question.permuted(inputs.features, config.repeats if config.split == "folds" else 1),
        question.residuals(
            {"features": results["features"]} | {f"random_{n}": twin for n, twin in enumerate(twins)}
        ),
    )


def side_by_side(one: Parts, other: Parts) -> Parts:
    """Join the features of two rows; a nodule is tested on those parts of both that test it."""
    joined = []
    for first, folds in one:
        for second, its in other:
            tested = np.unique(np.concatenate([test for _, test in as_pairs(its)]))
            own = [(train, np.intersect1d(test, tested)) for train, test in as_pairs(folds)]
            features = np.hstack([np.asarray(first), np.asarray(second)])
            joined.append((features, [fold for fold in own if len(fold[1])]))
    return [part for part in joined if part[1]]


def base_of(
    nodules: NoduleSet, found: Found, is_asked: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rows of the nodules that are tested, and the base matrix of their size and attenuation.

    Nodules of unknown diameter are left out; if no diameter is known, the base has no diameter.
    """
    diameter = nodules.diameter_mm
    is_kept = np.ones(len(diameter), bool) if is_asked is None else is_asked
    has_any = bool(np.isfinite(diameter[is_kept]).any())
    rows = np.flatnonzero(is_kept & (np.isfinite(diameter) | (not has_any)))
    base = base_matrix(
        diameter[rows] if has_any else None,
        found.region.diameter_mm[rows],
        found.region.area_mm2[rows],
        Attenuation(*(column[rows] for column in found.attenuation)),
        is_small=len(rows) < FEW_NODULES,
    )
    return rows, base


def rating_of(nodules: NoduleSet, target: str = "") -> NDArray[np.float64]:
    """Return what the primary test is about, (n,): the mean of the readers' ratings of each nodule.

    The labels, if a nodule has no rating or the labels are the probe's target.
    """
    ratings = nodules.table["malignancy_ratings"]
    if target == "label" or not all(len(one) for one in ratings):
        return nodules.labels.astype(np.float64)
    return np.array([np.mean(one) for one in ratings])
