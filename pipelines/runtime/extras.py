"""Packages that only some uses need: imported when needed; a missing one is reported in one sentence."""

import importlib
from typing import Any

from transforms.refusal import Refusal


class MissingPackageError(Refusal):
    """A package of an optional extra is not installed."""


def load_extra(module: str, extra: str) -> Any:
    """Import a package of an optional extra of this project.

    Raises:
        MissingPackageError: If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise MissingPackageError(
            f"this needs the package {error.name}; install it with pip install -e '.[{extra}]'"
        ) from error
