"""A prepared cohort on disk: volumes in HU, memory-mapped, and the tables that describe them.

cohort.json             schema version, hash of each table; "next": hashes of tables that are about to be replaced
volumes/<id>.npy        int16 HU, (z, y, x), z toward the head; its time of change says that it was not altered since
body/<id>.npy           uint8, (z, 32, 32): 0 outside, 1 body, 2 lung
rows/<id>.json          the row of one volume, written after it: `prepare` resumes from these
series.parquet  annotations.parquet  nodules.parquet  refused.parquet
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.description import (
    INTERRUPTED,
    REMEDY,
    altered_tables,
    announce_tables,
    described,
    next_table,
    put_tables_in_place,
)
from pipelines.cohort.integrity import (
    has_shape,
    is_altered,
    is_touched,
    is_whole,
    voxel_sha256,
    write_stamped,
)
from pipelines.cohort.tables import (
    ANNOTATIONS,
    LATER,
    NODULES,
    REFUSED,
    SERIES,
    CohortError,
    empty_table,
    is_volume_id,
    read_table,
    write_table,
)
from pipelines.runtime.atomic import SharedPresence, exclusively, make_folder, waited_for, write_atomically
from pipelines.runtime.json_files import read_json
from pipelines.runtime.paths import inside
from pipelines.runtime.progress import progress
from transforms.body_grid import body_grid
from transforms.numpy_file import UNREADABLE
from transforms.refusal import Refusal

SYNTHETIC = "synthetic"
"""Manufacturer of the wall study's volumes, so that figures from them can be recognized."""

CohortKind = Literal["real CT", "phantom", "synthetic slices"]

_UID = re.compile(r"[0-9]+(\.[0-9]+)+|(?=.*[a-f])(?=.*[0-9])[0-9a-f]{12,64}")
"""A UID, or the hash that some public collections put in its place."""


_OF_NODULES = ("volume_id", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "malignancy_ratings")


class NoNodulesError(Refusal):
    """A cohort, a rule and a crop that leave no labeled nodule."""


class Cohort:
    """A cohort open for reading.

    Attributes:
        root: Its folder.
        series: One row per volume, sorted by volume_id.
        annotations: One row per reader's mark.
        nodules: One row per nodule.
        refused: What was not read, and why.
    """

    def __init__(self, root: Path) -> None:
        """Read the tables; use `Cohort.open`, which checks that they are there."""
        self.root = root
        for name in ("series", "annotations", "nodules", "refused"):
            inside(root, root / f"{name}.parquet")
        self.series = read_table(root / "series.parquet", SERIES)
        self.annotations = read_table(root / "annotations.parquet", ANNOTATIONS)
        self.nodules = read_table(root / "nodules.parquet", NODULES)
        self.refused = read_table(root / "refused.parquet", REFUSED)
        self._mapped: dict[tuple[str, str], NDArray[Any]] = {}
        self._expected: dict[str, tuple[tuple[int, ...], str]] = {}
        self._hashing: Any = None

    @classmethod
    def open(cls, root: Path) -> "Cohort":
        """Open a cohort folder.

        Raises:
            CohortError: If there is none, it holds no volume, its schema is of another version, or `prepare` was killed
                before all of its tables were in place.
        """
        if not (root / "cohort.json").is_file() or not (root / "series.parquet").is_file():
            raise CohortError(
                f"no cohort in {root}; make it with `mlflow run . -e prepare -P source=DIR -P cohort={root}`"
            )
        if "next" in described(root):
            waited_for(root / ".tables")  # a moment, where another process is just about to finish them
            if "next" in described(root):
                raise CohortError(f"cohort {root} is unfinished: {INTERRUPTED}")
        cohort = cls(root)
        if cohort.series.empty:
            raise CohortError(
                f"cohort {root} holds no volume: all that was prepared was refused, see its refused.parquet"
            )
        return cohort

    def volume(self, volume_id: str) -> "np.memmap[Any, np.dtype[np.int16]]":
        """The voxels of a volume, (Z, Y, X) int16 HU, mapped and read-only."""
        mapped: np.memmap[Any, np.dtype[np.int16]] = self._map("volumes", volume_id)
        return mapped

    def body(self, volume_id: str) -> NDArray[np.uint8]:
        """Where body and lung are, (Z, 32, 32) uint8: 0 outside, 1 body, 2 lung. See `transforms.body_grid`."""
        mapped: NDArray[np.uint8] = self._map("body", volume_id)
        return mapped

    @property
    def sha256(self) -> str:
        """Hash of the ids and voxels of all volumes."""
        lines = sorted(f"{row.volume_id} {row.sha256}\n" for row in self.series.itertuples())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def nodules_sha256(self) -> str:
        """Hash of the places, sizes and ratings of all nodules, in whatever order."""
        columns = [name for name in (*_OF_NODULES, "label") if name in self.nodules]
        lines = sorted(repr([str(value) for value in row]) for row in self.nodules[columns].to_numpy())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def kind(self) -> CohortKind:
        """What it is made of: figures from a phantom or from synthetic slices do not apply to patients."""
        origins = set(self.series["origin"])
        if "phantom" in origins or (self.nodules["source"] == "phantom").any():
            return "phantom"
        is_synthetic = "synthetic slices" in origins or (self.series["manufacturer"] == SYNTHETIC).any()
        return "synthetic slices" if is_synthetic else "real CT"

    def verify(self) -> list[str]:
        """Hash all again: ids of volumes that are missing, or differ from their row or body grid; names of tables."""
        rows = progress(self.series.to_dict("records"), desc="verify", unit="volume")
        altered = {
            str(row["volume_id"]): row["sha256"] for row in rows if not is_whole(self.root, row, anew=True)
        }
        for volume_id, sha256 in altered.items():
            self._refuse_unfinished(volume_id, sha256)
        return [*altered, *altered_tables(self.root)]

    def _map(self, folder: str, volume_id: str) -> Any:
        # Looked up for every sample of a training: no path is built for what is mapped already.
        mapped = self._mapped.get((folder, volume_id))
        if mapped is None:
            path = self.root / folder / f"{volume_id}.npy"
            if not path.is_file():
                raise CohortError(
                    f"cohort {self.root} has no {folder}/{volume_id}.npy; run `prepare` on it again"
                )
            try:
                mapped = np.lib.format.open_memmap(inside(self.root, path), mode="r")
            except (*UNREADABLE, OSError) as error:
                raise CohortError(f"{path} is damaged or cannot be read; {REMEDY}") from error
            if not self._expected:
                columns = (self.series[name] for name in ("volume_id", "shape", "sha256"))
                self._expected = {
                    name: (tuple(map(int, shape)), sha) for name, shape, sha in zip(*columns, strict=True)
                }
            shape, sha256 = self._expected[volume_id]
            wrong = ""
            if not has_shape(mapped, folder, shape):
                wrong = f"is damaged: it does not hold the {folder} of its row"
            elif folder == "volumes" and self._is_altered(path, mapped, sha256):
                wrong = (
                    "was altered: it is not what `prepare` wrote, so no result of it is that of the cohort"
                )
            if wrong:
                self._refuse_unfinished(volume_id, sha256)
                raise CohortError(f"{path} {wrong}; {REMEDY}")
            if folder == "body":  # An array on the same map: a slice of it costs a tenth of a memmap's.
                mapped = np.asarray(mapped)
            self._mapped[folder, volume_id] = mapped
        return mapped

    def _is_altered(self, path: Path, volume_hu: NDArray[np.int16], sha256: str) -> bool:
        """Whether a volume is another than that of its hash; where the cohort was copied, with progress over all."""
        if not is_touched(path, sha256):
            return False
        if self._hashing is None:
            paths = ((path.with_name(f"{name}.npy"), sha) for name, (_, sha) in self._expected.items())
            n_touched = sum(is_touched(one, sha) for one, sha in paths if one.is_file())
            self._hashing = progress(total=n_touched, desc="hash of a copied cohort", unit="volume")
        self._hashing.update()
        return is_altered(path, volume_hu, sha256)

    def _refuse_unfinished(self, volume_id: str, sha256: str) -> None:
        """Refuse a volume that a `prepare` replaced which was killed before it wrote the tables."""
        row = _read_row(self.root / "rows" / f"{volume_id}.json")
        if row is None or row["sha256"] != sha256:
            raise CohortError(f"cohort {self.root} is unfinished: {INTERRUPTED}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for loader processes without the mapped voxels, which would be copied."""
        return {**self.__dict__, "_mapped": {}, "_expected": {}, "_hashing": None}


class CohortWriter:
    """Adds volumes and rows to a cohort folder. Several processes may write one cohort at once."""

    def __init__(self, root: Path) -> None:
        """Make the folder when missing.

        Raises:
            CohortError: If the folder holds other things, or a cohort of another version.
        """
        self.root = root
        if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not _is_cohort(root))):
            raise CohortError(f"{root} holds other files and no cohort; name a new folder")
        make_folder(root)
        self._presence = SharedPresence(root / ".writers")
        self._presence.clear_abandoned(root, *(root / name for name in ("volumes", "body", "rows")))
        with exclusively(root / ".tables"):
            put_tables_in_place(root)
        for name in ("volumes", "body", "rows"):
            make_folder(root / name)

    def row_of(self, volume_id: str) -> dict[str, Any] | None:
        """The row of a volume that was written completely, with `n_files`; None otherwise."""
        present = all((self.root / name / f"{volume_id}.npy").is_file() for name in ("volumes", "body"))
        return _read_row(self.root / "rows" / f"{volume_id}.json") if present else None

    def forget(self, volume_id: str) -> None:
        """Take a volume out of the cohort, if it is there; its voxels stay on disk until they are written again."""
        (self.root / "rows" / f"{volume_id}.json").unlink(missing_ok=True)

    def series(self) -> pd.DataFrame:
        """Rows of all volumes that are there, whether or not series.parquet lists them yet."""
        rows = map(_read_row, sorted((self.root / "rows").glob("[!.]*.json")))
        return pd.DataFrame(filter(None, rows), columns=SERIES.names)

    def write_tables(
        self,
        annotations: pd.DataFrame,
        nodules: pd.DataFrame,
        refused: pd.DataFrame,
        source_id: str,
        volume_ids: Collection[str] = (),
        nodule_sources: Collection[str] = (),
    ) -> None:
        """Write the tables: all volumes that are there, and the given rows in place of older ones.

        Args:
            annotations: Marks; they replace all marks of the volumes that they name.
            nodules: Nodules; they replace those of the same volume and `source`.
            refused: What this run refused, without `source_id`; it replaces what this source refused before.
            source_id: Identifies the source that was prepared.
            volume_ids: Volumes whose marks and nodules were looked up now: older ones are removed even without a
                replacement.
            nodule_sources: Values of `source` for which that holds.
        """
        with exclusively(self.root / ".tables"):
            put_tables_in_place(self.root)
            old = Cohort(self.root)
            is_old_mark = old.annotations["volume_id"].isin([*annotations["volume_id"], *volume_ids])
            keys = ["volume_id", "source"]
            is_old_nodule = pd.MultiIndex.from_frame(old.nodules[keys]).isin(
                pd.MultiIndex.from_frame(nodules[keys])
            ) | (old.nodules["volume_id"].isin(volume_ids) & old.nodules["source"].isin(nodule_sources))
            is_same_source = old.refused["source_id"] == source_id
            refused = refused.assign(source_id=source_id)
            by_id = {"annotations": "annotation_id", "nodules": "nodule_id"}
            for name, schema, kept, new in (
                ("annotations", ANNOTATIONS, old.annotations[~is_old_mark], annotations),
                ("nodules", NODULES, old.nodules[~is_old_nodule], nodules),
                ("refused", REFUSED, old.refused[~is_same_source], refused),
                (
                    "series",
                    SERIES,
                    self.series(),
                    empty_table(SERIES),
                ),
            ):
                frames = [frame for frame in (kept, new) if len(frame)]
                table = pd.concat(frames, ignore_index=True) if frames else empty_table(schema)
                order = (
                    REFUSED.names if name == "refused" else ["volume_id", *filter(None, [by_id.get(name)])]
                )
                write_table(next_table(self.root, name), table.sort_values(order, kind="stable"), schema)
            announce_tables(self.root)
            put_tables_in_place(self.root)

    def close(self) -> None:
        """Remove leftovers of killed writers, if no other process writes here."""
        self._presence.clear_abandoned(self.root, *(self.root / name for name in ("volumes", "body", "rows")))
        self._presence.close()


def write_volume(
    root: Path,
    row: Mapping[str, Any],
    volume_hu: NDArray[np.int16],
    n_files: int = 1,
    witness: str = "none",
    source_stamp: str = "",
) -> None:
    """Write one volume, its body grid, and then its row, which marks the volume as complete.

    Args:
        root: Folder that a `CohortWriter` has made.
        row: Columns of series.parquet, without shape and sha256.
        volume_hu: (Z, Y, X) int16 HU, z toward the head.
        n_files: Source files that the volume was read from.
        witness: Other reader whose voxels were identical.
        source_stamp: Tells these source files from changed ones; "" where none are looked at again.

    Raises:
        ValueError: If the id cannot be a file name, or the volume is not three-dimensional int16.
    """
    volume_id = str(row["volume_id"])
    if not is_volume_id(volume_id):
        raise ValueError("a volume id must be letters, digits, dots, dashes and underscores, 200 at most")
    if volume_hu.dtype != np.int16 or volume_hu.ndim != 3 or not volume_hu.size:
        raise ValueError(f"a volume must be (Z, Y, X) int16, got {volume_hu.shape} {volume_hu.dtype}")
    volume_hu = np.ascontiguousarray(volume_hu)
    measured = {"shape": list(volume_hu.shape), "sha256": voxel_sha256(volume_hu)}
    full_row = {**dict.fromkeys(LATER, ""), **row, **measured, "n_files": n_files, "witness": witness}
    full_row["source_stamp"] = source_stamp
    missing = set(SERIES.names) - set(full_row)
    if missing:
        raise ValueError(f"the row of a volume lacks {', '.join(sorted(missing))}")
    grid = body_grid(volume_hu, is_patch=row["kind"] == "patch")
    row_path = root / "rows" / f"{volume_id}.json"
    if (old := _read_row(row_path)) and old["sha256"] != full_row["sha256"]:
        row_path.unlink(
            missing_ok=True
        )  # of other voxels: from here until the tables follow, this is unfinished
    text = json.dumps(full_row, allow_nan=False, sort_keys=True) + "\n"
    write_atomically(
        root / "volumes" / f"{volume_id}.npy",
        lambda file: write_stamped(file, volume_hu, str(full_row["sha256"])),
    )
    write_atomically(root / "body" / f"{volume_id}.npy", lambda file: np.lib.format.write_array(file, grid))
    write_atomically(row_path, lambda file: file.write(text.encode()))


def _read_row(path: Path) -> dict[str, Any] | None:
    """A row, or None where there is none: another process may forget a volume at any time."""
    needed = set(SERIES.names) - set(LATER)
    with contextlib.suppress(FileNotFoundError):
        return dict.fromkeys(LATER, "") | read_json(path, sorted(needed), f"remove it, and {REMEDY}")
    return None


def stored_uids(root: Path) -> frozenset[str]:
    """UIDs that a cohort holds as they are: one of an older version, whose volumes keep their ids."""
    if not _is_cohort(root):
        return frozenset()
    rows = filter(None, map(_read_row, (root / "rows").glob("[!.]*.json")))
    uids = {str(row[name]) for row in rows for name in ("series_uid", "study_uid")}
    return frozenset(filter(_UID.fullmatch, uids))


def _is_cohort(root: Path) -> bool:
    """Whether this is a cohort, or one interrupted before its first complete file."""
    return (root / "cohort.json").is_file() or (root / ".writers").is_file()
