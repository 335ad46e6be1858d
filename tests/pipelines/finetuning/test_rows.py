"""Rows of fine-tuned networks: what they know beyond size, and beside it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.finetuning.rows import WITH_DIAMETER, TunedFold, ask_tuned, tuned_rows
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.rows import Found
from probes.nodule_rays import NoduleRegion
from probes.partial.base import Attenuation
from probes.partial.frozen import frozen_test
from probes.statistics.metrics import auroc

N, K = 200, 4
RNG = np.random.default_rng(0)
SIZE = RNG.uniform(5, 20, N)
GRAIN = RNG.normal(size=N)
RATING = np.log(SIZE) / 0.4 + GRAIN
LABELS = (RATING > np.median(RATING)).astype(np.int64)
CONFIG = ProbeConfig(n_bootstrap=50, draws=499)


def nodules() -> NoduleSet:
    table = pd.DataFrame({"diameter_mm": SIZE, "is_malignant": LABELS == 1})
    table["patient_id"] = [f"p{number}" for number in range(N)]
    none = pd.DataFrame()
    return NoduleSet(table, np.zeros((N, 0)), np.zeros(N, bool), np.ones(N), none, SimpleNamespace())  # type: ignore[arg-type]


def found() -> Found:
    masks = np.zeros((N, 1, 1), bool)
    noise = np.random.default_rng(1)
    region = NoduleRegion(
        masks, masks, SIZE**2 * noise.uniform(0.7, 0.8, N), SIZE * noise.uniform(0.9, 1.1, N)
    )
    return Found(np.zeros((N, 1, 1), np.float32), region, Attenuation(*noise.normal(size=(8, N))))


def folds(logits: np.ndarray) -> list[TunedFold]:
    """Of four networks that say the same, each of nodules it did not learn from."""
    parts = np.array_split(np.arange(N), K)
    made = []
    for number, test in enumerate(parts):
        validation = parts[(number + 1) % K]
        own = np.full(N, np.nan)
        own[np.concatenate([validation, test])] = logits[np.concatenate([validation, test])]
        made.append(TunedFold(own, validation, test))
    return made


def area(scores: np.ndarray) -> float:
    return float(auroc(LABELS, scores, np.ones((1, N)))[0])


def test_with_diameter_a_network_that_sees_the_rest_tells_all_and_one_that_sees_nothing_leaves_the_diameter() -> (
    None
):
    rows = tuned_rows(folds(GRAIN), nodules(), 0.5)
    assert area(rows[WITH_DIAMETER]) > 0.99 > area(rows["finetuned"]) + 0.1
    blind = tuned_rows(folds(np.random.default_rng(5).normal(size=N)), nodules(), 0.5)
    assert area(blind[WITH_DIAMETER]) == pytest.approx(area(SIZE), abs=0.02)


def test_beyond_size_grain_is_found_and_size_alone_is_not() -> None:
    seen = ask_tuned(CONFIG, nodules(), found(), RATING, folds(GRAIN))
    assert seen is not None
    assert seen.p == pytest.approx(2 / 500)
    assert seen.spearman.ci_low > 0.8
    size = ask_tuned(CONFIG, nodules(), found(), RATING, folds(np.log(SIZE)))
    assert size is not None
    assert size.p > 0.2
    few = TunedFold(GRAIN, np.arange(5), np.arange(10))
    assert ask_tuned(CONFIG, nodules(), found(), RATING, [few]) is None


def p_of_nothing(seed: int, n: int = 200, n_features: int = 150) -> tuple[float, float]:
    """p of ridges that learned nothing, there being nothing: of all folds at once, and twice the folds' median."""
    rng: Any = np.random.default_rng(seed)
    x, y, base = rng.normal(size=(n, n_features)), rng.normal(size=n), np.ones((n, 1))
    score, of_folds = np.zeros(n), []
    for test in np.array_split(np.arange(n), 5):
        train = np.setdiff1d(np.arange(n), test)
        gram = x[train].T @ x[train] + 100 * np.eye(n_features)
        score[test] = x[test] @ np.linalg.solve(gram, x[train].T @ (y[train] - y[train].mean()))
        of_folds.append(frozen_test(score[test], y[test], base[test], np.arange(len(test)), 99, seed).p)
    return frozen_test(score, y, base, np.arange(n), 99, seed).p, min(1.0, 2 * float(np.median(of_folds)))


@pytest.mark.slow
def test_networks_that_learn_from_each_others_test_patients_are_not_tested_at_once() -> None:
    p = np.array([p_of_nothing(seed) for seed in range(400)])
    at_once, of_folds = (p < 0.05).mean(0)
    assert at_once > 0.08
    assert of_folds < 0.05
