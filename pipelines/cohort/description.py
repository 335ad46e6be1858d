"""cohort.json: the version of a cohort and the hash of each of its tables, which are replaced all or none.

New tables are written beside the old ones, announced in cohort.json under "next", renamed, and announced as the tables.
Killed before the first announcement, the old cohort stands; killed after it, whoever writes to the cohort next
renames the rest.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.cohort.integrity import file_sha256
from pipelines.cohort.tables import CohortError
from pipelines.runtime.atomic import write_atomically
from pipelines.runtime.json_files import read_json

SCHEMA_VERSION = 1
REMEDY = "prepare the cohort again"
INTERRUPTED = "`prepare` was interrupted, or is at work; run the same `prepare` again"
_TABLES = ("annotations", "nodules", "refused", "series")  # series last: without it there is no cohort


def described(root: Path) -> dict[str, Any]:
    """The contents of cohort.json.

    Raises:
        FileNotFoundError: If there is none.
        DamagedFileError: If it is damaged.
        CohortError: If it is of another version.
    """
    found = read_json(root / "cohort.json", ("schema_version",), REMEDY)
    version = found["schema_version"]
    if version != SCHEMA_VERSION:
        raise CohortError(
            f"cohort {root} has schema version {version}, this program reads {SCHEMA_VERSION}; prepare it again"
        )
    return found


def next_table(root: Path, name: str) -> Path:
    """Where a table is written before it replaces the one that is there."""
    return root / f".{name}.next"


def announce_tables(root: Path) -> None:
    """Say that the tables which were written will replace those that are there."""
    _describe(
        root, described(root) | {"next": {name: file_sha256(next_table(root, name)) for name in _TABLES}}
    )


def put_tables_in_place(root: Path) -> None:
    """Replace tables as announced, by this process or by one that was killed since; a new folder becomes a cohort."""
    if not (root / "cohort.json").is_file():
        _describe(root, {"schema_version": SCHEMA_VERSION, "tables": {}})
    if "next" in (found := described(root)):
        for name in _TABLES:
            with contextlib.suppress(FileNotFoundError):  # renamed before the other was killed
                next_table(root, name).replace(root / f"{name}.parquet")
        _describe(root, {"schema_version": SCHEMA_VERSION, "tables": found["next"]})


def _describe(root: Path, cohort: Mapping[str, Any]) -> None:
    text = json.dumps(cohort) + "\n"
    write_atomically(root / "cohort.json", lambda file: file.write(text.encode()))


def altered_tables(root: Path) -> list[str]:
    """Tables that are not as they were written; those of an older version have no hash and are not judged."""
    written = described(root).get("tables", {})
    is_altered = (file_sha256(root / f"{name}.parquet") != written.get(name, "") for name in _TABLES)
    return [
        f"{name}.parquet" for name, altered in zip(_TABLES, is_altered, strict=True) if altered and written
    ]
