"""Volumes, body grids and tables that others altered are refused or found, and prepared again."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import same_voxels
from pipelines.cohort.tables import CohortError, read_parquet
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import PrepareError, prepare_cohort

pytestmark = pytest.mark.usefixtures("own_key")
Writer = Callable[..., list[Path]]
DAY_NS = 86_400 * 10**9


@pytest.fixture
def config(write_ct_series: Writer, tmp_path: Path) -> PrepareConfig:
    write_ct_series(tmp_path / "source")
    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "c"), keep_ids=True, workers=1
    )
    prepare_cohort(config)
    return config


def volume_file(config: PrepareConfig, folder: str = "volumes") -> Path:
    return Path(config.cohort, folder, "1.2.3.4.npy")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other(shape: tuple[int, ...], kind: type) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.zeros(shape, kind))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_bit, "was altered"),
        (other((5, 16, 12), np.int16), "does not hold the volumes of its row"),
        (other((4, 12, 16), np.int16), "does not hold the volumes of its row"),
        (other((5, 12, 16), np.float32), "does not hold the volumes of its row"),
    ],
)
def test_an_altered_volume_is_refused_where_it_is_opened_and_read_anew_by_prepare(
    damage: Callable[[Path], None], reason: str, config: PrepareConfig
) -> None:
    before = np.array(Cohort.open(Path(config.cohort)).volume("1.2.3.4"))
    damage(volume_file(config))
    with pytest.raises(CohortError, match=f"{reason}.*prepare the cohort again"):
        Cohort.open(Path(config.cohort)).volume("1.2.3.4")
    again = prepare_cohort(config)
    assert again.n_new == 1
    np.testing.assert_array_equal(again.cohort.volume("1.2.3.4"), before)


def test_a_copied_cohort_is_hashed_once_and_then_known_by_its_times(config: PrepareConfig) -> None:
    path = volume_file(config)
    stamped = path.stat().st_mtime_ns
    shutil.copyfile(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)
    assert path.stat().st_mtime_ns != stamped
    Cohort.open(Path(config.cohort)).volume("1.2.3.4")
    assert path.stat().st_mtime_ns == stamped
    assert prepare_cohort(config).n_new == 0


def test_hashing_a_copied_cohort_shows_progress_over_the_volumes_that_were_touched(
    write_ct_series: Writer, config: PrepareConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (5, 6):
        write_ct_series(Path(config.source, str(number)), series_uid=f"1.2.3.{number}")
    prepare_cohort(config)
    for name in ("1.2.3.4", "1.2.3.5"):
        os.utime(Path(config.cohort, "volumes", f"{name}.npy"), ns=(0, DAY_NS))
    capsys.readouterr()
    cohort = Cohort.open(Path(config.cohort))
    cohort.volume("1.2.3.6")
    assert capsys.readouterr().err == ""
    cohort.volume("1.2.3.4")
    assert "hash of a copied cohort" in (said := capsys.readouterr().err)
    assert "/2 " in said
    pickle.loads(pickle.dumps(cohort)).volume("1.2.3.5")


def test_a_cohort_that_may_only_be_read_is_opened_and_stays_as_it_is(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume_file(config)
    os.utime(path, ns=(DAY_NS, DAY_NS))
    path.chmod(0o444)
    if os.access(path, os.W_OK):  # root may write everywhere
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    Cohort.open(Path(config.cohort)).volume("1.2.3.4")
    assert path.stat().st_mtime_ns == DAY_NS


def test_a_volume_that_nothing_touched_is_not_hashed_when_it_is_opened(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hashed(volume: object) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr("pipelines.cohort.integrity.voxel_sha256", hashed)
    Cohort.open(Path(config.cohort)).volume("1.2.3.4")
    os.utime(volume_file(config), ns=(0, DAY_NS))
    with pytest.raises(AssertionError, match="hashed"):
        Cohort.open(Path(config.cohort)).volume("1.2.3.4")


def test_verify_finds_what_keeps_its_time_and_repairs_it(config: PrepareConfig) -> None:
    for folder in ("volumes", "body"):
        path = volume_file(config, folder)
        status = path.stat()
        flip_a_bit(path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert Cohort.open(Path(config.cohort)).verify() == ["1.2.3.4"]
        assert prepare_cohort(PrepareConfig(**{**vars_of(config), "verify": True})).n_new == 1
        assert Cohort.open(Path(config.cohort)).verify() == []


def vars_of(config: PrepareConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in ("source", "cohort", "keep_ids", "workers")}


def test_verify_finds_altered_tables_and_an_old_cohort_has_none_to_compare(config: PrepareConfig) -> None:
    root = Path(config.cohort)
    table = pd.read_parquet(root / "series.parquet")
    table.assign(kernel="B70f").to_parquet(root / "series.parquet")
    assert Cohort.open(root).verify() == ["series.parquet"]
    with pytest.raises(PrepareError, match=r"series\.parquet of .* altered since they were written"):
        prepare_cohort(PrepareConfig(**{**vars_of(config), "verify": True}))
    (root / "cohort.json").write_text(json.dumps({"schema_version": 1}))
    assert Cohort.open(root).verify() == []
    (root / "series.parquet").unlink()
    assert prepare_cohort(PrepareConfig(**{**vars_of(config), "verify": True})).cohort.verify() == []


def test_the_same_voxels_of_two_patients_are_said(write_ct_series: Writer, config: PrepareConfig) -> None:
    def of_another(dataset: object, index: int) -> None:
        dataset.PatientID = "somebody else"  # type: ignore[attr-defined]

    write_ct_series(Path(config.source, "again"), series_uid="1.2.3.9")
    assert same_voxels(prepare_cohort(config).cohort) == {}  # twice the same patient
    write_ct_series(Path(config.source, "again"), series_uid="1.2.3.9", change=of_another)
    (patients,) = same_voxels(prepare_cohort(config).cohort).values()
    assert patients == ["somebody", "somebody else"]


def test_text_that_is_no_utf8_is_refused_where_a_table_is_read(tmp_path: Path) -> None:
    text = pa.array([b"1.2.\xfa"]).cast(pa.binary())
    column = pa.StringArray.from_buffers(1, text.buffers()[1], text.buffers()[2])
    pq.write_table(pa.table({"series_uid": column}), tmp_path / "t.parquet")
    with pytest.raises(pa.ArrowException, match="UTF8"):
        read_parquet(tmp_path / "t.parquet")
