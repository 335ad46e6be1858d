"""What is read of a 3D network's tokens: by hand, in order, weighed by image-derived masks, told its millimeters."""

import numpy as np
import pytest
import torch

from models.backbone import Backbone, BackboneError, Tokens, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.cube_features import cube_patch_shares, cube_vectors, encode_nodule_cubes
from pipelines.backbones.features import encode, network_input
from pipelines.nodule.cubes import CubeBatch
from probes.nodule_rays import cube_region

CPU = torch.device("cpu")
SPACING_MM = (2.0, 1.0, 1.0)


def network(spacing: str = "off") -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        arch="custom",
        depth=1,
        embed_dim=24,
        heads=2,
        patch_px=4,
        patch_depth_px=2,
        registers=0,
        image_px=16,
        image_depth_px=8,
        spacing=spacing,  # type: ignore[arg-type]
    )
    return build_backbone(config).eval().requires_grad_(False)


def batch(n: int = 3, told_mm: tuple[float, float, float] = SPACING_MM) -> CubeBatch:
    rng = np.random.default_rng(0)
    hu = rng.normal(-850, 20, (n, 8, 16, 16)).astype(np.float32)
    hu[:, 3:5, 6:10, 6:10] = 40.0
    spacing = np.tile(SPACING_MM, (n, 1))
    return CubeBatch(hu, np.tile(np.eye(4), (n, 1, 1)), spacing, np.tile(told_mm, (n, 1)))


def test_the_class_token_is_that_of_the_network_on_windowed_and_normalized_cubes() -> None:
    backbone, cubes = network(), batch()
    found = encode_nodule_cubes(backbone, [cubes], "full", "class_token", CPU)
    gray = (np.clip(cubes.hu, -1000, 1000) + 1000) / 2000  # the window `full`
    images = torch.from_numpy((gray - backbone.mean[0]) / backbone.std[0])[:, None].float()
    np.testing.assert_allclose(found, backbone(images).class_token, atol=1e-5)
    both = encode_nodule_cubes(backbone, [cubes], "full", "both", CPU)
    np.testing.assert_allclose(both[:, 24:], backbone(images).patch_tokens.mean(1), atol=1e-5)
    parts = [CubeBatch(*(part[at : at + 1] for part in cubes)) for at in range(3)]
    np.testing.assert_allclose(encode_nodule_cubes(backbone, parts, "full", "both", CPU), both, atol=1e-5)
    stacked = encode_nodule_cubes(backbone, [cubes], "stacked", "class_token", CPU)
    assert stacked.shape == (3, 72)


def test_patches_and_shares_are_in_the_order_z_y_x() -> None:
    layers, rows, columns = 4, 4, 4
    for z, y, x in ((0, 0, 0), (1, 2, 3), (3, 0, 1)):
        where = np.zeros((1, 8, 16, 16), bool)
        where[0, 2 * z : 2 * z + 2, 4 * y : 4 * y + 2, 4 * x : 4 * x + 4] = True
        shares = cube_patch_shares(where, (2, 4, 4))[0]
        at = (z * rows + y) * columns + x
        assert shares.shape == (layers * rows * columns,)
        assert shares[at] == 0.5
        assert shares.sum() == 0.5
    # The network's own tokens: only the patch whose voxels change is embedded anew.
    backbone = network()
    image = torch.zeros(1, 1, 8, 16, 16)
    changed = image.clone()
    changed[0, 0, 2:4, 8:12, 12:16] = 1.0
    before, after = (backbone.stem(one).flatten(1, 3) for one in (image, changed))
    assert torch.nonzero((before != after).any(-1))[:, 1].tolist() == [(1 * 4 + 2) * 4 + 3]


def test_on_a_constant_grid_roi_and_neighborhood_are_the_whole_crop() -> None:
    backbone, cubes = network(), batch()
    constant = torch.randn(3, 1, 24, dtype=torch.float64).expand(3, 64, 24)
    tokens = Tokens(constant[:, 0], constant, constant[:, :0])
    whole = cube_vectors(tokens, "mean_patch", backbone, cubes, None)
    region = cube_region(cubes.hu, cubes.spacing_mm)
    roi = cube_vectors(tokens, "roi", backbone, cubes, region)
    np.testing.assert_allclose(roi, torch.cat([whole] * 3, dim=1), atol=1e-6)
    near = cube_vectors(tokens, "neighborhood", backbone, cubes, None)
    np.testing.assert_allclose(near, whole, atol=1e-6)


def test_roi_reads_the_nodule_and_not_what_lies_far_from_it() -> None:
    backbone, cubes = network(), batch()
    region = cube_region(cubes.hu, cubes.spacing_mm)
    share = cube_patch_shares(region.mask, (2, 4, 4))
    tokens = torch.zeros(3, 64, 2)
    tokens[..., 0] = (share > 0).float()  # inside
    tokens[..., 1] = (share + cube_patch_shares(region.ring, (2, 4, 4)) == 0).float()  # beyond the ring
    found = cube_vectors(Tokens(tokens[:, 0], tokens, tokens[:, :0]), "roi", backbone, cubes, region)
    np.testing.assert_allclose(found[:, [0, 2]], 1.0)  # mean and maximum inside
    np.testing.assert_allclose(found[:, [1, 3, 5]], 0.0)
    assert tokens[..., 1].any()
    with pytest.raises(ValueError, match="needs the region"):
        cube_vectors(Tokens(tokens[:, 0], tokens, tokens[:, :0]), "roi", backbone, cubes, None)


def test_the_neighborhood_is_ten_millimeters_along_every_axis() -> None:
    """Patches of 2 x 4 x 4 voxels: 16 x 4 x 4 mm at the first spacing, 2 x 32 x 32 mm at the second."""
    backbone = network()
    spacing = np.array([[8.0, 1.0, 1.0], [1.0, 8.0, 8.0]])
    cubes = CubeBatch(np.zeros((2, 8, 16, 16), np.float32), np.zeros((2, 4, 4)), spacing, spacing)
    tokens = torch.eye(64)[None].expand(2, 64, 64)
    found = cube_vectors(Tokens(tokens[:, 0], tokens, tokens[:, :0]), "neighborhood", backbone, cubes, None)
    grid = np.stack(np.meshgrid(*[np.arange(4) - 1.5] * 3, indexing="ij"), -1).reshape(-1, 3)
    first = np.linalg.norm(grid * [16, 4, 4], axis=1)
    assert (found[0] > 0).numpy().tolist() == (first <= 10).tolist()
    second = np.linalg.norm(grid * [2, 32, 32], axis=1)  # none within 10 mm: the nearest
    assert (found[1] > 0).numpy().tolist() == (second <= second.min() + 1e-6).tolist()
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-6)


def test_a_network_that_takes_the_spacing_is_told_it_and_others_are_not() -> None:
    told, other = batch(told_mm=(1.0, 0.5, 0.5)), batch(told_mm=(4.0, 2.0, 2.0))
    asked = network("tokens")
    assert asked.takes_spacing
    one, two = (encode_nodule_cubes(asked, [own], "full", "class_token", CPU) for own in (told, other))
    assert np.abs(one - two).max() > 1e-3
    deaf = network()
    one, two = (encode_nodule_cubes(deaf, [own], "full", "class_token", CPU) for own in (told, other))
    np.testing.assert_array_equal(one, two)


def test_three_windows_in_three_channels_are_refused() -> None:
    with pytest.raises(BackboneError, match="a 3D network has one channel"):
        encode_nodule_cubes(network(), [batch()], "ranges", "class_token", CPU)


def test_a_2d_network_that_takes_the_spacing_is_told_slice_distance_and_pixel() -> None:
    config = BackboneConfig(
        arch="custom", depth=1, embed_dim=24, heads=2, patch_px=4, registers=0, image_px=16, spacing="tokens"
    )
    torch.manual_seed(0)
    backbone = build_backbone(config).eval().requires_grad_(False)
    crops = np.random.default_rng(0).normal(-700, 100, (2, 3, 16, 16)).astype(np.float32)
    found = encode(backbone, crops, 0.5, "full", "class_token", CPU, slice_mm=[1.0, 2.5])
    images = network_input(torch.from_numpy(crops), backbone, "full")
    spacing = torch.tensor([[1.0, 0.5, 0.5], [2.5, 0.5, 0.5]])
    np.testing.assert_allclose(found, backbone(images, spacing_mm=spacing).class_token, atol=1e-6)
    # Slices of one nodule share its distance.
    series = encode(backbone, crops[None], 0.5, "full", "class_token", CPU, slice_mm=[2.5])
    np.testing.assert_allclose(series[0, 1], found[1], atol=1e-6)
    with pytest.raises(ValueError, match="takes the spacing"):
        encode(backbone, crops, 0.5, "full", "class_token", CPU)
