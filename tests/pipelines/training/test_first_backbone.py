"""What a training begins with: a whitened stem is fitted to views of the training slices, the same in every start."""

import dataclasses
from pathlib import Path

import pytest
import torch

from models.backbone import Backbone, BackboneError, build_backbone
from models.config import BackboneConfig
from models.stem import WhitenedStem
from pipelines.backbones.folder import save_backbone
from pipelines.backbones.warm_start import resolved
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import RecipeError, load_recipe
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


CUBES = {
    "batch_size": 4,
    "backbone": {"arch": "custom", "depth": 1, "embed_dim": 16, "heads": 2, "patch_px": 4, "image_px": 16}
    | {"image_depth_px": 8},
    "views": {"size_px": 16, "depth_px": 8, "extent": "mm", "fov_mm": [80, 120], "depth_mm": [10, 15]},
}


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


def test_inflated_weights_see_the_gray_values_that_they_know(small_cohort: Cohort, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {key: value for key, value in CUBES["backbone"].items() if key != "image_depth_px"}
    flat_config = BackboneConfig(**shape)
    flat = build_backbone(flat_config).eval().requires_grad_(False)
    flat.mean, flat.std = (0.1, 0.2, 0.3), (0.3, 0.4, 0.5)
    save_backbone(tmp_path, flat, flat_config, {})
    tree = CUBES | {"backbone": CUBES["backbone"] | {"weights": str(tmp_path)}}
    config = load_recipe(PretrainConfig, tree)
    config = dataclasses.replace(config, backbone=resolved(config.backbone))
    patients = sorted(small_cohort.series["patient_id"].unique())
    index = SliceIndex(small_cohort, patients, views=config.views)
    backbone = first_backbone(config, small_cohort, index, [])[0].eval()
    assert (backbone.mean, backbone.std) == (config.views.channel_mean, config.views.channel_std)
    gray = torch.rand(1, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (flat.mean, flat.std))
    cube = ((gray - backbone.mean[0]) / backbone.std[0])[:, None, None].repeat(1, 1, 8, 1, 1)
    wanted = flat((gray[:, None] - mean) / std).class_token
    torch.testing.assert_close(backbone(cube).class_token, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("views.depth_px", "16"), "views.depth_px 16 and backbone.image_depth_px 8 must be the same"),
        (
            ("backbone.patch_depth_px", "3"),
            "image_depth_px 8 is not a multiple of the patch of 3 voxels along z",
        ),
        (("views.extent", "fraction"), "cubes .depth_px 8. have extent=mm alone"),
    ],
)
def test_cubes_that_fit_no_network_are_refused_in_one_sentence(change: tuple[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(PretrainConfig, CUBES, [change])


def test_local_cubes_that_are_no_whole_patches_are_refused(small_cohort: Cohort) -> None:
    local = [("views.n_local", "1"), ("views.local_size_px", "8"), ("views.local_depth_px", "6")]
    config = load_recipe(PretrainConfig, CUBES, local)
    index = SliceIndex(small_cohort, list(small_cohort.series["patient_id"]), views=config.views)
    with pytest.raises(
        BackboneError, match=r"views\.local_depth_px 6 is not a multiple of the patch of 4 px"
    ):
        first_backbone(config, small_cohort, index, [])
