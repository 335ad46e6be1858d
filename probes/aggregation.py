"""Which way of pooling a nodule's slices keeps the information of the third dimension? One table, in the same folds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from models.aggregators import AggregatorName, build_aggregator
from probes.heads.fitting import FitSettings, NetworkProbe, Standardize
from probes.heads.linear import LinearProbe, Probe, cross_fit
from probes.scoring import Pairs, as_pairs, pooled
from probes.statistics.checks import Floats, Ints, binary_labels
from probes.statistics.delong import delong_difference
from probes.statistics.estimate import holm
from probes.statistics.metrics import auroc_difference, auroc_with_interval

LEARNED = ("attention_z", "planes")
"""Aggregators with parameters of their own; the others are pooled once and read by `LinearProbe`."""
VOLUMETRIC, VOLUMETRIC_RANDOM = "volumetric", "volumetric_random"
"""Rows of one vector a nodule from a 3D network that sees its cube at once, and from that network's random twin."""
ATTENTION_CENTER = "attention_center"
"""Row of the network of `attention_z` trained on the center slice alone: what it gains without any neighbor."""


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

    def center(self) -> "SliceTokens":
        """The slice nearest to the center of each nodule alone, Z = 1: that which the aggregator `center` takes."""
        position, place = self.position_mm, self.position_mm.unsqueeze(-1)
        own = (build_aggregator("center", 1)(values, position, self.mask) for values in (self.tokens, place))
        tokens, position_mm = own
        return SliceTokens(tokens[:, None], position_mm, torch.ones_like(self.mask[:, :1]))


@dataclass
class AggregatorProbe(NetworkProbe[SliceTokens]):
    """One learned aggregator and a linear classifier on top of it, trained together.

    Attributes:
        aggregator: Its name.
    """

    aggregator: AggregatorName

    def inputs(self, features: SliceTokens) -> tuple[Tensor, ...]:
        """Tokens, positions and mask."""
        return features.tokens, features.position_mm, features.mask

    def build(self, inputs: tuple[Tensor, ...]) -> nn.Module:
        """The aggregator and the classifier."""
        return _Classifier(self.aggregator, inputs[0][inputs[2]])


class _Classifier(nn.Module):
    def __init__(self, aggregator: AggregatorName, real_tokens: Tensor) -> None:
        super().__init__()
        n_features = real_tokens.shape[-1]
        self.standardize = Standardize(real_tokens)
        self.aggregate = build_aggregator(aggregator, n_features)
        self.dropout = nn.Dropout(0.2)
        self.classify = nn.Linear(n_features, 1)

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        pooled = self.aggregate(self.standardize(tokens), position_mm, mask)
        logits: Tensor = self.classify(self.dropout(pooled))
        return logits.squeeze(-1)


@dataclass(frozen=True, slots=True)
class AggregationPart:
    """What one backbone makes of N nodules, and the folds in which it is tested.

    Attributes:
        slices: Slices along z, the same range in mm for each nodule.
        folds: Training and test rows.
        planes: Axial, coronal and sagittal tokens (N, 3, D) of the same nodules: adds the row `planes`.
        vectors: Of the same nodules, by row, (N, D) each: `volumetric` and `volumetric_random`.
    """

    slices: SliceTokens
    folds: Pairs
    planes: SliceTokens | None = None
    vectors: Mapping[str, Floats] = field(default_factory=dict)


def compare_aggregators(
    parts: Sequence[AggregationPart],
    labels: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    names: Sequence[AggregatorName] = ("center", "mean", "max", "center3_mean", "center3_max", "attention_z"),
    settings: FitSettings | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """Cross-fit every aggregator in the same folds and test each against the center slice.

    A learned aggregator may differ from a linear probe of the center slice because it is another classifier, not
    because it sees more slices. So with `attention_z` its own network is also trained on the center slice alone.

    Args:
        parts: One, or several where backbones are cross-fitted: each tests nodules of its own.
        labels: 0 or 1, (N,).
        patient_ids: Patient of each nodule, (N,).
        names: Aggregators of slices; `center`, the reference, is added if it is not among them.
        settings: Of the training of learned aggregators.
        seed: Of everything drawn.
        device: Where to train.

    Returns:
        One row per aggregator: AUROC with interval over patients; its difference against `center` with interval, p of
        the paired bootstrap and of clustered DeLong, and p after Holm's correction over the rows. `attention_center`
        and `volumetric_random` are references as `center` is, outside that correction: `minus_own_center` and
        `minus_random`, with `own_center_p` and `random_p`, are the paired differences of `attention_z` and
        `volumetric` against them.

    Raises:
        UnmeasurableError: As `probes.heads.linear.cross_fit`.
        ValueError: If a name is unknown, or planes are of other nodules.
    """
    truth = binary_labels(labels)
    tested = np.unique(np.concatenate([test for part in parts for _, test in as_pairs(part.folds)]))
    prior = float(binary_labels(truth[tested]).mean())
    rows: list[AggregatorName] = ["center", *(name for name in names if name not in ("center", "planes"))]
    if all(part.planes is not None for part in parts):
        rows.append("planes")
    truth_of_all = (truth, patient_ids, prior)
    scores: dict[str, Floats] = {}
    for name in rows:
        make: Callable[[], Probe[Any]] = partial(LinearProbe, seed=seed)
        if name in LEARNED:
            make = partial(
                AggregatorProbe, name, settings=settings or FitSettings(), seed=seed, device=device
            )
        shown = [
            part.planes if name == "planes" and part.planes is not None else part.slices for part in parts
        ]
        inputs = shown if name in LEARNED else [_pooled(name, one) for one in shown]
        scores[name] = _cross_fit(make, inputs, parts, *truth_of_all)
        if name == "attention_z":
            centers = [one.center() for one in shown]
            scores[ATTENTION_CENTER] = _cross_fit(make, centers, parts, *truth_of_all)
    for row in parts[0].vectors:
        make = partial(LinearProbe, seed=seed)
        scores[row] = _cross_fit(make, [part.vectors[row] for part in parts], parts, *truth_of_all)
    return _table(scores, truth, np.asarray(patient_ids))


def _cross_fit(
    make: Callable[[], Probe[Any]],
    inputs: Sequence[Any],
    parts: Sequence[AggregationPart],
    truth: Ints,
    patient_ids: npt.ArrayLike,
    prior: float,
) -> Floats:
    return pooled(
        [
            cross_fit(make, shown, truth, patient_ids, part.folds, prior)
            for shown, part in zip(inputs, parts, strict=True)
        ]
    )


def _pooled(name: AggregatorName, slices: SliceTokens) -> Floats:
    pool = build_aggregator(name, slices.tokens.shape[-1])
    vectors: Tensor = pool(slices.tokens, slices.position_mm, slices.mask)
    return np.asarray(vectors.double().numpy(), dtype=np.float64)


def _table(all_scores: Mapping[str, Floats], truth: Ints, patients: npt.NDArray[Any]) -> pd.DataFrame:
    tested = np.isfinite(all_scores["center"])
    y, who = truth[tested], patients[tested]
    scores = {name: score[tested] for name, score in all_scores.items()}
    references = ("center", ATTENTION_CENTER, VOLUMETRIC_RANDOM)
    lines: list[dict[str, str | float]] = []
    for name, score in scores.items():
        line: dict[str, str | float] = {"aggregator": name, "n_nodules": len(y)}
        line |= auroc_with_interval(y, score, who).named("auroc")
        if name not in references:
            gap = auroc_difference(y, score, scores["center"], who)
            line |= gap.named("minus_center")
            line |= {"p": gap.p, "delong_p": delong_difference(y, score, scores["center"], who).p}
        if name == "attention_z":
            own = auroc_difference(y, score, scores[ATTENTION_CENTER], who)
            line |= own.named("minus_own_center") | {"own_center_p": own.p}
        if name == VOLUMETRIC and VOLUMETRIC_RANDOM in scores:
            learned = auroc_difference(y, score, scores[VOLUMETRIC_RANDOM], who)
            line |= learned.named("minus_random") | {"random_p": learned.p}
        lines.append(line)
    table = pd.DataFrame(lines)
    compared = ~table["aggregator"].isin(references)
    if compared.any():
        table.loc[compared, "p_holm"] = holm(table.loc[compared, "p"].tolist())
    return table
