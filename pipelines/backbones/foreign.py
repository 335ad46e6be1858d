"""Files of weights that others made: tensors alone are read, wrappers are taken off by name, and what was done is said.

`FILE.pth`, `.pt`, `.ckpt`, `.bin` and `.safetensors`; after a colon the architecture by timm's name, or `heads=6`.
"""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from models.backbone import BackboneError
from models.translation import ANCHORS, architecture_of, translate

_FILE = re.compile(r"(.*\.(?:pth|pt|ckpt|bin|safetensors))(?::(.+))?")
_LARGEST_OLD_BYTES = 1_000_000_000
"""Of the format before zip files, which must be read whole before anything of it is known."""


@dataclass(frozen=True)
class Foreign:
    """A network that others made, by timm's names, and how images reach it.

    Attributes:
        state: Tensors by timm's names.
        architecture, arguments: timm's name and what to build it with.
        image_px: Input size that it was made for.
        mean, std: Of gray values in [0, 1], per channel.
        norm_eps: Of its LayerNorms; None: timm's.
        notes: What was chosen and done, in words.
    """

    state: dict[str, Tensor]
    architecture: str
    arguments: dict[str, Any]
    image_px: int
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    norm_eps: float | None = None
    notes: list[str] = field(default_factory=list)


def is_weight_file(name: str) -> bool:
    """Whether a backbone's name is that of a file of weights."""
    return _FILE.fullmatch(name) is not None


def read_foreign(name: str) -> Foreign:
    """Read `FILE`, `FILE:heads=N` or `FILE:ARCHITECTURE`.

    Raises:
        BackboneError: If the file cannot be read, or does not tell the architecture.
    """
    path, stated = _parts(name)
    if ":" in stated:
        raise BackboneError(
            f"'{stated}' is no architecture of timm's; give FILE:NAME, such as {path}:vit_small_patch16_224"
        )
    state, notes = read_state(path)
    named, more = translate(state, path)
    heads, arguments = re.fullmatch(r"heads=(\d+)", stated), dict[str, Any]()
    if stated and not heads:
        architecture = stated
    else:
        architecture, arguments = architecture_of(named, path, int(heads[1]) if heads else 0)
        if not heads:
            more.append(f"{arguments['num_heads']} heads, one for 64 numbers of a token")
    patch_px = named["patch_embed.proj.weight"].shape[-1]
    side = round(named["pos_embed"].shape[1] ** 0.5) if "pos_embed" in named else 224 // patch_px
    foreign = Foreign(named, architecture, arguments, side * patch_px, notes=notes + more)
    is_monai = any(key.startswith("patch_embedding.") for key in state)
    changed: dict[str, Any] = {"norm_eps": 1e-5} if is_monai else {}
    if is_monai or named["patch_embed.proj.weight"].shape[1] == 1:
        changed |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
        foreign.notes.append("gray values 0..1 as they are, as is usual with one channel")
    else:
        foreign.notes.append("gray values normalized with ImageNet's mean and standard deviation")
    return Foreign(**{**vars(foreign), **changed})


def _parts(name: str) -> tuple[str, str]:
    match = _FILE.fullmatch(name)
    return (match[1], match[2] or "") if match else (name, "")


def read_state(name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors of the network in a file, by their own names without a wrapper's prefix.

    Args:
        name: As `read_foreign` takes it.

    Returns:
        The tensors, and what was taken off, in words.

    Raises:
        BackboneError: If the file does not exist, is damaged, would run code, or holds no vision transformer, or two.
    """
    path = Path(_parts(name)[0])
    if not path.is_file():
        raise BackboneError(f"there is no file of weights {path}; give the path of one that exists")
    return unwrapped(read_tensors(path) if path.suffix == ".safetensors" else read_pickle(path), str(path))


def unwrapped(tree: Any, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Find the network in what a file holds; as `read_state`."""
    found = sorted(_networks(tree), key=lambda one: _rank(f"{one[0]}.{one[1]}"))
    if not found:
        keys = sorted(str(key) for key in tree)[:5] if isinstance(tree, Mapping) else [type(tree).__name__]
        raise BackboneError(
            f"{source} holds no vision transformer's weights under names that are known here, but {', '.join(keys)}"
        )
    (where, prefix, state), names = found[0], [f"{where}.{prefix}".strip(".") for where, prefix, _ in found]
    if len(found) > 1 and _rank(names[0]) == _rank(names[1]):
        raise BackboneError(
            f"{source} holds several networks, {names[0]} and {names[1]}; save the one to read in a file of its own"
        )
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    notes = [f"read '{where}' of the file"] if where else []
    others = f", {len(state) - len(own)} tensors without it left out" if len(own) < len(state) else ""
    notes += [f"prefix '{prefix}' taken off{others}"] if prefix else []
    return own, notes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        BackboneError: If the file is damaged or cannot be read.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(
            f"weights {path} are damaged or cannot be read; export or fetch that backbone again"
        ) from error


def read_pickle(path: Path) -> Any:
    """Read tensors and plain values of a file of torch.save; a class in it is never made, but argparse's options.

    Raises:
        BackboneError: If the file is damaged, would run code, or is too large to be read whole.
    """
    is_zip, size = zipfile.is_zipfile(path), path.stat().st_size
    if not is_zip and size > _LARGEST_OLD_BYTES:
        raise BackboneError(
            f"{path} has {size / 1e9:.1f} GB in a format that must be read whole before it is known what it holds; save"
            " the tensors alone, with safetensors or torch.save(model.state_dict(), FILE)"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the protocol of pickles that other codes wrote.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise BackboneError(
            f"{path} is not tensors alone"
            f"{f': {named[1]} in it would be run to open it' if named else ' or is damaged'}; save them with"
            " torch.save(model.state_dict(), FILE) where it was made"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, UnicodeDecodeError) as error:
        raise BackboneError(f"weights {path} are damaged or cannot be read; fetch that file again") from error


def _networks(tree: Any, where: str = "", depth: int = 3) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Yield the vision transformers in a file: place of their tensors, prefix of their names, all tensors there."""
    if isinstance(tree, argparse.Namespace):
        return
    if isinstance(tree, Mapping):
        state = {key: one for key, one in tree.items() if isinstance(key, str) and isinstance(one, Tensor)}
        for key in state:
            for anchor in ANCHORS:
                if key == anchor or key.endswith(f".{anchor}"):
                    yield where, key.removesuffix(anchor), state
        for key, one in tree.items():
            if depth and isinstance(one, Mapping):
                yield from _networks(one, f"{where}.{key}".strip("."), depth - 1)


def _rank(name: str) -> int:
    """Of several networks, the averaged teacher is read, and no predictor or student beside it."""
    if re.search(r"teacher|target|momentum|(^|[._])ema", name):
        return 0
    return 2 if re.search(r"student|decoder|predictor|gram", name) else 1
