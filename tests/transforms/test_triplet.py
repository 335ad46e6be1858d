import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose

from transforms.geometry import triplet_indices
from transforms.refusal import TransformError
from transforms.triplet import SliceTriplet, SliceTripletd


@pytest.mark.parametrize(
    ("z", "stride", "gaps", "expected"),
    [
        (5, 1, (), ((4, 5, 6), False)),
        (5, 3, (), ((2, 5, 8), False)),
        (0, 1, (), ((0, 0, 1), True)),
        (9, 1, (), ((8, 9, 9), True)),
        (1, 2, (), ((1, 1, 3), True)),
        (5, 1, (5,), ((4, 5, 5), True)),  # the gap lies between 5 and 6
        (6, 1, (5,), ((6, 6, 7), True)),
        (4, 1, (5,), ((3, 4, 5), False)),
        (4, 2, (5,), ((2, 4, 4), True)),  # two slices up would cross it
        (5, 1, (4, 5), ((5, 5, 5), True)),
    ],
)
def test_neighbors_by_index_stop_at_edges_and_gaps(z, stride, gaps, expected):
    assert triplet_indices(10, z, 2.5, gaps, stride=stride) == expected


@pytest.mark.parametrize(
    ("spacing_mm", "distance_mm", "step"),
    [(1.25, 2.5, 2), (2.5, 2.5, 1), (0.625, 2.5, 4), (1.0, 2.4, 2), (5.0, 2.0, 1), (0.7, 2.5, 4)],
)
def test_neighbors_by_mm_are_the_nearest_slices_but_never_z_itself(spacing_mm, distance_mm, step):
    assert triplet_indices(50, 20, spacing_mm, (), distance_mm=distance_mm) == (
        (20 - step, 20, 20 + step),
        False,
    )


@given(
    n_slices=st.integers(1, 40),
    place=st.floats(0, 1, exclude_max=True),
    spacing_mm=st.floats(0.3, 8.0),
    distance_mm=st.floats(0.3, 20.0),
    gaps=st.sets(st.integers(0, 39), max_size=5),
)
def test_no_triplet_ever_crosses_a_gap_or_leaves_the_volume(n_slices, place, spacing_mm, distance_mm, gaps):
    z = int(place * n_slices)
    indices, is_replicated = triplet_indices(n_slices, z, spacing_mm, gaps, distance_mm=distance_mm)
    below, middle, above = indices
    assert 0 <= below <= middle == z <= above < n_slices
    assert is_replicated == (below == z or above == z)
    assert not any(below <= gap < above for gap in gaps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 10, 1.0, ()), "slice 10 is not in a volume of 10 slices"),
        ((10, -1, 1.0, ()), "slice -1"),
        ((10, 5, 1.0, (), 0), "stride"),
        ((10, 5, None, (), 1, 2.5), "needs the slice spacing"),
        ((10, 5, 1.0, (), 1, 0.0), "must be positive"),
    ],
)
def test_impossible_triplets_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(TransformError, match=message):
        triplet_indices(*arguments)


@pytest.fixture
def ramp():
    """A volume whose every voxel holds its slice index, on a memory map's dtype."""
    return np.broadcast_to(np.arange(10, dtype=np.int16)[:, None, None], (10, 4, 5)).copy()


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
@pytest.mark.parametrize("has_channel", [False, True])
def test_channels_are_below_z_above_and_keep_their_dtype(ramp, wrap, has_channel):
    volume = wrap(ramp[None] if has_channel else ramp)
    triplet = SliceTriplet(stride=2)(volume, 6)
    assert tuple(triplet.shape) == (3, 4, 5)
    assert triplet.dtype == volume.dtype
    assert [int(channel[0, 0]) for channel in triplet] == [4, 6, 8]


def test_a_meta_tensor_brings_spacing_and_gaps_and_keeps_its_place_in_space(ramp):
    affine = np.array([[0, 0, -0.5, 100], [0, -0.7, 0, 200], [2.0, 0, 0, -300], [0, 0, 0, 1.0]])
    volume = MetaTensor(torch.as_tensor(ramp[None]), affine=torch.as_tensor(affine), meta={"gaps": [6]})
    cut = SliceTripletd("image", distance_mm=4.0)
    data = Compose([cut])({"image": volume, "z": 5})
    assert data["image"][:, 0, 0].tolist() == [3, 5, 5]  # slice 7 lies beyond the gap
    assert data["image_is_replicated"] is True
    np.testing.assert_allclose(data["image"].pixdim[:2], [0.7, 0.5], atol=1e-6)
    at_slice = np.asarray(data["image"].affine) @ [1, 2, 0, 1]
    np.testing.assert_allclose(at_slice, affine @ [5, 1, 2, 1])
    assert Compose([cut])({"image": volume, "z": 3})["image_is_replicated"] is False


def test_a_slice_beyond_a_gap_lies_where_its_offset_says(ramp):
    offsets_mm = tuple(2.0 * i + (20.0 if i > 6 else 0.0) for i in range(10))
    meta = {"gaps": (6,), "slice_offsets_mm": offsets_mm}
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])
    volume = MetaTensor(torch.as_tensor(ramp[None]), affine=torch.as_tensor(affine), meta=meta)
    assert float(SliceTriplet()(volume, 8).affine[2, 3]) == 36.0


def test_a_plain_array_by_mm_needs_its_spacing(ramp):
    with pytest.raises(TransformError, match="needs the slice spacing"):
        SliceTriplet(distance_mm=2.5)(ramp, 5)
    assert SliceTriplet(distance_mm=2.5)(ramp, 5, spacing_z_mm=1.25)[:, 0, 0].tolist() == [3, 5, 7]


def test_what_is_not_a_volume_is_refused():
    with pytest.raises(TransformError, match="got shape"):
        SliceTriplet()(np.zeros((4, 5)), 0)
    with pytest.raises(TransformError, match="stride"):
        SliceTriplet(stride=0)
