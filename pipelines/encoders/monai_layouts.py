"""`encoder=monai:LAYOUT:FILE`: 3D encoders that MONAI's classes make, as their authors published and fed them.

Each layout states the class, the names that the authors' checkpoints carry, and how they prepare CT: spacing, window,
orientation and crop. Nothing is downloaded.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.encoders.checkpoint import load_named, read_tensors
from pipelines.encoders.cube_encoder import CubeEncoder, EncoderError, TorchCubes
from pipelines.runtime.extras import load_extra
from transforms.nodule_cube import CubeSpec

SCHEME = "monai:"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A published encoder.

    Attributes:
        build: Makes the module.
        vector: As in `TorchCubes`.
        spec: Cubes, (z, y, x), around the nodule.
        window_hu: Lowest and highest HU.
        axcodes: Orientation of its input.
        prefixes: Of the names in its authors' checkpoints; "" for none.
        renamed: Parts of names that the authors' checkpoints have in another form, to those of the module.
        origin: Who published it.
    """

    build: Callable[[], torch.nn.Module]
    vector: Callable[[Any, torch.Tensor], torch.Tensor]
    spec: CubeSpec
    window_hu: tuple[float, float]
    axcodes: str
    prefixes: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    origin: str


def _ct_fm() -> torch.nn.Module:
    from monai.networks.nets.segresnet_ds import SegResEncoder

    return SegResEncoder(spatial_dims=3, in_channels=1, init_filters=32, blocks_down=(1, 2, 2, 4, 4))


def _fmcib() -> torch.nn.Module:
    from monai.networks.nets.resnet import resnet50

    module: torch.nn.Module = resnet50(
        pretrained=False,
        n_input_channels=1,
        widen_factor=2,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=True,
    )
    return module


def _swin_unetr() -> torch.nn.Module:
    load_extra("einops", "peers")
    from monai.networks.nets.swin_unetr import SwinTransformer

    return SwinTransformer(
        in_chans=1,
        embed_dim=48,
        window_size=(7, 7, 7),
        patch_size=(2, 2, 2),
        depths=(2, 2, 2, 2),
        num_heads=(3, 6, 12, 24),
    )


def _vit() -> torch.nn.Module:
    load_extra("einops", "peers")
    from monai.networks.nets.vit import ViT

    return ViT(in_channels=1, img_size=(96, 96, 96), patch_size=(16, 16, 16), proj_type="conv")


LAYOUTS: dict[str, Layout] = {
    "ctfm": Layout(
        build=_ct_fm,
        vector=lambda module, gray: module(gray)[-1],
        spec=CubeSpec(shape=(48, 48, 48), spacing_mm=(1.0, 1.0, 1.0)),
        window_hu=(-1024.0, 2048.0),
        axcodes="SPL",
        prefixes=("", "encoder.", "model.encoder.", "backbone.", "model."),
        origin="CT-FM, Pai et al. 2025; as its authors read tumors (48 voxels of 1 mm)",
    ),
    "fmcib": Layout(
        build=_fmcib,
        vector=lambda module, gray: module(gray),
        spec=CubeSpec(shape=(50, 50, 50), spacing_mm=(1.0, 1.0, 1.0)),
        window_hu=(-1024.0, 3072.0),
        axcodes="SPL",
        prefixes=("", "model.backbone.", "model.trunk.", "trunk.", "module."),
        origin="FMCIB, Pai et al. 2024: ResNet-50 of twice the width",
    ),
    "swinunetr": Layout(
        build=_swin_unetr,
        vector=lambda module, gray: module(gray)[-1],
        spec=CubeSpec(shape=(96, 96, 96), spacing_mm=(2.0, 1.5, 1.5)),
        window_hu=(-1000.0, 1000.0),
        axcodes="RAS",
        prefixes=("", "module.", "swinViT.", "module.swinViT.", "swin_vit.", "module.swin_vit."),
        renamed=((".mlp.fc1.", ".mlp.linear1."), (".mlp.fc2.", ".mlp.linear2.")),
        origin="SwinUNETR's self-supervised encoder, Tang et al. 2022 (feature_size 48)",
    ),
    "vit": Layout(
        build=_vit,
        vector=lambda module, gray: module(gray)[0].transpose(1, 2),
        spec=CubeSpec(shape=(96, 96, 96), spacing_mm=(2.0, 2.0, 2.0)),
        window_hu=(-57.0, 164.0),
        axcodes="RAS",
        prefixes=("", "vit.", "module.", "module.vit.", "model."),
        origin="ViT-B/16 of MONAI's tutorial of self-supervised pretraining (ViTAutoEnc, UNETR)",
    ),
}


def open_monai(name: str) -> CubeEncoder:
    """Open `monai:LAYOUT:FILE`.

    Raises:
        MissingPackageError: If MONAI needs einops for it.
        EncoderError: If there is no such layout, or the file does not hold its tensors.
    """
    kind, _, file = name.removeprefix(SCHEME).partition(":")
    layout = LAYOUTS.get(kind)
    if layout is None or not file:
        raise EncoderError(
            f"encoder={name}: write monai:LAYOUT:FILE with a file of weights and one of the layouts"
            f" {', '.join(LAYOUTS)}"
        )
    module, path = layout.build(), Path(file)
    print(load_named(module, _renamed(read_tensors(path), layout.renamed), layout.prefixes, path.name))
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    network = cubes_of(layout, module)
    return CubeEncoder(name, layout.spec, network, digest, f"monai:{kind}", lambda seed: random(layout, seed))


def cubes_of(layout: Layout, module: torch.nn.Module) -> TorchCubes:
    """Return a module of a layout as a network of cubes."""
    return TorchCubes(module.eval(), layout.vector, layout.window_hu, layout.axcodes)


def random(layout: Layout, seed: int) -> TorchCubes:
    """Return a layout's network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cubes_of(layout, layout.build())


def _renamed(
    state: Mapping[str, torch.Tensor], renamed: tuple[tuple[str, str], ...]
) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in state.items():
        for theirs, ours in renamed:
            name = name.replace(theirs, ours)
        found[name] = tensor
    return found
