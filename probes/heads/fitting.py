"""Training of small networks on labeled nodules: balanced classes, early stopping on patients that are set aside."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from probes.splits import Fold, patient_folds
from probes.statistics.checks import Floats, Ints, TooFewError, UnmeasurableError, binary_labels
from probes.statistics.metrics import auroc
from transforms.refusal import number_of

S_contra = TypeVar("S_contra", contravariant=True)
Augment = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSettings:
    """How a network is trained; `steps` are optimizer updates."""

    lr: float = 1e-3
    weight_decay: float = 0.05
    batch_size: int = 64
    max_epochs: int = 100
    patience: int = 15
    """Epochs without a lower validation loss after which training stops."""
    inner_folds: int = 5
    """Number of patient-grouped folds, of which one is set aside for early stopping."""


@dataclass(kw_only=True)
class Training:
    """A network in training, with all that decides how it goes on: what a resumed training needs.

    Attributes:
        order, noise: Draws of batches and of augmentation.
        best: What was learned when the validation loss was lowest, see `learned`.
        best_loss: That loss.
        epoch: Epochs done.
        waited: Epochs since the lowest loss.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    noise: torch.Generator
    best: dict[str, Tensor]
    best_loss: float = float("inf")
    epoch: int = 0
    waited: int = 0

    def is_over(self, settings: FitSettings) -> bool:
        """Whether the last epoch was reached, or too many went by without a lower loss."""
        has_waited = self.waited > 0 and self.waited >= settings.patience
        return self.epoch >= settings.max_epochs or has_waited


@dataclass(frozen=True, slots=True)
class EpochFigures:
    """Of one epoch: mean training loss (as augmented), and loss and AUROC on the patients set aside."""

    loss: float
    validation_loss: float
    validation_auroc: float


class Follower(Protocol):
    """Follows a training: a pipeline stores its state and figures. The global random state is the training's own."""

    def begins(self, training: Training) -> None:
        """Take up an earlier training, if there was one, by changing the state of this one."""

    def batch_done(self) -> None:
        """Called after each update; may end the training by an exception."""

    def epoch_done(self, training: Training, figures: EpochFigures) -> None:
        """Called after each epoch."""


@dataclass(kw_only=True)
class NetworkProbe(Generic[S_contra]):
    """A probe whose network is trained by `fit_network`; its children say what the network is and what it takes.

    Fitted attribute: `network_`.

    Attributes:
        settings: Of the training.
        seed: Of initialization, batches, dropout, augmentation and the patients set aside.
        device: Where to train.
        augment: Applied to each training batch on the device.
        predicted_at_once: Samples of one batch of `decision_function`, which bounds its memory.
        follower: Stores what a resumed training needs.
    """

    settings: FitSettings = field(default_factory=FitSettings)
    seed: int = 0
    device: str | torch.device = "cpu"
    augment: Augment | None = None
    predicted_at_once: int = 256
    follower: Follower | None = None

    def inputs(self, features: S_contra) -> tuple[Tensor, ...]:
        """Tensors that the network takes, whose first axis is the N samples."""
        raise NotImplementedError

    def build(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        """Make the network for these training inputs, with random parameters; it gives logits (B,)."""
        raise NotImplementedError

    def fit(self, features: S_contra, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Train on N samples with labels 0 or 1, (N,); classes weigh the same.

        Raises:
            UnmeasurableError: If features are not finite, or a class is absent or has one patient.
            ValueError: If features have the wrong shape.
        """
        inputs, device = self.inputs(features), torch.device(self.device)
        self.network_ = fit_network(
            lambda: self.build(inputs),
            inputs,
            labels,
            patient_ids,
            self.settings,
            self.seed,
            device,
            self.augment,
            self.follower,
        )
        return self

    def decision_function(self, features: S_contra) -> Floats:
        """Evidence for class 1, (N,)."""
        device = torch.device(self.device)
        return predict(self.network_, self.inputs(features), device, batch_size=self.predicted_at_once)


def fit_network(
    build: Callable[[], nn.Module],
    inputs: tuple[Tensor, ...],
    labels: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    settings: FitSettings,
    seed: int,
    device: torch.device,
    augment: Augment | None = None,
    follower: Follower | None = None,
) -> nn.Module:
    """Train a network and return it as it was when its loss on the set-aside patients was lowest.

    Classes weigh the same, so that the logit is evidence as `linear.Probe` defines it. The global random state
    is left as it was found. Parameters without `requires_grad` stay as they are.

    Args:
        build: Makes the network; its parameters are drawn under `seed`. It takes the inputs, gives logits (B,). A
            method `parameter_groups` of it may give groups with learning rates of their own.
        inputs: Tensors whose first axis is the N samples; batches reach the device as float32 (bool stays bool).
        labels: 0 or 1, (N,).
        patient_ids: Patient of each sample, (N,).
        settings: Of the optimizer.
        seed: Of initialization, batches, dropout and augmentation.
        device: Where to train.
        augment: Applied to each training batch on the device.
        follower: Stores what a resumed training needs.

    Raises:
        UnmeasurableError: If an input is not finite, a class is absent, or a class has one patient only.
    """
    truth = binary_labels(labels)
    for values in inputs:
        if len(values) != len(truth):
            raise ValueError(f"{len(truth)} labels need {len(truth)} samples, got {len(values)}")
        if values.is_floating_point() and not all(
            bool(torch.isfinite(part).all()) for part in torch.split(values, 64)
        ):
            raise UnmeasurableError("features hold NaN or infinity")
    fold = early_stopping_fold(truth, patient_ids, settings, seed)
    target = torch.from_numpy(truth).float()
    with seeded(seed, device):
        network = build().to(device)
        return _train(
            network, inputs, target, fold.train, fold.test, settings, seed, device, augment, follower
        )


def early_stopping_fold(truth: Ints, patient_ids: npt.ArrayLike, settings: FitSettings, seed: int) -> Fold:
    """Return the rows that `fit_network` trains on, and those of the patients that it sets aside.

    Raises:
        TooFewError: If a class has one patient only, or patients cannot be divided.
    """
    patients = np.asarray(patient_ids).astype(str)
    rarer = min(np.unique(patients[truth == label]).size for label in (0, 1))
    if rarer < 2:
        raise TooFewError(
            f"early stopping needs two patients of each class to train on, got {rarer} of the rarer"
        )
    folds = patient_folds(patients.tolist(), truth, n_folds=min(settings.inner_folds, rarer), seed=seed)
    usable = [fold for fold in folds if np.unique(truth[fold.train]).size == 2]
    if not usable:
        raise TooFewError(
            f"the rarer class has {number_of(rarer, 'patient')}, too few to split for early stopping"
        )
    return usable[0]


def learned(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network less its frozen parameters."""
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}


def _train(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    train: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    settings: FitSettings,
    seed: int,
    device: torch.device,
    augment: Augment | None,
    follower: Follower | None,
) -> nn.Module:
    loss_of = _balanced_loss(target[train], device)
    groups = getattr(network, "parameter_groups", lambda: _trained(network))
    training = Training(
        network=network,
        optimizer=torch.optim.AdamW(groups(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True),
        order=torch.Generator().manual_seed(seed),
        noise=torch.Generator().manual_seed(seed + 1),
        best=deepcopy(learned(network)),
    )
    if follower is not None:
        follower.begins(training)
    rows = torch.from_numpy(train)
    while not training.is_over(settings):
        network.train()
        losses = []
        order = torch.randperm(len(rows), generator=training.order)
        for batch in torch.split(rows[order], settings.batch_size):
            if len(batch) == 1 and len(rows) > 1:
                continue  # batch normalization needs more than one sample
            moved = _to_device(inputs, batch, device)
            moved = moved if augment is None else augment(moved, training.noise)
            training.optimizer.zero_grad(set_to_none=True)
            loss = loss_of(network(*moved), target[batch].to(device))
            loss.backward()
            training.optimizer.step()
            losses.append(loss.detach())
            if follower is not None:
                follower.batch_done()
        logits = predict(network, inputs, device, validation)
        held_out = torch.from_numpy(logits).float()
        validation_loss = float(loss_of(held_out.to(device), target[validation].to(device)))
        training.epoch += 1
        if validation_loss < training.best_loss:
            training.best, training.best_loss = deepcopy(learned(network)), validation_loss
            training.waited = 0
        else:
            training.waited += 1
        if follower is not None:
            area = float(auroc(target[validation].numpy(), logits, np.ones((1, len(logits))))[0])
            follower.epoch_done(
                training, EpochFigures(float(torch.stack(losses).mean()), validation_loss, area)
            )
    network.load_state_dict(training.best, strict=False)
    return network.eval()


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def predict(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    device: torch.device,
    rows: npt.NDArray[np.int64] | None = None,
    batch_size: int = 256,
) -> Floats:
    """Logits of a network in evaluation mode, (N,) or one per row asked for; memory is bounded by the batch."""
    network.eval()
    chosen = torch.arange(len(inputs[0])) if rows is None else torch.from_numpy(rows)
    with torch.no_grad():
        parts = [
            network(*_to_device(inputs, batch, device)).double().cpu()
            for batch in torch.split(chosen, batch_size)
        ]
    return np.asarray(torch.cat(parts).numpy(), dtype=np.float64)


class Standardize(nn.Module):
    """Features (..., D) less their mean, over their standard deviation; a constant feature becomes zero."""

    def __init__(self, features: Tensor) -> None:
        """Measure features (N, ..., D) over all axes but the last."""
        super().__init__()
        flat = features.reshape(-1, features.shape[-1])
        # Whole nodules at a time: float64 sums without a float64 copy of all patch tokens.
        total, square = torch.zeros(2, flat.shape[1], dtype=torch.float64)
        for part in torch.split(flat, 65536):
            total += part.double().sum(dim=0)
            square += part.double().square().sum(dim=0)
        mean = total / len(flat)
        scale = (square / len(flat) - mean.square()).clamp(min=0).sqrt()
        scale[scale <= 1e-6 * mean.abs()] = torch.inf
        self.mean, self.scale = nn.Buffer(mean.float()), nn.Buffer(scale.float())

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) in, (..., D) out."""
        return (features - self.mean) / self.scale


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from `seed` inside, and restore the global random state at the end."""
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def as_tensor(values: npt.ArrayLike | Tensor) -> Tensor:
    """Array or tensor as a CPU tensor, without a copy where none is needed."""
    return (
        values.detach().cpu()
        if isinstance(values, Tensor)
        else torch.from_numpy(np.ascontiguousarray(values))
    )


def _to_device(inputs: tuple[Tensor, ...], rows: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    taken = [values[rows].to(device) for values in inputs]
    return tuple(values if values.dtype == torch.bool else values.float() for values in taken)


def _balanced_loss(target: Tensor, device: torch.device) -> nn.BCEWithLogitsLoss:
    positive = float(target.mean())
    return nn.BCEWithLogitsLoss(pos_weight=torch.tensor((1 - positive) / positive, device=device))
