"""Fixtures for the tests of every package: one sphere of known size, one small phantom source, and real CT if named."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.phantom.shapes import Grid, sphere_coverage
from pipelines.phantom.source import write_phantom
from pipelines.runtime.atomic import exclusively
from tests.phantom_questions import paint
from tests.processes import OpenProcess, opening_processes

# Examples may take any time: a busy machine is no finding.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@dataclass(frozen=True)
class PhantomSphere:
    """A 10 mm sphere in a cylinder of tissue in air; its place and size are known, in mm."""

    volume_hu: np.ndarray  # int16 (Z, Y, X), z toward the head
    spacing_mm: tuple[float, float, float]
    affine_ras: np.ndarray  # (z, y, x, 1) -> RAS mm
    center_lps_mm: tuple[float, float, float]
    center_index_zyx: tuple[float, float, float]
    diameter_mm: float
    air_hu: int = -1000
    tissue_hu: int = -100
    sphere_hu: int = 300


@pytest.fixture(scope="session")
def phantom_sphere() -> PhantomSphere:
    shape, spacing = (16, 96, 80), (2.5, 0.7, 0.7)
    first_voxel_lps, diameter = (-31.5, -150.25, -90.0), 10.0
    index = (7.4, 40.2, 45.7)
    center_mm = np.multiply(index, spacing)
    volume = np.full(shape, -1000, dtype=np.float32)
    y, x = np.mgrid[: shape[1], : shape[2]] - np.array([47.5, 39.5]).reshape(2, 1, 1)
    volume[:, np.hypot(y, x) < 36] = -100
    box, coverage = sphere_coverage(Grid(shape, spacing), center_mm, diameter)
    paint(volume, box, coverage, 300)
    affine = np.eye(4)
    affine[:3, :3] = [[0, 0, -spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]]
    affine[:3, 3] = [-first_voxel_lps[0], -first_voxel_lps[1], first_voxel_lps[2]]
    return PhantomSphere(
        volume_hu=np.rint(volume).astype(np.int16),
        spacing_mm=spacing,
        affine_ras=affine,
        center_lps_mm=tuple(float(a + b) for a, b in zip(first_voxel_lps, center_mm[::-1], strict=True)),
        center_index_zyx=index,
        diameter_mm=diameter,
    )


MakeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """A maker of folders that all processes of this session share: whoever asks first fills it; read only."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with exclusively(shared / f"{name}.lock"):
            if not done.exists():
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def small_phantom_source(make_once: MakeOnce) -> Path:
    """A folder of DICOM series: six patients, the second with personal headers; read only, shared by all tests."""
    return make_once(
        "small_source", lambda root: write_phantom(root, n_patients=6, size_px=64, height_mm=30.0, workers=1)
    )


@pytest.fixture
def open_process() -> Iterator[OpenProcess]:
    """A `subprocess.Popen` whose processes are killed, with their children, and waited for when the test ends."""
    with opening_processes() as start:
        yield start


class HostCopies(TorchDispatchMode):
    """Whether each copy from the host to a GPU was waited for, and what was pinned; fake tensors will do."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waited_for: list[bool] = []
        self.pinned: list[torch.Size] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and str(kwargs.get("device")).startswith("cuda"):
            self.is_waited_for.append(not kwargs.get("non_blocking", False))
        return function(*args, **kwargs)


@pytest.fixture
def host_copies(monkeypatch: pytest.MonkeyPatch) -> HostCopies:
    """A mode that notes copies to a GPU, on a machine that need not have one."""
    copies = HostCopies()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda host: copies.pinned.append(host.shape) or host)
    return copies


@pytest.fixture(scope="session")
def dinox_data() -> Path:
    """The folder of real CT that DINOX_DATA names."""
    named = os.environ.get("DINOX_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("DINOX_DATA names no folder of real CT")
    return Path(named)


@pytest.fixture(scope="session")
def write_ct_series() -> Callable[..., list[Path]]:
    """A writer of small axial CT series, to be changed slice by slice into whatever a test needs."""
    return _write_ct_series


def _write_ct_series(
    folder: Path,
    n_slices: int = 5,
    change: Callable[[Dataset, int], None] = lambda dataset, index: None,
    series_uid: str = "1.2.3.4",
) -> list[Path]:
    """Write slices 2.5 mm apart, 12 x 16 pixels of 0.7 x 0.6 mm; `change` may alter each before it is written.

    Slice i, counted from the feet, holds HU from -1000 + 10 i upwards in steps of 7, stored signed with intercept
    -1024. `change` may set `dataset.file_meta.TransferSyntaxUID` to another uncompressed syntax.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(n_slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, f"{series_uid}.{index + 1}"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.ImageType, dataset.Modality = ["ORIGINAL", "PRIMARY", "AXIAL"], "CT"
        dataset.Manufacturer, dataset.ConvolutionKernel, dataset.SliceThickness = "ACME", "B30f", 2.5
        dataset.PatientID, dataset.StudyInstanceUID = "somebody", "1.2.3"
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = series_uid, f"{series_uid}.9"
        dataset.InstanceNumber = n_slices - index
        dataset.ImagePositionPatient = [-50.0, -40.0, -300.0 + 2.5 * index]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.Rows, dataset.Columns, dataset.PixelSpacing = 12, 16, [0.7, 0.6]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation, dataset.RescaleSlope, dataset.RescaleIntercept = 1, 1, -1024
        stored = np.arange(12 * 16, dtype="<i2") * 7 + 24 + 10 * index
        dataset.PixelData = stored.tobytes()
        change(dataset, index)
        files.append(folder / f"{(index * 3) % n_slices}-{index}.dcm")
        dcmwrite(files[-1], dataset, enforce_file_format=True, overwrite=True)
    return files
