"""Weights that others saved: read without running anything of the file, and brought to the names of a module."""

import pickle
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipelines.encoders.cube_encoder import EncoderError

_WRAPPERS = ("trunk_state_dict", "state_dict", "model", "network_weights")
"""Keys beneath which trainers keep the weights."""
_MOST_NAMED = 3


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file, or of a .pt, .pth, .ckpt or .torch file by torch's `weights_only`.

    Raises:
        EncoderError: If the file is missing, damaged, would have to be unpickled, or holds no weights.
    """
    if not path.is_file():
        raise EncoderError(f"there is no file of weights {path}")
    try:
        # Trainers keep their options beside the weights; the protocols of their pickles are read as well.
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree: Any = (
                load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise EncoderError(f"weights {path.name} are damaged or no file of weights") from error
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"weights {path.name} hold more than tensors, and nothing of a file is run; save its state_dict alone,"
            " best as .safetensors"
        ) from error
    while isinstance(tree, Mapping) and (
        own := [key for key in _WRAPPERS if isinstance(tree.get(key), Mapping)]
    ):
        tree = tree[own[0]]
    found = {
        str(name): one
        for name, one in (tree.items() if isinstance(tree, Mapping) else ())
        if torch.is_tensor(one)
    }
    if not found:
        raise EncoderError(f"weights {path.name} hold no tensor by name; give a state_dict")
    return found


def load_named(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], prefixes: Sequence[str], file: str
) -> str:
    """Load the tensors of a module from a checkpoint, whose names may begin with one of several prefixes.

    Args:
        module: To fill; every tensor of it must be there.
        state: The checkpoint.
        prefixes: Known ones, "" for none; the one that fits most is taken.
        file: Name of the checkpoint in errors.

    Returns:
        A sentence: the prefix that was stripped, and how many other tensors, such as heads, were left out.

    Raises:
        EncoderError: If tensors are missing, or have another shape.
    """
    wanted = module.state_dict()
    fits = {prefix: sum(f"{prefix}{name}" in state for name in wanted) for prefix in prefixes}
    prefix = max(fits, key=lambda one: fits[one])
    missing = [
        name for name in wanted if f"{prefix}{name}" not in state and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise EncoderError(
            f"{file} lacks {len(missing)} of {len(wanted)} tensors of this network, such as"
            f" {', '.join(missing[:_MOST_NAMED])}; it holds {', '.join(list(state)[:_MOST_NAMED])}, ..."
        )
    own = {name: state[f"{prefix}{name}"] for name in wanted if f"{prefix}{name}" in state}
    unlike = [name for name, one in own.items() if one.shape != wanted[name].shape]
    if unlike:
        name = unlike[0]
        raise EncoderError(
            f"{file} is of another architecture: {name} has the shape {tuple(own[name].shape)}, not"
            f" {tuple(wanted[name].shape)}"
        )
    module.load_state_dict(own, strict=False)
    return (
        f"{file}: {len(own)} tensors"
        + (f" without their prefix '{prefix}'" if prefix else "")
        + f", {len(state) - len(own)} others left out"
    )
