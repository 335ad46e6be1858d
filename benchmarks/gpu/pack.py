"""Make a cohort small enough to carry: `python -m benchmarks.gpu.pack --cohort C --out FILE.tar.xz`.

Patches are cut to their middle in the plane, whole series to their middle slices; voxels that stay are not changed. The
file is an ordinary archive (`tar xf FILE`): xz takes the difference of neighboring voxels first.
"""

import argparse
import lzma
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort, CohortWriter, write_volume
from pipelines.cohort.tables import ANNOTATIONS, REFUSED, empty_table
from pipelines.runtime.progress import progress

_FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_DELTA, "dist": 2},  # Bytes of one int16.
    {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 1, "pb": 1},
]


def pack(source: Path, target: Path, side_mm: float, slices: int) -> int:
    """Write the smaller cohort as an archive; return how many volumes it holds.

    Args:
        source: A cohort.
        target: Archive to write, .tar.xz.
        side_mm: Side of patches in the plane.
        slices: Slices of each whole series, about its middle.

    Raises:
        CohortError: If `source` is no cohort.
    """
    cohort = Cohort.open(source)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "cohort"
        writer = CohortWriter(root)
        kept = []
        for row in progress(cohort.series.to_dict("records"), desc="volumes", unit="volume"):
            if len(row["gaps"]) or len(row["slice_offsets_mm"]):
                print(f"left out, its slices are not evenly spaced: {row['volume_id']}")
                continue
            changed, volume = smaller(row, cohort.volume(row["volume_id"]), side_mm, slices)
            write_volume(root, changed, volume)
            kept.append(row["volume_id"])
        nodules = cohort.nodules[cohort.nodules["volume_id"].isin(kept)]
        writer.write_tables(empty_table(ANNOTATIONS), nodules, empty_table(REFUSED), "packed")
        writer.close()
        with lzma.open(target, "wb", format=lzma.FORMAT_XZ, filters=_FILTERS) as file:
            with tarfile.open(fileobj=file, mode="w") as archive:
                archive.add(root, arcname=target.name.removesuffix(".tar.xz"))
    return len(kept)


def smaller(
    row: dict[Any, Any], volume_hu: NDArray[np.int16], side_mm: float, slices: int
) -> tuple[dict[str, Any], NDArray[np.int16]]:
    """Cut a volume about its middle; places in mm stay true, since its affine moves with its first voxel."""
    sizes = volume_hu.shape
    spacing_mm = [float(one) for one in row["spacing_mm"]]
    if row["kind"] == "patch":
        wanted = [sizes[0], *(int(np.ceil(side_mm / one)) for one in spacing_mm[1:])]
    else:
        wanted = [slices, *sizes[1:]]
    kept = [min(size, want) for size, want in zip(sizes, wanted, strict=True)]
    first = [(size - keep) // 2 for size, keep in zip(sizes, kept, strict=True)]
    cut = volume_hu[tuple(slice(start, start + keep) for start, keep in zip(first, kept, strict=True))]
    affine = np.array(row["affine_ras"], dtype=np.float64).reshape(4, 4)
    affine[:3, 3] += affine[:3, :3] @ np.array(first)
    lists = {"spacing_mm": spacing_mm, "gaps": [], "slice_offsets_mm": []}
    changed: dict[str, Any] = {str(name): value for name, value in row.items()}
    if not np.isfinite(changed["slice_thickness_mm"]):
        changed["slice_thickness_mm"] = None  # As the row of a volume says unknown.
    return changed | lists | {"affine_ras": affine.ravel().tolist()}, np.ascontiguousarray(cut)


def main(words: list[str]) -> int:
    """Pack one cohort and say how large it became."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=__doc__)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="archive to write, .tar.xz")
    parser.add_argument("--side-mm", type=float, default=48.0, help="side of patches in the plane")
    parser.add_argument("--slices", type=int, default=24, help="slices of each whole series")
    options = parser.parse_args(words)
    count = pack(options.cohort, options.out, options.side_mm, options.slices)
    print(f"{options.out}: {count} volumes, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
