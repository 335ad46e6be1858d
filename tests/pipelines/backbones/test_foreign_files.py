"""Files of weights: every known naming gives the tokens of its origin, and what cannot be read is one sentence."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from monai.networks.nets import ViT
from safetensors.torch import save_file

from models.backbone import Backbone, BackboneError, build_backbone, build_timm_architecture
from models.config import BackboneConfig
from models.loading import load_weights
from pipelines.backbones.folder import open_backbone
from pipelines.backbones.foreign import read_state
from pipelines.backbones.warm_start import load_first_weights

SMALL = {"depth": 3, "embed_dim": 48, "num_heads": 3}


def random(architecture: str, arguments: dict[str, Any], px: int) -> Backbone:
    torch.manual_seed(0)
    backbone = build_timm_architecture(
        architecture, arguments, BackboneConfig(arch="timm", timm_name=architecture, image_px=px)
    ).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


@torch.no_grad()
def assert_same(one: Backbone, other: Backbone, px: int) -> None:
    images = torch.randn(2, 3, px, px)
    for ours, theirs in zip(one(images), other(images), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def chunked(name: str) -> str:
    """DINOv2 and DINOv3 save blocks in chunks: blocks.0.2.norm1 is block 2."""
    return f"blocks.0.{name.removeprefix('blocks.')}" if name.startswith("blocks.") else name


def test_names_of_dinov2(tmp_path: Path) -> None:
    origin = random("vit_small_patch14_reg4_dinov2", SMALL, 42)
    state = {chunked(name): tensor for name, tensor in origin.vit.state_dict().items()}
    state["register_tokens"], state["mask_token"] = state.pop("reg_token"), torch.zeros(1, 48)
    position = torch.randn(1, 1, 48)  # of the class token, which timm adds to it
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    state["cls_token"] = state["cls_token"] - position
    torch.save({"teacher": {f"backbone.{name}": one for name, one in state.items()}}, tmp_path / "w.pth")
    loaded = open_backbone(f"{tmp_path}/w.pth:heads=3")
    assert_same(loaded.backbone, origin, 42)
    assert loaded.record["opened"][:3] == [
        "read 'teacher' of the file",
        "prefix 'backbone.' taken off",
        "left out: mask_token",
    ]


@pytest.mark.parametrize("architecture", ["vit_small_patch16_dinov3", "vit_huge_plus_patch16_dinov3"])
def test_names_of_dinov3(tmp_path: Path, architecture: str) -> None:
    origin = random(architecture, SMALL | {"qkv_bias": True, "attn_type": "rope"}, 48)
    state = dict(origin.vit.state_dict())
    for name in [name for name in state if name.endswith("qkv.bias")]:
        state[name][48:96] = 0  # no bias of keys: masked in the file
        state[f"{name}_mask"] = torch.ones(144)
        state[f"{name}_mask"][48:96] = 0
    origin.vit.load_state_dict({name: one for name, one in state.items() if "mask" not in name})
    for name in [name for name in state if name.endswith("qkv.bias")]:
        state[name] = torch.where(state[f"{name}_mask"] == 1, state[name], torch.nan)
    theirs = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    theirs |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2"} | (
        {"mlp.fc2": "mlp.w3"} if "huge" in architecture else {}
    )
    named = {}
    for name, tensor in state.items():
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        named[chunked(name)] = tensor
    named["rope_embed.periods"] = torch.ones(4)
    torch.save(named, tmp_path / "w.pth")
    assert_same(open_backbone(f"{tmp_path}/w.pth:heads=3", image_px=48).backbone, origin, 48)


@torch.no_grad()
@pytest.mark.parametrize("proj_type", ["conv", "perceptron"])
def test_names_of_monai(tmp_path: Path, proj_type: str) -> None:
    torch.manual_seed(0)
    origin = ViT(
        1, (32, 32), (8, 8), 48, 96, 2, 3, proj_type, classification=True, spatial_dims=2, qkv_bias=True
    )
    for parameter in origin.eval().parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({"state_dict": origin.state_dict()}, tmp_path / "w.pt")
    loaded = open_backbone(f"{tmp_path}/w.pt:heads=3")
    images = torch.rand(2, 3, 32, 32)
    theirs = origin.norm(origin(images[:, 1:2])[1][-1])
    ours = loaded.backbone(images)
    assert torch.allclose(ours.class_token, theirs[:, 0], atol=1e-5)
    assert torch.allclose(ours.patch_tokens, theirs[:, 1:], atol=1e-5)
    assert loaded.backbone.mean == (0.0, 0.0, 0.0)
    assert "its one channel reads the center slice, the neighbors have weight 0" in loaded.record["opened"]


def test_an_architecture_that_is_stated_by_timms_name(tmp_path: Path) -> None:
    origin = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32)
    save_file(origin.state_dict(), tmp_path / "w.safetensors")
    loaded = open_backbone(f"{tmp_path}/w.safetensors:vit_tiny_patch16_224")
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        theirs = origin.eval().forward_features(images)
        assert torch.allclose(loaded.backbone(images).class_token, theirs[:, 0], atol=1e-5)
    assert_same(open_backbone(f"{tmp_path}/w.safetensors").backbone, loaded.backbone, 32)  # 192 / 64 heads
    with pytest.raises(BackboneError, match="of another architecture"):
        open_backbone(f"{tmp_path}/w.safetensors:vit_small_patch16_224")
    with pytest.raises(BackboneError, match="timm has no model 'vit_of_tomorrow'"):
        open_backbone(f"{tmp_path}/w.safetensors:vit_of_tomorrow")
    with pytest.raises(BackboneError, match="'hf-hub:a/b' is no architecture of timm's"):
        open_backbone(f"{tmp_path}/w.safetensors:hf-hub:a/b")


def test_what_is_of_another_size_is_fitted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = random("vit_tiny_patch16_224", SMALL | {"patch_size": 8}, 32)
    state = dict(origin.vit.state_dict())
    torch.save({"model": state}, tmp_path / "w.pth")
    recipe = BackboneConfig(
        arch="custom", depth=3, embed_dim=48, heads=3, patch_px=16, registers=0, image_px=80,
        weights=f"{tmp_path}/w.pth",
    )  # fmt: skip
    backbone = build_backbone(recipe)
    assert load_first_weights(backbone, recipe) == {}
    said = capsys.readouterr().out
    assert "patches of 8 px resampled to 16 px as FlexiViT does" in said
    assert "positions of 4^2 patches resampled to 5 x 5" in said
    assert torch.equal(backbone.vit.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    patch = torch.rand(2, 3, 8, 8)
    larger = torch.nn.functional.interpolate(patch, 16, mode="bicubic", antialias=True)
    with torch.no_grad():
        given, fitted = origin.vit.patch_embed.proj(patch), backbone.vit.patch_embed.proj(larger)
    assert torch.allclose(given, fitted, atol=1e-4)


def test_class_positions_go_where_the_network_has_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folded = random("vit_tiny_patch16_224", SMALL | {"no_embed_class": True}, 32)
    whole = random("vit_tiny_patch16_224", SMALL, 32).eval()
    assert load_weights(whole, dict(folded.vit.state_dict()), "a test") == []
    assert_same(whole, folded, 32)


def embedded_in(tmp_path: Path, tree: Any) -> str:
    torch.save(tree, tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_what_would_run_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError, match=r"not tensors alone: getattr in it would be run to open it"):
        open_backbone(embedded_in(tmp_path, {"model": Harmful()}))
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": Harmful()}))
    with pytest.raises(BackboneError, match="not tensors alone"):
        open_backbone(str(tmp_path / "old.pt"))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_2_gb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "w.pth").open("wb") as file:
        file.write(b"\x80\x02")
        file.truncate(2_000_000_000)  # no blocks on disk
    with pytest.raises(BackboneError, match=r"has 2\.0 GB in a format that must be read whole"):
        open_backbone(str(tmp_path / "w.pth"))


def test_a_large_file_of_today_is_mapped_and_not_read(tmp_path: Path) -> None:
    state = dict(random("vit_tiny_patch16_224", SMALL, 32).vit.state_dict())
    found, _ = read_state(embedded_in(tmp_path, state))
    assert torch.equal(found["cls_token"], state["cls_token"])
    assert str(tmp_path / "w.pth") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 7},
         "holds no vision transformer's weights under names that are known here, but epoch, optimizer"),
        (lambda state: torch.zeros(3), "but Tensor"),
        (lambda state: dict(timm.create_model("resnet18").state_dict()), "holds no vision transformer's weights"),
        (lambda state: {"a": state, "b": state}, "holds several networks, a and b"),
        (lambda state: {name: one for name, one in state.items() if name != "cls_token"}, "without a class token"),
        (lambda state: {name: one for name, one in state.items() if "fc1" not in name}, "no blocks of attention"),
        (lambda state: {name: one for name, one in state.items() if "blocks.1.norm1" not in name},
         r"of another architecture: 2 tensors differ, first 'blocks\.1\.norm1\.bias'"),
        (lambda state: state | {"blocks.0.attn.rel_pos": torch.zeros(3)}, r"first 'blocks\.0\.attn\.rel_pos'"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 5, 24)}, "of another architecture: 1 tensors differ"),
        (lambda state: state | {"patch_embed.proj.weight": torch.zeros(48, 3, 16, 8)}, "patches must be square"),
        (lambda state: state | {"pos_embed": torch.zeros(1, 7, 48)}, "has 7 positions, which are no square"),
        (lambda state: state | {"patch_embed.proj.weight": torch.zeros(48, 1, 8, 8, 8)}, "a transformer on volumes"),
    ],
)  # fmt: skip
def test_what_holds_no_such_network_is_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    state = dict(random("vit_tiny_patch16_224", SMALL, 32).vit.state_dict())
    with pytest.raises(BackboneError, match=sentence):
        open_backbone(f"{embedded_in(tmp_path, change(state))}:heads=3")


def test_heads_that_no_shape_tells_are_asked_for(tmp_path: Path) -> None:
    state = dict(random("vit_tiny_patch16_224", SMALL, 32).vit.state_dict())
    with pytest.raises(
        BackboneError, match="48 numbers, which tell no number of heads; state it, FILE:heads=6"
    ):
        open_backbone(embedded_in(tmp_path, state))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"garbage"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BackboneError, match=rf"{name} (are|is) .*damaged"):
        open_backbone(str(tmp_path / name))
    with pytest.raises(BackboneError, match="there is no file of weights"):
        open_backbone(str(tmp_path / f"no_{name}"))
