"""DICOM and MetaImage -> HU: one series of 240 slices, against other ways to read it into the same voxels."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from monai.data.image_reader import PydicomReader
from numpy.typing import NDArray

from benchmarks.timing import ROUNDS, Row, median_cpu_seconds
from pipelines.phantom.dicom import PADDING_STORED, SeriesHeader, write_series
from transforms.dicom.series import read_series
from transforms.metaimage import read_metaimage

SHAPE = (240, 512, 512)
PADDING_HU = PADDING_STORED - 1024


def measure(tiny: bool = False) -> list[Row]:
    """Time reading the series in four ways that agree voxel by voxel."""
    with TemporaryDirectory(prefix="dinox-bench-") as folder:
        files = _write(Path(folder) / "series", (6, 64, 64) if tiny else SHAPE)
        ways: dict[str, Callable[[], NDArray[Any]]] = {
            "ours": lambda: read_series(files).volume_hu,
            "plain": lambda: _plain_pydicom(files),
            "SimpleITK": lambda: _simpleitk(files[0].parent),
            "MONAI": lambda: _monai(files[0].parent),
        }
        expected = ways["ours"]()
        for name in ("plain", "SimpleITK", "MONAI"):
            voxels = ways[name]()
            voxels = np.where(voxels == PADDING_HU, -1024, voxels)  # only our reader handles padding
            if not np.array_equal(voxels, expected):
                raise AssertionError(f"{name} reads other voxels")
            del voxels
        seconds = median_cpu_seconds(ways, rounds=1 if tiny else ROUNDS)
        metaimage = _metaimage(Path(folder), expected[: len(expected) // 2], tiny)
    ours = seconds["ours"]
    shown = f"{ours / len(files) * 1e3:.2f} ms a slice"
    return [
        Row(
            "DICOM -> HU, 240 slices",
            seconds["plain"] / ours,
            ">= 3",
            f"times plain two-pass pydicom ({shown})",
        ),
        Row(
            "DICOM -> HU, 240 slices", seconds["SimpleITK"] / ours, ">= 1", "times SimpleITK's series reader"
        ),
        Row("DICOM -> HU, 240 slices", seconds["MONAI"] / ours, ">= 1", "times MONAI's PydicomReader"),
        *metaimage,
    ]


def _metaimage(folder: Path, volume_hu: NDArray[np.int16], tiny: bool) -> list[Row]:
    image = SimpleITK.GetImageFromArray(volume_hu)
    image.SetSpacing((0.7, 0.7, 1.25))
    return [_metaimage_row(folder / f"{name}.mha", image, tiny) for name in ("uncompressed", "compressed")]


def _metaimage_row(path: Path, image: SimpleITK.Image, tiny: bool) -> Row:
    SimpleITK.WriteImage(image, path, useCompression=path.stem == "compressed")
    ways: dict[str, Callable[[], NDArray[Any]]] = {
        "ours": lambda: read_metaimage(path).volume_hu,
        "SimpleITK": lambda: np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))),
    }
    if not np.array_equal(ways["ours"](), ways["SimpleITK"]()):
        raise AssertionError("SimpleITK reads other voxels")
    seconds = median_cpu_seconds(ways, rounds=1 if tiny else ROUNDS)
    ratio = seconds["SimpleITK"] / seconds["ours"]
    return Row(f"MetaImage -> HU, {path.stem}, 120 slices", ratio, ">= 1", "times SimpleITK")


def _write(folder: Path, shape: tuple[int, int, int]) -> list[Path]:
    rng = np.random.default_rng(0)
    volume_hu = rng.integers(-1000, 1000, shape).astype(np.int16)
    header = SeriesHeader(
        key="benchmark",
        patient_id="BENCHMARK",
        flavour="ge",
        spacing_mm=(1.25, 0.7, 0.7),
        slice_thickness_mm=1.25,
        first_voxel_lps_mm=(-180.0, -180.0, -300.0),
    )
    write_series(folder, header, volume_hu, rng)
    return sorted(folder.iterdir())


def _plain_pydicom(files: list[Path]) -> NDArray[np.float32]:
    """Header pass, then pixel pass, with a float32 rescale: how most programs do it."""
    headers = [(pydicom.dcmread(file, stop_before_pixels=True), file) for file in files]
    headers.sort(key=lambda one: float(one[0].ImagePositionPatient[2]))
    slices = []
    for _, file in headers:
        dataset = pydicom.dcmread(file)
        slope, intercept = (np.float32(dataset.RescaleSlope), np.float32(dataset.RescaleIntercept))
        slices.append(dataset.pixel_array.astype(np.float32) * slope + intercept)
    return np.stack(slices)


def _simpleitk(folder: Path) -> NDArray[Any]:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return np.asarray(SimpleITK.GetArrayFromImage(reader.Execute()))


def _monai(folder: Path) -> NDArray[Any]:
    reader = PydicomReader()
    voxels, _ = reader.get_data(reader.read(str(folder)))
    return np.asarray(voxels).transpose(2, 1, 0)[::-1]  # GE numbers its slices from the head


def main() -> None:
    """Print the rows."""
    for line in measure():
        print(f"{line.name}: {line.ratio:.2f} {line.unit}, target {line.target}")


if __name__ == "__main__":
    main()
