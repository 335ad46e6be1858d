"""A file that is mended at its source is read again, and its volume, row and nodules are the new ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort

pytestmark = pytest.mark.usefixtures("own_key")
Writer = Callable[..., list[Path]]


def test_a_mended_file_replaces_its_volume_and_what_did_not_change_is_not_read_again(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def mended(dataset: Dataset, index: int) -> None:
        dataset.RescaleIntercept, dataset.PixelSpacing = -1034, [0.5, 0.5]

    source = tmp_path / "source"
    write_ct_series(source / "a")
    write_ct_series(source / "b", series_uid="1.2.3.5")
    config = PrepareConfig(source=str(source), cohort=str(tmp_path / "cohort"), keep_ids=True, workers=1)
    first = np.array(prepare_cohort(config).cohort.volume("1.2.3.4"))
    assert prepare_cohort(config).n_new == 0
    write_ct_series(source / "a", change=mended)
    again = prepare_cohort(config)
    assert (again.n_new, again.n_present) == (1, 1)
    np.testing.assert_array_equal(again.cohort.volume("1.2.3.4"), first - 10)
    assert list(again.cohort.series["spacing_mm"][0]) == [2.5, 0.5, 0.5]
    assert again.cohort.verify() == []
    assert prepare_cohort(config).n_new == 0


def test_a_change_that_keeps_the_size_is_seen_by_its_time(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path / "source")
    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), keep_ids=True, workers=1
    )
    prepare_cohort(config)
    content = bytearray(files[0].read_bytes())
    content[-2:] = (1500).to_bytes(2, "little")
    status = files[0].stat()
    files[0].write_bytes(content)
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    again = prepare_cohort(config)
    assert again.n_new == 1
    assert again.cohort.volume("1.2.3.4")[0, -1, -1] == 1500 - 1024


def test_a_series_that_turns_out_to_be_two_leaves_no_volume_of_before(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def phase(number: int) -> Callable[[Dataset, int], None]:
        def change(dataset: Dataset, index: int) -> None:
            dataset.AcquisitionNumber = number
            dataset.RescaleIntercept = -1024 - number

        return change

    config = PrepareConfig(
        source=str(tmp_path / "source"), cohort=str(tmp_path / "cohort"), keep_ids=True, workers=1
    )
    write_ct_series(tmp_path / "source" / "a", change=phase(1))
    assert list(prepare_cohort(config).cohort.series["volume_id"]) == ["1.2.3.4"]
    write_ct_series(tmp_path / "source" / "b", change=phase(2))
    both = ["1.2.3.4_part-1", "1.2.3.4_part-2"]
    assert list(prepare_cohort(config).cohort.series["volume_id"]) == both
    shutil.rmtree(tmp_path / "source" / "b")
    assert list(prepare_cohort(config).cohort.series["volume_id"]) == ["1.2.3.4"]
