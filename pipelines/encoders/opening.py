"""Encoders of cubes by name: `monai:LAYOUT:FILE`, `astra`, `python:MODULE:FUNCTION`."""

from pipelines.encoders import astra, monai_layouts, user_function
from pipelines.encoders.cube_encoder import CubeEncoder, EncoderError


def open_encoder(name: str) -> CubeEncoder:
    """Open an encoder of cubes.

    Raises:
        EncoderError: If there is no such encoder, or it cannot be opened.
        MissingPackageError: If it needs an extra that is not installed.
    """
    if name.startswith(monai_layouts.SCHEME):
        return monai_layouts.open_monai(name)
    if name == astra.NAME:
        return astra.open_astra()
    if name.startswith(user_function.SCHEME):
        return user_function.open_function(name)
    raise EncoderError(
        f"encoder={name} is none; write monai:LAYOUT:FILE ({', '.join(monai_layouts.LAYOUTS)}), {astra.NAME} or"
        " python:MODULE:FUNCTION; 2D networks are named by backbone="
    )
