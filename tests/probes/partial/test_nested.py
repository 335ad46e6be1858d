"""The primary test: against a naive loop, at its nominal size, with its power, and where it must say nothing."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from probes.partial.base import KNOT_QUANTILES, Attenuation, base_matrix, natural_spline
from probes.partial.cross_fit import PENALTIES, Part, fit_fold
from probes.partial.effect import partial_effect, r2_over_twins
from probes.partial.nested import NestedResult, nested_test
from probes.splits import patient_folds


def simulated(rng, patients, known=0.0, n_features=12):
    """Nodules whose rating depends on size and attenuation; features that know those, and `known` of the rest."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    n = len(patient)
    size = rng.normal(size=n) + 0.3 * rng.normal(size=patients)[patient]
    dense = 0.4 * size + rng.normal(size=n)
    rest = rng.normal(size=n) * (1 + 0.3 * np.abs(size)) + 0.3 * rng.normal(size=patients)[patient]
    rating = size + 0.3 * size**2 + 0.5 * dense + rest
    secret = known * rest / rest.std() + np.sqrt(1 - known**2) * rng.normal(size=n)
    features = rng.normal(size=(n, n_features)) + 2.0 * np.outer(size, rng.normal(size=n_features))
    if known:
        features[:, 0] = secret + size
    base = np.column_stack([np.ones(n), size, size**2, dense])
    return features, rating, base, np.array([f"p{i}" for i in patient])


def folds_of(patients, seed=0, repeats=1):
    labels = np.arange(len(patients)) % 2
    splits = patient_folds(patients.tolist(), labels, n_folds=5, n_repeats=repeats, seed=seed)
    return [(fold.train, fold.test) for fold in splits]


def naive_residuals(features, rating, base, train, test):
    """One fold by the textbook: least squares, explicit inverse, and every penalty tried."""
    mean, sd = features[train].mean(0), features[train].std(0)
    x = (features - mean) / sd
    solve = np.linalg.lstsq(base[train], np.column_stack([x[train], rating[train]]), rcond=None)[0]
    x_left = x - base @ solve[:, :-1]
    y_left = rating - base @ solve[:, -1]
    best = None
    for penalty in PENALTIES:
        gram = x_left[train].T @ x_left[train] + penalty * np.eye(x.shape[1])
        hat = x_left[train] @ np.linalg.solve(gram, x_left[train].T)
        freedom = len(train) - base.shape[1] - np.trace(hat)
        score = ((y_left[train] - hat @ y_left[train]) ** 2).sum() / freedom**2
        if best is None or score < best[0]:
            best = (score, x_left[test] @ np.linalg.solve(gram, x_left[train].T @ y_left[train]))
    return best[1], y_left[test]


@pytest.mark.parametrize("n_features", [12, 300])
def test_a_fold_equals_the_textbook_loop(n_features: int) -> None:
    features, rating, base, patients = simulated(np.random.default_rng(0), 80, 0.4, n_features)
    train, test = folds_of(patients)[0]
    predicted, observed, _ = fit_fold(features, base, train, test).residuals(rating)
    by_loop = naive_residuals(features, rating, base, train, test)
    np.testing.assert_allclose(predicted, by_loop[0], atol=1e-8)
    np.testing.assert_allclose(observed, by_loop[1], atol=1e-8)


def test_each_draw_equals_a_test_of_residuals_whose_patients_got_its_signs() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(1), 60, 0.3)
    folds = folds_of(patients, repeats=2)
    parts = [Part(features, folds[:4]), Part(features**2, folds[4:])]  # pooled: scaled by their spread
    result = nested_test(parts, rating, base, patients, draws=5, seed=3)
    left = rating - base @ np.linalg.lstsq(base, rating, rcond=None)[0]
    who = np.unique(patients, return_inverse=True)[1]
    signs = 2.0 * np.random.default_rng(3).integers(0, 2, (5, who.max() + 1)) - 1
    for own, found in zip(signs, result.reference, strict=True):
        sums, times = np.zeros(len(rating)), np.zeros(len(rating))
        for part in parts:
            for train, test in part.folds:
                flipped = own[who] * left
                predicted, observed, sd = fit_fold(part.features, base, train, test).residuals(flipped)
                sums[test] += predicted * observed / sd
                times[test] += 1
        by_patient = np.bincount(who, sums / times)
        assert found == pytest.approx(by_patient.sum() / np.sqrt((by_patient**2).sum()))


def test_the_statistic_is_the_sum_over_patients_of_products_of_residuals() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(2), 60, 0.5)
    folds = folds_of(patients)
    products = np.zeros(len(rating))
    for train, test in folds:
        predicted, observed = naive_residuals(features, rating, base, train, test)
        products[test] = predicted * observed
    sums = np.array([products[patients == patient].sum() for patient in np.unique(patients)])
    expected = sums.sum() / np.sqrt((sums**2).sum())
    result = nested_test([Part(features, folds)], rating, base, patients, draws=199)
    lies_above = (result.reference >= expected).sum()
    assert result.p == (1 + lies_above) / 200
    assert result.z == pytest.approx((expected - result.reference.mean()) / result.reference.std())


def test_features_inside_the_span_of_the_base_say_nothing() -> None:
    _, rating, base, patients = simulated(np.random.default_rng(3), 60)
    features = base @ np.random.default_rng(0).normal(size=(4, 6))
    result = nested_test([Part(features, folds_of(patients))], rating, base, patients, draws=99)
    assert (result.z, result.p) == (0.0, 1.0)
    constant = nested_test(
        [Part(np.ones((len(rating), 3)), folds_of(patients))], rating, base, patients, draws=99
    )
    assert (constant.z, constant.p) == (0.0, 1.0)


def test_the_rating_itself_is_known_whole() -> None:
    _, rating, base, patients = simulated(np.random.default_rng(4), 100)
    result = nested_test([Part(rating[:, None], folds_of(patients))], rating, base, patients, draws=199)
    effect = partial_effect(result, patients, n_bootstrap=50)
    assert effect.spearman.value > 0.99
    assert effect.r2.value > 0.99
    assert result.p == 1 / 200


def test_halves_that_score_on_other_scales_are_pooled_on_one() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(5), 120, 0.5)
    folds = folds_of(patients)
    first, second = Part(features, folds[:3]), Part(1000 * features, folds[3:])
    pooled = nested_test([first, second], rating, base, patients, draws=199)
    same = nested_test([first, Part(features, folds[3:])], rating, base, patients, draws=199)
    assert pooled.z == pytest.approx(same.z)
    assert pooled.p == same.p < 0.05


def test_a_nodule_that_no_fold_tests_is_left_out() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(6), 60, 0.5)
    folds = folds_of(patients)[:2]
    result = nested_test([Part(features, folds)], rating, base, patients, draws=99)
    tested = np.concatenate([test for _, test in folds])
    assert set(np.flatnonzero(np.isfinite(result.observed))) == set(tested)


def test_the_gap_to_twins_is_paired() -> None:
    features, rating, base, patients = simulated(np.random.default_rng(7), 150, 0.6)
    folds = folds_of(patients)
    knowing = nested_test([Part(features, folds)], rating, base, patients, draws=19)
    rng = np.random.default_rng(0)
    noise = [
        nested_test([Part(rng.normal(size=features.shape), folds)], rating, base, patients, draws=19)
        for _ in range(3)
    ]
    gap = r2_over_twins(knowing, noise, patients, n_bootstrap=500)
    assert gap.ci_low > 0
    itself = r2_over_twins(knowing, [knowing, knowing], patients, n_bootstrap=500)
    assert (itself.value, itself.ci_low, itself.ci_high) == (0.0, 0.0, 0.0)


def test_the_spline_spans_every_natural_cubic_spline_of_its_knots() -> None:
    x = np.sort(np.random.default_rng(8).normal(size=200))
    knots = np.quantile(x, KNOT_QUANTILES)
    spline = CubicSpline(knots, [0.3, -1.0, 2.0, 0.5, 1.0], bc_type="natural")
    inside = (x >= knots[0]) & (x <= knots[-1])
    basis = np.column_stack([np.ones(len(x)), natural_spline(x)])
    coefficients = np.linalg.lstsq(basis[inside], spline(x[inside]), rcond=None)[0]
    np.testing.assert_allclose(basis[inside] @ coefficients, spline(x[inside]), atol=1e-10)
    beyond = x[x > knots[-1]]
    slope = np.diff(basis[-len(beyond) :] @ coefficients) / np.diff(beyond)
    np.testing.assert_allclose(slope, slope[0], atol=1e-7)  # linear there


def test_the_base_leaves_out_what_is_not_known() -> None:
    n = 50
    attenuation = Attenuation(*(np.arange(n) + i for i in range(8)))
    size = np.linspace(3, 30, n)
    assert base_matrix(size, size, size, attenuation).shape == (n, 4 + 4 + 8)
    assert base_matrix(None, size, size, attenuation).shape == (n, 4 + 8)


def rejections(patients: int, known: float, sets: int, draws: int) -> float:
    """Share of simulated cohorts in which the test rejects at 5%."""
    rng = np.random.default_rng(0)
    found = 0
    for number in range(sets):
        features, rating, base, who = simulated(rng, patients, known)
        result: NestedResult = nested_test([Part(features, folds_of(who, number))], rating, base, who, draws)
        found += result.p < 0.05
    return found / sets


@pytest.mark.slow
@pytest.mark.parametrize("patients", [150, 400])
def test_features_that_know_size_and_attenuation_alone_are_rejected_at_the_nominal_rate(
    patients: int,
) -> None:
    assert 0.02 <= rejections(patients, 0.0, 2000, 199) <= 0.07


@pytest.mark.slow
def test_a_partial_correlation_of_a_quarter_is_found_in_four_of_five_cohorts() -> None:
    assert rejections(400, 0.25, 200, 199) >= 0.8
