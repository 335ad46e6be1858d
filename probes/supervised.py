"""Networks trained on the labels themselves: the measured row "supervised"."""

from collections.abc import Mapping
from typing import Literal, Self

import numpy.typing as npt
import timm
import torch
from monai.networks.nets.resnet import resnet18
from torch import Tensor, nn

from probes.heads.fitting import FitSettings, as_tensor, fit_network, predict
from probes.statistics.checks import Floats
from transforms.refusal import Refusal

Architecture = Literal["resnet18", "resnet18_3d"]


class WeightsError(Refusal):
    """Weights of another network."""


class SupervisedProbe:
    """ResNet18 on triplet crops (timm) or on cubes (MONAI, 3D), trained end to end with flips.

    Fitted attribute: `network_`.

    Args:
        architecture: `resnet18` takes (N, 3, H, W), `resnet18_3d` takes (N, 1, Z, Y, X).
        weights: State to start from, all but the classifier; None: random weights.
        settings: Of the training; None: lr 3e-4, 40 epochs at most, patience 8, batches of 32.
        seed: Of initialization, batches, flips and the patients set aside.
        device: Where to train.
    """

    def __init__(
        self,
        architecture: Architecture = "resnet18",
        weights: Mapping[str, Tensor] | None = None,
        settings: FitSettings | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Store the settings; `fit` learns."""
        self.architecture: Architecture = architecture
        self.weights = weights
        self.settings = settings or FitSettings(lr=3e-4, max_epochs=40, patience=8, batch_size=32)
        self.seed = seed
        self.device = torch.device(device)

    def fit(
        self, features: npt.ArrayLike | Tensor, labels: npt.ArrayLike, patient_ids: npt.ArrayLike
    ) -> Self:
        """Train on images with labels 0 or 1, (N,); classes weigh the same.

        Raises:
            UnmeasurableError: If images are not finite, or a class is absent or has one patient.
            WeightsError: If the weights are of another network.
            ValueError: If images have the wrong shape.
        """
        images = self._images(features)
        self.network_ = fit_network(
            self._build, (images,), labels, patient_ids, self.settings, self.seed, self.device, _flip
        )
        return self

    def decision_function(self, features: npt.ArrayLike | Tensor) -> Floats:
        """Evidence for class 1, (N,)."""
        return predict(self.network_, (self._images(features),), self.device, batch_size=64)

    def _images(self, features: npt.ArrayLike | Tensor) -> Tensor:
        images = as_tensor(features)
        axes, channels = (4, 3) if self.architecture == "resnet18" else (5, 1)
        if images.ndim != axes or images.shape[1] != channels:
            expected = "(N, 3, H, W)" if channels == 3 else "(N, 1, Z, Y, X)"
            raise ValueError(f"{self.architecture} takes images {expected}, got {tuple(images.shape)}")
        return images

    def _build(self) -> nn.Module:
        network = _Logits(_resnet(self.architecture))
        if self.weights is not None:
            own = network.resnet.state_dict()
            given = {name: tensor for name, tensor in self.weights.items() if not name.startswith("fc.")}
            wrong = sorted(
                name
                for name in (own.keys() - {"fc.weight", "fc.bias"}) | given.keys()
                if name not in own or name not in given or own[name].shape != given[name].shape
            )
            if wrong:
                raise WeightsError(
                    f"the weights are not of {self.architecture}: {len(wrong)} tensors differ, first '{wrong[0]}'"
                )
            network.resnet.load_state_dict(own | given)
        return network


class _Logits(nn.Module):
    def __init__(self, resnet: nn.Module) -> None:
        super().__init__()
        self.resnet = resnet

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.resnet(images)
        return logits.squeeze(-1)


def _resnet(architecture: Architecture) -> nn.Module:
    if architecture == "resnet18":
        flat: nn.Module = timm.create_model("resnet18", pretrained=False, num_classes=1)
        return flat
    # Stride 2 in the first layer, as in 2D: at stride 1 a cube costs eight times as much for nothing.
    solid: nn.Module = resnet18(spatial_dims=3, n_input_channels=1, num_classes=1, conv1_t_stride=2)
    return solid


def _flip(batch: tuple[Tensor, ...], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Mirror each image along a random subset of its spatial axes: nodules have no handedness."""
    (images,) = batch
    for axis in range(2, images.ndim):
        chosen = torch.rand(len(images), generator=generator) < 0.5
        shape = (-1, *[1] * (images.ndim - 1))
        images = torch.where(chosen.to(images.device).view(shape), images.flip(axis), images)
    return (images,)
