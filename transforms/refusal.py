"""How files and series are turned away: each with its reason in words."""

from dataclasses import dataclass
from pathlib import Path

NO_AIR_ABOVE_HU = -200
"""CT of a chest holds air and lung: without any value below this it is a mask, no chest, or not in HU."""


class SeriesRefusedError(ValueError):
    """A series, or a file of it, that cannot be turned into a right HU volume.

    The reason is one sentence a radiology engineer can act on. It holds numbers and DICOM names only, never text
    copied out of a header, because it is stored and logged.
    """

    def __init__(self, reason: str, series_uid: str = "") -> None:
        """Keep the reason, and the series it is about where that is known."""
        super().__init__(reason)
        self.reason = reason
        self.series_uid = series_uid

    def __reduce__(self) -> tuple[type["SeriesRefusedError"], tuple[str, str]]:
        """Travel between processes with both fields."""
        return type(self), (self.reason, self.series_uid)


@dataclass(frozen=True, slots=True)
class RefusedFile:
    """A file that belongs to no volume that can be read; `series_uid` is "" where it is not known."""

    path: Path
    series_uid: str
    reason: str
