"""Published 3D encoders: weights under their authors' names give their authors' output on their authors' input."""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets.resnet import resnet50
from monai.networks.nets.segresnet_ds import SegResEncoder, SegResNetDS
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.vit import ViT
from monai.networks.nets.vitautoenc import ViTAutoEnc
from monai.transforms import Orientation, ScaleIntensityRange
from safetensors.torch import save_file

from pipelines.encoders.cube_encoder import EncoderError
from pipelines.encoders.monai_layouts import LAYOUTS
from pipelines.encoders.opening import open_encoder
from transforms.nodule_cube import CubeSpec

State = dict[str, torch.Tensor]
Output = Callable[[torch.Tensor], torch.Tensor]


def settled(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights whose every tensor matters: running statistics and biases too."""
    generator = torch.Generator().manual_seed(1)
    for name, one in module.state_dict().items():
        if one.is_floating_point() and (one.ndim == 1 or "running" in name):
            one.add_(0.2 * torch.rand(one.shape, generator=generator))
    return module.eval()


def ct_fm() -> tuple[object, Output]:
    whole = settled(SegResNetDS(init_filters=32, blocks_down=(1, 2, 2, 4, 4), out_channels=2))
    return whole.state_dict(), lambda x: whole.encoder(x)[-1].mean((2, 3, 4))


def fmcib() -> tuple[object, Output]:
    trunk = settled(
        resnet50(
            pretrained=False,
            n_input_channels=1,
            widen_factor=2,
            conv1_t_stride=2,
            feed_forward=False,
            bias_downsample=True,
        )
    )
    return {"trunk_state_dict": trunk.state_dict(), "epoch": 99}, trunk


def swin() -> tuple[object, Output]:
    whole = settled(SwinUNETR(in_channels=1, out_channels=2, feature_size=48))
    names = {
        f"module.{name.removeprefix('swinViT.')}".replace("linear1", "fc1").replace("linear2", "fc2"): one
        for name, one in whole.state_dict().items()
        if name.startswith("swinViT.")
    }
    heads = {"module.rotation_head.weight": torch.zeros(4, 768)}
    content = {"state_dict": names | heads, "args": argparse.Namespace(feature_size=48), "epoch": 1}
    return content, lambda x: whole.swinViT(x, whole.normalize)[-1].mean((2, 3, 4))


def vit() -> tuple[object, Output]:
    arguments = {"in_channels": 1, "img_size": (96, 96, 96), "patch_size": (16, 16, 16), "proj_type": "conv"}
    whole = settled(ViTAutoEnc(**arguments))
    return {"state_dict": whole.state_dict()}, lambda x: ViT.forward(whole, x)[0].mean(1)


MADE: dict[str, Callable[[], tuple[object, Output]]] = {
    "ctfm": ct_fm,
    "fmcib": fmcib,
    "swinunetr": swin,
    "vit": vit,
}


def as_published(cube_hu: np.ndarray, spec: CubeSpec, kind: str) -> torch.Tensor:
    """The input that MONAI's transforms make, from an affine: the authors' chain, an independent witness."""
    layout = LAYOUTS[kind]
    volume = MetaTensor(
        torch.from_numpy(cube_hu)[None], affine=torch.from_numpy(spec.affine_ras([5.0, 6.0, 7.0]))
    )
    low, high = layout.window_hu
    scaled = ScaleIntensityRange(low, high, 0.0, 1.0, clip=True)(
        Orientation(axcodes=layout.axcodes, labels=None)(volume)
    )
    return scaled.as_tensor()[None].float()


@pytest.mark.parametrize(
    "kind", ["ctfm", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fmcib", "swinunetr", "vit"))]
)
def test_authors_weights_give_the_authors_output(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    content, original = MADE[kind]()
    torch.save(content, tmp_path / "w.pt")
    encoder = open_encoder(f"monai:{kind}:{tmp_path / 'w.pt'}")
    assert "w.pt: " in capsys.readouterr().out
    cube = np.random.default_rng(0).normal(-300, 500, encoder.spec.shape).astype(np.float32)
    with torch.no_grad():
        expected = original(as_published(cube, encoder.spec, kind))
    found = encoder.network(cube[None], encoder.spec.affine_ras([5.0, 6.0, 7.0])[None])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3
    assert encoder.random is not None
    twins = [encoder.random(seed)(cube[None], np.eye(4)[None]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(twins[0], twins[1])
    assert not np.allclose(twins[0], twins[2])
    assert not np.allclose(twins[0], found)


def weights(tmp_path: Path, change: Callable[[State], State] = dict) -> Path:
    torch.manual_seed(0)
    state = SegResEncoder(init_filters=32, blocks_down=(1, 2, 2, 4, 4)).state_dict()
    save_file(change(state), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_safetensors_load_and_their_prefix_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weights(tmp_path, lambda state: {f"encoder.{name}": one for name, one in state.items()})
    open_encoder(f"monai:ctfm:{path}")
    assert "without their prefix 'encoder.', 0 others left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "conv_init.weight"},
            "lacks 1 of .* such as conv_init.weight",
        ),
        (lambda s: {"blocks.0.attn.qkv.weight": torch.zeros(3)}, "it holds blocks.0.attn.qkv.weight"),
        (
            lambda s: s | {"conv_init.weight": torch.zeros(16, 1, 3, 3, 3)},
            "another architecture: conv_init.weight",
        ),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, change: Callable[[State], State], sentence: str
) -> None:
    with pytest.raises(EncoderError, match=sentence):
        open_encoder(f"monai:ctfm:{weights(tmp_path, change)}")


class Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('/nowhere', 'w')",)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "planted": Planted()}, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="hold more than tensors, and nothing of a file is run"):
        open_encoder(f"monai:ctfm:{tmp_path / 'w.pt'}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [({"state_dict": {}}, "hold no tensor by name"), ({"optimizer": {"lr": 1.0}}, "hold no tensor by name")],
)
def test_a_checkpoint_without_weights_is_refused(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match=sentence):
        open_encoder(f"monai:ctfm:{tmp_path / 'w.pt'}")


def test_a_name_that_is_no_encoder_is_answered_with_those_there_are(tmp_path: Path) -> None:
    for name in ("monai:unet:w.pt", "monai:ctfm", "monai:"):
        with pytest.raises(EncoderError, match="one of the layouts ctfm, fmcib, swinunetr, vit"):
            open_encoder(name)
    with pytest.raises(EncoderError, match="2D networks are named by backbone="):
        open_encoder("timm:resnet18")
    with pytest.raises(EncoderError, match="there is no file of weights"):
        open_encoder(f"monai:ctfm:{tmp_path / 'gone.pt'}")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(EncoderError, match=r"bad\.safetensors are damaged"):
        open_encoder(f"monai:ctfm:{tmp_path / 'bad.safetensors'}")
