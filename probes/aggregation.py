"""Which way of pooling a nodule's slices keeps the information of the third dimension? One table, in the same folds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from models.aggregators import AggregatorName, build_aggregator
from probes.heads.fitting import FitSettings, Standardize, fit_network, predict
from probes.heads.linear import LinearProbe, cross_fit
from probes.splits import Fold
from probes.statistics.checks import Floats, Ints, binary_labels
from probes.statistics.delong import delong_difference
from probes.statistics.metrics import auroc_difference, auroc_with_interval, holm

LEARNED = ("attention_z", "planes")
"""Aggregators with parameters of their own; the others are pooled once and read by `LinearProbe`."""


@dataclass(frozen=True, slots=True)
class SliceTokens:
    """Frozen features of the slices around each nodule, padded to one length.

    Attributes:
        tokens: (N, Z, D).
        position_mm: Of each slice along z, 0 at the nodule's center, positive toward the head, (N, Z).
        mask: True for a real slice, false for padding, (N, Z).
    """

    tokens: Tensor
    position_mm: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        """Refuse shapes that do not match and nodules without a slice."""
        n_slices = self.tokens.shape[:2]
        if self.tokens.ndim != 3 or self.position_mm.shape != n_slices or self.mask.shape != n_slices:
            raise ValueError(
                "slice tokens must be (N, Z, D) with positions and mask (N, Z), got "
                f"{tuple(self.tokens.shape)}, {tuple(self.position_mm.shape)} and {tuple(self.mask.shape)}"
            )
        if not self.mask.any(dim=1).all():
            raise ValueError(f"{int((~self.mask.any(dim=1)).sum())} nodules have no real slice")

    def __len__(self) -> int:
        """Number of nodules."""
        return len(self.tokens)

    def __getitem__(self, rows: npt.NDArray[Any], /) -> "SliceTokens":
        """These nodules."""
        index = torch.from_numpy(np.asarray(rows))
        return SliceTokens(self.tokens[index], self.position_mm[index], self.mask[index])


class AggregatorProbe:
    """One aggregator and a linear classifier on top of it.

    Without parameters of its own the aggregator is followed by a `LinearProbe`, with its choice of the penalty; a
    learned one is trained with the classifier. Fitted attribute: `linear_` or `network_`.

    Args:
        aggregator: Its name.
        settings: Of the training of a learned one; None: the defaults of `FitSettings`.
        seed: Of inner folds, initialization and batches.
        device: Where to train.
    """

    def __init__(
        self,
        aggregator: AggregatorName,
        settings: FitSettings | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        """Store the settings; `fit` learns."""
        self.aggregator: AggregatorName = aggregator
        self.settings = settings or FitSettings()
        self.seed = seed
        self.device = torch.device(device)

    def fit(self, features: SliceTokens, labels: npt.ArrayLike, patient_ids: npt.ArrayLike) -> Self:
        """Train on slices of N nodules with labels 0 or 1, (N,).

        Raises:
            UnmeasurableError: If a class is absent or has one patient, or tokens are not finite.
        """
        if self.aggregator not in LEARNED:
            self.linear_ = LinearProbe(seed=self.seed).fit(self._pooled(features), labels, patient_ids)
            return self
        self.network_ = fit_network(
            lambda: _Classifier(self.aggregator, features),
            (features.tokens, features.position_mm, features.mask),
            labels,
            patient_ids,
            self.settings,
            self.seed,
            self.device,
        )
        return self

    def decision_function(self, features: SliceTokens) -> Floats:
        """Evidence for class 1, (N,)."""
        if self.aggregator not in LEARNED:
            return self.linear_.decision_function(self._pooled(features))
        inputs = (features.tokens, features.position_mm, features.mask)
        return predict(self.network_, inputs, self.device)

    def _pooled(self, features: SliceTokens) -> Floats:
        pool = build_aggregator(self.aggregator, features.tokens.shape[-1])
        pooled: Tensor = pool(features.tokens, features.position_mm, features.mask)
        return np.asarray(pooled.double().numpy(), dtype=np.float64)


class _Classifier(nn.Module):
    def __init__(self, aggregator: AggregatorName, features: SliceTokens) -> None:
        super().__init__()
        n_features = features.tokens.shape[-1]
        self.standardize = Standardize(features.tokens[features.mask])
        self.aggregate = build_aggregator(aggregator, n_features)
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(n_features, 1)

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        pooled = self.aggregate(self.standardize(tokens), position_mm, mask)
        logits: Tensor = self.classify(self.dropout(pooled))
        return logits.squeeze(-1)


def compare_aggregators(
    slices: SliceTokens,
    labels: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    folds: Iterable[Fold | tuple[Ints, Ints]],
    names: Sequence[AggregatorName] = ("center", "mean", "center3_mean", "center3_max", "attention_z"),
    planes: SliceTokens | None = None,
    settings: FitSettings | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Cross-fit every aggregator in the same folds and test each against the center slice.

    Args:
        slices: Slices along z of N nodules, the same range in mm for each.
        labels: 0 or 1, (N,).
        patient_ids: Patient of each nodule, (N,).
        folds: Training and test rows.
        names: Aggregators of `slices`; `center`, the reference, is added if it is not among them.
        planes: Axial, coronal and sagittal tokens (N, 3, D) of the same nodules: adds the row `planes`.
        settings: Of the training of learned aggregators.
        seed: Of everything drawn.
        device: Where to train.

    Returns:
        One row per aggregator: AUROC with interval over patients; its difference against `center` with interval, p of
        the paired bootstrap and of clustered DeLong, and p after Holm's correction over the rows.

    Raises:
        UnmeasurableError: As `probes.heads.linear.cross_fit`.
        ValueError: If a name is unknown, or planes are of other nodules.
    """
    truth, pairs = binary_labels(labels), list(folds)
    inputs: dict[AggregatorName, SliceTokens] = {"center": slices}
    inputs.update({name: slices for name in names if name != "planes"})
    unknown = [name for name in names if name not in get_args(AggregatorName)]
    if unknown:
        raise ValueError(
            f"aggregator {unknown[0]!r} does not exist; choose one of {', '.join(get_args(AggregatorName))}"
        )
    if planes is not None:
        inputs["planes"] = planes
    scores: dict[AggregatorName, Floats] = {}
    for name, of in inputs.items():
        make = partial(AggregatorProbe, name, settings, seed, device)
        scores[name] = cross_fit(make, of, truth, patient_ids, pairs)
    return _table(scores, truth, np.asarray(patient_ids))


def _table(scores: Mapping[AggregatorName, Floats], truth: Ints, patients: npt.NDArray[Any]) -> pd.DataFrame:
    tested = np.isfinite(scores["center"])
    y, who, center = truth[tested], patients[tested], scores["center"][tested]
    lines: list[dict[str, str | float]] = []
    for name, score in scores.items():
        area = auroc_with_interval(y, score[tested], who)
        line: dict[str, str | float] = {"aggregator": name, "n_nodules": len(y)}
        line |= area.named("auroc")
        if name != "center":
            gap = auroc_difference(y, score[tested], center, who)
            line |= gap.named("minus_center")
            line |= {"p": gap.p, "delong_p": delong_difference(y, score[tested], center, who).p}
        lines.append(line)
    table = pd.DataFrame(lines)
    if len(table) > 1:
        compared = table["aggregator"] != "center"
        table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"].tolist())
    return table
