"""Frozen features of crops, computed once: a second probe of the same weights and crops reads them from disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from models.backbone import Backbone, BackboneError, Tokens
from pipelines.backbones.config import FeatureName, SliceFeature, WindowName
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.progress import progress
from probes.nodule_rays import NoduleRegion
from transforms.hounsfield import named_window

STACKED = ("lung", "mediastinal", "wide")

NEIGHBORHOOD_MM = 10.0


@torch.no_grad()
def encode(
    backbone: Backbone,
    crops_hu: NDArray[np.float32],
    mm_per_px: float,
    window: WindowName,
    features: FeatureName,
    device: torch.device,
    hu_scale: float = 1.0,
    batch_size: int = 64,
    region: NoduleRegion | None = None,
    slice_mm: ArrayLike | None = None,
) -> NDArray[np.float32]:
    """Encode crops with a frozen 2D backbone; `pipelines.backbones.cube_features` reads cubes.

    Args:
        backbone: In evaluation mode.
        crops_hu: (n, 3, P, P), or (n, S, 3, P, P), HU.
        mm_per_px: Pixel size of the crops.
        window: CT window; `stacked` joins the features of all three.
        features: Tokens to use.
        device: Where to compute.
        hu_scale: Factor by which the backbone's pretraining multiplied HU.
        batch_size: Images per forward pass; it limits the memory used.
        region: Mask and ring of the nodules on crops (n, 3, P, P); for `roi`, which joins mean and maximum inside the
            mask and the mean in the ring.
        slice_mm: Distance of the slices of each of the n crops, or of all; networks that take the spacing need it.

    Returns:
        (n, D), (n, S, D), or (n, N, D) for `patches`; D adds up over windows and kinds of token.
    """
    names = list(STACKED) if window == "stacked" else [window]
    backbone = backbone.to(device)
    flat = crops_hu.reshape(-1, *crops_hu.shape[-3:])
    spacing_mm = None
    if backbone.takes_spacing and slice_mm is not None:
        spacing_mm = _spacing_of(crops_hu, slice_mm, mm_per_px)
    rows = []
    starts = range(0, len(flat), batch_size)
    for start in progress(starts, desc="features", unit=f"{batch_size} images", leave=False):
        hu = torch.from_numpy(flat[start : start + batch_size]).to(device)
        own = slice(start, start + batch_size)
        told = {} if spacing_mm is None else {"spacing_mm": spacing_mm[own].to(device)}
        parts = []
        for name in names:
            tokens = backbone(network_input(hu, backbone, name, hu_scale), **told)
            if region is not None:
                shares = (patch_shares(where[own], backbone.patch_px) for where in (region.mask, region.ring))
                parts.append(inside_and_around(tokens.patch_tokens, *(share.to(device) for share in shares)))
            else:
                parts.append(chosen_tokens(tokens, features, backbone, mm_per_px))
        rows.append(torch.cat(parts, dim=-1).float().cpu())
    encoded = torch.cat(rows).numpy()
    return encoded.reshape(*crops_hu.shape[:-3], *encoded.shape[1:])


def network_input(hu: torch.Tensor, backbone: Backbone, window: str, hu_scale: float = 1.0) -> torch.Tensor:
    """Apply a window of `named_window` to HU, normalized as in the backbone's pretraining.

    Args:
        hu: (B, 3, S, S), or of a 3D network (B, D, S, S).
        backbone: Whose input it is.
        window: As named.
        hu_scale: Factor by which its pretraining multiplied HU.

    Returns:
        (B, 3, S, S), or (B, 1, D, S, S).

    Raises:
        BackboneError: If a 3D network, which has one channel, is asked for the three of `ranges`.
    """
    if backbone.image_depth_px and window == "ranges":
        raise BackboneError("window=ranges is three channels, one a window; a 3D network has one channel")
    mean, std = (
        torch.tensor(values, device=hu.device).view(-1, 1, 1) for values in (backbone.mean, backbone.std)
    )
    gray: torch.Tensor = (named_window(hu * hu_scale, window) - mean) / std
    return gray[:, None] if backbone.image_depth_px else gray


def _spacing_of(crops_hu: NDArray[np.float32], slice_mm: ArrayLike, mm_per_px: float) -> torch.Tensor:
    """Return the spacing of every triplet of crops along z, y and x, (n or n S, 3)."""
    each = np.full((*crops_hu.shape[:-3], 3), mm_per_px, dtype=np.float32)
    each[..., 0] = np.asarray(slice_mm, dtype=np.float32).reshape(-1, *[1] * (crops_hu.ndim - 4))
    return torch.from_numpy(each.reshape(-1, 3))


def patch_shares(where: NDArray[np.bool_] | torch.Tensor, patch_px: int) -> torch.Tensor:
    """Return the share of each patch, (B, N), that lies in a mask (B, P, P)."""
    covered = torch.as_tensor(where).float()[:, None]
    return torch.nn.functional.avg_pool2d(covered, patch_px).flatten(1)


def inside_and_around(patch_tokens: torch.Tensor, mask: torch.Tensor, ring: torch.Tensor) -> torch.Tensor:
    """Join mean and maximum of the tokens inside a nodule, and their mean in the ring around it.

    Args:
        patch_tokens: (B, N, D).
        mask: Share of each patch inside the nodule, (B, N); each image has a patch with a share above 0.
        ring: Share of each patch in the ring, (B, N). Without a ring inside the image the nodule's mean is used.

    Returns:
        (B, 3 D). A token counts for the maximum if its share is at least half of the largest.
    """
    inside = weighted_mean(patch_tokens, mask)
    is_inner = mask >= mask.amax(1, keepdim=True) / 2
    largest = patch_tokens.masked_fill(~is_inner[..., None], -torch.inf).amax(1)
    has_ring = ring.sum(1, keepdim=True) > 0
    around = torch.where(has_ring, weighted_mean(patch_tokens, ring), inside)
    return torch.cat([inside, largest, around], dim=-1)


def weighted_mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the mean of tokens (B, N, D) by weights (B, N), (B, D)."""
    share = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
    return torch.einsum("bn,bnd->bd", share.to(tokens.dtype), tokens)


def image_features(tokens: Tokens, features: SliceFeature) -> torch.Tensor:
    """Return one vector per image, (B, D) or, for `both`, (B, 2 D)."""
    match features:
        case "class_token":
            return tokens.class_token
        case "mean_patch":
            return tokens.patch_tokens.mean(1)
        case "both":
            return torch.cat([tokens.class_token, tokens.patch_tokens.mean(1)], dim=-1)


def chosen_tokens(
    tokens: Tokens, features: FeatureName, backbone: Backbone, mm_per_px: float
) -> torch.Tensor:
    """Return what a reading other than `roi` takes: one vector per image (B, D), or all patches (B, N, D)."""
    match features:
        case "roi":
            raise ValueError("features=roi needs the region of each nodule")
        case "neighborhood":
            near = _near_center(tokens.patch_tokens.shape[1], backbone.patch_px * mm_per_px)
            return tokens.patch_tokens[:, near].mean(1)
        case "patches":
            return tokens.patch_tokens
        case _:
            return image_features(tokens, features)


def _near_center(patches: int, patch_mm: float) -> torch.Tensor:
    side = round(patches**0.5)
    from_center = (torch.arange(side) - (side - 1) / 2).abs() * patch_mm
    distance = (from_center[:, None].square() + from_center[None].square()).sqrt().flatten()
    return torch.nonzero(distance <= max(NEIGHBORHOOD_MM, float(distance.min()) + 1e-6)).flatten()


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk, by a hash of everything they depend on."""

    folder: Path
    """Made at the first write."""

    def key(self, backbone_sha: str, crops_hu: NDArray[Any], **settings: Any) -> str:
        """Hash what features depend on: weights, settings and the voxels of the crops, not how they were cut."""
        crops_sha = hashlib.sha256(np.ascontiguousarray(crops_hu).data).hexdigest()
        parts = {"backbone": backbone_sha, "crops": crops_sha, "shape": crops_hu.shape} | settings
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def read(self, key: str) -> NDArray[np.float32] | None:
        """Return the features under a key, or None; a damaged file counts as None, since they can be computed again."""
        path = self.folder / f"{key}.npy"
        try:
            with path.open("rb") as file:
                found: NDArray[np.float32] = np.lib.format.read_array(file)
        except (OSError, ValueError):
            return None
        return found

    def write(self, key: str, features: NDArray[np.float32]) -> None:
        """Write features under a key, atomically."""
        make_folder(self.folder)
        write_atomically(self.folder / f"{key}.npy", lambda file: np.save(file, features))
