"""One style: lines are told apart in a gray print, titles name run and cohort, files are fit for print."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from pipelines.runtime.plot_style import BENIGN, MALIGNANT, STROKES, new_figure, sign, stroke


def luminance(color: str) -> float:
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


def test_every_two_lines_differ_without_color() -> None:
    assert len(STROKES) == 8
    for one, other in combinations(STROKES, 2):
        assert one.linestyle != other.linestyle
        assert one.marker != other.marker
    assert stroke(8) == stroke(0)
    assert abs(luminance(BENIGN) - luminance(MALIGNANT)) > 0.15


def test_a_gray_print_tells_lines_apart_and_keeps_them_dark_enough(tmp_path) -> None:
    """Each line is drawn alone, saved, read as gray: ink along it differs from that of every other line."""
    ink = []
    for one in STROKES:
        figure = new_figure(4, 1)
        axis = figure.subplots()
        axis.set_axis_off()
        figure.set_layout_engine("none")
        axis.set(position=(0, 0, 1, 1), xlim=(0, 1), ylim=(-1, 1))
        axis.plot([0, 1], [0, 0], **one.line, linewidth=3)
        figure.savefig(tmp_path / "line.png", dpi=100)
        gray = np.asarray(Image.open(tmp_path / "line.png").convert("L"), dtype=float)
        assert gray.min() < 200, f"{one} is lost on paper"
        ink.append(gray[gray.mean(axis=1).argmin()])
    for one, other in combinations(ink, 2):
        assert np.abs(one - other).mean() > 15


@pytest.mark.parametrize("own", ["", "ROC, 5 nodules"])
def test_a_figure_is_signed_above_its_title(own: str) -> None:
    figure = new_figure(5, 4, own)
    sign(figure, "probe of x", "cohort lidc", "")
    assert figure.get_suptitle().split("\n") == ["probe of x · cohort lidc", *([own] if own else [])]
    sign(figure, "", "")
    assert figure.get_suptitle().startswith("probe of x")


def test_a_long_title_does_not_leave_its_figure() -> None:
    figure = new_figure(3, 3, "words " * 30)
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
