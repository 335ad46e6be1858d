"""`prepare`, killed before any change of a file: the cohort is the old one or says that it is unfinished."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import CohortError
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort

pytestmark = [
    pytest.mark.usefixtures("own_key"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # the killed leave files open
]
Writer = Callable[..., list[Path]]
COLUMNS = "series_uid,patient_id,x_voxel,y_voxel,z_voxel,diameter_mm,label\n"


class Killed(BaseException):
    """Stands for SIGKILL: from then on nothing changes on the disk."""


def killed_before(change: int, patch: pytest.MonkeyPatch) -> None:
    """Let that many files be renamed or removed, and none after them."""
    left = itertools.count(change, -1)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if next(left) <= 0:
                raise Killed
            return original(*args, **options)

        return call

    for name in ("replace", "unlink"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


def state(cohort: Cohort) -> tuple[str, tuple[str, ...]]:
    """What the cohort holds, all of it whole; CohortError if it is unfinished."""
    assert cohort.verify() == []
    for volume_id in cohort.series["volume_id"]:
        cohort.volume(volume_id)
        cohort.body(volume_id)
    return cohort.sha256, tuple(cohort.nodules["volume_id"]), tuple(cohort.nodules["label"])


def test_killed_at_every_change_it_is_the_old_cohort_or_unfinished_and_ends_as_the_new_one(
    write_ct_series: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mended(dataset: Dataset, index: int) -> None:
        dataset.RescaleIntercept = -1034

    source, table = tmp_path / "s", tmp_path / "t.csv"
    options = {"source": str(source), "annotations": str(table), "keep_ids": True, "workers": 1}
    write_ct_series(source / "a")
    table.write_text(COLUMNS + "1.2.3.4,somebody,3,4,1,5,1\n")
    old = prepare_cohort(PrepareConfig(cohort=str(tmp_path / "old"), **options)).cohort
    shutil.rmtree(source)
    write_ct_series(source / "a", n_slices=4, change=mended)
    table.write_text(COLUMNS + "1.2.3.4,somebody,3,4,1,5,0\n")
    new = prepare_cohort(PrepareConfig(cohort=str(tmp_path / "new"), **options)).cohort
    (tmp_path / "elsewhere").mkdir()
    write_ct_series(tmp_path / "elsewhere", series_uid="1.2.3.7")
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    counts = {"old": 0, "unfinished": 0, "new": 0}
    for change in itertools.count():
        root = tmp_path / f"killed-{change}"
        shutil.copytree(old.root, root)
        config = PrepareConfig(cohort=str(root), **options)
        with pytest.MonkeyPatch.context() as patch:
            killed_before(change, patch)
            try:
                prepare_cohort(config)
                break
            except Killed:
                pass
        try:
            found = state(Cohort.open(root))
            counts["old" if found == state(old) else "new"] += 1
            assert found in (state(old), state(new))
        except CohortError as error:
            counts["unfinished"] += "is unfinished: `prepare` was interrupted" in str(error)
        if change % 6 == 0:  # another source first, into the same cohort
            prepare_cohort(
                PrepareConfig(source=str(tmp_path / "elsewhere"), cohort=str(root), keep_ids=True, workers=1)
            )
            os.unlink(root / "rows" / "1.2.3.7.json")
        again = prepare_cohort(PrepareConfig(cohort=str(root), verify=True, **options))
        assert state(again.cohort) == state(new)
        shutil.rmtree(root)
    assert sum(counts.values()) == change
    assert counts["old"] >= 1
    assert counts["unfinished"] >= 5
    assert counts["new"] <= 2
