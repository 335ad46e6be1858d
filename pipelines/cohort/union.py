"""Several cohorts as one: `cohort=a,b` of a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import CohortError


def cohort_roots(text: str) -> list[Path]:
    """The folders that an option names, with commas between; a folder may have a comma in its own name."""
    return (
        [Path(text)] if Path(text).is_dir() else [Path(one.strip()) for one in text.split(",") if one.strip()]
    )


def open_cohorts(text: str) -> Cohort:
    """Open the one cohort, or several as one.

    Raises:
        CohortError: If one of them cannot be opened, or two hold different volumes under one id.
    """
    cohorts = [Cohort.open(root) for root in cohort_roots(text)]
    return cohorts[0] if len(cohorts) == 1 else CohortUnion(cohorts)


class CohortUnion(Cohort):
    """Cohorts as one; a volume that is in several counts as the first one's.

    Attributes:
        parts: The cohorts.
    """

    def __init__(self, parts: Sequence[Cohort]) -> None:
        """Join their tables."""
        self.parts = list(parts)
        self.root = Path(",".join(str(one.root) for one in parts))
        self._mapped: dict[tuple[str, str], NDArray[Any]] = {}
        self._part_of: dict[str, int] = {}
        sha_of: dict[str, str] = {}
        for number, part in enumerate(parts):
            for volume_id, sha256 in zip(part.series["volume_id"], part.series["sha256"], strict=True):
                if sha_of.setdefault(volume_id, sha256) != sha256:
                    raise CohortError(
                        f"cohorts {parts[self._part_of[volume_id]].root} and {part.root} hold different volumes under "
                        "one id; prepare them again from one source"
                    )
                self._part_of.setdefault(volume_id, number)
        self.series, self.annotations, self.nodules = (
            self._joined(name) for name in ("series", "annotations", "nodules")
        )
        self.refused = pd.concat([part.refused for part in parts], ignore_index=True)

    def part_of(self, volume_ids: Sequence[str]) -> NDArray[np.int64]:
        """Number of the cohort of each volume."""
        return np.array([self._part_of[one] for one in volume_ids], dtype=np.int64)

    def _joined(self, table: str) -> pd.DataFrame:
        frames = []
        for number, part in enumerate(self.parts):
            frame: pd.DataFrame = getattr(part, table)
            is_own = [self._part_of.get(str(one)) == number for one in frame["volume_id"]]
            frames.append(frame[np.array(is_own, dtype=bool)])
        filled = [frame for frame in frames if len(frame)] or frames[:1]
        return pd.concat(filled, ignore_index=True).sort_values("volume_id", kind="stable", ignore_index=True)

    def _map(self, folder: str, volume_id: str) -> Any:
        mapped = self._mapped.get((folder, volume_id))
        if mapped is None:
            part = self.parts[self._part_of[volume_id]]
            mapped = part.body(volume_id) if folder == "body" else part.volume(volume_id)
            self._mapped[folder, volume_id] = mapped
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for loader processes without the mapped voxels."""
        return {**self.__dict__, "_mapped": {}}
