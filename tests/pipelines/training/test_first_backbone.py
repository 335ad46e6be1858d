"""What a training begins with: a whitened stem is fitted to views of the training slices, the same in every start."""

import torch

from models.backbone import Backbone
from models.stem import WhitenedStem
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.training.config import PretrainConfig
from pipelines.training.first_backbone import first_backbone

CONFIG = load_recipe(
    PretrainConfig,
    {
        "batch_size": 4,
        "backbone": {
            "arch": "custom",
            "depth": 1,
            "embed_dim": 16,
            "heads": 2,
            "patch_px": 4,
            "image_px": 24,
            "stem": "whitened",
        },
        "views": {"size_px": 24, "window": {"policy": "full"}},
    },
)


def first(cohort: Cohort, patients: list[str]) -> Backbone:
    return first_backbone(CONFIG, cohort, SliceIndex(cohort, patients), [])[0]


def test_whitening_follows_from_the_training_patients_alone(small_cohort: Cohort) -> None:
    everyone = sorted(small_cohort.series["patient_id"].unique())
    one, again, other = (first(small_cohort, own) for own in (everyone[:3], everyone[:3], everyone[3:]))
    stems = [backbone.stem for backbone in (one, again, other)]
    assert all(isinstance(stem, WhitenedStem) for stem in stems)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
        is_fitted = name.endswith(("whitening", "embed.mean"))
        assert torch.equal(tensor, other.state_dict()[name]) is not is_fitted, name
    assert not torch.equal(one.stem.whitening, torch.eye(36))
    assert torch.allclose(one.stem.whitening, one.stem.whitening.T, atol=1e-5)
