"""JSON files that this program wrote and that may have been damaged since."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transforms.refusal import Refusal


class DamagedFileError(Refusal):
    """A file is damaged: it no longer holds what this program wrote."""


def read_json(path: Path, keys: Collection[str], remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        keys: Required keys.
        remedy: What to do about a damaged file; the end of the error message.

    Raises:
        FileNotFoundError: If the file does not exist.
        DamagedFileError: If it is damaged, or cannot be read.
    """
    try:
        tree = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:  # ValueError: neither JSON nor UTF-8.
        raise DamagedFileError(f"{path} is damaged or cannot be read; {remedy}") from error
    missing = [key for key in keys if key not in tree] if isinstance(tree, dict) else ["object"]
    if missing:
        raise DamagedFileError(f"{path} is damaged: it holds no {missing[0]}; {remedy}")
    return dict(tree)
