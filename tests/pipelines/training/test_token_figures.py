"""What the figures of a run's tokens say is so."""

import numpy as np
import torch
from sklearn.decomposition import PCA

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.training.figures import (
    attention_figure,
    gram_figure,
    pca_figure,
    principal_components,
    token_figures,
)
from pipelines.training.planes import Shown
from transforms.views.config import ViewConfig


def test_components_are_those_of_an_independent_pca() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 2, 1, 1, 1]
    scores, shares = principal_components(torch.from_numpy(rows), 3)
    witness = PCA(3).fit(rows)
    assert np.allclose(scores.abs().numpy(), np.abs(witness.transform(rows)), atol=1e-5)
    assert np.allclose(shares, witness.explained_variance_ratio_)


def test_colors_do_not_flip_from_step_to_step() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 6)))
    before, _ = principal_components(rows, 3)
    after, _ = principal_components(rows[torch.randperm(40, generator=torch.Generator().manual_seed(0))], 3)
    assert torch.allclose(before.sort(0).values, after.sort(0).values, atol=1e-5)


def test_tokens_that_are_all_alike_can_be_drawn() -> None:
    scores, shares = principal_components(torch.ones(5, 4), 3)
    assert torch.equal(scores, torch.zeros(5, 3))
    assert shares == [0.0, 0.0, 0.0]


def test_the_gram_figure_states_the_mean_cosine() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [0.0, 1.0]]])
    figure = gram_figure(Shown(torch.zeros(1, 1, 2, 2), (1, 2, 2), torch.ones(1, 3)), tokens)
    # Cosines: four ones on the diagonal, two between the second and fourth, two minus ones between first and third.
    assert "mean 0.25" in figure.axes[1].get_title()
    assert np.array_equal(figure.axes[1].images[0].get_array()[0], [1, 0, -1, 0])


def test_the_attention_figure_states_its_range_beside_even_attention() -> None:
    attention = torch.tensor([[[0.1, 0.2, 0.3, 0.2]]])
    figure = attention_figure(Shown(torch.zeros(1, 1, 2, 2), (1, 2, 2), torch.ones(1, 3)), attention)
    assert figure.axes[0].get_title() == "80% on patches"
    assert figure.axes[2].get_title() == "head 1: 0.4 .. 1.2 x uniform"


def test_all_attention_has_one_scale_over_the_anatomy() -> None:
    attention = torch.tensor([[[0.1, 0.2, 0.3, 0.2]], [[0.0, 0.0, 0.9, 0.1]]])
    gray = torch.arange(8.0).view(2, 1, 2, 2) / 8
    figure = attention_figure(Shown(gray, (1, 2, 2), torch.ones(2, 3)), attention)
    *pictures, bar = figure.axes
    assert "multiples of uniform" in bar.get_ylabel()
    maps = [axis for number, axis in enumerate(pictures) if number % 3]
    assert len({axis.images[1].get_clim() for axis in maps}) == 1
    assert maps[0].images[1].get_clim()[0] == 0
    for number, axis in enumerate(maps):  # The anatomy lies below, under the same millimeters.
        assert np.array_equal(axis.images[0].get_array(), gray[number // 2, 0])
        assert axis.images[0].get_extent() == axis.images[1].get_extent()
        assert np.all(axis.images[1].get_alpha() < 0.8)


def test_components_lie_over_the_anatomy_and_every_picture_is_marked() -> None:
    gray, tokens = torch.rand(2, 1, 4, 4), torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    directions = np.array([[[0, 0, 1.0], [0, -1, 0], [-1, 0, 0]], [[0, 0, 1.0], [0, -1, 0], [1, 0, 0]]])
    window_hu = torch.tensor([[-1350.0, 150.0], [-1000.0, 400.0]])
    shown = Shown(gray, (1, 2, 2), torch.full((2, 3), 10.0), directions, window_hu)
    axes = pca_figure(shown, tokens).axes
    assert [len(axis.images) for axis in axes] == [1, 2, 1, 2]
    for axis, left, window in zip(
        axes, "RRLL", ["-1350 .. 150 HU"] * 2 + ["-1000 .. 400 HU"] * 2, strict=True
    ):
        texts = {text.get_text(): text.get_position()[0] for text in axis.texts}
        assert texts[left] < 0.5
        assert {"R", "L", "A", window, "10 mm"} <= texts.keys()


def test_every_figure_is_drawn_and_the_run_does_not_notice() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28))
    backbone.train()
    images, tokens = torch.randn(2, 3, 28, 28), np.zeros((2, 6, 16), np.float32)
    tokens[:, :, 0] = np.arange(6)
    before = torch.get_rng_state()
    patients = np.array(list("aabbcc"))
    drawn = dict(token_figures(backbone, images, ViewConfig(size_px=28), tokens, patients))
    assert list(drawn) == ["tokens/attention", "tokens/pca", "tokens/gram", "tokens/class_map"]
    assert "two views of 6 slices, 3 patients" in drawn["tokens/class_map"].get_suptitle()
    assert backbone.training
    assert torch.equal(before, torch.get_rng_state())
    nobody = token_figures(backbone, images, ViewConfig(size_px=28), tokens[:, :0], patients[:0])
    assert "tokens/class_map" not in dict(nobody)
