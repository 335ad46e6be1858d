import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, CopyItemsd

from transforms.hounsfield import RandWindowHU, RandWindowHUd, WindowHU, WindowHUd, named_window, window_hu
from transforms.refusal import TransformError
from transforms.window_policy import WindowConfig, draw_window, windows_from_uniforms

LUNG_HU, NODULE_HU, GROUND_GLASS_HU = -850.0, 30.0, -650.0
N_DRAWS = 40_000


def drawn(policy, hu_scale=1.0):
    uniforms = np.random.RandomState(7).random_sample((N_DRAWS, 3))
    return windows_from_uniforms(WindowConfig(policy=policy, hu_scale=hu_scale), uniforms)


def gray(hu, windows):
    return np.clip((hu - windows[:, 0]) / (windows[:, 1] - windows[:, 0]), 0, 1)


def statistics(policy, hu_scale=1.0, nodule_hu=NODULE_HU):
    """Mean nodule-lung gap in gray, mean change of lung between two views, share of views that clip lung."""
    windows = drawn(policy, hu_scale)
    lung = gray(LUNG_HU, windows)
    gap = (gray(nodule_hu, windows) - lung).mean()
    jitter = np.abs(lung[: N_DRAWS // 2] - lung[N_DRAWS // 2 :]).mean()
    return gap, jitter, (windows[:, 0] >= LUNG_HU).mean()


def test_window_edges_and_middle_have_the_values_on_paper():
    hu = np.array([-2000, -1350, -600, 150, 3000], dtype=np.int16)
    assert window_hu(hu, -1350.0, 150.0).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    "make",
    [np.asarray, torch.as_tensor, lambda a: MetaTensor(torch.as_tensor(a))],
    ids=["array", "tensor", "meta"],
)
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_arrays_and_tensors_get_the_same_gray(make, dtype):
    hu = np.linspace(-1500, 1500, 11).astype(dtype)
    windowed = window_hu(make(hu), -1000.0, 400.0)
    assert type(windowed) is type(make(hu))
    assert np.asarray(windowed).dtype == (np.float64 if dtype == np.float64 else np.float32)
    np.testing.assert_allclose(np.asarray(windowed), np.clip((hu + 1000.0) / 1400.0, 0, 1), atol=1e-6)


def test_each_slice_may_have_its_own_window():
    low, high = np.array([[-1000.0], [0.0]]), np.array([[0.0], [100.0]])
    assert window_hu(np.full((2, 1), 50.0), low, high).ravel().tolist() == [1.0, 0.5]


def test_the_input_is_left_as_it_was():
    volume = torch.tensor([-1000.0, 0.0, 1000.0])
    window_hu(volume, -500.0, 500.0)
    assert volume.tolist() == [-1000.0, 0.0, 1000.0]


@pytest.mark.parametrize(("low", "high"), [(100.0, 100.0), (200.0, 100.0), (float("nan"), 1.0)])
def test_a_window_that_does_not_rise_is_refused(low, high):
    with pytest.raises(TransformError, match="must rise"):
        window_hu(np.zeros(3), low, high)
    with pytest.raises(ValueError, match="must rise"):
        WindowConfig(policy="fixed", low_hu=low, high_hu=high)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"policy": "lung"}, "unknown"), ({"per": "batch"}, "unknown"), ({"hu_scale": 0.0}, "positive")],
)
def test_an_impossible_policy_is_refused_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        WindowConfig(**change)


def test_lung_aware_keeps_the_nodule_above_the_jitter_and_never_clips_lung():
    gap, jitter, clipped = statistics("lung_aware")
    assert clipped == 0.0
    assert gap > 5 * jitter
    assert statistics("lung_aware", nodule_hu=GROUND_GLASS_HU)[0] > jitter  # faint nodules too
    windows = drawn("lung_aware")
    assert windows.min(axis=0) == pytest.approx([-1400, 100], abs=1)
    assert windows.max(axis=0) == pytest.approx([-950, 800], abs=1)


def test_fixed_has_no_jitter_and_does_not_clip_lung():
    gap, jitter, clipped = statistics("fixed")
    assert (gap, jitter, clipped) == (pytest.approx(880 / 1500), 0.0, 0.0)


def test_article_clips_lung_in_two_views_of_three():
    # By integration 0.6849; 0.687 was found by sampling. Expected failure of that policy, recorded here.
    gap, jitter, clipped = statistics("article")
    assert clipped == pytest.approx(0.687, abs=0.01)
    assert gap > jitter


def test_article_at_a_tenth_of_the_hu_drowns_the_nodule_in_jitter():
    gap, jitter, _ = statistics("article", hu_scale=0.1)
    assert gap == pytest.approx(0.067, abs=0.003)
    assert jitter == pytest.approx(0.209, abs=0.005)


def test_clinical_clips_lung_in_half_of_the_views_and_still_shows_nodules():
    gap, jitter, clipped = statistics("clinical")
    assert clipped == pytest.approx(0.5, abs=0.01)  # mediastinal and bone, half of the presets
    assert gap > jitter
    windows = drawn("clinical")
    width = windows[:, 1] - windows[:, 0]
    for preset_hu in (1500, 400, 2000, 1800):
        assert (np.abs(width / preset_hu - 1) <= 0.1).mean() >= 0.24


def test_scaling_the_window_equals_scaling_the_image():
    config = WindowConfig(policy="article", hu_scale=0.1)
    hu = np.linspace(-2000, 2000, 50)
    low, high = draw_window(config, np.random.RandomState(3))
    plain_low, plain_high = draw_window(WindowConfig(policy="article"), np.random.RandomState(3))
    np.testing.assert_allclose(
        window_hu(hu, low, high), window_hu(hu * 0.1, plain_low, plain_high), atol=1e-12
    )


def test_the_same_state_draws_the_same_windows_and_draws_go_on():
    first, second = np.random.RandomState(5), np.random.RandomState(5)
    windows = [draw_window(WindowConfig(), first) for _ in range(3)]
    assert windows == [draw_window(WindowConfig(), second) for _ in range(3)]
    assert len(set(windows)) == 3


def test_monai_forms_window_what_their_keys_name():
    volume = np.array([[-1000, -250, 500]], dtype=np.int16)
    data = WindowHUd("image", -1000, 500)({"image": volume, "other": volume})
    assert data["image"].tolist() == [[0.0, 0.5, 1.0]]
    assert data["other"] is volume
    assert WindowHU(-1000, 500)(volume).tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("per", ["view", "sample"])
def test_keys_are_views_and_share_a_window_per_sample(per):
    views = Compose(
        [CopyItemsd("image", 1, names="again"), RandWindowHUd(("image", "again"), WindowConfig(per=per))]
    ).set_random_state(seed=11)
    data = views({"image": torch.zeros(1, 4, 4)})
    assert (data["image_window_hu"] == data["again_window_hu"]) == (per == "sample")
    low, high = data["again_window_hu"]
    assert data["again"][0, 0, 0].item() == pytest.approx(-low / (high - low), abs=1e-6)


def test_the_dictionary_form_repeats_under_a_seed_and_moves_on_between_samples():
    transform = RandWindowHUd("image")
    volume = {"image": torch.zeros(1, 2, 2)}
    first = [
        transform.set_random_state(seed=4)(volume)["image_window_hu"],
        transform(volume)["image_window_hu"],
    ]
    second = [
        transform.set_random_state(seed=4)(volume)["image_window_hu"],
        transform(volume)["image_window_hu"],
    ]
    assert first == second
    assert first[0] != first[1]


def test_the_array_form_can_repeat_its_last_window_but_not_one_never_drawn():
    transform = RandWindowHU()
    with pytest.raises(TransformError, match="no window has been drawn"):
        transform(np.zeros(2), randomize=False)
    assert transform(np.zeros(2)).tolist() == transform(np.zeros(2), randomize=False).tolist()


def test_ranges_show_the_middle_slice_in_the_lung_mediastinal_and_wide_window() -> None:
    triplet = torch.tensor([-700.0, 40.0, 1000.0]).view(3, 1, 1).expand(3, 2, 2)
    expected = [(40 + 1250) / 1500, (40 + 160) / 400, (40 + 600) / 1200]
    for shown in (named_window(triplet, "ranges"), named_window(triplet.numpy(), "ranges")):
        assert shown[:, 0, 0].tolist() == pytest.approx(expected)
    assert named_window(triplet, "full")[:, 0, 0].tolist() == pytest.approx([0.15, 0.52, 1.0])
