"""Can the nodule be located from patch tokens? A linear probe from tokens to its mask, scored by Dice.

Masks are (N, H, W) of slices or (N, D, H, W) of cubes; what is said of pixels holds for voxels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import logit
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d, interpolate

from probes.heads.fitting import as_tensor
from probes.heads.linear import mean_and_scale
from probes.heads.logistic import fit_logistic
from probes.scoring import Pairs, pooled
from probes.splits import Fold
from probes.statistics.bootstrap import mean_difference, mean_with_interval
from probes.statistics.checks import Floats, Ints, TooFewError, UnmeasurableError

_CUT_NODULES = 200  # enough to choose one threshold
_AT_ONCE = 64


@dataclass
class DenseProbe:
    """Logistic regression from one patch token to the share of its patch that the mask covers.

    Log odds are upsampled to the mask's resolution (linear along each axis); the threshold maximizes the mean Dice of
    training nodules. Fitted attributes: `coef_` (D,), `intercept_`, `mean_`, `scale_` (D,), `threshold_` in log odds.

    Attributes:
        c: Inverse penalty, scikit-learn's scale.
        max_patches: Patches to train on: all that the mask touches, and as many others as fit, drawn at random.
        seed: Of that draw.
        grid: Patches along each axis of a mask; None: a square.
    """

    c: float = 1e-3
    max_patches: int = 20_000
    seed: int = 0
    grid: tuple[int, ...] | None = None

    def fit(self, tokens: npt.ArrayLike | Tensor, masks: npt.ArrayLike | Tensor) -> Self:
        """Learn from patch tokens and masks.

        Args:
            tokens: (N, P, D), rows of patches first, layers before rows.
            masks: (N, H, W) or (N, D, H, W), 0 or 1, on the same field of view.

        Raises:
            UnmeasurableError: If tokens are not finite, or the masks hold no nodule.
            ValueError: If shapes do not match.
        """
        x, y = _checked(tokens, masks, self.grid)
        share = torch.cat([self._shares(part, x) for part in torch.split(y, _AT_ONCE)])
        touched, clear = share.flatten().nonzero()[:, 0], (share.flatten() == 0).nonzero()[:, 0]
        if not len(touched):
            raise TooFewError(f"none of the {len(y)} masks holds a nodule; there is nothing to learn")
        draw = torch.Generator().manual_seed(self.seed)
        touched = touched[torch.randperm(len(touched), generator=draw)][: self.max_patches]
        clear = clear[torch.randperm(len(clear), generator=draw)][: self.max_patches - len(touched)]
        chosen = torch.cat([touched, clear])
        samples = x.flatten(0, 1)[chosen].double().numpy()
        self.mean_, self.scale_ = mean_and_scale(samples)
        target = share.flatten()[chosen].double().numpy()
        penalty = np.full(samples.shape[1], 1 / self.c)
        start = np.append(np.zeros(samples.shape[1]), logit(np.clip(target.mean(), 1e-6, 1 - 1e-6)))
        weights = fit_logistic((samples - self.mean_) / self.scale_, target, penalty, start, tolerance=1e-6)
        self.coef_, self.intercept_ = weights[:-1], float(weights[-1])
        shown = np.arange(0, len(x), max(1, len(x) // _CUT_NODULES))
        self.threshold_ = _best_threshold(self.decision_function(x[shown], y.shape[1:]), y[shown].numpy())
        return self

    def _shares(self, masks: Tensor, tokens: Tensor) -> Tensor:
        """Return the share of each patch that a mask covers, (n, P)."""
        grid = _grid(tokens, self.grid)
        pool: Any = adaptive_avg_pool3d if len(grid) == 3 else adaptive_avg_pool2d
        shares: Tensor = pool(masks.float()[:, None], grid).flatten(1)
        return shares

    def decision_function(
        self, tokens: npt.ArrayLike | Tensor, size: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Log odds of nodule at each pixel, (N, H, W) for size (H, W), or (N, D, H, W) for (D, H, W)."""
        x = as_tensor(tokens).float()
        weights = torch.from_numpy(self.coef_ / self.scale_).float()
        offset = self.intercept_ - float((self.mean_ / self.scale_) @ self.coef_)
        grid = _grid(x, self.grid)
        coarse = (x @ weights + offset).reshape(-1, 1, *grid)
        mode = "trilinear" if len(grid) == 3 else "bilinear"
        fine = interpolate(coarse, size=tuple(size), mode=mode, align_corners=False)
        return np.asarray(fine[:, 0].numpy())

    def predict(self, tokens: npt.ArrayLike | Tensor, size: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Mask of the nodule, of the shape of `decision_function`."""
        return np.asarray(self.decision_function(tokens, size) > self.threshold_)


def dice(first: npt.ArrayLike, second: npt.ArrayLike) -> Floats:
    """Overlap 2 |A and B| / (|A| + |B|) of each pair of masks (N, ...), (N,); two empty masks agree and give 1."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"masks to compare must have one shape, got {a.shape} and {b.shape}")
    axes = tuple(range(1, a.ndim))
    total = a.sum(axis=axes) + b.sum(axis=axes)
    return np.asarray(np.where(total > 0, 2 * (a & b).sum(axis=axes) / np.maximum(total, 1), 1.0))


def inter_reader_dice(reader_masks: Sequence[npt.ArrayLike]) -> Floats:
    """Mean Dice over all pairs of readers of each nodule, (N,); NaN where fewer than two readers drew it.

    Args:
        reader_masks: One array (readers, ...) per nodule.
    """
    values = np.full(len(reader_masks), np.nan)
    for nodule, masks in enumerate(reader_masks):
        drawn = np.asarray(masks, dtype=bool)
        first, second = np.triu_indices(len(drawn), k=1)
        if first.size:
            values[nodule] = dice(drawn[first], drawn[second]).mean()
    return values


def cross_fit_dice(
    tokens: npt.ArrayLike | Tensor,
    masks: npt.ArrayLike | Tensor,
    patient_ids: npt.ArrayLike,
    folds: Iterable[Fold | tuple[Ints, Ints]],
    probe: DenseProbe,
) -> Floats:
    """Dice of each nodule by probes that never saw its patient, mean over repeats, (N,); NaN where none tests it.

    Raises:
        UnmeasurableError: As `DenseProbe.fit`.
        ValueError: As `DenseProbe.fit`, or if a fold tests a patient that it trains on.
    """
    x, y = _checked(tokens, masks, probe.grid)
    patients: npt.NDArray[Any] = np.asarray(patient_ids)
    total, times = np.zeros(len(x)), np.zeros(len(x))
    for fold in folds:
        train, test = (fold.train, fold.test) if isinstance(fold, Fold) else fold
        shared = np.intersect1d(patients[train], patients[test])
        if shared.size:
            raise ValueError(
                f"a fold tests {shared.size} patients that it also trains on, such as {shared[0]}"
            )
        fitted = replace(probe).fit(x[train], y[train])
        total[test] += dice(fitted.predict(x[test], y.shape[1:]), y[test].numpy())
        times[test] += 1
    return np.asarray(np.divide(total, times, out=np.full(len(x), np.nan), where=times > 0))


def dense_table(
    rows: Mapping[str, Sequence[tuple[npt.ArrayLike | Tensor, Pairs]]],
    masks: npt.ArrayLike | Tensor,
    patient_ids: npt.ArrayLike,
    reader_masks: Sequence[npt.ArrayLike] | None = None,
    probe: DenseProbe | None = None,
) -> pd.DataFrame:
    """Dice of each set of tokens, in the same folds, beside pixels and the agreement between readers.

    Args:
        rows: By name, tokens (N, P, D) of each backbone with its folds: `features`, `random_weights`, and `pixels` (the
            gray values of each patch).
        masks: (N, H, W) or (N, D, H, W), 0 or 1.
        patient_ids: Patient of each nodule, (N,).
        reader_masks: One array (readers, ...) per nodule: adds the row `inter_reader`, on nodules that two readers
            or more drew.
        probe: Settings; None: the defaults of `DenseProbe`.

    Returns:
        One line per row: nodules, mean Dice with interval over patients, and its paired difference against `pixels`.

    Raises:
        ValueError: As `cross_fit_dice`.
    """
    patients = np.asarray(patient_ids)
    values = {
        name: pooled(
            [cross_fit_dice(tokens, masks, patients, folds, probe or DenseProbe()) for tokens, folds in parts]
        )
        for name, parts in rows.items()
    }
    lines: list[dict[str, str | float]] = []
    for name, scored in values.items():
        tested = np.isfinite(scored)
        line = _mean_columns(name, scored[tested], patients[tested])
        if name != "pixels" and "pixels" in values:
            gap = mean_difference(scored[tested], values["pixels"][tested], patients[tested])
            line |= gap.named("minus_pixels") | {"p": gap.p}
        lines.append(line)
    if reader_masks is not None:
        agreement = inter_reader_dice(reader_masks)
        drawn = np.isfinite(agreement) & np.isfinite(next(iter(values.values())))
        if np.unique(patients[drawn]).size > 1:
            lines.append(_mean_columns("inter_reader", agreement[drawn], patients[drawn]))
    return pd.DataFrame(lines)


def _mean_columns(name: str, values: Floats, patients: npt.NDArray[Any]) -> dict[str, str | float]:
    columns: dict[str, str | float] = {"row": name, "n_nodules": len(values)}
    return columns | mean_with_interval(values, patients).named("dice")


def _best_threshold(log_odds: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_]) -> float:
    """The threshold with the highest mean Dice, among quantiles of the log odds inside the masks."""
    grid = np.unique(np.quantile(log_odds[masks], np.linspace(0.0, 0.95, 40)))
    scores = [dice(log_odds > cut, masks).mean() for cut in grid]
    return float(grid[int(np.argmax(scores))])


def _checked(
    tokens: npt.ArrayLike | Tensor, masks: npt.ArrayLike | Tensor, grid: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """Return tokens in float32 and masks as bool."""
    x, y = as_tensor(tokens).float(), as_tensor(masks) > 0.5
    if x.ndim != 3 or y.ndim != 1 + len(grid or (0, 0)) or len(x) != len(y):
        raise ValueError(
            "tokens (N, P, D) and masks (N, H, W), or (N, D, H, W) with a grid of three, are needed, got"
            f" {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not bool(torch.isfinite(x).all()):
        raise UnmeasurableError("patch tokens hold NaN or infinity")
    _grid(x, grid)
    return x, y


def _grid(tokens: Tensor, grid: tuple[int, ...] | None) -> tuple[int, ...]:
    n = tokens.shape[1]
    found = grid or (math.isqrt(n),) * 2
    if math.prod(found) != n:
        raise ValueError(f"{n} patches do not form a {'square grid' if grid is None else f'grid of {grid}'}")
    return found
