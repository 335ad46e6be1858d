"""The rows of a fine-tuned backbone: alone, with diameter, and what it knows beyond size and attenuation.

Its features were shaped by the labels of their training fold, so nothing more is fitted on that fold: it would be
trusted too much there. Two numbers of each network that it never learned from are left: its logits of the patients set
aside, and of the test patients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.folds import Fold
from pipelines.probing.question import Question
from pipelines.probing.rows import Found
from probes.heads.linear import LinearProbe, mean_probability
from probes.partial.effect import partial_effect
from probes.partial.frozen import frozen_test
from probes.partial.nested import NestedResult
from probes.scoring import checked_diameter
from probes.statistics.checks import UnmeasurableError
from probes.statistics.estimate import Estimate

FINETUNED, WITH_DIAMETER = "finetuned", "finetuned_and_diameter"


@dataclass(frozen=True)
class TunedFold:
    """Logits of one network for nodules that it did not learn from.

    Attributes:
        logits: Evidence, (n,); NaN for the nodules that it learned from.
        validation: Rows of the patients that decided when to stop.
        test: Rows of the test patients.
    """

    logits: NDArray[np.float64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def tuned_rows(
    folds: Sequence[TunedFold], nodules: NoduleSet, prior: float
) -> dict[str, NDArray[np.float64]]:
    """Return out-of-fold probabilities by row, (n,) each; NaN where no fold tests a nodule.

    With diameter: a logistic regression of the label on logit and ln diameter, on the patients set aside.
    """
    n = len(nodules.labels)
    pairs: list[Fold] = [(fold.validation, fold.test) for fold in folds]
    rows = {FINETUNED: mean_probability([fold.logits[fold.test] for fold in folds], pairs, n, prior)}
    diameter = checked_diameter(nodules.diameter_mm, n)
    if diameter is None:
        return rows
    known, evidence = np.isfinite(diameter), []
    pairs = [(own[known[own]], test[known[test]]) for own, test in pairs]
    try:
        for fold, (own, test) in zip(folds, pairs, strict=True):
            joined, patients = np.column_stack([fold.logits, np.log(diameter)]), nodules.patient_ids
            probe = LinearProbe(c=1.0, n_unpenalized=2).fit(joined[own], nodules.labels[own], patients[own])
            evidence.append(probe.decision_function(joined[test]))
    except UnmeasurableError as reason:
        print(f"{WITH_DIAMETER}: not measured: {reason}")
        return rows
    return rows | {WITH_DIAMETER: mean_probability(evidence, pairs, n, prior)}


@dataclass(frozen=True, slots=True)
class TunedAnswer:
    """Result of the primary question for the fine-tuned network.

    Attributes:
        p: Twice the median of the folds' p: valid though the folds' networks learned from each other's test patients
            (Meinshausen, Meier and Buehlmann 2009, J. Am. Stat. Assoc. 104:1671; DiCiccio et al. 2020).
        spearman: Rank correlation of logit and rating beyond size and attenuation.
    """

    p: float
    spearman: Estimate

    def metrics(self) -> dict[str, float]:
        """Return the metrics to log."""
        return {"probe/finetuned_nested_p": self.p} | self.spearman.named("probe/finetuned_partial_spearman")

    def __str__(self) -> str:
        """Return one line."""
        claim = f"p {self.p:.4f} (twice the folds' median), partial Spearman {self.spearman}"
        return f"finetuned beyond size and HU: {claim}"


def ask_tuned(
    config: ProbeConfig,
    nodules: NoduleSet,
    found: Found,
    rating: NDArray[np.float64],
    folds: Sequence[TunedFold],
) -> TunedAnswer | None:
    """Ask whether the logits predict a rating (n,) beyond size and attenuation, in each fold's test patients.

    In a fold the logit is a frozen score, base and signs are the fold's own. Over all folds at once such a test would
    be too sure: random signs of the rating would have to reach the training of the networks too.

    Returns:
        None, after printing why, if a fold tests too few nodules for the base.
    """
    question = Question.of(config, nodules, found, rating)
    place = np.full(len(rating), -1)
    place[question.rows] = np.arange(len(question.rows))
    tested = [fold.test[place[fold.test] >= 0] for fold in folds]
    needed, fewest = 2 * question.base.shape[1], min(map(len, tested))
    if fewest < needed:
        print(
            f"finetuned: the primary question needs {needed} nodules in every test fold; one holds {fewest}"
        )
        return None
    p, sums = [], np.zeros((3, len(question.rows)))
    for fold, rows in zip(folds, tested, strict=True):
        own = place[rows]
        result = frozen_test(
            fold.logits[rows],
            question.rating[own],
            question.base[own],
            question.patients[own],
            config.draws,
            config.seed,
        )
        p.append(result.p)
        scale = max(float(result.predicted.std()), 1e-12)
        sums[:, own] += result.predicted / scale, result.observed, np.ones(len(own))
    with np.errstate(invalid="ignore"):
        predicted, observed = sums[:2] / sums[2]
    whole = NestedResult(0.0, 1.0, predicted, observed, np.zeros(0))
    effect = partial_effect(whole, question.patients, config.n_bootstrap, config.seed)
    return TunedAnswer(min(1.0, 2.0 * float(np.median(p))), effect.spearman)
