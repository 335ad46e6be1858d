"""Networks trained on the labels themselves: the measured row "supervised"."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy.typing as npt
import timm
import torch
from monai.networks.nets.resnet import resnet18
from torch import Tensor, nn

from models.tensors import differing
from probes.heads.fitting import Augment, FitSettings, NetworkProbe, as_tensor
from transforms.refusal import Refusal

Architecture = Literal["resnet18", "resnet18_3d"]


class WeightsError(Refusal):
    """Weights of another network."""


def flip(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Mirror each sample along a random subset of its spatial axes: nodules have no handedness.

    Args:
        batch: Images (B, C, ...), and after them masks (B, ...) of the same spatial axes, which follow the images.
        generator: Of the choice.
    """
    images = batch[0]
    for axis in range(2 - images.ndim, 0):
        chosen = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
        batch = tuple(
            torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one.flip(axis), one) for one in batch
        )
    return batch


@dataclass
class SupervisedProbe(NetworkProbe[npt.ArrayLike | Tensor]):
    """ResNet18 on triplet crops (timm) or on cubes (MONAI, 3D), trained end to end with flips.

    Attributes:
        architecture: `resnet18` takes (N, 3, H, W), `resnet18_3d` takes (N, 1, Z, Y, X).
        weights: State to start from, all but the classifier; None: random weights.
    """

    architecture: Architecture = "resnet18"
    weights: Mapping[str, Tensor] | None = None
    settings: FitSettings = field(
        default=FitSettings(lr=3e-4, max_epochs=40, patience=8, batch_size=32), kw_only=True
    )
    augment: Augment | None = field(default=flip, kw_only=True)
    predicted_at_once: int = field(default=64, kw_only=True)

    def inputs(self, features: npt.ArrayLike | Tensor) -> tuple[Tensor, ...]:
        """Images of the shape that the architecture takes."""
        images = as_tensor(features)
        axes, channels = (4, 3) if self.architecture == "resnet18" else (5, 1)
        if images.ndim != axes or images.shape[1] != channels:
            expected = "(N, 3, H, W)" if channels == 3 else "(N, 1, Z, Y, X)"
            raise ValueError(f"{self.architecture} takes images {expected}, got {tuple(images.shape)}")
        return (images,)

    def build(self, inputs: tuple[Tensor, ...] = ()) -> nn.Module:
        """The network, of which `weights` fill all but the classifier.

        Raises:
            WeightsError: If the weights are of another network.
        """
        resnet = _resnet(self.architecture)
        if self.weights is not None:
            own = resnet.state_dict()
            given = {name: tensor for name, tensor in self.weights.items() if not name.startswith("fc.")}
            body = {name: tensor for name, tensor in own.items() if name not in ("fc.weight", "fc.bias")}
            if wrong := differing(body, given):
                raise WeightsError(
                    f"the weights are not of {self.architecture}: {len(wrong)} tensors differ, first '{wrong[0]}'"
                )
            resnet.load_state_dict(own | given)
        return nn.Sequential(resnet, nn.Flatten(0))


def _resnet(architecture: Architecture) -> nn.Module:
    if architecture == "resnet18":
        flat: nn.Module = timm.create_model("resnet18", pretrained=False, num_classes=1)
        return flat
    # Stride 2 in the first layer, as in 2D: at stride 1 a cube costs eight times as much for nothing.
    solid: nn.Module = resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2)
    return solid
