"""A cohort folder holds whole files only, and says when it is not what was prepared."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.cohort.folder import Cohort, CohortWriter, write_volume
from pipelines.cohort.tables import (
    ANNOTATIONS,
    NODULES,
    REFUSED,
    SERIES,
    CohortError,
    empty_table,
    read_table,
    write_table,
)
from pipelines.runtime.atomic import SharedPresence, TargetError, write_atomically

NO_REFUSALS = pd.DataFrame(columns=[name for name in REFUSED.names if name != "source_id"])


def row(volume_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "volume_id": volume_id,
        "patient_id": "P1",
        "study_uid": "1.2",
        "series_uid": volume_id,
        "spacing_mm": [2.5, 0.7, 0.7],
        "affine_ras": np.eye(4).ravel().tolist(),
        "gaps": [],
        "slice_offsets_mm": [],
        "manufacturer": "ACME",
        "kernel": "",
        "slice_thickness_mm": None,
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "is_lossy": False,
        "n_padding_voxels": 0,
        "kind": "series",
        "notes": "",
    } | changes


def volume(seed: int, shape: tuple[int, int, int] = (3, 40, 36)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


def written(root: Path, ids: tuple[str, ...] = ("1.2.3", "1.2.4")) -> Cohort:
    writer = CohortWriter(root)
    for seed, volume_id in enumerate(ids):
        write_volume(root, row(volume_id), volume(seed), n_files=3)
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), NO_REFUSALS, "source")
    writer.close()
    return Cohort.open(root)


def nodules(*ids: str, volume_id: str, source: str = "csv") -> pd.DataFrame:
    table = pd.DataFrame({name: [None] * len(ids) for name in NODULES.names})
    return table.assign(
        nodule_id=list(ids), volume_id=volume_id, source=source, malignancy_ratings=[[3, 4]] * len(ids)
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    cohort = written(tmp_path / "c")
    np.testing.assert_array_equal(cohort.volume("1.2.4"), volume(1))
    assert not cohort.volume("1.2.4").flags.writeable
    assert cohort.body("1.2.4").shape == (3, 32, 32)
    assert list(cohort.series["shape"].iloc[0]) == [3, 40, 36]
    assert list(cohort.series.columns) == SERIES.names
    assert list(cohort.annotations.columns) == ANNOTATIONS.names
    assert cohort.verify() == []


def test_a_missing_cohort_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"no cohort in .*nothing; make it with `mlflow run . -e prepare"):
        Cohort.open(tmp_path / "nothing")


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("precious")
    with pytest.raises(CohortError, match="holds other files and no cohort"):
        CohortWriter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "c")
    (tmp_path / "c" / "cohort.json").write_text('{"schema_version": 99}')
    with pytest.raises(CohortError, match="schema version 99"):
        Cohort.open(tmp_path / "c")


def test_verify_finds_a_flipped_bit_and_a_missing_volume(tmp_path: Path) -> None:
    cohort = written(tmp_path / "c", ("1.2.3", "1.2.4", "1.2.5"))
    path = tmp_path / "c" / "volumes" / "1.2.4.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "c" / "volumes" / "1.2.5.npy").unlink()
    assert cohort.verify() == ["1.2.4", "1.2.5"]


def test_the_hash_depends_on_ids_and_voxels_and_not_on_order(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a"), written(tmp_path / "b", ("1.2.3", "1.2.5"))
    again = written(tmp_path / "c")
    again.series = again.series.iloc[::-1]
    assert one.sha256 == again.sha256
    assert one.sha256 != other.sha256


def test_a_second_source_adds_to_a_cohort_and_replaces_only_its_own_rows(tmp_path: Path) -> None:
    written(tmp_path / "c")
    refusal = pd.DataFrame([{"series_uid": "", "folder": ".", "n_files": 1, "n_rows": 0, "reason": "first"}])
    no_marks = empty_table(ANNOTATIONS)
    writer = CohortWriter(tmp_path / "c")
    writer.write_tables(no_marks, nodules("a", "b", volume_id="1.2.3"), refusal, "one")
    writer.write_tables(no_marks, nodules("c", volume_id="1.2.4"), refusal.assign(reason="second"), "two")
    writer.write_tables(no_marks, nodules("d", volume_id="1.2.3"), refusal.assign(reason="third"), "one")
    writer.close()
    cohort = Cohort.open(tmp_path / "c")
    assert list(cohort.nodules["nodule_id"]) == ["d", "c"]
    assert sorted(cohort.refused["reason"]) == ["second", "third"]
    assert list(cohort.nodules["malignancy_ratings"].iloc[0]) == [3, 4]


def test_further_columns_of_a_table_are_kept_and_missing_ones_refused(tmp_path: Path) -> None:
    table = nodules("a", volume_id="1.2.3").assign(lobe="left")
    write_table(tmp_path / "n.parquet", table, NODULES)
    assert list(read_table(tmp_path / "n.parquet", NODULES)["lobe"]) == ["left"]
    with pytest.raises(ValueError, match=r"lacks the column\(s\) flag"):
        write_table(tmp_path / "n.parquet", table.drop(columns="flag"), NODULES)
    with pytest.raises(ValueError, match="wrong type"):
        write_table(tmp_path / "n.parquet", table.assign(diameter_mm="wide"), NODULES)


@pytest.mark.parametrize("volume_id", ["../up", "", ".hidden", "a/b", "x" * 300])
def test_an_id_that_is_no_file_name_is_refused(volume_id: str, tmp_path: Path) -> None:
    writer = CohortWriter(tmp_path / "c")
    with pytest.raises(ValueError, match="a volume id must be"):
        write_volume(tmp_path / "c", row(volume_id), volume(0))
    writer.close()


def test_a_volume_without_its_row_is_not_there_yet(tmp_path: Path) -> None:
    written(tmp_path / "c")
    (tmp_path / "c" / "rows" / "1.2.4.json").unlink()
    writer = CohortWriter(tmp_path / "c")
    row = writer.row_of("1.2.3")
    assert row is not None
    assert row["n_files"] == 3
    assert writer.row_of("1.2.4") is None
    assert list(writer.series()["volume_id"]) == ["1.2.3"]
    writer.close()


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file: Any) -> None:
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(TargetError, match="file cannot be written: disk full; free disk space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_cleared_but_not_under_a_living_one(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from pipelines.runtime.atomic import write_atomically\n"
    )
    killed += "write_atomically(Path(sys.argv[1]), lambda file: os.kill(os.getpid(), 9))"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "x.npy")], check=False)
    (left,) = tmp_path.glob(".x.npy.*.tmp")
    other, own = SharedPresence(tmp_path / ".writers"), SharedPresence(tmp_path / ".writers")
    own.clear_abandoned(tmp_path)
    assert left.exists()
    other.close()
    own.clear_abandoned(tmp_path)
    assert not left.exists()
    own.close()


def test_a_cohort_travels_to_another_process_without_its_voxels(tmp_path: Path) -> None:
    cohort = written(tmp_path / "c")
    cohort.volume("1.2.3")
    packed = pickle.dumps(cohort)
    assert len(packed) < 20_000
    np.testing.assert_array_equal(pickle.loads(packed).volume("1.2.3"), volume(0))
