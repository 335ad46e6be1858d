"""Curves of a training: ln K, zones of the verdict, one band, random weights and chance lie where measured."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipelines.training.config import PretrainConfig
from pipelines.training.curves import curves

STEPS = [1, 100, 200, 300, 400]
LOGGED = {
    "loss/total": [6.2, 6.2, 6.1, 5.0, 4.0],
    "loss/dino": [6.2, 6.2, 6.1, 5.0, 4.0],
    "teacher/entropy": [6.0, 6.1, 6.2, 5.0, 3.0],
    "student/entropy": [6.0, 6.1, 6.2, 5.5, 4.0],
    "teacher/gain": [-0.9, 0.0, 0.0, 0.2, 1.0],
    "teacher/verdict": [0, 0, 1, 3, 3],
}
EVALUATED = {
    "retrieval/top1": {0: 0.05, 200: 0.1, 400: 0.2},
    "retrieval/top1_ci_low": {200: 0.07, 400: 0.15},
    "retrieval/top1_ci_high": {200: 0.13, 400: 0.26},
    "retrieval/student_top1": {0: 0.05, 200: 0.11, 400: 0.21},
    "retrieval/random_top1": {0: 0.04},
    "retrieval/n": {0: 256, 200: 256, 400: 256},
}


class Past:
    """A run with these metrics."""

    def __init__(self, left_out: str = "") -> None:
        self.left_out = left_out

    def history(self, name: str) -> list[tuple[int, float]]:
        if self.left_out and name.startswith(self.left_out):
            return []
        if name in LOGGED:
            return list(zip(STEPS, LOGGED[name], strict=True))
        return sorted(EVALUATED.get(name, {}).items())


def drawn(left_out: str = "") -> dict[str, Figure]:
    return {name: figure for figure, name in curves(Past(left_out), PretrainConfig())}  # type: ignore[arg-type]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_ln_k_and_the_zones_of_the_verdict_are_drawn() -> None:
    figures, log_k = drawn(), math.log(PretrainConfig().head.prototypes)
    assert list(figures) == ["loss", "entropy", "retrieval"]
    for name, first in (("loss", "weighted sum"), ("entropy", "teacher, mean entropy of a view's code")):
        said, axis = legend_of(figures[name]), figures[name].axes[0]
        assert said[0] == first
        assert any(text.startswith(f"ln K = {log_k:.2f}") for text in said)
        assert said[-2:] == ["verdict: entropy wall", "verdict: learning"]
        assert [line for line in axis.lines if np.allclose(line.get_ydata(), log_k)]
        zones = [
            (patch.get_x(), patch.get_x() + patch.get_width(), patch.get_hatch()) for patch in axis.patches
        ]
        assert zones == [(200, 300, "//"), (300, 400, "")]
    assert figures["entropy"].axes[0].get_ylim()[1] > log_k
    assert "G, nats" in figures["entropy"].axes[1].get_ylabel()


def test_retrieval_has_one_band_beside_random_weights_and_chance() -> None:
    figure = drawn()["retrieval"]
    (axis,) = figure.axes
    (band,) = axis.collections
    corners = band.get_paths()[0].vertices
    assert {(200, 0.07), (200, 0.13), (400, 0.15), (400, 0.26)} <= {
        tuple(one) for one in corners.round(6).tolist()
    }
    assert corners[:, 0].min() == 200  # no interval was measured before
    lines = {line.get_label(): line.get_ydata()[0] for line in axis.lines}
    assert lines["random weights, 0.04"] == 0.04
    assert lines["chance, 1 / 256"] == 1 / 256
    assert axis.get_yscale() == "linear"  # a log scale down to chance hides learning
    assert axis.get_ylim() == pytest.approx((0, 1.15 * 0.26))
    assert "256 held-out slices" in figure.get_suptitle()


def test_a_run_without_codes_or_held_out_patients_has_fewer_figures() -> None:
    figures = drawn("retrieval")
    assert list(figures) == ["loss", "entropy"]
    (axis,) = drawn("student/entropy")["entropy"].axes[:1]
    assert axis.get_ylabel() == "entropy, nats"
