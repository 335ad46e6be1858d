"""The interface of every source to `prepare`: jobs to read, refused files, and for each job a volume or a refusal."""

from dataclasses import dataclass, field
from pathlib import Path

from transforms.refusal import Refusal, RefusedFile


class SourceError(Refusal):
    """A source that holds nothing of the format that was asked for."""


@dataclass(frozen=True)
class Job:
    """The files of one volume; a source may add fields that its reader needs.

    Attributes:
        volume_id: Its id in the cohort.
        files: At least one.
        series_uid: SeriesInstanceUID, "" where neither the format nor a table has one.
        patient_id: As it is to be stored; "" where it comes from the files.
        patient_key: Likewise, see `Pseudonyms.key_of`.
    """

    volume_id: str
    files: tuple[Path, ...]
    series_uid: str = ""
    patient_id: str = ""
    patient_key: str = ""


@dataclass(slots=True)
class Found:
    """All that a source folder holds."""

    jobs: list[Job] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)
