"""A backbone on disk is opened by plain timm, by us, at other sizes, and its random twin is random."""

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import torch

from models.backbone import BackboneError, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.exporting import ExportError, export_backbone
from pipelines.backbones.features import encode, network_input
from pipelines.backbones.folder import open_backbone, random_twin, save_backbone
from pipelines.probing.folds import training_views
from transforms.views.config import IMAGENET_MEAN

CUSTOM = BackboneConfig(arch="custom", depth=2, embed_dim=32, heads=2, image_px=42, registers=3)
ARCHS = {
    "custom": CUSTOM,
    "custom without registers, patch 8": dataclasses.replace(CUSTOM, registers=0, patch_px=8, image_px=32),
    "vit_small": BackboneConfig(arch="vit_small", image_px=28),
    "timm": BackboneConfig(arch="timm", timm_name="vit_tiny_patch16_224", image_px=32),
    "DINOv3": BackboneConfig(arch="timm", timm_name="vit_small_patch16_dinov3", image_px=32),
    "timm with tag": BackboneConfig(
        arch="timm", timm_name="vit_small_patch14_reg4_dinov2.lvd142m", image_px=28
    ),
}


def saved(config: BackboneConfig, folder: Path):
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():  # so that no tensor is at its initial zeros or ones
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_backbone(folder, backbone, config, {"run_id": "r", "holdout": 0.2})
    return backbone


@pytest.fixture(scope="module", params=ARCHS)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A configuration, a backbone of it, and the folder that holds it; read only."""
    config, folder = ARCHS[request.param], tmp_path_factory.mktemp("saved")
    return config, saved(config, folder), folder


@torch.no_grad()
def test_plain_timm_gives_the_same_tokens(one) -> None:
    config, backbone, folder = one
    vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    larger = config.image_px + 2 * backbone.patch_px
    for size in (config.image_px, larger):
        images = torch.randn(2, 3, size, size)
        tokens, features = backbone(images), vit.forward_features(images)
        prefix = vit.num_prefix_tokens
        assert torch.allclose(features[:, 0], tokens.class_token, atol=1e-5)
        assert torch.allclose(features[:, 1:prefix], tokens.register_tokens, atol=1e-5)
        assert torch.allclose(features[:, prefix:], tokens.patch_tokens, atol=1e-5)
    assert vit(torch.randn(1, 3, config.image_px, config.image_px)).shape == (1, backbone.embed_dim)


@torch.no_grad()
def test_we_open_what_we_saved(one, tmp_path: Path) -> None:
    config, backbone, folder = one
    loaded = open_backbone(str(folder))
    images = torch.randn(1, 3, config.image_px, config.image_px)
    assert torch.equal(loaded.backbone(images).patch_tokens, backbone(images).patch_tokens)
    assert (loaded.run_id, loaded.record["holdout"]) == ("r", 0.2)
    again = tmp_path / "again"
    save_backbone(again, loaded.backbone, loaded.config, loaded.record)
    assert json.loads((again / "config.json").read_text()) == loaded.timm_config


@torch.no_grad()
def test_positions_are_interpolated_as_timm_does_when_opened_larger(tmp_path: Path) -> None:
    saved(CUSTOM, tmp_path)
    loaded = open_backbone(str(tmp_path), image_px=70)
    vit = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=70).eval()
    images = torch.randn(2, 3, 70, 70)
    assert torch.allclose(loaded.backbone(images).class_token, vit.forward_features(images)[:, 0], atol=1e-5)


def test_a_local_timm_folder_is_a_warm_start_and_travels_without_itself(tmp_path: Path) -> None:
    source = tmp_path / "source"
    first = saved(CUSTOM, source)
    config = BackboneConfig(arch="timm", timm_name=f"local-dir:{source}", weights="timm", image_px=42)
    warm = build_backbone(config)
    assert torch.equal(warm.vit.pos_embed, first.vit.pos_embed)
    save_backbone(tmp_path / "copy", warm, config, {})
    for file in source.iterdir():
        file.unlink()
    loaded = open_backbone(str(tmp_path / "copy"))
    assert torch.equal(loaded.backbone.vit.pos_embed, first.vit.pos_embed)
    assert not torch.equal(random_twin(loaded, 0).vit.pos_embed, first.vit.pos_embed)


def test_layer_scale_of_timms_own_weights_is_kept(tmp_path: Path) -> None:
    config = BackboneConfig(arch="vit_small", weights="timm", image_px=28)
    own = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=28, num_classes=0, dynamic_img_size=True
    )
    backbone = build_backbone(dataclasses.replace(config, weights=""))
    backbone.vit = own
    save_backbone(tmp_path, backbone, config, {})
    loaded = open_backbone(str(tmp_path))
    assert loaded.backbone.vit.blocks[0].ls1.gamma.shape == (384,)
    assert "blocks.0.ls1.gamma" in random_twin(loaded, 0).vit.state_dict()


def test_a_whitened_stem_is_opened_here_alone_and_its_twin_has_other_words(tmp_path: Path) -> None:
    config = dataclasses.replace(CUSTOM, stem="whitened")
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    backbone.vit.patch_embed.fit(torch.randn(8, 3, 42, 42))
    save_backbone(tmp_path, backbone, config, {"run_id": "r", "holdout": 0.2})
    loaded = open_backbone(str(tmp_path))
    images = torch.randn(1, 3, 42, 42)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images).patch_tokens, backbone(images).patch_tokens)
    twins = [random_twin(loaded, seed).vit.patch_embed for seed in (0, 0, 1)]
    assert all(torch.equal(twin.whitening, backbone.vit.patch_embed.whitening) for twin in twins)
    assert torch.equal(twins[0].words, twins[1].words)
    assert not torch.equal(twins[0].words, twins[2].words)
    with pytest.raises(RuntimeError, match="Unknown model"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    with pytest.raises(ExportError, match="whitened stem, which timm cannot build"):
        export_backbone(loaded, tmp_path / "export")


@pytest.mark.parametrize("init", ["timm", "xavier"])
def test_the_random_twin_is_the_initialization_of_the_recipe(init: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CUSTOM, init=init)
    saved(config, tmp_path)
    loaded, before = open_backbone(str(tmp_path)), torch.get_rng_state()
    twin = random_twin(loaded, seed=5)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    witness = build_backbone(config)
    for name, tensor in witness.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name


def test_what_pixels_are_normalized_with_travels_with_the_weights(tmp_path: Path) -> None:
    """timm's augreg weights want (gray - 0.5) / 0.5, DINOv2's ImageNet's mean; a training has what its views say."""
    half = (0.5, 0.5, 0.5)
    config = ARCHS["timm"]
    assert timm.get_pretrained_cfg("vit_tiny_patch16_224").mean == half
    assert build_backbone(config).mean == build_backbone(config).std == half
    assert build_backbone(ARCHS["vit_small"]).mean == build_backbone(CUSTOM).mean == IMAGENET_MEAN

    saved(config, tmp_path / "timm")
    loaded = open_backbone(str(tmp_path / "timm"))
    random = random_twin(loaded, 0)
    air_and_bone = torch.tensor([-2000.0, 2000.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    for backbone in (loaded.backbone, random):
        shown = network_input(air_and_bone, backbone, "lung")
        assert shown.flatten(1).unique(dim=1).tolist() == [[-1.0], [1.0]]

    trained = build_backbone(CUSTOM)
    trained.mean, trained.std = (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)
    save_backbone(tmp_path / "trained", trained, CUSTOM, {})
    loaded = open_backbone(str(tmp_path / "trained"))
    assert (loaded.backbone.mean, loaded.backbone.std) == (trained.mean, trained.std)
    shown = network_input(air_and_bone, loaded.backbone, "lung")
    assert torch.allclose(shown[1, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))
    assert training_views(loaded)[0].std == trained.std


def test_other_weights_are_refused(tmp_path: Path) -> None:
    saved(CUSTOM, tmp_path)
    shapes = json.loads((tmp_path / "config.json").read_text())
    shapes["model_args"]["embed_dim"] = 64
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    with pytest.raises(BackboneError, match=r"of another architecture: .* tensors differ"):
        open_backbone(str(tmp_path))
    shapes["architecture"] = "vit_of_tomorrow"
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    with pytest.raises(BackboneError, match=r"has no model 'vit_of_tomorrow'; install the version"):
        open_backbone(str(tmp_path))
    with pytest.raises(BackboneError, match=r"is no folder; give runs:/"):
        open_backbone(str(tmp_path / "nowhere"))


@torch.no_grad()
def test_a_convnext_is_opened_beside_its_random_twin_and_not_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(arch="timm", timm_name="convnext_atto", image_px=64)
    backbone = build_backbone(config, for_training=False).eval()
    backbone.vit.head.norm.weight.mul_(2.0)
    save_backbone(tmp_path, backbone, config, {})
    loaded, images = open_backbone(str(tmp_path)), torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.backbone(images).patch_tokens, backbone(images).patch_tokens)
    as_timms = open_backbone(f"timm:local-dir:{tmp_path}", image_px=64).backbone
    assert torch.equal(as_timms(images).patch_tokens, backbone(images).patch_tokens)
    assert not torch.allclose(
        random_twin(loaded, 0)(images).class_token, backbone(images).class_token, atol=0.1
    )
    crops = 300 * torch.randn(2, 3, 96, 96) - 500
    larger = open_backbone(str(tmp_path), image_px=96).backbone
    features = encode(larger, crops.numpy(), 0.5, "lung", "both", torch.device("cpu"))
    assert features.shape == (2, 2 * backbone.embed_dim)
    with pytest.raises(ExportError, match="is a ConvNeXt"):
        export_backbone(loaded, tmp_path / "out")


def test_a_folder_of_transformers_is_named_as_such(tmp_path: Path) -> None:
    saved(CUSTOM, tmp_path)
    (tmp_path / "dinox.json").unlink()
    with pytest.raises(BackboneError, match="open it as timm:local-dir:FOLDER if timm wrote it"):
        open_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2", "hidden_size": 32}')
    with pytest.raises(BackboneError, match="open it as hf:FOLDER, since transformers wrote it"):
        open_backbone(str(tmp_path))
    with pytest.raises(BackboneError, match="states no architecture"):
        open_backbone(f"timm:local-dir:{tmp_path}")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


LEADS = {
    "pretrained": True,
    "pretrained_cfg": {"url": "http://127.0.0.1:1/x"},
    "pretrained_cfg_overlay": {"file": "harmful.pth", "custom_load": False},
    "checkpoint_path": "harmful.pth",
    "url": "http://127.0.0.1:1/x",
    "file": "harmful.pth",
    "cache_dir": "elsewhere",
}


@pytest.mark.parametrize("name", LEADS)
@pytest.mark.parametrize("scheme", ["", "timm:local-dir:"])
def test_what_an_argument_names_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(CUSTOM, tmp_path)
    torch.save(Harmful(), "harmful.pth")
    tree = json.loads((tmp_path / "config.json").read_text())
    tree["model_args"][name] = LEADS[name]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(
        BackboneError, match=f"hold {name}, which describes no architecture and is never followed"
    ):
        open_backbone(f"{scheme}{tmp_path}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["url", "file", "hf_hub_id", "custom_load"])
def test_weights_at_another_place_are_never_fetched(tmp_path: Path, name: str) -> None:
    saved(CUSTOM, tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    tree["pretrained_cfg"][name] = "http://127.0.0.1:1/x"
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(
        BackboneError, match=rf"names weights at another place \({name}\), which is never followed"
    ):
        open_backbone(f"timm:local-dir:{tmp_path}")
    assert open_backbone(str(tmp_path)).backbone.image_px == 42  # whose own weights are beside it
