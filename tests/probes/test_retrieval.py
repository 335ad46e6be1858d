import numpy as np
import pytest

from probes.retrieval import retrieval
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.estimate import wilson_interval

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def slices_of(n_series=12, n_slices=10, n_features=6, noise=0.3, seed=0):
    """Series of slices that drift along z, two noisy views each; two series per patient."""
    rng = np.random.default_rng(seed)
    series = np.repeat(np.arange(n_series), n_slices)
    place = np.tile(np.arange(n_slices), n_series)
    base = rng.normal(size=(n_series, n_features))[series] + 0.2 * place[:, None] * rng.normal(
        size=n_features
    )
    query, key = (base + noise * rng.normal(size=base.shape) for _ in range(2))
    return query, key, series // 2, series, place


def naive(query, key, series, place, adjacent):
    """Ranks by plain loops over pairs."""
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    key = key / np.linalg.norm(key, axis=1, keepdims=True)
    rank, apart, nearest = [], [], []
    for i in range(len(query)):
        above, above_apart, best = 0, 0, i
        for j in range(len(key)):
            if j == i:
                continue
            if query[i] @ key[j] >= query[i] @ key[i]:
                above += 1
                is_adjacent = series[i] == series[j] and abs(place[i] - place[j]) <= adjacent
                above_apart += not is_adjacent
            if query[i] @ key[j] > query[i] @ key[best]:
                best = j
        rank.append(above)
        apart.append(above_apart)
        nearest.append(best)
    return np.array(rank), np.array(apart), np.array(nearest)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("adjacent", [0, 1, 2])
def test_ranks_equal_a_loop_over_all_pairs(adjacent, device):
    query, key, patients, series, place = slices_of()
    rank, apart, nearest = naive(query, key, series, place, adjacent)
    found = retrieval(query, key, patients, series, place, adjacent_slices=adjacent, device=device)
    assert (found.rank == rank).all()
    assert (found.nearest == nearest).all()
    assert found.top1.value == np.mean(rank == 0)
    assert found.top5.value == np.mean(rank < 5)
    assert found.top1_not_adjacent.value == np.mean(apart == 0)
    assert found.same_series_top1.value == np.mean(series[nearest] == series)
    assert found.ratio == (rank == 0).sum()
    assert found.top1_wilson == wilson_interval(int((rank == 0).sum()), len(query))
    assert 0 < np.mean(rank == 0) < 1  # neither all hits nor all misses, or the comparison would be idle
    assert found.top1_not_adjacent.value > found.top1.value or adjacent == 0


def test_chunks_do_not_change_the_answer(monkeypatch):
    arrays = slices_of()
    whole = retrieval(*arrays)
    monkeypatch.setattr("probes.retrieval._CHUNK", 7)
    assert (retrieval(*arrays).rank == whole.rank).all()


def test_equal_views_find_each_other_and_independent_views_hit_as_often_as_chance():
    rng = np.random.default_rng(1)
    ids = np.arange(2000)
    features = rng.normal(size=(2000, 32))
    assert retrieval(features, features, ids // 10, ids // 10, ids % 10).top1.value == 1.0
    independent = retrieval(features, rng.normal(size=(2000, 32)), ids // 10, ids // 10, ids % 10)
    assert independent.ratio <= 6  # Poisson with mean 1
    assert independent.chance == 1 / 2000


def test_a_collapsed_network_hits_nothing():
    collapsed = np.ones((50, 8))
    found = retrieval(collapsed, collapsed, np.arange(50) // 5, np.arange(50) // 5, np.arange(50) % 5)
    assert found.top1.value == 0.0
    assert found.top5.value == 0.0


def test_intervals_over_patients_are_wider_than_wilson_where_patients_differ():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 50)
    features = rng.normal(size=(1000, 16))
    noise = np.where(patients % 2 == 0, 0.01, 10.0)[:, None]  # every other patient is easy
    found = retrieval(
        features, features + noise * rng.normal(size=(1000, 16)), patients, patients, np.arange(1000)
    )
    over_patients = found.top1.ci_high - found.top1.ci_low
    independent = found.top1_wilson.ci_high - found.top1_wilson.ci_low
    assert over_patients > 3 * independent


def test_one_patient_gives_a_value_without_an_interval():
    query, key, _, series, place = slices_of(n_series=2)
    found = retrieval(query, key, np.zeros(20), series, place)
    assert np.isnan(found.top1.ci_low)
    assert 0 <= found.top1.value <= 1


@pytest.mark.parametrize(
    ("spoil", "words", "kind"),
    [
        (lambda q, k, *ids: (q[:1], k[:1], *(i[:1] for i in ids)), "at least 2 slices", TooFewError),
        (lambda q, k, *ids: (q, k[:-1], *ids), "retrieval needs two views", ValueError),
        (lambda q, k, *ids: (q * 0, k, *ids), "no direction", UnmeasurableError),
        (lambda q, k, *ids: (q * np.nan, k, *ids), "NaN or infinity", UnmeasurableError),
    ],
)
def test_views_that_cannot_be_ranked_are_refused_in_words(spoil, words, kind):
    with pytest.raises(kind, match=words):
        retrieval(*spoil(*slices_of()))
