"""The base model of the primary question: size and attenuation alone."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from probes.statistics.checks import Floats

KNOT_QUANTILES = (0.05, 0.275, 0.5, 0.725, 0.95)
"""Of the natural spline. Source: Harrell 2015, Regression Modeling Strategies, table 2.3."""


class Attenuation(NamedTuple):
    """HU inside a nodule's mask, summarized; (N,) each."""

    share_above_150: Floats
    mean: Floats
    sd: Floats
    p10: Floats
    p25: Floats
    p50: Floats
    p75: Floats
    p90: Floats


def base_matrix(
    diameter_mm: npt.ArrayLike | None,
    image_diameter_mm: npt.ArrayLike,
    mask_area_mm2: npt.ArrayLike,
    attenuation: Attenuation,
    is_small: bool = False,
) -> Floats:
    """Join intercept, sizes and attenuation of N nodules; see docs/decisions/0005-the-primary-question.md.

    Args:
        diameter_mm: As the readers or a table state it, (N,), above 0; None where no diameter is known.
        image_diameter_mm: Measured in the image, (N,), above 0.
        mask_area_mm2: Area of the mask, (N,), above 0.
        attenuation: Inside the mask.
        is_small: Take ln diameter and its square (of the image, where no diameter is known), ln mask area, the share
            above 150 HU and the mean alone, as suits fewer than 100 nodules.

    Returns:
        (N, Q). Columns that do not vary, or that others span, do no harm: fits use the pseudo-inverse.
    """
    size = np.log(np.asarray(image_diameter_mm, dtype=np.float64))
    if is_small:
        own = size if diameter_mm is None else np.log(np.asarray(diameter_mm, dtype=np.float64))
        area = np.log(np.asarray(mask_area_mm2, dtype=np.float64))
        return np.column_stack(
            [np.ones_like(own), own, own**2, area, attenuation.share_above_150, attenuation.mean]
        )
    columns = [np.ones_like(size), size, size**2, np.log(np.asarray(mask_area_mm2, dtype=np.float64))]
    if diameter_mm is not None:
        columns += list(natural_spline(np.log(np.asarray(diameter_mm, dtype=np.float64))).T)
    return np.column_stack([*columns, *attenuation])


def natural_spline(x: Floats) -> Floats:
    """Return a natural (restricted) cubic spline basis of x without its intercept, (N, knots - 1).

    Linear beyond the outer knots. Knots that fall together, as with few distinct values, count once.
    """
    knots = np.unique(np.quantile(x, KNOT_QUANTILES))
    if len(knots) < 3:
        return x[:, None]
    first, last, before_last = knots[0], knots[-1], knots[-2]
    columns = [x]
    for knot in knots[:-2]:
        columns.append(
            _cubed(x - knot)
            - _cubed(x - before_last) * (last - knot) / (last - before_last)
            + _cubed(x - last) * (before_last - knot) / (last - before_last)
        )
    scale = (last - first) ** 2
    return np.column_stack([columns[0], *(column / scale for column in columns[1:])])


def _cubed(x: Floats) -> Floats:
    return np.asarray(np.maximum(x, 0.0) ** 3)
