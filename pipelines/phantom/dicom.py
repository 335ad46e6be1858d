"""Writes an HU volume as a CT series in the style of two manufacturers: real DICOM, one file per slice.

GE-like: signed pixels, intercept -1024, and PixelPaddingValue -2000 outside the circular field of view. Philips-like:
12 bits unsigned, intercept -1000. File names do not follow the order of the slices, as in real archives.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

Flavour = Literal["ge", "philips"]
PADDING_STORED = -2000


def phantom_uid(*names: object) -> UID:
    """A UID under 2.25 (ITU-T X.667, UUID-derived) that is the same for the same names."""
    digest = hashlib.sha256("|".join(["dinox-ct phantom", *map(str, names)]).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesHeader:
    """Header values of a series."""

    key: str
    """Identifies the series; every UID is a hash of it."""
    patient_id: str
    flavour: Flavour
    spacing_mm: tuple[float, float, float]
    slice_thickness_mm: float
    first_voxel_lps_mm: tuple[float, float, float]
    personal: dict[str, str] = field(default_factory=dict)
    """Further header elements by keyword, for the one patient whose headers are personal."""

    @property
    def study_uid(self) -> UID:
        """StudyInstanceUID."""
        return phantom_uid(self.key, "study")

    @property
    def series_uid(self) -> UID:
        """SeriesInstanceUID."""
        return phantom_uid(self.key, "series")


def write_series(
    folder: Path, header: SeriesHeader, volume_hu: NDArray[np.int16], rng: np.random.Generator
) -> None:
    """Write one file per slice of `volume_hu` (Z, Y, X; z toward the head) into a new folder."""
    folder.mkdir(parents=True)
    stored = _stored_pixels(volume_hu, header)
    dataset = _series_dataset(header, volume_hu.shape[1:])
    n_slices = volume_hu.shape[0]
    x, y, z = header.first_voxel_lps_mm
    for index, file_number in enumerate(rng.permutation(n_slices)):
        height = z + index * header.spacing_mm[0]
        dataset.SOPInstanceUID = phantom_uid(header.key, "slice", index)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = n_slices - index if header.flavour == "ge" else index + 1
        dataset.ImagePositionPatient = [f"{x:.4f}", f"{y:.4f}", f"{height:.4f}"]
        dataset.SliceLocation = f"{height:.4f}"
        dataset.PixelData = stored[index].tobytes()
        dcmwrite(folder / f"1-{file_number + 1:03d}.dcm", dataset, enforce_file_format=True)


def _stored_pixels(volume_hu: NDArray[np.int16], header: SeriesHeader) -> NDArray[np.generic]:
    if header.flavour == "philips":
        return np.clip(volume_hu.astype(np.int32) + 1000, 0, 4095).astype("<u2")
    stored = (np.clip(volume_hu, -1024, 3071).astype(np.int32) + 1024).astype("<i2")
    _, rows, columns = volume_hu.shape
    y, x = np.mgrid[:rows, :columns] - np.array([rows - 1, columns - 1]).reshape(2, 1, 1) / 2
    stored[:, np.hypot(y, x) > min(rows, columns) / 2] = PADDING_STORED
    return stored


def _series_dataset(header: SeriesHeader, shape: tuple[int, ...]) -> Dataset:
    """Everything that the slices of a series share (PS3.3 A.3 CT Image IOD)."""
    is_ge = header.flavour == "ge"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    meta = {
        "MediaStorageSOPClassUID": CTImageStorage,
        "TransferSyntaxUID": ExplicitVRLittleEndian if is_ge else ImplicitVRLittleEndian,
        "ImplementationClassUID": phantom_uid("implementation"),
        "ImplementationVersionName": "DINOX_PHANTOM",
    }
    elements: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Modality": "CT",
        "Manufacturer": "GE MEDICAL SYSTEMS" if is_ge else "Philips",
        "ManufacturerModelName": "Phantom",
        "PatientName": header.patient_id,
        "PatientID": header.patient_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "AccessionNumber": "",
        "StudyDate": "20000101",
        "StudyTime": "000000",
        "ReferringPhysicianName": "",
        "StudyID": "",
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        "ConvolutionKernel": "STANDARD" if is_ge else "B",
        "KVP": "120",
        "StudyInstanceUID": header.study_uid,
        "SeriesInstanceUID": header.series_uid,
        "FrameOfReferenceUID": phantom_uid(header.key, "frame"),
        "PositionReferenceIndicator": "",
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [f"{header.spacing_mm[1]:.6g}", f"{header.spacing_mm[2]:.6g}"],
        "SliceThickness": f"{header.slice_thickness_mm:.6g}",
        "Rows": shape[0],
        "Columns": shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16 if is_ge else 12,
        "HighBit": 15 if is_ge else 11,
        "PixelRepresentation": 1 if is_ge else 0,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024 if is_ge else -1000,
        "RescaleType": "HU",
        "WindowCenter": -600,
        "WindowWidth": 1500,
        **({"PixelPaddingValue": PADDING_STORED} if is_ge else {}),
        **header.personal,
    }
    for part, values in ((dataset.file_meta, meta), (dataset, elements)):
        for keyword, value in values.items():
            setattr(part, keyword, value)
    return dataset
