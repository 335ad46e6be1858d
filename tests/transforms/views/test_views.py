from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import interpolate

from transforms.refusal import TransformError
from transforms.views.batch import (
    TripletBatch,
    _render_batched,
    _render_per_sample,
    _Tone,
    draw_views,
    render_views,
)
from transforms.views.config import ViewConfig
from transforms.views.keyed import sample_state
from transforms.window_policy import WindowConfig

GRAY_WINDOW = WindowConfig(policy="fixed", low_hu=-1000.0, high_hu=1000.0)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def make_batch(size_hw=((128, 128), (128, 96), (60, 128), (31, 33)), seed=0, pixel_mm=(0.8, 0.8)):
    """Random HU on slices of unequal size, and 30000 HU in the padding, which no view may ever show."""
    n, side = len(size_hw), max(max(size) for size in size_hw)
    hu = torch.full((n, 3, side, side), 30_000, dtype=torch.int16)
    random = np.random.default_rng(seed)
    for i, (height, width) in enumerate(size_hw):
        hu[i, :, :height, :width] = torch.from_numpy(random.integers(-1000, 1000, (3, height, width)))
    body = torch.zeros(n, 32, 32, dtype=torch.uint8)
    body[:, 6:26, 4:28] = 1
    return TripletBatch(
        triplets_hu=hu,
        size_hw=torch.tensor(size_hw),
        pixel_mm=torch.tensor([pixel_mm] * n),
        slice_mm=torch.full((n,), 2.5),
        body=body,
        sample_keys=torch.arange(100, 100 + n),
        center_yx_px=torch.full((n, 2), float("nan")),
    )


def pick(batch, rows):
    values = (getattr(batch, name) for name in TripletBatch.__slots__)
    return TripletBatch(*(None if value is None else value[rows] for value in values))


CONFIGS = {
    "fraction": ViewConfig(size_px=70),
    "mm": ViewConfig(size_px=56, extent="mm", n_local=2, local_size_px=28),
    "shared": ViewConfig(size_px=42, shared_scale=True, n_local=3, local_size_px=14, center="uniform"),
    "article": ViewConfig(size_px=56, window=WindowConfig(policy="article", per="sample")),
    "ranges": ViewConfig(size_px=56, window=WindowConfig(policy="ranges")),
    "bilinear": ViewConfig(size_px=30, interpolation="bilinear", n_local=2, local_size_px=98),
    "arms": ViewConfig(size_px=42, color_jitter=(0.4, 0.4), gaussian_blur=(0.1, 2.0)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_forms_show_the_same_gray(name):
    config, batch = CONFIGS[name], make_batch()
    draws = draw_views(batch, config, seed=3, step=5)
    tone = _Tone(draws, replace(config, **PLAIN), torch.device("cpu"))
    ranges = [(slice(0, 2), config.size_px)] + [(slice(2, None), config.local_size_px)] * bool(config.n_local)
    for views, size_px in ranges:
        shown = [batch.triplets_hu] * len(draws.is_flipped)
        one = _render_per_sample(shown, draws, tone, views, size_px)
        many = _render_batched([hu.float() for hu in shown], draws, tone, views, size_px)
        assert one.shape == many.shape == (len(draws.is_flipped[views]), 4, 3, size_px, size_px)
        assert (one - many).abs().max() < 1e-5
        assert one.min() >= 0.0
        assert one.max() <= 1.0 + 1e-6
        assert one.std() > 0.05


def test_the_second_view_may_show_other_triplets_with_the_same_draws():
    config, batch, other = CONFIGS["mm"], make_batch(), make_batch(seed=1)
    draws = draw_views(batch, config, seed=3, step=5)
    both = render_views(replace(batch, second_hu=other.triplets_hu), draws, config)
    first, second = (render_views(one, draws, config) for one in (batch, other))
    assert torch.equal(both.global_views[0], first.global_views[0])
    assert torch.equal(both.global_views[1], second.global_views[1])
    assert torch.equal(both.local_views, first.local_views)
    assert not torch.equal(first.global_views[1], second.global_views[1])


def test_a_view_is_the_crop_through_torch_and_the_window():
    config, batch = ViewConfig(size_px=70), make_batch()
    draws = draw_views(batch, config, seed=0, step=0)
    views = render_views(batch, draws, config).global_views
    for v in range(2):
        for b in range(4):
            top, left, height, width = draws.boxes_yxhw[v, b].astype(int)
            crop = batch.triplets_hu[b, :, top : top + height, left : left + width].double()
            view = interpolate(crop[None], (70, 70), mode="bicubic", antialias=True, align_corners=False)[0]
            low, high = draws.window_hu[v, b]
            view = ((view - low) / (high - low)).clamp(0, 1)
            view = view.flip(-1) if draws.is_flipped[v, b] else view
            expected = (view - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[
                :, None, None
            ]
            assert (views[v, b] - expected).abs().max() < 5e-5


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size_px", [32, 160])
def test_padding_is_never_shown(interpolation, size_px):
    window = WindowConfig(policy="fixed", low_hu=0.0, high_hu=30_000.0)
    config = ViewConfig(size_px=size_px, interpolation=interpolation, window=window, **PLAIN)
    batch = make_batch()
    for step in range(5):
        views = render_views(batch, draw_views(batch, config, 0, step), config)
        assert views.global_views.max() < 0.1


@pytest.mark.parametrize("pixel_mm", [(0.8, 0.8), (0.5, 0.9)])
@pytest.mark.parametrize("shared_scale", [False, True])
def test_a_disc_of_known_mm_has_its_size_in_every_view(pixel_mm, shared_scale):
    diameter_mm = 20.0
    batch = make_batch(size_hw=((160, 160),), pixel_mm=pixel_mm)
    y, x = np.mgrid[:160, :160]
    disc = np.hypot((y - 80) * pixel_mm[0], (x - 70) * pixel_mm[1]) <= diameter_mm / 2
    hu = torch.from_numpy(np.where(disc, 1000, -1000).astype(np.int16)).expand(1, 3, 160, 160)
    batch = replace(batch, triplets_hu=hu, center_yx_px=torch.tensor([[80.0, 70.0]]))
    config = ViewConfig(
        size_px=96,
        extent="mm",
        fov_mm=(30.0, 70.0),
        center="point",
        shared_scale=shared_scale,
        window=GRAY_WINDOW,
        **PLAIN,
    )
    scales = set()
    for step in range(6):
        views = render_views(batch, draw_views(batch, config, 1, step), config)
        for view, mm_per_pixel in zip(
            views.global_views[:, 0, 1], views.mm_per_pixel[:, 0].tolist(), strict=True
        ):
            assert 30.0 <= mm_per_pixel * 96 <= 71.0
            area_mm2 = view.sum().item() * mm_per_pixel**2
            assert 2 * np.sqrt(area_mm2 / np.pi) == pytest.approx(diameter_mm, abs=0.3)
            bright = (view > 0.5).nonzero()
            extent_mm = (bright.max(0).values - bright.min(0).values + 1) * mm_per_pixel
            assert extent_mm.tolist() == pytest.approx([diameter_mm] * 2, abs=1.5)  # round: square in mm
            scales.add(round(mm_per_pixel, 4))
        assert (views.mm_per_pixel[0] == views.mm_per_pixel[1]).all() == shared_scale
    assert len(scales) >= 5


def test_a_sample_sees_the_same_views_in_any_batch_and_any_order():
    config, batch = CONFIGS["mm"], make_batch()
    together = draw_views(batch, config, seed=1, step=7)
    rows = [3, 0, 2]
    apart = draw_views(pick(batch, rows), config, seed=1, step=7)
    alone = [draw_views(pick(batch, [row]), config, seed=1, step=7) for row in rows]
    for name in ("boxes_yxhw", "is_flipped", "window_hu"):
        expected = getattr(together, name)[:, rows]
        np.testing.assert_array_equal(getattr(apart, name), expected)
        np.testing.assert_array_equal(np.concatenate([getattr(one, name) for one in alone], axis=1), expected)


def test_draws_repeat_and_ignore_the_global_generators():
    config, batch = CONFIGS["arms"], make_batch()
    np.random.seed(0)  # noqa: NPY002 the global generator is what must not matter
    first = draw_views(batch, config, seed=1, step=7)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    again = draw_views(batch, config, seed=1, step=7)
    for name in ("boxes_yxhw", "is_flipped", "window_hu", "brightness", "contrast", "blur_px"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert torch.equal(
        render_views(batch, first, config).global_views, render_views(batch, again, config).global_views
    )


@pytest.mark.parametrize(("seed", "step", "shift"), [(2, 7, 0), (1, 8, 0), (1, 7, 1000), (1, 7 + 2**32, 0)])
def test_another_seed_step_or_sample_draws_otherwise(seed, step, shift):
    config, batch = CONFIGS["fraction"], make_batch(size_hw=((512, 512),) * 8)
    first = draw_views(batch, config, seed=1, step=7)
    other = draw_views(replace(batch, sample_keys=batch.sample_keys + shift), config, seed=seed, step=step)
    assert not (first.window_hu == other.window_hu).any()
    assert (first.boxes_yxhw == other.boxes_yxhw).mean() < 0.1


def test_the_two_views_of_a_sample_differ_in_place_and_window():
    draws = draw_views(make_batch(size_hw=((512, 512),) * 8), ViewConfig(), 0, 0)
    assert (draws.boxes_yxhw[0] != draws.boxes_yxhw[1]).any(axis=-1).all()
    assert (draws.window_hu[0] != draws.window_hu[1]).all()


def test_one_setting_does_not_change_the_draws_of_another():
    batch, plain = make_batch(), ViewConfig(size_px=42)
    draws = draw_views(batch, plain, 0, 0)
    windowed = draw_views(batch, replace(plain, window=WindowConfig(policy="article")), 0, 0)
    np.testing.assert_array_equal(windowed.boxes_yxhw, draws.boxes_yxhw)
    with_locals = draw_views(batch, replace(plain, n_local=4), 0, 0)
    np.testing.assert_array_equal(with_locals.boxes_yxhw[:2], draws.boxes_yxhw)
    np.testing.assert_array_equal(with_locals.window_hu[:2], draws.window_hu)


def test_windows_are_shared_per_sample_only_when_asked():
    batch = make_batch()
    shared = draw_views(batch, ViewConfig(window=WindowConfig(per="sample"), n_local=2), 0, 0).window_hu
    assert (shared == shared[0]).all()
    assert len(np.unique(shared[0, :, 0])) == 4


def test_mirrored_views_are_the_same_views_turned():
    config, batch = ViewConfig(size_px=40), make_batch()
    draws = draw_views(batch, config, 0, 0)
    turned = replace(draws, is_flipped=~draws.is_flipped)
    assert torch.equal(
        render_views(batch, turned, config).global_views,
        render_views(batch, draws, config).global_views.flip(-1),
    )


def test_views_off_the_body_are_counted():
    batch = make_batch(size_hw=((512, 512),) * 64)
    batch.body.zero_()
    batch.body[:, :8, :8] = 2
    config = ViewConfig(
        size_px=8, extent="mm", fov_mm=(40.0, 40.0), center="uniform", n_local=1, local_size_px=4
    )
    outside = render_views(batch, draw_views(batch, config, 0, 0), config).outside_body
    assert outside.shape == (3, 64)
    assert 0.8 < outside.float().mean() < 1.0  # the body is 6% of the slice
    favored = replace(config, center="body")
    assert not render_views(batch, draw_views(batch, favored, 0, 0), favored).outside_body.any()


def test_the_report_beside_the_views_counts_global_views_first():
    config, batch = CONFIGS["mm"], make_batch()
    draws = draw_views(batch, config, 0, 0)
    views = render_views(batch, draws, config)
    assert views.global_views.shape == (2, 4, 3, 56, 56)
    assert views.local_views.shape == (2, 4, 3, 28, 28)
    size_px = np.array([56, 56, 28, 28])[:, None]
    np.testing.assert_allclose(views.mm_per_pixel, draws.boxes_yxhw[..., 2] * 0.8 / size_px, rtol=1e-6)
    np.testing.assert_allclose(views.window_hu, draws.window_hu, rtol=1e-6)


def test_brightness_contrast_and_blur_do_what_they_say():
    batch = make_batch(size_hw=((64, 64),))
    config = ViewConfig(size_px=64, fraction=(1.0, 1.0), square=True, flip=False, window=GRAY_WINDOW, **PLAIN)
    draws = draw_views(batch, config, 0, 0)
    plain = render_views(batch, draws, config).global_views[0, 0]
    jittered_config = replace(config, color_jitter=(0.5, 0.5))
    factors = replace(draws, brightness=np.full((2, 1), 0.5), contrast=np.full((2, 1), 0.5))
    jittered = render_views(batch, factors, jittered_config).global_views[0, 0]
    dimmed = plain * 0.5
    torch.testing.assert_close(jittered, dimmed.mean() + (dimmed - dimmed.mean()) * 0.5)
    blurred_config = replace(config, gaussian_blur=(2.0, 2.0))
    point = replace(batch, triplets_hu=torch.full((1, 3, 64, 64), -1000, dtype=torch.int16))
    point.triplets_hu[:, :, 30, 34] = 1000
    blurred = render_views(point, draw_views(point, blurred_config, 0, 0), blurred_config).global_views[
        0, 0, 0
    ]
    assert blurred.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert blurred[30, 34].item() == pytest.approx(1 / (2 * np.pi * 4), rel=0.01)
    assert (blurred[30, 36] / blurred[30, 34]).item() == pytest.approx(np.exp(-0.5), rel=1e-3)


def test_only_the_pixels_travel_to_the_device():
    batch = make_batch()
    moved = replace(batch, second_hu=batch.triplets_hu).to("meta")
    pixels = {"triplets_hu", "second_hu"}
    assert {getattr(moved, name).device.type for name in pixels} == {"meta"}
    assert {getattr(moved, name).device.type for name in set(TripletBatch.__slots__) - pixels} == {"cpu"}


def test_streams_of_one_sample_are_independent_and_negative_keys_are_refused():
    drawn = [
        sample_state(0, 0, 0, stream).random_sample(4).tolist() for stream in ("crop", "window", "intensity")
    ]
    assert len({tuple(numbers) for numbers in drawn}) == 3
    with pytest.raises(TransformError, match="must not be negative"):
        sample_state(0, 0, -1, "crop")


def test_rendering_on_a_gpu_waits_for_no_copy(host_copies) -> None:
    batch = make_batch(size_hw=((96, 96), (96, 80)))
    config = ViewConfig(size_px=28, **PLAIN)
    draws = draw_views(batch, config, 0, 0)
    with FakeTensorMode(allow_non_fake_inputs=True), host_copies:  # shapes and devices, no GPU
        pixels = torch.empty(batch.triplets_hu.shape, dtype=torch.int16, device="cuda")
        tone = _Tone(draws, config, pixels.device)
        views = _render_batched([pixels.float()] * 2, draws, tone, slice(0, 2), config.size_px)
    assert views.device.type == "cuda"
    assert len(host_copies.is_waited_for) == len(host_copies.pinned) > 10
    assert not any(host_copies.is_waited_for)


@pytest.mark.gpu
def test_the_device_shows_what_the_cpu_shows():
    batch = make_batch(size_hw=((512, 512), (512, 300)))
    config = ViewConfig(n_local=2, **PLAIN)
    draws = draw_views(batch, config, 0, 0)
    on_cpu = render_views(batch, draws, config)
    on_device = render_views(batch.to("cuda"), draws, config)
    for name in ("global_views", "local_views"):
        assert (getattr(on_cpu, name) - getattr(on_device, name).cpu()).abs().max() < 1e-5
