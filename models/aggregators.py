"""Tokens of a nodule's slices to one vector: at the center, averaged, or by attention that uses slice positions."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

AggregatorName = Literal["center", "mean", "max", "center3_mean", "center3_max", "attention_z", "planes"]


class Center(nn.Module):
    """The slice nearest to the center of the nodule; of two equally near, the first."""

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, Z, D), (B, Z), (B, Z) to (B, D)."""
        nearest = _distance(position_mm, mask).argmin(dim=1)
        return tokens.gather(1, nearest[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


class Mean(nn.Module):
    """Mean over all real slices."""

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, Z, D), (B, Z), (B, Z) to (B, D)."""
        return _masked_mean(tokens, mask)


class Max(nn.Module):
    """Element-wise maximum over all real slices."""

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, Z, D), (B, Z), (B, Z) to (B, D)."""
        _refuse_empty(mask)
        return tokens.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)


class CenterThree(nn.Module):
    """Mean or element-wise maximum of the three slices nearest to the center, or of those there are."""

    def __init__(self, pool: Literal["mean", "max"]) -> None:
        """Choose how the three are pooled."""
        super().__init__()
        self.pool = pool

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, Z, D), (B, Z), (B, Z) to (B, D)."""
        distance = _distance(position_mm, mask)
        nearest = distance.topk(min(3, distance.shape[1]), dim=1, largest=False).indices
        chosen = tokens.gather(1, nearest[..., None].expand(-1, -1, tokens.shape[-1]))
        is_real = mask.gather(1, nearest)
        if self.pool == "mean":
            return _masked_mean(chosen, is_real)
        return chosen.masked_fill(~is_real[..., None], -torch.inf).amax(dim=1)


class AttentionZ(nn.Module):
    """Gated attention over slices with an embedding of their position along z.

    Each slice's token is joined by an embedding of its signed place in mm and refined by a small residual network, so
    that a finding above the center differs from the same finding below; a gated attention then weighs the slices.

    Source: Ilse et al. 2018, arXiv:1802.04712 (gated attention); Vaswani et al. 2017 (sinusoids), here of millimeters.
    """

    def __init__(
        self, n_features: int, n_hidden: int = 64, wavelengths_mm: tuple[float, float] = (8.0, 128.0)
    ) -> None:
        """Set the width of the hidden layers and the shortest and longest wavelength of the place embedding, mm."""
        super().__init__()
        self.embed_place = _PlaceEmbedding(n_features, wavelengths_mm)
        self.refine = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, n_hidden),
            nn.GELU(),
            nn.Linear(n_hidden, n_features),
        )
        self.attend = _GatedAttention(n_features, n_hidden)

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, Z, D), (B, Z), (B, Z) to (B, D)."""
        placed = tokens + self.embed_place(position_mm)
        refined = placed + self.refine(placed)
        weights: Tensor = self.attend(refined, mask)
        return torch.einsum("bz,bzd->bd", weights, refined.masked_fill(~mask[..., None], 0.0))


class Planes(nn.Module):
    """Axial, coronal and sagittal triplets through one encoder, fused by gated attention: Z is the plane, 3 of them.

    Positions in mm carry no information here: all three planes meet in the center. Each plane has a learned embedding
    instead.
    """

    def __init__(self, n_features: int, n_hidden: int = 64) -> None:
        """Set the width of the attention's hidden layer."""
        super().__init__()
        self.plane = nn.Parameter(
            0.5 * torch.randn(3, n_features)
        )  # distinct from the start, for attention to use them
        self.attend = _GatedAttention(n_features, n_hidden)

    def forward(self, tokens: Tensor, position_mm: Tensor, mask: Tensor) -> Tensor:
        """(B, 3, D), (B, 3), (B, 3) to (B, D).

        Raises:
            ValueError: If there are not three planes.
        """
        if tokens.shape[1] != 3:
            raise ValueError(
                f"planes are three: axial, coronal, sagittal; got {tokens.shape[1]} tokens per nodule"
            )
        placed = tokens + self.plane
        weights: Tensor = self.attend(placed, mask)
        return torch.einsum("bz,bzd->bd", weights, placed.masked_fill(~mask[..., None], 0.0))


_AGGREGATORS: dict[AggregatorName, Callable[[int], nn.Module]] = {
    "center": lambda _: Center(),
    "mean": lambda _: Mean(),
    "max": lambda _: Max(),
    "center3_mean": lambda _: CenterThree("mean"),
    "center3_max": lambda _: CenterThree("max"),
    "attention_z": AttentionZ,
    "planes": Planes,
}


def build_aggregator(name: AggregatorName, n_features: int) -> nn.Module:
    """Make an aggregator by name.

    Each takes tokens (B, Z, D), position_mm (B, Z) relative to the nodule's center, and mask (B, Z), true where a
    slice is real and not padding; it gives (B, D). Give every nodule the same range in mm: the number of slices that
    a nodule spans reveals its size.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _AGGREGATORS:
        raise ValueError(f"aggregator {name!r} does not exist; use one of {', '.join(_AGGREGATORS)}")
    return _AGGREGATORS[name](n_features)


class _PlaceEmbedding(nn.Module):
    """Sines and cosines of the place in mm, mixed into D features."""

    def __init__(self, n_features: int, wavelengths_mm: tuple[float, float], n_waves: int = 8) -> None:
        super().__init__()
        shortest, longest = wavelengths_mm
        waves = torch.logspace(math.log10(shortest), math.log10(longest), n_waves)
        self.frequency = nn.Buffer(2 * math.pi / waves)
        self.mix = nn.Linear(2 * n_waves, n_features)

    def forward(self, position_mm: Tensor) -> Tensor:
        phase = position_mm[..., None] * self.frequency
        mixed: Tensor = self.mix(torch.cat([phase.sin(), phase.cos()], dim=-1))
        return mixed


class _GatedAttention(nn.Module):
    """Weights over the real slices that sum to 1, (B, Z)."""

    def __init__(self, n_features: int, n_hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_features)
        self.content = nn.Linear(n_features, n_hidden)
        self.gate = nn.Linear(n_features, n_hidden)
        self.score = nn.Linear(n_hidden, 1)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm(tokens)
        scores = self.score(torch.tanh(self.content(normed)) * torch.sigmoid(self.gate(normed))).squeeze(-1)
        return torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=1)


def _distance(position_mm: Tensor, mask: Tensor) -> Tensor:
    _refuse_empty(mask)
    return position_mm.abs().masked_fill(~mask, torch.inf)


def _masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    _refuse_empty(mask)
    kept = tokens.masked_fill(~mask[..., None], 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _refuse_empty(mask: Tensor) -> None:
    empty = int((~mask.any(dim=1)).sum())
    if empty:
        raise ValueError(f"{empty} of {len(mask)} nodules have no real slice to aggregate")
