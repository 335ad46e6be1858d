"""What counts as fill around the circle of reconstruction, and which text of a header is kept."""

import numpy as np
import pytest

from transforms.dicom.header import plain_text
from transforms.dicom.pixels import outer_fill

CORNERS = ((0, 0), (0, -1), (-1, 0), (-1, -1))


def filled() -> np.ndarray:
    """Stored values of a slice whose corners hold -1024, -2048 HU at an intercept of -1024."""
    stored = np.zeros((6, 6), dtype=np.int16)
    for corner in CORNERS:
        stored[corner] = -1024
    return stored


def test_the_lowest_value_held_by_all_four_corners_is_the_fill() -> None:
    assert outer_fill(filled(), 1.0, -1024.0) == -1024.0


@pytest.mark.parametrize("corner", CORNERS)
def test_three_corners_are_no_fill(corner: tuple[int, int]) -> None:
    stored = filled()
    stored[corner] = -1000
    assert outer_fill(stored, 1.0, -1024.0) is None


def test_a_value_that_is_not_the_lowest_is_no_fill() -> None:
    stored = filled()
    stored[3, 3] = -1025
    assert outer_fill(stored, 1.0, -1024.0) is None


@pytest.mark.parametrize(("intercept", "is_fill"), [(0.0, False), (-1.0, True)])
def test_air_itself_is_no_fill(intercept: float, is_fill: bool) -> None:
    """-1024 HU are air; what lies below is no matter."""
    assert (outer_fill(filled(), 1.0, intercept) is not None) == is_fill


@pytest.mark.parametrize("text", ["SIEMENS", "GE MEDICAL SYSTEMS", "B30f", "Lung (7/2), +3_a-b", "x" * 64])
def test_short_plain_words_are_kept(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize(
    "text",
    ["Quill^Isolde", "B30f\\3", "x" * 65, "Mueller\n12", "M\xfcller", " B30f", "(B30f", "a=b", "id: 7", ""],
)
def test_no_other_text_of_a_header_is_kept(text: str) -> None:
    assert plain_text(text) == ""
