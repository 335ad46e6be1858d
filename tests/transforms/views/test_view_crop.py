import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, CopyItemsd, NormalizeIntensityd

from transforms.hounsfield import RandWindowHUd
from transforms.refusal import TransformError
from transforms.triplet import SliceTripletd
from transforms.views.batch import TripletBatch, draw_views, render_views
from transforms.views.config import ViewConfig
from transforms.views.keyed import sample_state
from transforms.views.view_crop import RandViewCropd
from transforms.window_policy import WindowConfig

VIEWS = ("first", "second")
SPACING_MM = (2.5, 0.7, 0.9)


@pytest.fixture
def volume():
    """Random HU with an affine whose axes are turned and far from the origin."""
    hu = np.random.default_rng(0).integers(-1000, 400, (1, 6, 100, 120)).astype(np.int16)
    affine = np.array([[0, 0, -0.9, 80], [0, -0.7, 0, 60], [2.5, 0, 0, -150], [0, 0, 0, 1.0]])
    return MetaTensor(torch.from_numpy(hu), affine=torch.from_numpy(affine))


def pipeline(config):
    """The views of one sample from transforms that a user would chain."""
    return Compose(
        [
            SliceTripletd("image"),
            CopyItemsd("image", times=2, names=VIEWS),
            RandViewCropd(VIEWS, config, body_key="body", point_key="point"),
            RandWindowHUd(VIEWS, config.window),
            NormalizeIntensityd(VIEWS, subtrahend=config.mean, divisor=config.std, channel_wise=True),
        ]
    )


@pytest.mark.parametrize(
    "config",
    [
        ViewConfig(size_px=48),
        ViewConfig(size_px=48, window=WindowConfig(policy="clinical", per="sample"), center="uniform"),
        ViewConfig(
            size_px=32,
            extent="mm",
            fov_mm=(20.0, 60.0),
            shared_scale=True,
            center="point",
            center_jitter_mm=5.0,
        ),
        ViewConfig(
            size_px=32, extent="mm", fov_mm=(20.0, 40.0), center="lung", center_jitter_mm=5.0, n_local=1
        ),
        ViewConfig(size_px=48, interpolation="bilinear"),
        ViewConfig(size_px=48, window=WindowConfig(policy="ranges", hu_scale=0.5)),
    ],
    ids=["body", "uniform", "point", "lung", "bilinear", "ranges"],
)
def test_compose_and_the_batched_path_show_the_same_views(volume, config):
    body = np.zeros((32, 32), np.uint8)
    body[5:20, 8:30] = 1
    body[9:15, 12:20] = 2
    point, z, seed, step, key = (40.0, 71.0), 3, 9, 4, 12345
    batch = TripletBatch(
        triplets_hu=volume.as_tensor()[:, z - 1 : z + 2],
        size_hw=torch.tensor([[100, 120]]),
        pixel_mm=torch.tensor([SPACING_MM[1:]], dtype=torch.float64),
        slice_mm=torch.tensor([SPACING_MM[0]]),
        body=torch.from_numpy(body)[None],
        sample_keys=torch.tensor([key]),
        center_yx_px=torch.tensor([point]),
    )
    fast = render_views(batch, draw_views(batch, config, seed, step), config)

    chain = pipeline(config)
    _, _, crop, window, _ = chain.transforms
    crop.set_random_state(state=sample_state(seed, step, key, "crop"))
    window.set_random_state(state=sample_state(seed, step, key, "window"))
    data = chain({"image": volume, "z": z, "body": body, "point": point})

    for view, name in enumerate(VIEWS):
        difference = (data[name].as_tensor() - fast.global_views[view, 0]) * torch.tensor(config.std)[
            :, None, None
        ]
        assert difference.abs().max() < 1e-5
        assert data[f"{name}_mm_per_pixel"] == pytest.approx(fast.mm_per_pixel[view, 0].item(), rel=1e-6)
        assert data[f"{name}_window_hu"] == pytest.approx(fast.window_hu[view, 0].tolist(), rel=1e-6)


def test_a_seeded_compose_repeats_itself_and_moves_on(volume):
    chain = pipeline(ViewConfig(size_px=16))
    sample = {"image": volume, "z": 2, "body": np.ones((32, 32), np.uint8), "point": (np.nan, np.nan)}
    chain.set_random_state(seed=1)
    first, second = chain(sample)["first"], chain(sample)["first"]
    chain.set_random_state(seed=1)
    assert torch.equal(chain(sample)["first"], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("seed", range(6))
def test_a_view_knows_where_it_lies_in_space(volume, seed, interpolation):
    """A bright spot, found in the view and taken through the view's affine, is where it was put."""
    hu = np.full((1, 6, 100, 120), -1000, np.int16)
    y, x = np.mgrid[:100, :120]
    hu[0, 3][np.hypot((y - 52) * 0.7, (x - 64) * 0.9) < 4.0] = 1000
    volume = MetaTensor(torch.from_numpy(hu), affine=volume.affine)
    config = ViewConfig(size_px=64, center="uniform", interpolation=interpolation)
    chain = Compose([SliceTripletd("image"), RandViewCropd("image", config)]).set_random_state(seed=seed)
    view = chain({"image": volume, "z": 3})["image"]
    weight = (view[1].numpy() + 1000).clip(0)
    rows, columns = np.mgrid[:64, :64]
    spot = [(weight * rows).sum() / weight.sum(), (weight * columns).sum() / weight.sum(), 0, 1]
    found_ras_mm = np.asarray(view.affine) @ spot
    # Half a pixel of the slice is 0.35 mm; points without antialiasing weigh the spot's hard edge less evenly.
    atol_mm = {"bicubic": 0.05, "bilinear": 0.1}[interpolation]
    np.testing.assert_allclose(found_ras_mm, np.asarray(volume.affine) @ [3, 52, 64, 1], atol=atol_mm)


def test_plain_arrays_need_their_spacing_and_centers_their_key():
    with pytest.raises(TransformError, match="need body_key"):
        RandViewCropd("image", ViewConfig())
    with pytest.raises(TransformError, match="need point_key"):
        RandViewCropd("image", ViewConfig(center="point"), body_key="body")
    crop = RandViewCropd("image", ViewConfig(size_px=8, center="uniform"))
    with pytest.raises(TransformError, match="give pixel_mm"):
        crop({"image": np.zeros((3, 20, 20), np.int16)})
    crop = RandViewCropd(
        "image", ViewConfig(size_px=8, center="uniform", extent="mm"), pixel_mm_key="pixel_mm"
    )
    data = crop({"image": np.zeros((3, 20, 20), np.int16), "pixel_mm": (0.5, 0.5)})
    assert data["image"].shape == (3, 8, 8)
    assert data["image_mm_per_pixel"] == 10 / 8  # a slice of 10 mm is shown whole
