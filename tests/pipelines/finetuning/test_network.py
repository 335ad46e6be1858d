"""What learns and what stays, what is written of it, and that it opens again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from models.backbone import Backbone, Tokens, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, open_backbone, save_backbone
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.network import AdapterError, Crops, FineTuned, Tuned, add_adapters
from pipelines.finetuning.record import open_tuned, save_tuned
from probes.heads.fitting import FitSettings
from probes.heads.linear import LinearProbe
from probes.nodule_rays import nodule_region
from probes.statistics.metrics import auroc_difference

SMALL = BackboneConfig(arch="vit_small", image_px=28)
TINY = BackboneConfig(arch="custom", depth=2, embed_dim=24, heads=2, patch_px=7, registers=1, image_px=28)
ONE_EPOCH = FitSettings(max_epochs=1, batch_size=3)
LABELS, PATIENTS = np.arange(12) % 2, np.arange(12)


def loaded(folder: Path, config: BackboneConfig = TINY, seed: int = 0) -> LoadedBackbone:
    torch.manual_seed(seed)
    save_backbone(folder, build_backbone(config), config, {"hu_scale": 0.5})
    return open_backbone(str(folder))


def crops(n: int = 12) -> Crops:
    hu = torch.randn(n, 3, 28, 28, generator=torch.Generator().manual_seed(1)) * 300 - 400
    return Crops((hu,))


def fitted(base: LoadedBackbone, **options: Any) -> FineTuned:
    config = FinetuneConfig(**options)
    probe = FineTuned(loaded=base, config=config, mm_per_px=0.5, settings=ONE_EPOCH)
    return probe.fit(crops(), LABELS, PATIENTS)


def test_adapters_of_a_small_vit_are_two_percent_of_it_at_most_and_the_rest_stays_to_the_last_bit(
    tmp_path: Path,
) -> None:
    base = loaded(tmp_path / "base", SMALL)
    probe = fitted(base, mode="lora", lora_rank=4)
    network = probe.network_
    trained, everything = network.n_trained()
    assert trained == 12 * 4 * (384 + 3 * 384) + 385
    assert everything == sum(one.numel() for one in base.backbone.parameters()) + 385
    assert trained / everything < 0.02

    before = base.backbone.state_dict()
    after = {name.replace(".base_layer", ""): one for name, one in network.backbone.state_dict().items()}
    assert before.keys() == {name for name in after if ".lora_" not in name}
    assert all(torch.equal(before[name], after[name]) for name in before)
    moved = [one for name, one in after.items() if ".lora_B" in name]
    assert len(moved) == 12
    assert all(one.abs().sum() > 0 for one in moved)

    save_tuned(tmp_path / "adapter", network, base)
    written = [file.stat() for file in (tmp_path / "adapter").iterdir()]
    assert sum(file.st_size for file in written) < 1e6
    assert len({file.st_mode for file in written}) == 1  # Whoever may read one may read the other.
    opened = open_tuned(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(opened(*crops().tensors), network(*crops().tensors))
    with pytest.raises(AdapterError, match=r"whose weights are not those of .*other; give that one"):
        open_tuned(tmp_path / "adapter", loaded(tmp_path / "other", SMALL, seed=1))


@pytest.mark.parametrize("features", ["class_token", "both", "neighborhood", "roi"])
def test_before_training_it_reads_what_the_probe_of_the_frozen_backbone_reads(
    tmp_path: Path, features: Any
) -> None:
    base = loaded(tmp_path)
    hu = crops().tensors[0]
    hu[:, :, 8:20, 8:20] = 100
    region = nodule_region(hu[:, 1].numpy(), 0.5) if features == "roi" else None
    masks = () if region is None else (torch.from_numpy(region.mask), torch.from_numpy(region.ring))
    device = torch.device("cpu")
    frozen = encode(base.backbone, hu.numpy(), 0.5, "wide", features, device, base.hu_scale, region=region)
    network = Tuned(base, FinetuneConfig(features=features, window="wide"), 0.5).eval()
    with torch.no_grad():
        assert torch.equal(network.read(hu, *masks), torch.from_numpy(frozen))
        network.measure((hu, *masks))
        assert (network(hu, *masks) == 0).all()
    np.testing.assert_allclose(network.standardize.mean, frozen.mean(0), atol=1e-6)


def test_each_mode_moves_what_it_says(tmp_path: Path) -> None:
    base = loaded(tmp_path)
    before = base.backbone.state_dict()
    for mode, n_moved in (("head", 0), ("full", len(before))):
        network = fitted(base, mode=mode, backbone_lr=1e-3).network_
        after = network.backbone.state_dict()
        assert sum(not torch.equal(before[name], after[name]) for name in before) == n_moved
        assert network.head.weight.abs().sum() > 0
    first, second = network.parameter_groups()
    assert (first.get("lr"), second["lr"]) == (None, 1e-3)


def test_other_layers_get_adapters_when_named_and_unknown_ones_are_refused() -> None:
    backbone = build_backbone(TINY)
    add_adapters(backbone, 2, "fc1, proj")
    adapted = {name.split(".lora_")[0] for name, one in backbone.named_parameters() if one.requires_grad}
    assert adapted == {f"vit.blocks.{n}.{part}" for n in (0, 1) for part in ("attn.proj", "mlp.fc1")}
    with pytest.raises(
        AdapterError, match=r"lora_targets=nothing names no layer .* it has fc1, fc2, proj, qkv"
    ):
        add_adapters(build_backbone(TINY), 2, "nothing")


def test_queries_keys_and_values_are_found_in_a_vit_with_rotary_positions() -> None:
    dinov3 = BackboneConfig(arch="timm", timm_name="vit_small_patch16_dinov3", image_px=32)
    backbone = build_backbone(dinov3)
    add_adapters(backbone, 4, "qkv")
    adapted = {name.split(".lora_")[0] for name, one in backbone.named_parameters() if one.requires_grad}
    assert adapted == {f"vit.blocks.{number}.attn.qkv" for number in range(12)}


def test_an_adapter_that_its_layer_passes_by_is_refused() -> None:
    class Around(nn.Module):
        """Multiplies by the weight of its layer, as some attention modules do."""

        image_px = 4

        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 16)

        def forward(self, images: torch.Tensor) -> Tokens:
            read = nn.functional.linear(images[:, 0].flatten(1), self.qkv.weight)
            return Tokens(read, read[:, None], read[:, :0])

    with pytest.raises(AdapterError, match=r"2 adapters of lora_targets=qkv have no effect .* 'qkv.lora_A"):
        add_adapters(Around(), 2, "qkv")  # type: ignore[arg-type]


def test_the_same_seed_trains_the_same_network(tmp_path: Path) -> None:
    base = loaded(tmp_path)
    first, again = (fitted(base).decision_function(crops()) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() > 0
    assert isinstance(base.backbone, Backbone)
    assert not any("lora" in name for name in base.backbone.state_dict())


def crops_of_grain(n: int) -> tuple[Crops, np.ndarray, np.ndarray]:
    """Squares of coarse or of fine grain, whose HU are the same numbers in another order; two a patient."""
    draw, labels = np.random.default_rng(0), np.arange(n) % 2
    grain = np.stack([gaussian_filter(draw.normal(size=(28, 28)), 1.2 if label else 0.4) for label in labels])
    ranks = grain.reshape(n, -1).argsort(1).argsort(1).reshape(n, 1, 28, 28) / 28**2
    hu = torch.from_numpy((-900 + 800 * ranks).astype(np.float32)).expand(-1, 3, -1, -1)
    return Crops((hu.contiguous(),)), labels, np.arange(n) // 2


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "rates"), [("lora", {"lr": 3e-3}), ("full", {"backbone_lr": 1e-3})])
def test_a_fine_tuned_backbone_tells_a_texture_that_the_frozen_one_tells_badly(
    tmp_path: Path, mode: Any, rates: dict[str, float]
) -> None:
    base, (shown, labels, patients) = loaded(tmp_path), crops_of_grain(240)
    train, test = np.arange(160), np.arange(160, 240)
    config = FinetuneConfig(mode=mode, features="mean_patch", window="full", **rates)
    settings = FitSettings(lr=config.lr, batch_size=16, max_epochs=30, patience=10)
    probe = FineTuned(loaded=base, config=config, mm_per_px=0.5, settings=settings)
    tuned = probe.fit(shown[train], labels[train], patients[train]).decision_function(shown[test])
    device = torch.device("cpu")
    x = encode(base.backbone, shown.tensors[0].numpy(), 0.5, "full", "mean_patch", device, base.hu_scale)
    frozen = LinearProbe().fit(x[train], labels[train], patients[train]).decision_function(x[test])
    gain = auroc_difference(labels[test], tuned, frozen, patients[test], 500)
    assert gain.ci_low > 0
