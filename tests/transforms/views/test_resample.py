import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import grid_sample, interpolate

from transforms.views.resample import bicubic_band, resize_batch, resize_crop

SIZES = [(512, 224), (363, 224), (224, 224), (100, 224), (37, 70), (512, 7), (3, 5), (1, 4), (5, 1)]


def dense(n_in, n_out):
    """The band written out as a matrix."""
    first, weights = bicubic_band(n_in, n_out)
    matrix = np.zeros((n_out, n_in + weights.shape[1]))
    for row, (start, values) in enumerate(zip(first, weights, strict=True)):
        matrix[row, start : start + len(values)] = values
    assert not matrix[:, n_in:].any()
    return matrix[:, :n_in]


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_weights_are_those_of_torch_antialiased_bicubic(n_in, n_out):
    # The identity, resized along one axis in double precision, is torch's own weight matrix.
    identity = torch.eye(n_in, dtype=torch.float64)[None, None]
    torch_weights = interpolate(identity, (n_in, n_out), mode="bicubic", antialias=True, align_corners=False)
    np.testing.assert_allclose(dense(n_in, n_out), torch_weights[0, 0].T.numpy(), atol=1e-12)


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
def test_a_constant_stays_constant_and_mirroring_commutes(n_in, n_out):
    weights = dense(n_in, n_out)
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(weights[::-1, ::-1], weights, atol=1e-12)


def test_no_change_of_size_is_the_identity():
    np.testing.assert_array_equal(dense(50, 50), np.eye(50))


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(-1024, 3071, (3, 90, 120)).astype(np.int16)


def resized(image, box, size_px, is_flipped=False, interpolation="bicubic"):
    out = np.empty((len(image), size_px, size_px), dtype=np.float32)
    resize_crop(image, np.array(box, dtype=float), size_px, is_flipped, out, interpolation)
    return out


def sampled_by_torch(image, box, size_px):
    """The same points through torch's own bilinear sampler, in double precision."""
    _, height, width = image.shape
    points = (np.arange(size_px) + 0.5) / size_px
    y, x = box[0] + box[2] * points, box[1] + box[3] * points
    grid = np.stack(np.broadcast_arrays(x / width * 2 - 1, (y / height * 2 - 1)[:, None]), axis=-1)
    images = torch.from_numpy(image.astype(float))[None]
    view = grid_sample(images, torch.from_numpy(grid)[None], "bilinear", "border", align_corners=False)
    return view[0].numpy()


@pytest.mark.parametrize(
    ("box", "size_px"),
    [
        ((0.0, 0.0, 90.0, 120.0), 32),
        ((0.0, 0.0, 90.0, 120.0), 300),  # larger than the slice: the border goes on
        ((5.3, 20.8, 64.1, 48.6), 40),
        ((25.4, 56.7, 64.6, 63.3), 63),
    ],
)
def test_bilinear_points_are_those_of_torch_grid_sample(image, box, size_px):
    ours = resized(image, box, size_px, interpolation="bilinear")
    np.testing.assert_allclose(
        ours, sampled_by_torch(image, box, size_px), atol=0.01
    )  # of 4095 HU, in float32


def test_a_magnified_bilinear_crop_goes_on_with_the_last_pixel_that_it_touches(image):
    box, touched = (5.3, 20.8, 10.1, 8.6), image[:, 5:16, 20:30]
    expected = sampled_by_torch(touched, (0.3, 0.8, 10.1, 8.6), 60)
    np.testing.assert_allclose(resized(image, box, 60, interpolation="bilinear"), expected, atol=0.01)


def test_a_bilinear_crop_reads_no_pixel_that_it_does_not_touch(image):
    box = (5.3, 20.8, 10.1, 8.6)
    poisoned = np.full_like(image, 30_000)
    touched = np.s_[:, 5:16, 20:30]
    poisoned[touched] = image[touched]
    for size_px in (4, 60):
        np.testing.assert_array_equal(
            resized(poisoned, box, size_px, interpolation="bilinear"),
            resized(image, box, size_px, interpolation="bilinear"),
        )


@pytest.mark.parametrize("box", [(0, 0, 90, 120), (5, 20, 64, 48), (80, 100, 10, 20), (3, 4, 1, 1)])
@pytest.mark.parametrize("size_px", [32, 98])
def test_a_crop_equals_pillow(image, box, size_px):
    top, left, height, width = box
    for channel, view in zip(image, resized(image, box, size_px), strict=True):
        crop = Image.fromarray(channel[top : top + height, left : left + width].astype(np.float32))
        expected = np.asarray(crop.resize((size_px, size_px), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(view, expected, atol=0.05)  # of 4095 HU, in float32


def test_mirroring_turns_the_view_left_to_right(image):
    box = (5, 20, 64, 48)
    np.testing.assert_array_equal(
        resized(image, box, 40, is_flipped=True), resized(image, box, 40)[:, :, ::-1]
    )


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_batched_form_equals_the_form_for_one(image, interpolation):
    images = np.stack([image, image[::-1], -image])
    places = {
        "bicubic": [(0, 0, 90, 120), (5, 20, 64, 48), (80, 100, 10, 20)],
        "bilinear": [(0, 0, 90, 120), (5.3, 20.8, 64.1, 48.6), (79.9, 99.7, 10.1, 20.3)],
    }
    boxes = np.array(places[interpolation], dtype=float)
    flips = np.array([False, True, True])
    batched = resize_batch(torch.from_numpy(images).float(), boxes, 48, flips, interpolation).numpy()
    for one, box, flip, view in zip(images, boxes, flips, batched, strict=True):
        np.testing.assert_allclose(view, resized(one, box, 48, flip, interpolation), atol=0.01)  # of 4095 HU


def test_mixed_precision_does_not_reach_the_resize(image):
    images, boxes = torch.from_numpy(image)[None].float(), np.array([(5.0, 20.0, 64.0, 48.0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = resize_batch(images, boxes, 48, np.array([False]))
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, resize_batch(images, boxes, 48, np.array([False])))


def test_fine_stripes_average_out_instead_of_aliasing():
    stripes = np.tile(np.array([-1000, 1000], dtype=np.int16), (1, 512, 256))
    view = resized(stripes, (0, 0, 512, 512), 64)
    assert np.abs(view).max() < 50
    points = resized(stripes, (0.5, 0.5, 511.5, 511.5), 64, interpolation="bilinear")
    assert np.abs(points).max() > 400  # without antialiasing they stay
