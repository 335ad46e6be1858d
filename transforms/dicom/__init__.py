"""DICOM series to volumes in HU, or a refusal with its reason; the transforms are imported when first used."""

from typing import Any

_PUBLIC = ("LoadDicomSeries", "LoadDicomSeriesd", "SeriesRefusedError", "read_series")


def __getattr__(name: str) -> Any:
    """Load what `transforms` exports of this package, at its first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import transforms

    return getattr(transforms, name)
