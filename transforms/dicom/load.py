"""MONAI transforms that load a CT series from DICOM: volume in HU, geometry from positions, or a refusal."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform

from transforms.dicom.series import CtSeries, read_series
from transforms.dicom.tree import find_series
from transforms.meta_volume import meta_volume
from transforms.refusal import SeriesRefusedError, refuse_if

__all__ = ["CtSeries", "LoadDicomSeries", "LoadDicomSeriesd", "SeriesRefusedError", "read_series"]

Source = str | Path | Sequence[str | Path]


class LoadDicomSeries(Transform):
    """Load one CT series as a MetaTensor (1, Z, Y, X), int16 HU, z toward the head.

    Its affine takes the tensor's own order (z, y, x) to RAS mm, so MONAI's Orientationd and Spacingd hold on it.
    `meta` also carries spacing_mm, series_uid, study_uid, patient_id and n_padding_voxels, and as text (so that any two
    volumes make one batch) notes, gaps and slice_offsets_mm, which `VolumeGeometry.from_meta` reads.
    """

    def __init__(self, series_uid: str | None = None, allow_gaps: bool = False) -> None:
        """Configure which series is taken.

        Args:
            series_uid: The series to take where a folder holds several; None takes the only one.
            allow_gaps: Load series with missing slices too. One affine is wrong beyond a gap; `gaps` and
                `slice_offsets_mm` in `meta` then say where each slice lies.
        """
        self.series_uid = series_uid
        self.allow_gaps = allow_gaps

    def __call__(self, source: Source) -> MetaTensor:
        """Load from a folder, searched through all levels, or from the files of a series.

        Raises:
            SeriesRefusedError: If there is not exactly one series, or it cannot be read.
            TransformError: If there is no such folder.
        """
        series = read_series(self._files(source))
        refuse_if(
            series.gaps and not self.allow_gaps,
            f"slices are missing at {len(series.gaps)} place(s), so one affine cannot place all of them; "
            "load with allow_gaps=True and use slice_offsets_mm",
        )
        meta = {
            "spacing_mm": series.spacing_mm,
            "series_uid": series.series_uid,
            "study_uid": series.study_uid,
            "patient_id": series.patient_id,
            "n_padding_voxels": series.n_padding_voxels,
            "notes": "; ".join(series.notes),
        }
        return meta_volume(series.volume_hu, series.geometry, meta)

    def _files(self, source: Source) -> list[Path]:
        if not isinstance(source, str | Path):
            return [Path(file) for file in source]
        if Path(source).is_file():
            return [Path(source)]
        found = find_series(Path(source))
        if self.series_uid is not None:
            refuse_if(
                self.series_uid not in found.series,
                f"no CT series {self.series_uid} in that folder ({len(found.series)} others are)",
            )
            return found.series[self.series_uid]
        if len(found.series) != 1:
            reasons = sorted({refusal.reason for refusal in found.refused})[:3]
            raise SeriesRefusedError(
                f"the folder holds {len(found.series)} CT series where one is expected; name one by series_uid"
                + (f" (refused: {'; '.join(reasons)})" if reasons and not found.series else "")
            )
        return next(iter(found.series.values()))


class LoadDicomSeriesd(MapTransform):
    """Dictionary form of `LoadDicomSeries`: each key holds a folder or the files of a series."""

    def __init__(
        self,
        keys: KeysCollection,
        series_uid: str | None = None,
        allow_gaps: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        """Configure; see `LoadDicomSeries`."""
        super().__init__(keys, allow_missing_keys)
        self.load = LoadDicomSeries(series_uid, allow_gaps)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace each key's folder or files by its volume."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            loaded[key] = self.load(loaded[key])
        return loaded
