"""Crops around nodules from a memory-mapped volume, on one core, against SimpleITK's resampling of the same crop."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from benchmarks.timing import Row, median_cpu_seconds
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec, crop_nodule

SHAPE, SPACING_MM = (200, 512, 512), (1.25, 0.7, 0.7)
N_CROPS = 60
SPECS = {
    "triplet, 50 mm at 224 px": CropSpec(size_mm=50.0, out_px=224),
    "triplet, 24 mm at 32 px": CropSpec(size_mm=24.0, out_px=32),
    "cube, 50 mm at 1 mm": CropSpec(form="cube", size_mm=50.0, out_px=50),
}


def measure(tiny: bool = False) -> list[Row]:
    """Time crops at random places; the target is crops per second and core; SimpleITK is the peer."""
    rng = np.random.default_rng(0)
    affine = np.array(
        [[0, 0, -SPACING_MM[2], 0], [0, -SPACING_MM[1], 0, 0], [SPACING_MM[0], 0, 0, 0], [0, 0, 0, 1.0]]
    )
    shape = (40, 96, 96) if tiny else SHAPE
    n_crops = 2 if tiny else N_CROPS
    indices = rng.uniform(0.2, 0.8, (n_crops, 3)) * shape
    geometry = VolumeGeometry(shape, affine)
    centers = geometry.to_lps(indices)
    rows = []
    with TemporaryDirectory(prefix="dinox-bench-") as folder:
        path = Path(folder) / "volume.npy"
        np.save(path, rng.integers(-1000, 400, shape).astype(np.int16))
        volume = np.load(path, mmap_mode="r")
        image = sitk.GetImageFromArray(np.asarray(volume))
        image.SetSpacing(SPACING_MM[::-1])
        for name, spec in SPECS.items():

            def ours(spec: CropSpec = spec) -> None:
                for center in centers:
                    crop_nodule(volume, geometry, center, spec)

            ways: dict[str, Callable[[], object]] = {"ours": ours, "SimpleITK": _peer(image, indices, spec)}
            seconds = median_cpu_seconds(ways, rounds=1 if tiny else 3)
            rows.append(Row(f"crop: {name}", n_crops / seconds["ours"], ">= 200", "crops a second and core"))
            ratio = seconds["SimpleITK"] / seconds["ours"]
            rows.append(Row(f"crop: {name}", ratio, ">= 1", "times SimpleITK's linear resampling"))
    return rows


def _peer(image: sitk.Image, indices: NDArray[np.float64], spec: CropSpec) -> Callable[[], object]:
    """The same crops by SimpleITK's linear resampling, on one thread, without the averaging of coarse crops."""
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    n_z, pitch_z = (spec.out_px, spec.mm_per_px) if spec.form == "cube" else (3, SPACING_MM[0])

    def crop_all() -> None:
        for index in indices:
            z, y, x = index * SPACING_MM
            grid = sitk.Image(spec.out_px, spec.out_px, n_z, sitk.sitkFloat32)
            grid.SetSpacing((spec.mm_per_px, spec.mm_per_px, pitch_z))
            half = (spec.out_px - 1) / 2 * spec.mm_per_px
            grid.SetOrigin((x - half, y - half, z - (n_z - 1) / 2 * pitch_z))
            sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, -1024.0))

    return crop_all
