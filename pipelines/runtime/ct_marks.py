"""What every CT picture carries: which side is which, a bar of known length, and the HU window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.patheffects as effects
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BARS_MM = (1, 2, 5, 10, 20, 50, 100, 200)
_SHARE = 0.4
"""Of the width that a bar may take."""
_OUTLINE = [effects.withStroke(linewidth=1.5, foreground="black")]
_TEXT: dict[str, Any] = {"color": "white", "fontsize": 6, "path_effects": _OUTLINE}


class Sides(NamedTuple):
    """The patient's sides at three edges of a picture: R, L, A (front), P (back), H (head) or F (feet)."""

    left: str
    right: str
    top: str


_LETTERS = (("L", "R"), ("P", "A"), ("F", "H"))
"""At the negative and the positive end of the axes x, y, z of RAS."""


def sides_of(down_ras: Any, right_ras: Any) -> Sides:
    """Return the sides of a picture whose rows run along `down_ras`, and columns along `right_ras`, (3,) each."""
    down, right = np.asarray(down_ras, dtype=np.float64), np.asarray(right_ras, dtype=np.float64)
    return Sides(_letter(-right), _letter(right), _letter(-down))


def _letter(direction_ras: NDArray[np.float64]) -> str:
    axis = int(np.abs(direction_ras).argmax())
    return _LETTERS[axis][int(direction_ras[axis] > 0)]


RADIOLOGICAL = Sides("R", "L", "A")
"""An axial slice as radiologists see it, from the feet: crops, and what is resampled like them, always lie so."""


def mark_ct(
    axis: Axes,
    sides: Sides | None,
    mm_per_unit: float | None,
    window_hu: tuple[float, float] | str,
) -> None:
    """Write sides, a scale bar and the window on the picture that an axis holds.

    Args:
        axis: With one image or more; the first is measured.
        sides: Which way the picture lies; None where that is not known, and no letter is written.
        mm_per_unit: Millimeters of one unit of its x axis; None where that is not known, and no bar is drawn.
        window_hu: HU of black and of white, or a short text in their place.
    """
    left, right, bottom, top = axis.images[0].get_extent()
    inside = axis.transAxes
    if sides is not None:
        for letter, x, y in zip(sides, (0.02, 0.98, 0.5), (0.5, 0.5, 0.98), strict=True):
            across = "center" if x == 0.5 else "left" if x < 0.5 else "right"
            up = "top" if y > 0.9 else "center"
            axis.text(x, y, letter, transform=inside, ha=across, va=up, **_TEXT)
    text = window_hu if isinstance(window_hu, str) else "{:.0f} .. {:.0f} HU".format(*window_hu)
    axis.text(0.02, 0.02, text, transform=inside, ha="left", va="bottom", **_TEXT | {"fontsize": 4.5})
    if mm_per_unit is None:
        return
    width = abs(right - left)
    length_mm = max([mm for mm in _BARS_MM if mm <= _SHARE * width * mm_per_unit], default=_BARS_MM[0])
    share = length_mm / mm_per_unit / width
    # In axes units: the bar stays inside, whichever way the picture's own axes run.
    (bar,) = axis.plot([0.97 - share, 0.97], [0.13, 0.13], transform=inside, color="white", linewidth=1.5)
    bar.set(
        path_effects=[effects.withStroke(linewidth=2.5, foreground="black")],
        solid_capstyle="butt",
        label=f"{length_mm} mm",
    )
    axis.text(
        0.97 - share / 2,
        0.15,
        f"{length_mm} mm",
        transform=inside,
        ha="center",
        va="bottom",
        **_TEXT | {"fontsize": 5},
    )
    axis.set(xlim=(left, right), ylim=(bottom, top))
