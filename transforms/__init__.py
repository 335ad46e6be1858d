"""MONAI transforms: a DICOM folder, a NIfTI file or an HU volume in; HU volumes and model inputs out.

`from transforms import LoadDicomSeriesd` imports only what it needs: a submodule is loaded when one of its names is
first used, so that processes without MONAI save its 900 MB.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.dicom.load import LoadDicomSeries as LoadDicomSeries, LoadDicomSeriesd as LoadDicomSeriesd
    from transforms.dicom.series import CtSeries as CtSeries, read_series as read_series
    from transforms.hounsfield import (
        RandWindowHU as RandWindowHU,
        RandWindowHUd as RandWindowHUd,
        WindowHU as WindowHU,
        WindowHUd as WindowHUd,
    )
    from transforms.nodule import NoduleCrop as NoduleCrop, NoduleCropd as NoduleCropd
    from transforms.nodule_crop import CropSpec as CropSpec
    from transforms.refusal import (
        NoCropError as NoCropError,
        Refusal as Refusal,
        SeriesRefusedError as SeriesRefusedError,
        TransformError as TransformError,
    )
    from transforms.triplet import SliceTriplet as SliceTriplet, SliceTripletd as SliceTripletd
    from transforms.views.config import ViewConfig as ViewConfig
    from transforms.views.cube_crop import RandCube as RandCube, RandCubed as RandCubed
    from transforms.views.view_crop import RandViewCropd as RandViewCropd
    from transforms.window_policy import WindowConfig as WindowConfig

_MODULES = {
    "CropSpec": "nodule_crop",
    "CtSeries": "dicom.series",
    "LoadDicomSeries": "dicom.load",
    "LoadDicomSeriesd": "dicom.load",
    "NoCropError": "refusal",
    "NoduleCrop": "nodule",
    "NoduleCropd": "nodule",
    "RandCube": "views.cube_crop",
    "RandCubed": "views.cube_crop",
    "RandViewCropd": "views.view_crop",
    "RandWindowHU": "hounsfield",
    "RandWindowHUd": "hounsfield",
    "Refusal": "refusal",
    "SeriesRefusedError": "refusal",
    "SliceTriplet": "triplet",
    "SliceTripletd": "triplet",
    "TransformError": "refusal",
    "ViewConfig": "views.config",
    "WindowConfig": "window_policy",
    "WindowHU": "hounsfield",
    "WindowHUd": "hounsfield",
    "read_series": "dicom.series",
}

__all__ = sorted(_MODULES)  # one list of names, above


def __getattr__(name: str) -> Any:
    """Load the module that a public name is from, at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_MODULES})
