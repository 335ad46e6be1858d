"""What the figures of a run's tokens say is so."""

import numpy as np
import torch
from sklearn.decomposition import PCA

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.training.figures import (
    attention_figure,
    gram_figure,
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
    assert "two views of 6 slices of 3 patients" in drawn["tokens/class_map"].axes[0].get_title()
    assert backbone.training
    assert torch.equal(before, torch.get_rng_state())
    nobody = token_figures(backbone, images, ViewConfig(size_px=28), tokens[:, :0], patients[:0])
    assert "tokens/class_map" not in dict(nobody)
