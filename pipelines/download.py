"""LIDC-IDRI, or any collection of the NCI Imaging Data Commons, CT series by CT series.

The index that comes with the package gives number, size and license offline; they are printed before the download. A
series folder that exists is complete: each series is fetched into a folder beside the target, counted, and renamed.
"""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from pipelines.command.cli import main
from pipelines.runtime.atomic import make_folder, writing
from pipelines.runtime.extras import load_extra
from pipelines.runtime.progress import progress
from transforms.refusal import Refusal, number_of

if TYPE_CHECKING:
    from pipelines.tracking.run import Run

INDEX_COLUMNS = (
    "collection_id",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "instanceCount",
    "series_size_MB",
    "license_short_name",
    "source_DOI",
)


class DownloadError(Refusal):
    """The requested series cannot be fetched."""


Fetch = Callable[[str, Path], object]
"""Fetches the files of one SeriesInstanceUID into a folder; it need not report success."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DownloadConfig:
    """What to fetch, and where to."""

    collection: str = "lidc_idri"
    """Collection id of the Imaging Data Commons."""
    target: str = "data/lidc"
    """Folder for PatientID / StudyInstanceUID / SeriesInstanceUID / *.dcm."""
    patients: str = ""
    """Empty for all; else positions in the sorted list of patients, from 1, or ids: `1-20`, `3,LIDC-IDRI-0078`."""
    dry_run: bool = False
    """Print what would be fetched, and stop."""


def read_index() -> pd.DataFrame:
    """Read the index of the Imaging Data Commons that comes with idc-index; needs no network.

    Raises:
        MissingPackageError: If the optional package is not installed.
    """
    file = load_extra("idc_index_data", "download").IDC_INDEX_PARQUET_FILEPATH
    return pd.read_parquet(file, columns=list(INDEX_COLUMNS))


def select_ct_series(index: pd.DataFrame, collection: str, patients: str = "") -> pd.DataFrame:
    """Return the CT series of a collection, ordered by patient, one row per series.

    Args:
        index: As `read_index` gives it.
        collection: Collection id, e.g. `lidc_idri`.
        patients: As in `DownloadConfig.patients`.

    Raises:
        DownloadError: If the collection is unknown or holds no CT, or a patient is not among its patients.
    """
    known = index["collection_id"].unique()
    if collection not in known:
        near = difflib.get_close_matches(collection, [str(name) for name in known], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise DownloadError(f"the Imaging Data Commons has no collection '{collection}'{hint}")
    series = index[(index["collection_id"] == collection) & (index["Modality"] == "CT")]
    if series.empty:
        raise DownloadError(f"collection '{collection}' holds no CT series")
    everyone = sorted(series["PatientID"].unique())
    chosen = _chosen_patients(patients, everyone) if patients.strip() else set(everyone)
    series = series[series["PatientID"].isin(chosen)]
    return series.sort_values(["PatientID", "SeriesInstanceUID"], ignore_index=True)


def _chosen_patients(text: str, everyone: list[str]) -> set[str]:
    """Return the patients given as `1-20,LIDC-IDRI-0078`."""
    chosen: set[str] = set()
    for part in (item.strip() for item in text.split(",")):
        if part in everyone:
            chosen.add(part)
            continue
        places = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if places is None:
            raise DownloadError(
                f"'{part}' is neither a patient of this collection nor a position such as 7 or 1-20"
            )
        first, last = int(places[1]), int(places[2] or places[1])
        if not 1 <= first <= last <= len(everyone):
            raise DownloadError(
                f"patients {part} do not lie within 1-{len(everyone)}, the patients of this collection"
            )
        chosen.update(everyone[first - 1 : last])
    return chosen


def series_folder(target: Path, row: pd.Series) -> Path:
    """Return the folder of a series: patient, study, series."""
    return target / str(row["PatientID"]) / str(row["StudyInstanceUID"]) / str(row["SeriesInstanceUID"])


def missing_series(selection: pd.DataFrame, target: Path) -> pd.DataFrame:
    """Return the rows whose folder does not exist yet."""
    return selection[[not series_folder(target, row).is_dir() for _, row in selection.iterrows()]]


def describe(selection: pd.DataFrame, missing: pd.DataFrame) -> str:
    """Return a text with the selection, its size and license, and how much is still to be fetched."""
    licenses = ", ".join(sorted(selection["license_short_name"].unique()))
    sources = ", ".join(sorted(selection["source_DOI"].dropna().unique()))
    return (
        f"{', '.join(selection['collection_id'].unique())}: {len(selection)} CT series of"
        f" {number_of(selection['PatientID'].nunique(), 'patient')}, {_gigabytes(selection):.1f} GB\n"
        f"license: {licenses} (give credit: https://doi.org/{sources})\n"
        f"to fetch: {len(missing)} series, {_gigabytes(missing):.1f} GB; already here: {len(selection) - len(missing)}"
    )


def _gigabytes(series: pd.DataFrame) -> float:
    return float(series["series_size_MB"].sum()) / 1000


def fetch_series(missing: pd.DataFrame, target: Path, fetch: Fetch) -> None:
    """Fetch every missing series, complete or not at all; an interrupted download is continued.

    Raises:
        DownloadError: If the disk is too small, or the number of files that arrived differs from the index.
    """
    make_folder(target)
    free_gb = shutil.disk_usage(target).free / 1e9
    if free_gb < _gigabytes(missing):
        raise DownloadError(
            f"{target} has {free_gb:.1f} GB free and {_gigabytes(missing):.1f} GB are needed;"
            " choose fewer patients, or another target"
        )
    place = target.resolve()
    # Outside of the target, where `prepare` would read it.
    unfinished = place.with_name(f".{place.name}.unfinished")
    with progress(total=round(missing["series_size_MB"].sum()), unit="MB", desc="download") as bar:
        for _, row in missing.iterrows():
            _fetch_one(row, series_folder(target, row), unfinished, fetch)
            bar.update(round(float(row["series_size_MB"])))
    if unfinished.is_dir() and not any(unfinished.iterdir()):
        unfinished.rmdir()


def _fetch_one(row: pd.Series, folder: Path, unfinished: Path, fetch: Fetch) -> None:
    partial = unfinished / folder.name
    make_folder(partial)
    fetch(str(row["SeriesInstanceUID"]), partial)
    arrived, expected = len(list(partial.glob("*.dcm"))), int(row["instanceCount"])
    if arrived != expected:
        raise DownloadError(
            f"series {row['SeriesInstanceUID']}: {arrived} of {expected} files arrived;"
            " check the network, then run the same command again: it continues where it stopped"
        )
    make_folder(folder.parent)
    with writing(folder, partial):
        partial.rename(folder)


def fetch_from_idc() -> Fetch:
    """Return a function that fetches with idc-index: it copies from the public bucket by s5cmd; no account needed.

    Raises:
        MissingPackageError: If the optional package is not installed.
    """
    client = load_extra("idc_index", "download").IDCClient()
    return lambda series_uid, folder: client.download_from_selection(
        downloadDir=str(folder),
        seriesInstanceUID=[series_uid],
        dirTemplate=None,
        use_s5cmd_sync=True,  # files that exist already stay
        show_progress_bar=False,
    )


def run_download(config: DownloadConfig, run: Run) -> None:
    """Print the selection, then fetch its missing series."""
    target = Path(config.target)
    selection = select_ct_series(read_index(), config.collection, config.patients)
    missing = missing_series(selection, target)
    print(describe(selection, missing))
    run.log_metrics(
        {
            "download/n_series": len(selection),
            "download/n_patients": selection["PatientID"].nunique(),
            "download/size_gb": _gigabytes(selection),
            "download/n_missing": len(missing),
        }
    )
    if config.dry_run:
        print("dry run: nothing was fetched")
        return
    if missing.empty:
        print(f"all of it is in {target}")
        return
    fetch_series(missing, target, fetch_from_idc())
    print(f"done; next: mlflow run . -e prepare -P source={target} -P cohort=cohorts/{config.collection}")


if __name__ == "__main__":
    main("download")
