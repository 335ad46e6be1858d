"""The view sheet is drawn by MONAI's transforms: it shows what the batched path trains on."""

import numpy as np
import pytest
import torch

from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig
from pipelines.training.loader import BatchPlan
from pipelines.training.view_sheet import slice_and_views, view_sheet
from transforms.views.batch import draw_views, render_views
from transforms.views.config import ViewConfig
from transforms.window_policy import WindowConfig

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "size_px": 32}


@pytest.fixture(scope="module")
def index(small_cohort: Cohort) -> SliceIndex:
    return SliceIndex(small_cohort, set(small_cohort.series["patient_id"]))


@pytest.mark.parametrize(
    "config",
    [
        ViewConfig(**PLAIN),
        ViewConfig(**PLAIN, n_local=2, extent="mm", fov_mm=(20.0, 60.0), shared_scale=True, local_size_px=16),
        ViewConfig(**PLAIN, center="point", window=WindowConfig(policy="clinical", per="sample")),
        ViewConfig(**PLAIN, color_jitter=(0.4, 0.4), gaussian_blur=(0.5, 2.0)),
    ],
    ids=["default", "mm", "point", "intensity"],
)
def test_the_views_of_the_sheet_are_those_that_the_batched_path_renders(
    index: SliceIndex, config: ViewConfig
) -> None:
    # The first, the last and a middle slice of every volume: ends, where neighbors are missing, too.
    rows = [row for row in range(len(index)) if index.z[row] in (0, 5, index.n_slices[index.volume[row]] - 1)]
    batch = index.read(rows)
    expected = render_views(batch, draw_views(batch, config, 3, 7), config)
    for i, row in enumerate(rows):
        shown = slice_and_views(index, row, config, 3, 7)
        height, width = batch.size_hw[i].tolist()
        torch.testing.assert_close(
            shown["image"].as_tensor(), batch.triplets_hu[i, :, :height, :width], rtol=0, atol=0
        )
        for number, view in enumerate(("first", "second")):
            torch.testing.assert_close(shown[view], expected.global_views[number, i], rtol=0, atol=2e-5)
            assert shown[f"{view}_window_hu"] == pytest.approx(expected.window_hu[number, i].tolist())
            assert shown[f"{view}_mm_per_pixel"] == pytest.approx(float(expected.mm_per_pixel[number, i]))


def test_a_sheet_has_a_slice_and_two_views_a_row_with_scale_and_window(index: SliceIndex) -> None:
    config = PretrainConfig(views=ViewConfig(size_px=224), batch_size=4)
    plan = BatchPlan(n_slices=len(index), batch_size=4, accumulation=1, seed=0)
    axes = view_sheet(index, plan, config, step=2, count=3).axes
    assert len(axes) == 9
    for row, (first, *views) in zip(plan.rows(2), zip(*[iter(axes)] * 3, strict=True), strict=False):
        middle = index.read([int(row)]).triplets_hu[0, 1].numpy()
        np.testing.assert_allclose(
            first.images[0].get_array(), np.clip((middle + 1350) / 1500, 0, 1), atol=1e-6
        )
        assert all(view.get_title().endswith(" mm/px") for view in views)
        for axis in (first, *views):
            texts = [text.get_text() for text in axis.texts]
            assert {"L", "R", "A"} <= {*texts}
            assert any(text.endswith(" HU") for text in texts)
            assert any(text.endswith(" mm") for text in texts)
