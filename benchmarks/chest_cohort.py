"""The slices that the view and loader benchmarks read: one cohort, and the same slices as 16-bit PNG."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.cohort.folder import Cohort, CohortWriter, write_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, empty_table
from pipelines.phantom.anatomy import NOISE_HU, Thorax, chest_hu, grow_vessels
from pipelines.phantom.shapes import Grid

N_VOLUMES, SHAPE, SPACING_MM = 2, (48, 512, 512), (1.25, 0.34, 0.34)
TINY_SHAPE = (26, 96, 96)
PNG_OFFSET = 32768


@dataclass(frozen=True)
class ChestCohort:
    """A cohort of synthetic chests, and its slices as PNG in the order of the index."""

    index: SliceIndex
    png_paths: list[Path]
    shape: tuple[int, int, int]
    folder: TemporaryDirectory[str]  # removed when the process ends

    @property
    def slice_px(self) -> tuple[int, int]:
        """Rows and columns of a slice."""
        return self.shape[1:]

    def volume(self, row: int) -> tuple[NDArray[np.int16], int]:
        """The mapped volume and the slice index of one row of the index."""
        volume_id = self.index.volume_ids[self.index.volume[row]]
        return self.index.cohort.volume(volume_id), int(self.index.z[row])

    def inner_rows(self) -> NDArray[np.int64]:
        """Rows whose neighbors both exist."""
        return np.flatnonzero((self.index.z > 0) & (self.index.z < self.shape[0] - 1))


@cache
def chest_cohort(tiny: bool = False) -> ChestCohort:
    """Make the cohort once per process, about 200 MB on disk, all of it in the page cache afterwards."""
    shape = TINY_SHAPE if tiny else SHAPE
    folder = TemporaryDirectory(prefix="dinox-bench-")
    root = Path(folder.name)
    writer = CohortWriter(root / "cohort")
    png_paths = []
    for number in range(N_VOLUMES):
        volume_hu = _chest(number, shape)
        write_volume(writer.root, _series_row(f"chest-{number}"), volume_hu)
        for z, slice_hu in enumerate(volume_hu):
            png_paths.append(root / f"{number}-{z:03d}.png")
            Image.fromarray((slice_hu.astype(np.int32) + PNG_OFFSET).astype(np.uint16)).save(png_paths[-1])
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), "benchmark")
    writer.close()
    cohort = Cohort.open(root / "cohort")
    return ChestCohort(SliceIndex(cohort, list(cohort.series["patient_id"])), png_paths, shape, folder)


def _chest(seed: int, shape: tuple[int, int, int]) -> NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    grid = Grid(shape, SPACING_MM)
    thorax = Thorax.draw(rng, grid)
    volume = chest_hu(grid, thorax, grow_vessels(thorax, rng), rng)
    volume += np.float32(NOISE_HU) * rng.standard_normal(volume.shape, dtype=np.float32)
    return np.rint(volume).astype(np.int16)


def _series_row(name: str) -> dict[str, object]:
    affine = np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]]
    return {
        "volume_id": name,
        "patient_id": name,
        "study_uid": name,
        "series_uid": name,
        "spacing_mm": list(SPACING_MM),
        "affine_ras": affine.ravel().tolist(),
        "gaps": [],
        "slice_offsets_mm": [],
        "manufacturer": "",
        "kernel": "",
        "slice_thickness_mm": SPACING_MM[0],
        "transfer_syntax": "",
        "is_lossy": False,
        "n_padding_voxels": 0,
        "kind": "series",
        "notes": "",
    }
