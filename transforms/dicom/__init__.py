"""DICOM series to volumes in HU, or a refusal with its reason; the transforms are imported when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.dicom.load import LoadDicomSeries as LoadDicomSeries
    from transforms.dicom.load import LoadDicomSeriesd as LoadDicomSeriesd


def __getattr__(name: str) -> Any:
    """Load MONAI's part of this package at its first use."""
    if name not in ("LoadDicomSeries", "LoadDicomSeriesd"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from transforms.dicom import load

    return getattr(load, name)
