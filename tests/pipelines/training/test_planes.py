"""Figures of cubes: what a plane shows is known, patches lie over their voxels, the sheet shows what is trained on."""

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.cohort.drawn import draw_batch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig
from pipelines.training.figures import token_figures
from pipelines.training.loader import BatchPlan
from pipelines.training.planes import Shown
from pipelines.training.view_sheet import slice_and_cubes, view_sheet
from transforms.views.config import ViewConfig

VIEWS = ViewConfig(
    size_px=16, depth_px=8, extent="mm", fov_mm=(14.0, 20.0), mean=(0.2, 0.3, 0.4), std=(0.5, 0.5, 0.5)
)
NETWORK = BackboneConfig(
    arch="custom", depth=1, embed_dim=16, heads=2, image_px=16, image_depth_px=8, patch_px=4, patch_depth_px=4
)


def test_planes_run_through_the_middle_head_up() -> None:
    z, y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), torch.arange(16.0), indexing="ij")
    code = (10_000 * z + 100 * y + x)[None]
    shown = Shown(code, (2, 3, 4), torch.tensor([[2.0, 0.5, 0.25]]))
    axial, coronal, sagittal = shown.planes(0)
    # The second of two patches of 4 along z has its middle at 6, the second of three along y too, the third of 4 at 10.
    assert axial.pixels[3, 5] == 60_000 + 300 + 5
    assert coronal.pixels[0, 5] == 70_000 + 600 + 5  # the top row is the one nearest to the head
    assert sagittal.pixels[7, 2] == 200 + 10
    assert [plane.name for plane in shown.planes(0)] == ["axial", "coronal", "sagittal"]
    assert axial.size_mm == (6.0, 4.0)
    assert coronal.size_mm == (16.0, 4.0)
    assert sagittal.size_mm == (16.0, 6.0)
    triplets = Shown(code[:, :1], (1, 3, 4), torch.ones(1, 3)).planes(0)
    assert len(triplets) == 1
    assert triplets[0].pixels[3, 5] == 305


def test_patches_lie_over_the_voxels_that_they_read() -> None:
    """Each patch holds the mean of its voxels: in every plane, enlarged, it is the blockwise mean of the voxels."""
    volume = torch.zeros(1, 8, 12, 16)
    values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    volume[0] = values.repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    shown = Shown(volume, (2, 3, 4), torch.tensor([[2.0, 0.5, 0.25]]))
    for plane, patches in zip(shown.planes(0), shown.maps(0, values.flatten()), strict=True):
        assert np.array_equal(np.kron(patches.pixels, np.ones((4, 4))), plane.pixels)
        assert patches.size_mm == plane.size_mm


def test_token_figures_of_cubes_have_three_planes() -> None:
    torch.manual_seed(0)
    backbone, images = build_backbone(NETWORK), torch.randn(2, 1, 8, 16, 16)
    drawn = dict(
        token_figures(
            backbone, images, VIEWS, np.zeros((2, 0, 0), np.float32), np.array([], str), torch.ones(2, 3)
        )
    )
    assert list(drawn) == ["tokens/attention", "tokens/pca", "tokens/gram"]
    assert [len(figure.axes) for figure in drawn.values()] == [2 * 3 * 4 + 1, 2 * 6, 2 * 4 + 1]
    first = drawn["tokens/pca"].axes[0].images[0].get_array()
    np.testing.assert_allclose(first, (images[0, 0, 6].numpy() * 0.5 + 0.3).clip(0, 1), atol=1e-6)


def test_the_cubes_of_the_sheet_are_those_that_the_batched_path_renders(small_cohort: Cohort) -> None:
    index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]), views=VIEWS)
    rows = np.array([0, 7, len(index) - 1])
    expected = draw_batch(index, rows, VIEWS, 3, 7).render(torch.device("cpu"), VIEWS)
    for i, row in enumerate(rows.tolist()):
        shown = slice_and_cubes(index, row, VIEWS, 3, 7)
        for number, view in enumerate(("first", "second")):
            gray = expected.global_views[number, i] * 0.5 + 0.3
            torch.testing.assert_close(shown[view].as_tensor(), gray, rtol=0, atol=2e-5)
            assert shown[f"{view}_spacing_mm"] == pytest.approx(expected.spacing_mm[number, i].tolist())
            assert shown[f"{view}_window_hu"] == pytest.approx(expected.window_hu[number, i].tolist())


def test_a_sheet_of_cubes_frames_them_on_their_slice(small_cohort: Cohort) -> None:
    index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]), views=VIEWS)
    config = PretrainConfig(views=VIEWS, backbone=NETWORK, batch_size=4)
    plan = BatchPlan(n_slices=len(index), batch_size=4, accumulation=1, seed=0)
    axes = view_sheet(index, plan, config, step=2, count=2).axes
    assert len(axes) == 2 * 7
    drawn = draw_batch(index, plan.rows(2), config.views, config.seed, 2)
    for row in range(2):
        first, *planes = axes[7 * row : 7 * row + 7]
        for view, frame in enumerate(first.patches):
            (left, top), width = frame.get_xy(), frame.get_width()
            start = drawn.draws.places.start_zyx[view, row]  # type: ignore[union-attr]
            length = drawn.draws.places.length_zyx[view, row, 2]  # type: ignore[union-attr]
            assert top == pytest.approx(start[1] - 0.5, abs=1e-6)
            assert min(left, left + width) == pytest.approx(start[2] - 0.5, abs=1e-6)
            assert abs(width) == pytest.approx(length, abs=1e-6)
        assert [plane.get_title().split()[0] for plane in planes] == ["axial", "coronal", "sagittal"] * 2
