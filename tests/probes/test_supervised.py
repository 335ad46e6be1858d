import numpy as np
import pytest
import torch

from probes.heads.fitting import FitSettings
from probes.heads.linear import cross_fit
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval
from probes.supervised import SupervisedProbe, WeightsError, flip

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPE = {"resnet18": (3, 32, 32), "resnet18_3d": (1, 16, 16, 16)}


def textures(architecture, n=60, seed=0):
    """Smooth against rough blobs of one mean: no diameter, no brightness, the texture is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = rng.normal(size=(n, *SHAPE[architecture]))
    smooth = images
    for axis in range(2, images.ndim):
        smooth = (smooth + np.roll(smooth, 1, axis) + np.roll(smooth, 2, axis)) / 3**0.5
    rough = labels.reshape(-1, *[1] * (images.ndim - 1)) == 1
    return np.where(rough, images, smooth).astype(np.float32), labels, np.arange(n) // 2


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("architecture", ["resnet18", "resnet18_3d"])
def test_a_few_steps_separate_planted_textures(architecture, device):
    images, labels, patients = textures(architecture, 120)
    settings = FitSettings(lr=1e-3, max_epochs=6, batch_size=16 if architecture == "resnet18_3d" else 8)
    probe = SupervisedProbe(architecture, settings=settings, device=device)
    probe.fit(images[:80], labels[:80], patients[:80])
    evidence = probe.decision_function(images[80:])
    assert auroc_with_interval(labels[80:], evidence, patients[80:], 100).value > 0.9


def test_one_epoch_repeats_itself_under_one_seed():
    images, labels, patients = textures("resnet18", 16)
    settings = FitSettings(max_epochs=1, batch_size=8)
    first, again, other = (
        SupervisedProbe(settings=settings, seed=seed).fit(images, labels, patients).decision_function(images)
        for seed in (0, 0, 1)
    )
    assert np.isfinite(first).all()
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.slow
def test_cross_fitted_textures_are_told_apart_and_shuffled_labels_are_not():
    images, labels, patients = textures("resnet18", 120)
    folds = patient_folds(patients.astype(str).tolist(), labels, n_folds=3)

    def make():
        return SupervisedProbe(settings=FitSettings(lr=1e-3, max_epochs=10, batch_size=16))

    scores = cross_fit(make, torch.from_numpy(images), labels, patients, folds)
    assert auroc_with_interval(labels, scores, patients, 200).value > 0.95
    shuffled = np.random.default_rng(0).permutation(labels)
    scores = cross_fit(make, torch.from_numpy(images), shuffled, patients, folds)
    assert 0.3 < auroc_with_interval(shuffled, scores, patients, 200).value < 0.7


@pytest.mark.parametrize("architecture", ["resnet18", "resnet18_3d"])
def test_given_weights_are_where_training_starts_and_the_classifier_is_new(architecture):
    source, target = (SupervisedProbe(architecture).build()[0].state_dict() for _ in range(2))
    built = SupervisedProbe(architecture, weights=source).build()[0].state_dict()
    for name in source.keys() - {"fc.weight", "fc.bias"}:
        assert torch.equal(built[name], source[name])
    assert not torch.equal(built["fc.weight"], source["fc.weight"])
    assert not torch.equal(built["conv1.weight"], target["conv1.weight"])
    with pytest.raises(WeightsError, match="tensors differ"):
        SupervisedProbe(architecture, weights={"conv1.weight": source["conv1.weight"]}).build()


def test_flips_mirror_whole_images_and_nothing_else():
    images = torch.arange(64 * 3 * 4 * 5, dtype=torch.float32).view(64, 3, 4, 5)
    (flipped,) = flip((images,), torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images, flipped, strict=True):
        kinds = {(): before, (1,): before.flip(1), (2,): before.flip(2), (1, 2): before.flip(1, 2)}
        (kind,) = [axes for axes, mirrored in kinds.items() if torch.equal(mirrored, after)]
        seen.add(kind)
    assert seen == {(), (1,), (2,), (1, 2)}


def test_images_of_another_shape_are_refused_in_words():
    images, labels, patients = textures("resnet18", 12)
    with pytest.raises(ValueError, match=r"takes images \(N, 1, Z, Y, X\)"):
        SupervisedProbe("resnet18_3d").fit(images, labels, patients)
    with pytest.raises(ValueError, match=r"takes images \(N, 3, H, W\)"):
        SupervisedProbe("resnet18").fit(images[:, :1], labels, patients)
