"""Errors raised on purpose for requests that cannot be fulfilled: `Refusal`, and those of CT files and series.

The user can correct the cause of a refusal, and its message says how. Every other exception is a bug: it is not caught
and ends with its traceback. This module imports nothing, so that every package may build its own refusals on it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

NO_AIR_ABOVE_HU = -200
"""CT of a chest holds air and lung: without any value below this it is a mask, no chest, or not in HU."""


class Refusal(Exception):
    """A request that is not possible; the message is one sentence: what was given, why it fails, what would be right.

    It is no ValueError, because numpy, torch and pandas raise those for bugs.

    Attributes:
        exit_code: Of a command that ends with it.
    """

    exit_code: ClassVar[int] = 2


def number_of(count: int, noun: str) -> str:
    """Return a count with its noun as a sentence has it: 1 patient, 2 patients, 3 series."""
    return f"{count} {noun}{'' if count == 1 or noun.endswith('s') else 's'}"


class SeriesRefusedError(Refusal):
    """A series, or a file of it, that cannot be turned into a valid HU volume.

    The reason is one sentence a radiology engineer can act on. It holds numbers and DICOM names only, never text
    copied out of a header, because it is stored and logged.
    """

    def __init__(self, reason: str, series_uid: str = "") -> None:
        """Keep the reason, and the series it is about where that is known."""
        super().__init__(reason)
        self.reason = reason
        self.series_uid = series_uid

    def __reduce__(self) -> tuple[type["SeriesRefusedError"], tuple[str, str]]:
        """Pickle both fields."""
        return type(self), (self.reason, self.series_uid)


def refuse_if(is_wrong: object, reason: str) -> None:
    """Refuse a series or a file if something is wrong with it.

    Raises:
        SeriesRefusedError: With this reason.
    """
    if is_wrong:
        raise SeriesRefusedError(reason)


class NoImageError(SeriesRefusedError):
    """A file of no format that holds images."""


class TransformError(Refusal):
    """A transform got input that it cannot use (a wrong shape, no affine), or invalid settings."""


class NoCropError(Refusal):
    """A nodule has no crop as asked: its center lies outside the volume, the crop would reach across a gap, ...

    Attributes:
        kind: The reason in a few words without numbers, by which nodules that are left out are counted.
    """

    def __init__(self, kind: str, sentence: str) -> None:
        """Keep the kind beside the sentence."""
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that belongs to no volume that can be read; `series_uid` is "" where it is not known.

    `is_image` is false where the file is of no format that holds images: a text, a table, a program.
    """

    path: Path
    series_uid: str
    reason: str
    is_image: bool = True
