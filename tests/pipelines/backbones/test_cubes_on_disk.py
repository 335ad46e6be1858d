"""A network that reads cubes, or spacing, on disk: opened by us, by a short loader on timm, and refused by timm."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from models.backbone import Backbone, BackboneError, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.exporting import export_backbone, export_onnx
from pipelines.backbones.folder import open_backbone, random_twin, save_backbone, tag_scale
from pipelines.backbones.model_card import CardFacts, model_card
from pipelines.backbones.short_loader import open_folder
from pipelines.backbones.warm_start import load_first_weights, resolved
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from tests.models.test_volume import CUBES
from transforms.hounsfield import named_window

OF_TIMM = {"arch": "timm", "image_px": 32, "image_depth_px": 16, "patch_depth_px": 8}
ARCHS = {
    "custom": CUBES,
    "inflated, told the spacing": dataclasses.replace(CUBES, inflated=True, spacing="tokens"),
    "triplets, told the spacing": dataclasses.replace(
        CUBES, image_depth_px=0, patch_depth_px=0, spacing="tokens"
    ),
    "vit_small": BackboneConfig(arch="vit_small", patch_px=8, image_px=16, image_depth_px=16),
    "timm": BackboneConfig(timm_name="vit_tiny_patch16_224", **OF_TIMM),
    "DINOv3": BackboneConfig(timm_name="vit_small_patch16_dinov3", inflated=True, **OF_TIMM),
}


def images_of(backbone: Backbone, more: int = 0) -> torch.Tensor:
    side = backbone.image_px + more * backbone.patch_px
    depth = [backbone.image_depth_px + more * backbone.patch_depth_px] if backbone.image_depth_px else []
    return torch.randn(2, len(backbone.mean), *depth, side, side)


def saved(config: BackboneConfig, folder: Path) -> Backbone:
    torch.manual_seed(0)
    backbone = build_backbone(config).eval().requires_grad_(False)
    for parameter in backbone.parameters():  # so that no tensor is at its initial zeros or ones
        parameter.add_(0.02 * torch.randn_like(parameter))
    save_backbone(folder, backbone, config, {"run_id": "r"})
    return backbone


@pytest.fixture(scope="module", params=ARCHS)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("saved")
    return saved(ARCHS[request.param], folder), folder


def test_we_open_what_we_saved(one, tmp_path: Path) -> None:
    backbone, folder = one
    loaded = open_backbone(str(folder))
    assert (loaded.backbone.mean, loaded.backbone.std) == (backbone.mean, backbone.std)
    for more in (0, 1):
        images, spacing_mm = images_of(backbone, more), torch.tensor([[1.0, 0.7, 0.7], [2.5, 0.5, 0.5]])
        own, again = (each(images, spacing_mm=spacing_mm) for each in (backbone, loaded.backbone))
        assert torch.equal(own.class_token, again.class_token)
        assert torch.equal(own.patch_tokens, again.patch_tokens)
    save_backbone(tmp_path, loaded.backbone, loaded.config, loaded.record)
    assert json.loads((tmp_path / "config.json").read_text()) == loaded.timm_config


def test_the_random_twin_has_the_same_architecture_and_other_weights(one) -> None:
    _, folder = one
    loaded = open_backbone(str(folder))
    twin = random_twin(loaded, seed=1)
    assert (twin.image_depth_px, twin.takes_spacing) == (
        loaded.backbone.image_depth_px,
        loaded.backbone.takes_spacing,
    )
    own, other = loaded.backbone.vit.state_dict(), twin.vit.state_dict()
    assert {name: one.shape for name, one in own.items()} == {name: one.shape for name, one in other.items()}
    assert not torch.equal(own["patch_embed.proj.weight"], other["patch_embed.proj.weight"])
    if twin.image_depth_px:
        assert twin.vit.patch_embed.is_inflated == loaded.backbone.vit.patch_embed.is_inflated


def test_timm_refuses_what_it_would_read_wrong(one) -> None:
    with pytest.raises(RuntimeError, match="dinox_"):
        timm.create_model(f"local-dir:{one[1]}", pretrained=True)


def flat_weights(folder: Path, **changes: object) -> Backbone:
    flat = dataclasses.replace(CUBES, image_depth_px=0, patch_depth_px=0, **changes)  # type: ignore[arg-type]
    return saved(flat, folder)


@pytest.mark.parametrize("arch", ["weights", "custom"])
def test_a_3d_recipe_begins_with_the_tokens_of_2d_weights(arch: str, tmp_path: Path) -> None:
    flat = flat_weights(tmp_path / "flat")
    first = {"weights": str(tmp_path / "flat"), "inflate": "averaged"}
    recipe = dataclasses.replace(CUBES, **first)  # type: ignore[arg-type]
    if arch == "weights":
        recipe = BackboneConfig(arch="weights", image_px=12, image_depth_px=8, patch_depth_px=2, **first)
    config = resolved(recipe)
    assert config == dataclasses.replace(CUBES, inflated=True, **first)  # type: ignore[arg-type]
    backbone = build_backbone(config).eval().requires_grad_(False)
    backbone.mean, backbone.std = (0.5,), (0.2,)
    load_first_weights(backbone, config)
    gray = torch.rand(2, 12, 12)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (flat.mean, flat.std))
    wanted = flat((gray[:, None] - mean) / std)
    found = backbone(((gray - 0.5) / 0.2)[:, None, None].repeat(1, 1, 8, 1, 1))
    torch.testing.assert_close(found.class_token, wanted.class_token, atol=1e-5, rtol=0)
    save_backbone(tmp_path / "cube", backbone, config, {})
    again = resolved(dataclasses.replace(recipe, weights=str(tmp_path / "cube"), spacing="tokens"))
    assert again.inflated  # weights of a 3D network stay what they are
    warm = build_backbone(again).eval().requires_grad_(False)
    load_first_weights(warm, again)
    cubes = torch.randn(2, 1, 8, 12, 12)
    told = warm(cubes, spacing_mm=torch.tensor([[1.0, 0.5, 0.5], [3.0, 0.5, 0.5]]))
    assert torch.equal(told.patch_tokens, backbone(cubes).patch_tokens)


def test_2d_recipes_refuse_3d_weights_and_3d_ones_a_stem_that_reads_a_slice(tmp_path: Path) -> None:
    saved(CUBES, tmp_path / "cube")
    with pytest.raises(BackboneError, match="reads cubes of 8 voxels along z; set image_depth_px"):
        resolved(BackboneConfig(arch="weights", weights=str(tmp_path / "cube"), image_px=12))
    flat_weights(tmp_path / "stem", stem="whitened")
    cube = dataclasses.replace(CUBES, weights=str(tmp_path / "stem"))
    with pytest.raises(BackboneError, match="no linear patches"):
        load_first_weights(build_backbone(cube), cube)


def test_the_short_loader_makes_the_same_tokens_at_any_size(one) -> None:
    backbone, folder = one
    tokens = open_folder(folder)
    for more in (0, 1):
        images, spacing_mm = images_of(backbone, more), torch.tensor([[1.0, 0.7, 0.7], [2.5, 0.5, 0.5]])
        own = backbone(images, spacing_mm=spacing_mm)
        wanted = torch.cat([own.class_token[:, None], own.register_tokens, own.patch_tokens], dim=1)
        torch.testing.assert_close(tokens(images, spacing_mm), wanted, atol=1e-5, rtol=0)


def test_an_export_is_checked_by_the_short_loader_and_opens_again(one, tmp_path: Path) -> None:
    backbone, folder = one
    export_backbone(open_backbone(str(folder)), tmp_path / "out")  # refuses a difference above 1e-5
    images, spacing_mm = images_of(backbone), torch.ones(2, 3)
    again = open_backbone(str(tmp_path / "out")).backbone(images, spacing_mm=spacing_mm)
    assert torch.equal(again.class_token, backbone(images, spacing_mm=spacing_mm).class_token)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["custom", "inflated, told the spacing", "DINOv3"])
def test_onnx_runtime_makes_the_same_tokens_of_cubes(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone = saved(ARCHS[name], tmp_path / "b")
    export_onnx(backbone, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    given = {"images": images_of(backbone), "spacing_mm": torch.tensor([[1.0, 0.7, 0.7], [2.5, 0.5, 0.5]])}
    own = backbone(**given)
    told = {one.name: given[one.name].numpy() for one in session.get_inputs()}
    assert ("spacing_mm" in told) == backbone.takes_spacing
    for found, wanted in zip(session.run(None, told), (own.class_token, own.patch_tokens), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=0)


def test_the_card_of_cubes_says_its_voxels_and_its_code_makes_our_tokens(tmp_path: Path) -> None:
    config = dataclasses.replace(CUBES, inflated=True, spacing="tokens")
    record = {"mm_per_pixel": [0.5, 0.75], "mm_per_slice": [1.0, 2.5], "window_policy": "full"}
    saved(config, tmp_path)
    loaded = open_backbone(str(tmp_path))
    save_backbone(tmp_path, loaded.backbone, config, record)
    loaded = open_backbone(str(tmp_path))
    card = model_card([loaded], CardFacts(), has_onnx=True)
    for fact in (
        "library_name: dinox-ct",
        "# A 3D vision transformer",
        "patch 2 x 4 x 4 voxels (z, y, x), input 8 x 12 x 12 voxels",
        "1.00 to 2.50 mm along z and 0.50 to 0.75 mm in the plane",
        "`spacing_mm` (batch, 3), mm per voxel along z, y and x",
        "`model.onnx` takes `images` (batch, 1, D, S, S), normalized as above, and `spacing_mm` (batch, 3),",
    ):
        assert fact in card, fact
    code = card.split("```python\n")[1].split("```")[0]
    assert "pipelines" not in code
    hu, spacing_mm = torch.rand(2, 1, 8, 12, 12) * 2000 - 1000, torch.tensor([[1.0, 0.7, 0.7]] * 2)
    said = {"hu": hu, "spacing_mm": spacing_mm}
    exec(code.replace("FOLDER", str(tmp_path)), said)  # the card's own words
    gray = named_window(hu, "full")
    mean, std = loaded.backbone.mean[0], loaded.backbone.std[0]
    own = loaded.backbone((gray - mean) / std, spacing_mm=spacing_mm)
    torch.testing.assert_close(said["class_token"], own.class_token, atol=1e-5, rtol=0)
    torch.testing.assert_close(said["patch_tokens"], own.patch_tokens, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("slice_mm", "is_outside"), [([1.0, 2.5], False), ([1.0, 5.0], True)])
def test_slices_farther_apart_than_in_the_pretraining_are_said_to_networks_that_are_told(
    slice_mm: list[float], is_outside: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tags(Run):
        def __init__(self) -> None:
            self.seen: dict[Tag, str] = {}

        def set_tags(self, tags: Mapping[Tag, str]) -> None:
            self.seen |= tags

    record = {"mm_per_pixel": [0.5, 0.75], "mm_per_slice": [1.0, 2.5]}
    for name, is_told in (("triplets, told the spacing", True), ("plain", False)):
        config = ARCHS["triplets, told the spacing"]
        config = config if is_told else dataclasses.replace(config, spacing="off")
        save_backbone(tmp_path / name, build_backbone(config), config, record)
        run = Tags()
        tag_scale(run, open_backbone(str(tmp_path / name)), np.array([0.495, 0.76]), np.array(slice_mm))
        assert (run.seen == {Tag.SCALE: "out of distribution"}) == (is_outside and is_told)
        farther = Tags()
        tag_scale(farther, open_backbone(str(tmp_path / name)), np.array([0.5, 0.78]))
        assert farther.seen == {Tag.SCALE: "out of distribution"}
    said = capsys.readouterr().out
    assert ("1.00 .. 5.00 mm per slice, outside the 1.00 .. 2.50" in said) == is_outside
