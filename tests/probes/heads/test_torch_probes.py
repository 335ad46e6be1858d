import numpy as np
import pytest
import torch

from probes.heads.attentive import AttentiveProbe
from probes.heads.fitting import FitSettings, Standardize
from probes.heads.linear import LinearProbe, cross_fit
from probes.heads.mlp import MlpProbe
from probes.splits import patient_folds
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.metrics import auroc_with_interval

QUICK = FitSettings(lr=3e-3, max_epochs=60, patience=12, batch_size=32)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def xor(n=300, seed=0):
    """Two features whose product gives the class: useless for a weighted sum, sufficient for a hidden layer."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6))
    return features, (features[:, 0] * features[:, 1] > 0).astype(int), np.arange(n) // 2


def needle(n=300, n_patches=16, n_features=8, seed=0):
    """One patch in 16, anywhere, carries a flag; its other feature gives the class. All else is noise about zero."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(0, 1.0, (n, n_patches, n_features)).astype(np.float32)
    labels = rng.integers(0, 2, n)
    where = rng.integers(0, n_patches, n)
    tokens[np.arange(n), where, 0] += 6.0
    tokens[np.arange(n), where, 1] += np.where(labels == 1, 1.5, -1.5)
    return tokens, labels, np.arange(n) // 2, where


def auroc_of(make, features, labels, patients):
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)
    scores = cross_fit(make, features, labels, patients, folds)
    return auroc_with_interval(labels, scores, patients, 200).value


@pytest.mark.parametrize("device", DEVICES)
def test_a_hidden_layer_finds_what_a_weighted_sum_cannot(device):
    features, labels, patients = xor()
    assert auroc_of(lambda: MlpProbe(settings=QUICK, device=device), features, labels, patients) > 0.85
    assert auroc_of(LinearProbe, features, labels, patients) < 0.65


@pytest.mark.parametrize("device", DEVICES)
def test_the_learned_query_finds_the_one_patch_that_tells(device):
    tokens, labels, patients, where = needle()
    found = auroc_of(lambda: AttentiveProbe(settings=QUICK, device=device), tokens, labels, patients)
    mean_of_patches = auroc_of(LinearProbe, tokens.mean(axis=1), labels, patients)
    assert found > 0.9
    assert found > mean_of_patches + 0.1
    probe = AttentiveProbe(settings=QUICK, device=device).fit(tokens, labels, patients)
    with torch.no_grad():
        attention = probe.network_.attention(torch.as_tensor(tokens, device=device).float()).cpu()
    assert attention.sum(dim=1) == pytest.approx(np.ones(len(tokens)), abs=1e-5)
    assert (attention.argmax(dim=1).numpy() == where).mean() > 0.8


@pytest.mark.parametrize("probe", ["mlp", "attentive"])
@pytest.mark.parametrize("device", DEVICES)
def test_shuffled_labels_leave_nothing(probe, device):
    rng = np.random.default_rng(5)
    tokens, labels, patients, _ = needle(400)
    shuffled = rng.permutation(labels)
    if probe == "mlp":
        value = auroc_of(
            lambda: MlpProbe(settings=QUICK, device=device), tokens.mean(axis=1), shuffled, patients
        )
    else:
        value = auroc_of(lambda: AttentiveProbe(settings=QUICK, device=device), tokens, shuffled, patients)
    assert 0.4 < value < 0.6


def test_one_seed_repeats_itself_and_leaves_the_global_random_state_alone():
    features, labels, patients = xor(120)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (
        MlpProbe(settings=QUICK, seed=seed).fit(features, labels, patients).decision_function(features)
        for seed in (1, 1, 2)
    )
    assert (torch.rand(3) == expected).all()
    assert (first == again).all()
    assert (first != other).any()


def test_class_weights_put_evidence_about_zero_though_one_class_is_rare():
    rng = np.random.default_rng(0)
    labels = (np.arange(600) % 10 == 0).astype(int)
    features = rng.normal(size=(600, 3)) + labels[:, None]
    evidence = MlpProbe(settings=QUICK).fit(features, labels, np.arange(600)).decision_function(features)
    sensitivity, specificity = (evidence[labels == 1] > 0).mean(), (evidence[labels == 0] <= 0).mean()
    assert sensitivity > 0.75
    assert specificity > 0.75


def test_features_are_standardized_by_the_training_samples_and_constants_become_zero():
    features = torch.randn(50, 4, 3) * torch.tensor([2.0, 5.0, 0.0]) + torch.tensor([1.0, -3.0, 8.0])
    out = Standardize(features)(features)
    assert out.mean(dim=(0, 1)) == pytest.approx(np.zeros(3), abs=1e-5)
    assert out.std(dim=(0, 1), correction=0) == pytest.approx(np.array([1.0, 1.0, 0.0]), abs=1e-4)


@pytest.mark.parametrize("make", [MlpProbe, AttentiveProbe])
def test_what_a_network_cannot_be_trained_on_is_refused_in_words(make):
    tokens, labels, patients, _ = needle(40)
    features = tokens if make is AttentiveProbe else tokens[:, 0]
    spoiled = features.copy()
    spoiled.flat[3] = np.nan
    with pytest.raises(UnmeasurableError, match="NaN or infinity"):
        make().fit(spoiled, labels, patients)
    with pytest.raises(TooFewError, match="labels are positive"):
        make().fit(features, np.ones(40), patients)
    with pytest.raises(TooFewError, match="early stopping needs two patients of each class"):
        make().fit(features, labels, np.where(labels == 1, 0, np.arange(40)))
    with pytest.raises(ValueError, match="got shape"):
        make().fit(features[..., 0], labels, patients)
