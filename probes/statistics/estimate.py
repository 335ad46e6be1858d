"""A number with its interval, the interval of a share, and Holm's correction."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Z_95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    ci_low: float
    ci_high: float

    def __str__(self) -> str:
        """Render as `0.913 [0.890, 0.935]`, or `0.913 (no interval)` where too few were measured for one."""
        if np.isnan(self.ci_low):
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} [{self.ci_low:.3f}, {self.ci_high:.3f}]"

    def named(self, name: str) -> dict[str, float]:
        """Return the value under a name, and its bounds under the name with `_ci_low` and `_ci_high`."""
        return {name: self.value, f"{name}_ci_low": self.ci_low, f"{name}_ci_high": self.ci_high}


@dataclass(frozen=True, slots=True)
class Difference(Estimate):
    """A paired difference a - b with its 95% interval and two-sided p."""

    p: float

    def __str__(self) -> str:
        """Render as `+0.029 [+0.007, +0.050], p = 0.012`."""
        return f"{self.value:+.3f} [{self.ci_low:+.3f}, {self.ci_high:+.3f}], p = {self.p:.3g}"


def wilson_interval(n_hits: int, n: int) -> Estimate:
    """Share of hits with its Wilson score interval, for independent trials.

    Args:
        n_hits: Number of hits, 0 .. n.
        n: Number of trials, at least 1.

    Returns:
        n_hits / n with the 95% interval, which is never empty, also at 0 and at n hits.

    Raises:
        ValueError: If n < 1 or n_hits lies outside 0 .. n.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; without continuity correction.
    """
    if not (n >= 1 and 0 <= n_hits <= n):
        raise ValueError(f"a share needs 0 <= hits <= trials and at least one trial, got {n_hits} of {n}")
    share = n_hits / n
    shrink = 1.0 + Z_95**2 / n
    center = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 / shrink * float(np.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)))
    # At 0 and n hits the bound is the share itself; rounding must not push it past.
    return Estimate(share, min(max(center - half, 0.0), share), max(min(center + half, 1.0), share))


def holm(p_values: Sequence[float]) -> npt.NDArray[np.float64]:
    """Adjust the p values of several arms that ask one question, so that any false alarm stays rare.

    Args:
        p_values: Raw two-sided p values, (K,).

    Returns:
        Adjusted p values in the given order, (K,), each at least its raw value and at most 1.

    Raises:
        ValueError: If a p value lies outside 0 .. 1.
    Source: Holm 1979, Scand. J. Stat. 6:65.
    """
    raw = np.asarray(p_values, dtype=np.float64)
    if raw.size and not np.all((raw >= 0) & (raw <= 1)):
        raise ValueError(f"p values must lie in 0 .. 1, got {raw.tolist()}")
    order = np.argsort(raw, kind="stable")
    steps = raw[order] * (raw.size - np.arange(raw.size))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
