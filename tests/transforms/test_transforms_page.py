"""docs/transforms.md: its blocks run as they stand, and give what their comments say."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from pydicom import Dataset

from transforms import SliceTriplet

PAGE = Path(__file__).parents[2] / "docs" / "transforms.md"
SIDE = 64


def _wide(dataset: Dataset, index: int) -> None:
    rng = np.random.default_rng(index)
    dataset.Rows = dataset.Columns = SIDE
    dataset.PixelData = rng.integers(0, 1200, (SIDE, SIDE)).astype("<i2").tobytes()


@pytest.mark.filterwarnings("ignore:NvImgCodec")
def test_its_blocks_run_and_give_what_they_say(
    write_ct_series: Callable[..., list[Path]], tmp_path: Path
) -> None:
    write_ct_series(tmp_path / "series", n_slices=10, change=_wide)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    # Slice 4, row 30, column 30 of the series: first pixel at (-50, -40, -300) mm, 0.7 x 0.6 mm, slices 2.5 mm apart.
    shown: dict[str, Any] = {"folder": str(tmp_path / "series"), "center_lps_mm": (-32.0, -19.0, -290.0)}
    for block in blocks:
        exec(block, shown)
    assert shown["views"].shape == (2, 3, 96, 96)
    assert 0 <= float(shown["views"].min()) < float(shown["views"].max()) <= 1
    assert shown["crop"].shape == (3, SIDE, SIDE)
    volume = shown["LoadDicomSeriesd"]("image")({"image": shown["folder"]})["image"]
    # 32 mm are 53 pixels of 0.6 mm; the crop's center lies between its two middle pixels.
    hu = torch.from_numpy(np.asarray(volume)[0, 4, 29:32, 29:32].astype(np.float32))
    gray = ((hu + 1350) / 1500).clamp(0, 1)
    assert float(gray.min()) <= float(shown["crop"][1, 32, 32]) <= float(gray.max())

    flat = np.asarray(volume)[0].transpose(2, 1, 0)
    lps_to_ras = np.diag([-0.6, -0.7, 2.5, 1.0])
    nibabel.save(nibabel.Nifti1Image(flat, lps_to_ras), tmp_path / "ct.nii.gz")
    found = shown["from_nifti"]({"image": str(tmp_path / "ct.nii.gz"), "z": 4})["image"]
    np.testing.assert_array_equal(found, SliceTriplet()(volume, 4))
