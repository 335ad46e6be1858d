"""TCIA's table of the patients' diagnoses, which the label rule `tcia_diagnosis` reads."""

from pathlib import Path

import pandas as pd

from probes.labels import LabelError


def read_diagnoses(file: str) -> pd.DataFrame | None:
    """Read the CSV, or return None where no file is named.

    Returns:
        At least the columns patient_id (text) and diagnosis.

    Raises:
        LabelError: If there is no such file, it is no CSV, or it lacks one of the two columns.
    """
    if not file:
        return None
    if not Path(file).is_file():
        raise LabelError(f"there is no table of diagnoses at {file}; give the CSV that TCIA publishes")
    try:
        table = pd.read_csv(file, dtype={"patient_id": str})
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise LabelError(f"{file} cannot be read as CSV in UTF-8; give the CSV that TCIA publishes") from None
    missing = {"patient_id", "diagnosis"} - set(table.columns)
    if missing:
        raise LabelError(f"{file} has no column {', '.join(sorted(missing))}; a table of diagnoses has both")
    return table
