"""CT volumes one after another: from a folder as `prepare` reads it, from a cohort, or from memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai.data.meta_tensor import MetaTensor
from numpy.typing import NDArray

from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import Pseudonyms
from pipelines.ingest.config import FolderFormat
from pipelines.ingest.sources.dicom import DicomJob
from pipelines.ingest.sources.formats import find_jobs, read_job
from pipelines.ingest.sources.found import Job
from pipelines.phantom.source import drawn_ids, public_ids
from pipelines.runtime.parallel import available_cores
from pipelines.runtime.progress import progress
from transforms.dicom.load import LoadDicomSeries
from transforms.dicom.series import CtSeries
from transforms.geometry import VolumeGeometry
from transforms.refusal import RefusedFile, SeriesRefusedError, TransformError


@dataclass(frozen=True)
class CtVolume:
    """A volume in HU with its place in the patient.

    Attributes:
        volume_id: Its id; ids that are not public are replaced, as in a cohort.
        patient_id: As stored in a cohort; "" when not known.
        volume_hu: (Z, Y, X), z toward the head.
        geometry: Where its voxels lie.
    """

    volume_id: str
    patient_id: str
    volume_hu: NDArray[Any]
    geometry: VolumeGeometry

    @classmethod
    def from_row(cls, row: Mapping[str, Any], volume_hu: NDArray[Any]) -> "CtVolume":
        """Take a row of series.parquet and its voxels."""
        geometry = VolumeGeometry.from_row(row)
        return cls(str(row["volume_id"]), str(row["patient_id"]), volume_hu, geometry)

    @classmethod
    def from_memory(cls, volume: MetaTensor | CtSeries) -> "CtVolume":
        """Take what `LoadDicomSeries` or `read_series` returned; the patient's id is dropped.

        Raises:
            TransformError: If a MetaTensor is no volume (1, Z, Y, X).
        """
        if isinstance(volume, CtSeries):
            return cls(volume.series_uid, "", volume.volume_hu, volume.geometry)
        if volume.ndim != 4 or volume.shape[0] != 1:
            raise TransformError(f"a volume is a MetaTensor (1, Z, Y, X), got shape {tuple(volume.shape)}")
        geometry = VolumeGeometry.from_meta(volume.shape, volume.affine, volume.meta)
        series_uid = str(volume.meta.get("series_uid", ""))
        return cls(series_uid, "", volume.as_tensor()[0].cpu().numpy(), geometry)


class CtFolder:
    """The volumes of a folder of CT, or of a cohort, read one at a time and never all at once.

    Attributes:
        refused: Files and series that were refused; complete after the last volume.
    """

    def __init__(self, root: Path, folder_format: FolderFormat = "auto", keep_ids: bool = False) -> None:
        """Find the volumes of a folder.

        Raises:
            Refusal: If `root` is neither a cohort nor a folder of that format.
        """
        self.cohort = Cohort.open(root) if (root / "cohort.json").is_file() else None
        self.jobs: list[Job] = []
        self.refused: list[RefusedFile] = []
        if self.cohort is None:
            self._pseudonyms = Pseudonyms.of_user(public_ids(root), keep_ids, drawn_ids(root))
            found = find_jobs(folder_format, root, self._pseudonyms, None, available_cores())
            self.jobs, self.refused = found.jobs, found.refused

    def __iter__(self) -> Iterator[CtVolume]:
        """Read volume by volume; what is refused is added to `refused` and left out."""
        if self.cohort is not None:
            rows = self.cohort.series.to_dict("records")
            for named in progress(rows, desc="volumes", unit="volume"):
                row = {str(name): value for name, value in named.items()}
                yield CtVolume.from_row(row, self.cohort.volume(row["volume_id"]))
            return
        for job in progress(self.jobs, desc="volumes", unit="volume"):
            try:
                volume = self._read(job)
            except SeriesRefusedError as refusal:
                self.refused += [RefusedFile(path, job.series_uid, refusal.reason) for path in job.files]
            except OSError as error:
                reason = f"a file cannot be read ({error.strerror})"
                self.refused += [RefusedFile(path, job.series_uid, reason) for path in job.files]
            else:
                yield volume

    def _read(self, job: Job) -> "CtVolume":
        if isinstance(job, DicomJob):
            loaded = LoadDicomSeries(allow_gaps=True)(job.files)
            ids = (loaded.meta[name] for name in ("patient_id", "study_uid", "series_uid"))
            patient_id = self._pseudonyms.patient(*ids)
            return replace(CtVolume.from_memory(loaded), volume_id=job.volume_id, patient_id=patient_id)
        row, volume_hu = read_job(job, self._pseudonyms, "none")
        return CtVolume.from_row(row | {"shape": volume_hu.shape}, volume_hu)
