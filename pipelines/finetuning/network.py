"""The network that is fine-tuned: a backbone, the reading of its tokens, and one logit."""

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.backbone import Backbone
from pipelines.backbones.features import chosen_tokens, inside_and_around, network_input, patch_shares
from pipelines.backbones.folder import LoadedBackbone
from pipelines.finetuning.config import FinetuneConfig
from pipelines.probing.reading import FrozenFeatures
from pipelines.runtime.extras import load_extra
from probes.heads.fitting import Augment, NetworkProbe, Standardize
from probes.supervised import flip
from transforms.refusal import Refusal

_QKV = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj")
"""Names of the layers that make queries, keys and values in timm and in transformers."""
_AT_ONCE = 64


class AdapterError(Refusal):
    """Adapters cannot be added to this backbone, or not be opened on it."""


@dataclass(frozen=True)
class Crops:
    """Crops of nodules in HU, (n, 3, P, P), and for `roi` their masks and the rings around them, (n, P, P)."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, reader: FrozenFeatures) -> "Crops":
        """Return the crops that a probe reads features of."""
        tensors = [torch.from_numpy(reader.nodules.crops_hu)]
        if reader.region is not None:
            tensors += [torch.from_numpy(reader.region.mask), torch.from_numpy(reader.region.ring)]
        return cls(tuple(tensors))

    def __len__(self) -> int:
        """Number of nodules."""
        return len(self.tensors[0])

    def __getitem__(self, rows: NDArray[np.int64]) -> "Crops":
        """Return the nodules at these rows."""
        return Crops(tuple(one[torch.from_numpy(rows)] for one in self.tensors))


class Tuned(nn.Module):
    """HU crops (B, 3, P, P), with masks and rings (B, P, P) for `roi`, to logits (B,).

    The head starts at zero, and adapters start without effect, so before training every logit is 0.
    """

    def __init__(self, loaded: LoadedBackbone, config: FinetuneConfig, mm_per_px: float) -> None:
        """Copy the backbone, of which `mode` says what learns.

        Raises:
            AdapterError: If no layer can get an adapter, or one does not use it.
            MissingPackageError: If mode is `lora` and peft is not installed.
        """
        super().__init__()
        self.config, self.mm_per_px, self.hu_scale = config, mm_per_px, loaded.hu_scale
        self.backbone = deepcopy(loaded.backbone).requires_grad_(config.mode == "full")
        width = self.backbone.embed_dim * {"both": 2, "roi": 3}.get(config.features, 1)
        self.standardize = Standardize(torch.zeros(1, width))
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if config.mode == "lora":
            add_adapters(self.backbone, config.lora_rank, config.lora_targets)

    def read(self, hu: Tensor, mask: Tensor | None = None, ring: Tensor | None = None) -> Tensor:
        """Return the features of crops, (B, D), as a probe of the frozen backbone reads them."""
        backbone, window = self.backbone, self.config.window
        tokens = backbone(network_input(hu, backbone, window, self.hu_scale))
        if mask is None or ring is None:
            return chosen_tokens(tokens, self.config.features, backbone, self.mm_per_px)
        shares = (patch_shares(where, backbone.patch_px) for where in (mask, ring))
        return inside_and_around(tokens.patch_tokens, *shares)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits (B,)."""
        logits: Tensor = self.head(self.standardize(self.read(*inputs)))
        return logits.squeeze(-1)

    @torch.no_grad()
    def measure(self, inputs: tuple[Tensor, ...]) -> None:
        """Take mean and standard deviation of the features from these nodules."""
        device = self.head.weight.device
        rows = torch.split(torch.arange(len(inputs[0])), _AT_ONCE)
        read = [self.read(*(values[own].to(device) for values in inputs)).float().cpu() for own in rows]
        self.standardize = Standardize(torch.cat(read)).to(device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what the optimizer trains: the head, and of the backbone what learns."""
        config = self.config
        lr = config.backbone_lr if config.mode == "full" else config.lr
        inner = [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"params": list(self.head.parameters())}, {"params": inner, "lr": lr}]
        return [group for group in groups if group["params"]]

    def n_trained(self) -> tuple[int, int]:
        """Return the number of parameters that are trained, and of all that the backbone and the head had before."""
        named = list(self.named_parameters())
        trained = sum(one.numel() for _, one in named if one.requires_grad)
        return trained, sum(one.numel() for name, one in named if ".lora_" not in name)


def add_adapters(backbone: Backbone, rank: int, targets: str) -> None:
    """Add low-rank adapters (LoRA, Hu et al. 2021) of scale 2 through peft, in place; nothing else then learns.

    Raises:
        AdapterError: If no layer has such a name, or a layer computes without its adapter.
        MissingPackageError: If peft is not installed.
    """
    peft = load_extra("peft", "lora")
    ends = {part.strip() for part in targets.split(",")}
    ends |= set(_QKV) if "qkv" in ends else set()
    layers = [name for name, one in backbone.named_modules() if isinstance(one, nn.Linear)]
    chosen = [name for name in layers if name.rpartition(".")[2] in ends]
    if not chosen:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise AdapterError(
            f"lora_targets={targets} names no layer of this backbone; it has {', '.join(known) or 'no linear ones'}"
        )
    settings = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=chosen, bias="none")
    peft.inject_adapter_in_model(settings, backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    side = backbone.image_px
    tokens = backbone(next(backbone.parameters()).new_zeros(1, 3, side, side))
    total = tokens.class_token.sum() + tokens.patch_tokens.sum()
    added = {name: one for name, one in backbone.named_parameters() if one.requires_grad}
    reached = (
        torch.autograd.grad(total, list(added.values()), allow_unused=True) if total.requires_grad else ()
    )
    unused = list(added) if not reached else [n for n, one in zip(added, reached, strict=True) if one is None]
    if unused:  # Some networks take a layer's weight and multiply by it themselves.
        raise AdapterError(
            f"{len(unused)} adapters of lora_targets={targets} have no effect in this backbone, first '{unused[0]}';"
            " name other layers, such as lora_targets=proj,fc1,fc2, or mode=full"
        )


@dataclass(kw_only=True)
class FineTuned(NetworkProbe[Crops]):
    """A probe that trains a copy of a backbone on the labels, with flips.

    Attributes:
        loaded: The backbone.
        config: What learns and how it is read.
        mm_per_px: Pixel size of the crops.
    """

    loaded: LoadedBackbone
    config: FinetuneConfig
    mm_per_px: float
    augment: Augment | None = field(default=flip)
    predicted_at_once: int = field(default=_AT_ONCE)

    def inputs(self, features: Crops) -> tuple[Tensor, ...]:
        """Crops, with masks and rings for `roi`."""
        return features.tensors

    def build(self, inputs: tuple[Tensor, ...]) -> Tuned:
        """The network, its features standardized on these nodules before it is trained."""
        network = Tuned(self.loaded, self.config, self.mm_per_px).to(self.device)
        network.measure(inputs)
        return network
