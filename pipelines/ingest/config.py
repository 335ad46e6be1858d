"""Configuration of `prepare`, and the formats that a source may have; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

FolderFormat = Literal["auto", "dicom", "nifti", "metaimage", "nrrd", "npy", "png"]
SourceFormat = Literal[FolderFormat, "hub"]
Axes = Literal["lps", "ras", "voxel"]
Coordinates = Literal["by_name", Axes]
PHANTOM_COHORT = "cohorts/phantom"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """What to prepare, and into which cohort."""

    NOT_STORED: ClassVar = ("source", "annotations")

    source: str = ""
    """Folder of CT (or one file, or a data set of the Hub); empty writes the phantom and prepares that."""
    cohort: str = PHANTOM_COHORT
    from_: SourceFormat = "auto"
    """Format of the source, found by itself by default; `from` on the command line."""
    witness: Literal["none", "simpleitk"] = "none"
    """simpleitk: compare every voxel of DICOM with SimpleITK's reading and refuse series that differ."""
    annotations: str = ""
    """CSV of nodules to join to the volumes; its path is not stored, nor is the source's."""
    coordinates: Coordinates = "by_name"
    """What the places of that table are, where names such as x_lps_mm or x_ras_mm do not say it."""
    keep_columns: str = ""
    """Further columns of that table to keep, with commas between: numbers and short codes, never text."""
    keep_ids: bool = False
    """Store patient ids, UIDs and folder names as they are: all of them are public."""
    workers: int = 0
    """Processes; 0 takes one per core."""
    verify: bool = False
    """Hash every volume, body grid and table of the cohort again; volumes of this source that differ are read anew."""

    def __post_init__(self) -> None:
        """Refuse invalid combinations."""
        if self.keep_columns and not self.annotations:
            raise ValueError(
                "keep_columns names columns of a table of nodules; give it as annotations=FILE.csv"
            )
        if self.workers < 0:
            raise ValueError(f"workers must be 0 (one per core) or more, got {self.workers}")
        if self.witness != "none" and self.from_ not in ("auto", "dicom"):
            raise ValueError(
                f"witness={self.witness} compares DICOM files; it is not available with from={self.from_}"
            )
        is_phantom = not self.source and self.from_ in ("auto", "dicom")
        if not is_phantom and self.cohort == PHANTOM_COHORT:
            raise ValueError(
                f"{self.cohort} is the phantom's cohort; name another for this source as cohort=DIR"
            )
        if not self.source and self.from_ in ("nifti", "metaimage", "nrrd", "npy", "png"):
            raise ValueError(f"from={self.from_} needs a source; name the folder as source=DIR")
