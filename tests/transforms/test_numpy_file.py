"""Arrays with a description: read as they say, or refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transforms.numpy_file import read_numpy
from transforms.refusal import SeriesRefusedError

AFFINE = np.array([[0, 0, -0.7, 10], [0, -0.7, 0, 20], [2.5, 0, 0, -30], [0, 0, 0, 1.0]])
VOXELS = np.random.default_rng(0).integers(-1000, 400, (6, 12, 10)).astype(np.int16)
Change = Callable[[Path], object]


def written(folder: Path, voxels: np.ndarray = VOXELS, **changes: object) -> Path:
    np.save(folder / "v.npy", voxels)
    (folder / "v.json").write_text(
        json.dumps({"affine_ras": AFFINE.ravel().tolist(), "unit": "HU", **changes})
    )
    return folder / "v.npy"


@pytest.mark.parametrize("kind", [np.int16, ">i2", np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_is_read_in_whatever_type_and_order(kind: type, order: str, tmp_path: Path) -> None:
    volume = read_numpy(written(tmp_path, np.asarray(VOXELS.astype(kind), order=order)))
    np.testing.assert_array_equal(volume.volume_hu, VOXELS)
    np.testing.assert_allclose(volume.affine_ras, AFFINE)
    assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.7))


def test_axes_are_turned_as_the_affine_says(tmp_path: Path) -> None:
    turned = AFFINE[:, [2, 1, 0, 3]].copy()
    volume = read_numpy(written(tmp_path, VOXELS.transpose(2, 1, 0), affine_ras=turned.tolist()))
    np.testing.assert_array_equal(volume.volume_hu, VOXELS)


NUMBERS = "'descr': '<i2', 'fortran_order': False"
HOSTILE = (f"{{{NUMBERS}, 'shape': (-8, 8, 4)}}", f"{{{NUMBERS}, 'shape': (True, 8, 4)}}", "(" * 3000)


def stating(header: str) -> Change:
    length = struct.pack("<H", len(header) + 1)
    content = b"\x93NUMPY\x01\x00" + length + header.encode() + b"\n" + bytes(512)
    return lambda path: path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.with_suffix(".json").unlink(), "without a description"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is no JSON with affine_ras"),
        (lambda path: path.with_suffix(".json").write_text("[" * 100_000), "is no JSON with affine_ras"),
        (lambda path: written(path.parent, affine_ras=[1, 2, 3]), "is no JSON with affine_ras"),
        (lambda path: written(path.parent, affine_ras=None), "is no JSON with affine_ras"),
        (lambda path: written(path.parent, affine_ras=np.ones((4, 4)).tolist()), "the row 0 0 0 1"),
        (lambda path: written(path.parent, affine_ras=np.diag([9, 99, 1, 1]).tolist()), "no CT of people"),
        (
            lambda path: written(path.parent, affine_ras=np.diag([float("nan"), 1, 1, 1]).tolist()),
            "not finite",
        ),
        (lambda path: written(path.parent, unit="stored"), "its unit is not HU"),
        (lambda path: written(path.parent, VOXELS[0]), "not one three-dimensional volume"),
        (lambda path: written(path.parent, VOXELS.astype(complex)), "not single numbers"),
        (lambda path: written(path.parent, VOXELS.astype(object)), "not a NumPy file of numbers"),
        (lambda path: written(path.parent, VOXELS * 0), "zeros throughout"),
        (lambda path: written(path.parent, VOXELS + 1200), "no value lies below"),
        (cut, "not a NumPy file of numbers"),
        (lambda path: path.write_bytes(path.read_bytes() + b"00"), "not as many as its header says"),
        (lambda path: path.write_bytes(b"text"), "not a NumPy file of numbers"),
        (lambda path: path.write_bytes(b""), "not a NumPy file of numbers"),
        (lambda path: written(path.parent, affine_ras=[10**400] * 16), "is no JSON with affine_ras"),
        *((stating(header), "not a NumPy file of numbers") for header in HOSTILE),
    ],
)
def test_an_array_that_cannot_be_is_refused_with_its_reason(
    change: Change, reason: str, tmp_path: Path
) -> None:
    path = written(tmp_path)
    change(path)
    with pytest.raises(SeriesRefusedError, match=reason):
        read_numpy(path)
