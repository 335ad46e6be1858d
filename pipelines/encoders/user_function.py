"""`encoder=python:MODULE:FUNCTION`: an encoder of the user's own.

    def encode(hu, affine, center):  # of one nodule
        # hu: float32 (z, y, x), toward the head, the back and the patient's left; air (-1024) outside the scan
        # affine: (4, 4), from (z, y, x, 1) to RAS mm; center: (z, y, x) index of the nodule's center
        return my_network(hu)  # a vector (D,), or tokens (N, D), whose mean is taken
    encode.shape = (50, 50, 50)           # voxels of the cube (z, y, x), if others are wanted
    encode.spacing_mm = (1.0, 1.0, 1.0)   # and their sides in mm

MODULE is imported from the working directory or an installed package, because the user named it. Its features are
never kept on disk, since nothing here knows when the function or its weights change.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.encoders.cube_encoder import CubeEncoder, EncoderError, Floats
from transforms.nodule_cube import CubeSpec

SCHEME = "python:"


def open_function(name: str) -> CubeEncoder:
    """Import `python:MODULE:FUNCTION`.

    Raises:
        EncoderError: If there is no such module or function, or its `shape` or `spacing_mm` is not three numbers
            above 0.
    """
    module_name, _, function_name = name.removeprefix(SCHEME).partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name) if module_name and function_name else None
    except ModuleNotFoundError as error:
        if error.name not in (module_name, module_name.split(".")[0]):
            raise
        module = None
    function = getattr(module, function_name, None) if module is not None else None
    if not callable(function):
        raise EncoderError(
            f"encoder={name}: there is no such function in the working directory or an installed package; write"
            " python:MODULE:FUNCTION"
        )
    z, y, x = _three(name, "shape", getattr(function, "shape", (50, 50, 50)))
    spec = CubeSpec(
        shape=(int(z), int(y), int(x)),
        spacing_mm=_three(name, "spacing_mm", getattr(function, "spacing_mm", (1.0, 1.0, 1.0))),
    )
    return CubeEncoder(name, spec, _each(name, function), "")


def _three(name: str, what: str, given: Any) -> tuple[float, float, float]:
    is_three = isinstance(given, Sequence) and len(given) == 3
    if not is_three or not all(isinstance(one, int | float) and one > 0 for one in given):
        raise EncoderError(f"encoder={name}: {what} must be three numbers above 0 (z, y, x), got {given!r}")
    z, y, x = given
    return float(z), float(y), float(x)


def _each(name: str, function: Callable[..., Any]) -> Callable[[Floats, NDArray[np.float64]], NDArray[Any]]:
    """Call a function cube by cube; vectors of several lengths are refused."""

    def network(cubes_hu: Floats, affines_ras: NDArray[np.float64]) -> NDArray[Any]:
        center = tuple((length - 1) / 2 for length in cubes_hu.shape[1:])
        found = [
            _vector(name, function(hu.copy(), affine, center))
            for hu, affine in zip(cubes_hu, affines_ras, strict=True)
        ]
        lengths = sorted({len(one) for one in found})
        if len(lengths) > 1:
            raise EncoderError(
                f"encoder={name} gave vectors of {lengths[0]} and of {lengths[1]} numbers; an encoder always gives"
                " one length"
            )
        return np.stack(found)

    return network


def _vector(name: str, found: Any) -> NDArray[np.float64]:
    """One vector, the mean of tokens; also of a tensor of torch."""
    given = found.detach().cpu() if hasattr(found, "detach") else found
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise EncoderError(f"encoder={name} gave {type(found).__name__}, which holds no numbers") from error
    if values.ndim not in (1, 2) or not values.size:
        raise EncoderError(
            f"encoder={name} gave an array of shape {values.shape}; give a vector (D,) or tokens (N, D)"
        )
    return values if values.ndim == 1 else values.mean(axis=0)
