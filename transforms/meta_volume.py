"""A volume in HU with its geometry as MONAI's tensor: what the transforms of this package exchange."""

from collections.abc import Mapping
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from transforms.geometry import VolumeGeometry


def meta_volume(volume_hu: NDArray[Any], geometry: VolumeGeometry, meta: Mapping[str, Any]) -> MetaTensor:
    """Wrap a volume, voxels shared and not copied.

    Args:
        volume_hu: (Z, Y, X) HU, writable, as torch requires; a file is mapped copy-on-write for it.
        geometry: Of the volume.
        meta: Further entries of the tensor's `meta`. Use the same types for every volume, so that they can be collated.

    Returns:
        (1, Z, Y, X); its affine takes the tensor's own order (z, y, x) to RAS mm.
    """
    affine = torch.from_numpy(geometry.affine_ras.copy())
    entries = {**geometry.as_meta(), "original_affine": affine.clone(), **meta}
    return MetaTensor(torch.from_numpy(volume_hu)[None], affine=affine, meta=entries)
