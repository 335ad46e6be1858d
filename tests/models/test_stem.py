"""The whitened stem: what it computes, what it reads, and what of it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from models.backbone import build_backbone, copy_whitening
from models.config import BackboneConfig
from models.stem import FILTER_PX, WORDS, WhitenedStem
from probes.dictionary import Dictionary

TINY = BackboneConfig(
    arch="custom", depth=1, embed_dim=16, heads=2, patch_px=4, registers=0, image_px=24, stem="whitened"
)


def fitted() -> WhitenedStem:
    torch.manual_seed(0)
    stem = WhitenedStem(24, 4, 16)
    smooth = nn.functional.avg_pool2d(torch.randn(40, 3, 26, 26), 3, stride=1)
    stem.fit(smooth)
    return stem


@torch.no_grad()
def test_tokens_are_mean_and_maximum_of_the_dictionarys_activations() -> None:
    stem = fitted()
    stem.proj = nn.Identity()  # type: ignore[assignment]
    image = torch.randn(1, 3, 24, 24)
    token = stem(image)[0, 2, 3].double().numpy()  # pixels 8 to 11 and 12 to 15
    dictionary = Dictionary(
        *(tensor.double().numpy() for tensor in (stem.mean, stem.whitening, stem.words.detach()))
    )
    corners = [(row, column) for row in (6, 8) for column in (10, 12)]  # of patches centered in the token
    patches = np.stack(
        [image[0, 1, r : r + FILTER_PX, c : c + FILTER_PX].double().numpy().ravel() for r, c in corners]
    )
    activations = dictionary.activations(patches)
    assert (activations > 0).mean() > 0.2
    assert np.allclose(token[:WORDS], activations.mean(0), atol=1e-4)
    assert np.allclose(token[WORDS:], activations.max(0), atol=1e-4)


def test_noise_is_whitened_to_its_own_axes_and_constant_images_to_finite_numbers() -> None:
    torch.manual_seed(0)
    stem = WhitenedStem(24, 4, 16)
    stem.fit(3.0 * torch.randn(2000, 3, 24, 24) + 7.0)
    scale = 1 / (3 * 1.1**0.5)  # a tenth of the mean variance is added
    assert torch.allclose(stem.whitening, scale * torch.eye(FILTER_PX**2), atol=0.02 * scale)
    assert torch.allclose(stem.mean, torch.tensor(7.0), atol=0.1)
    stem.fit(torch.zeros(4, 3, 24, 24))
    assert stem(torch.zeros(1, 3, 24, 24)).isfinite().all()


def test_the_center_slice_alone_is_read_and_words_learn_while_whitening_stays() -> None:
    backbone = build_backbone(TINY)
    stem = backbone.stem
    assert isinstance(stem, WhitenedStem)
    images = torch.randn(2, 3, 24, 24)
    others = images.clone()
    others[:, (0, 2)] += 1.0
    assert torch.equal(stem(images), stem(others))
    backbone(images).patch_tokens.square().sum().backward()
    assert stem.words.grad is not None
    assert (stem.words.grad != 0).any(dim=1).all()
    assert {name for name, _ in stem.named_parameters()} == {"words", "proj.weight", "proj.bias"}


@torch.no_grad()
def test_an_image_of_another_size_has_more_tokens_of_the_same_patches() -> None:
    backbone = build_backbone(TINY).eval()
    image = torch.randn(1, 3, 32, 32)
    assert backbone(image).patch_tokens.shape == (1, 64, 16)
    assert torch.allclose(backbone.stem(image)[:, 2:4, 2:4], backbone.stem(image[..., :24, :24])[:, 2:4, 2:4])


@torch.no_grad()
def test_hidden_patches_do_not_reach_the_shown_ones_through_overlapping_filters() -> None:
    backbone = build_backbone(TINY).eval()
    images = torch.randn(1, 3, 24, 24)
    others = images.clone()
    others[..., :4, :4] += 5.0  # the first of 36 patches
    keep = torch.arange(1, 36)[None]
    assert torch.equal(
        backbone.encode_visible(images, keep).patch_tokens, backbone.encode_visible(others, keep).patch_tokens
    )
    mask = torch.zeros(1, 36, dtype=torch.bool)
    mask[0, 0] = True
    token = torch.zeros(16)
    assert torch.equal(backbone(images, mask, token).patch_tokens, backbone(others, mask, token).patch_tokens)
    assert not torch.equal(backbone(images).patch_tokens[:, 1], backbone(others).patch_tokens[:, 1])


def test_an_untrained_network_takes_over_the_whitening_and_nothing_else() -> None:
    trained, untrained = build_backbone(TINY), build_backbone(TINY)
    trained.vit.patch_embed = fitted()
    words = untrained.vit.patch_embed.words.clone()
    copy_whitening(trained, untrained)
    assert torch.equal(untrained.vit.patch_embed.whitening, trained.vit.patch_embed.whitening)
    assert torch.equal(untrained.vit.patch_embed.mean, trained.vit.patch_embed.mean)
    assert torch.equal(untrained.vit.patch_embed.words, words)
    copy_whitening(trained, build_backbone(dataclasses.replace(TINY, stem="patch")))  # which has none


@pytest.mark.parametrize("fields", [{"patch_px": 3}, {"arch": "vit_small", "image_px": 28}])
def test_a_stem_that_cannot_be_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="goes with arch 'custom' and an even patch_px"):
        dataclasses.replace(TINY, **fields)
