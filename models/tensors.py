"""Named tensors compared: what makes two states those of different architectures."""

from collections.abc import Mapping

from torch import Tensor


def differing(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return the names, sorted, that only one of two states has, or that have another shape."""
    return sorted(
        name
        for name in own.keys() | given.keys()
        if name not in own or name not in given or own[name].shape != given[name].shape
    )
