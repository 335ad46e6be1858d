"""Every figure as a print, in gray too: it fills its page and leaves it nowhere, and is told apart without color."""

import ast
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from pipelines.audit.page import forest
from pipelines.figures.features import map_figure, spectrum_figure
from pipelines.figures.nodule_pictures import errors_figure, masks_figure, nearest_figure
from pipelines.figures.scores import (
    calibration_figure,
    decision_figure,
    few_shot_figure,
    known_figure,
    roc_figure,
    rows_figure,
)
from pipelines.nodule.figures import agreement_figure, malignancy_figure, rules_figure
from pipelines.probing.figures import trajectory
from pipelines.probing.fold_record import epoch_figure
from pipelines.runtime.plot_style import sign
from pipelines.training.curves import entropy_figure, loss_figure, retrieval_figure
from pipelines.training.figures import attention_figure, class_map_figure, gram_figure, pca_figure
from pipelines.training.planes import Shown
from tests.pipelines.figures.test_nodule_pictures import SCORES, SLICES, TABLE
from tests.pipelines.figures.test_score_figures import GOOD, LABELS, PATIENTS, SIZE, legend_of

ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)
STEPS = (0, 100, 200, 400)
READ = TABLE.assign(
    patient_id=[f"p{n // 2}" for n in range(len(TABLE))], malignancy_rating=[1.0, 3.0, 4.5] * 4
)
ROWS = ("features", "random_weights", "pixels", "hu", "dictionary", "random_words", "features_and_diameter")


def points(*values: float) -> list[tuple[int, float]]:
    return list(zip(STEPS, values, strict=True))


def share(value: float) -> SimpleNamespace:
    return SimpleNamespace(value=value, ci_low=0.8 * value, ci_high=1.2 * value)


def retrieved(top1: float) -> Any:
    return SimpleNamespace(n=256, chance=1 / 256, top1=share(top1), top5=share(1.8 * top1))


def table_of(rows: tuple[str, ...], stratum: str = "all") -> pd.DataFrame:
    line = {"stratum": stratum, "n_nodules": 120, "n_positive": 36, "n_patients": 60}
    line |= {"auroc_ci_low": 0.6, "auroc_ci_high": 0.9, "auroc": 0.75}
    line |= {"minus_diameter": 0.02, "minus_diameter_ci_low": -0.01, "minus_diameter_ci_high": 0.05}
    return pd.DataFrame([line | {"row": row} for row in rows])


def encoder(letter: str, name: str, n_nodules: int) -> Any:
    def row(name: str = "features", stratum: str = "all") -> dict[str, float]:
        return {"auroc": 0.8, "auroc_ci_low": 0.7, "auroc_ci_high": 0.9, "n_nodules": n_nodules} | {
            "n_positive": 30,
            "n_patients": 50,
        }

    inputs = SimpleNamespace(twins=[1])
    return SimpleNamespace(letter=letter, name=name, row=row, probed=SimpleNamespace(inputs=inputs))


def shown() -> Shown:
    spacing_mm, window_hu = torch.full((2, 3), 10.0), torch.tensor([[-1350.0, 150.0]] * 2)
    directions = np.array([[[0, 0, 1.0], [0, -1, 0], [-1, 0, 0]]] * 2)
    return Shown(torch.rand(2, 1, 8, 8), (1, 2, 2), spacing_mm, directions, window_hu)


def shots() -> pd.DataFrame:
    lines = [(row, n, 0.6 + 0.02 * k) for row in ("features", "diameter") for n in (8, 16) for k in range(3)]
    return pd.DataFrame(lines, columns=["row", "n_nodules", "auroc"])


def known() -> pd.DataFrame:
    ends = {"partial_spearman_ci_low": -0.1, "partial_spearman_ci_high": 0.4, "n_nodules": 77}
    lines = [(row, name) for row in ("features", "random") for name in ("texture", "margin")]
    return pd.DataFrame([{"row": r, "characteristic": c, "partial_spearman": 0.2} | ends for r, c in lines])


def epochs() -> pd.DataFrame:
    lines = [(fold, epoch, 0.6 / epoch, 0.7, 0.8) for fold in range(3) for epoch in (1, 2, 3)]
    names = ["fold", "epoch", "loss", "validation_loss", "validation_auroc"]
    return pd.DataFrame(lines, columns=names)


def rules() -> pd.DataFrame:
    lines = [("consensus", 380, 133, 247, "benign"), ("lora", 380, 190, 190, "malignant")]
    return pd.DataFrame(lines, columns=["rule", "nodules", "malignant", "benign", "fate_of_3"])


def found() -> dict[str, list[tuple[int, float]]]:
    low, high = points(0.05, 0.06, 0.08, 0.1), points(0.09, 0.1, 0.12, 0.16)
    random = {"random_top1": points(*[0.06] * 4), "n": points(*[256] * 4)}
    ends = {"top1_ci_low": low, "top1_ci_high": high, "student_top1": points(0.06, 0.08, 0.11, 0.13)}
    return {"top1": points(0.06, 0.08, 0.1, 0.13)} | ends | random


CIRCLE = np.hypot(*np.indices((8, 8)) - 4) < 3
VERDICT = points(0, 1, 3, 3)
FIGURES: dict[str, Callable[[], Figure | None]] = {
    "roc": lambda: roc_figure(LABELS, {row: GOOD for row in ROWS[:2]} | {"diameter": SIZE}, PATIENTS),
    "calibration": lambda: calibration_figure(LABELS, GOOD, PATIENTS),
    "decision": lambda: decision_figure(LABELS, {row: GOOD for row in ROWS}, PATIENTS),
    "rows": lambda: rows_figure(table_of(ROWS)),
    "known": lambda: known_figure(known()),
    "few shots": lambda: few_shot_figure(shots()),
    "spectrum": lambda: spectrum_figure(
        {"backbone": 0.5 ** np.arange(9.0), "random": 0.7 ** np.arange(9.0)}, 12
    ),
    "map": lambda: map_figure(
        RNG.normal(size=(12, 2)), {"diameter, mm": SCORES, "scanner": np.array(["GE", "SIEMENS"] * 6)}, "Map"
    ),
    "errors": lambda: errors_figure(TABLE, SLICES, 40.0, SCORES, count=3),
    "nearest": lambda: nearest_figure(
        TABLE, SLICES, 40.0, np.array([0, 1]), np.array([[2, 3], [4, 5]]), np.full((2, 2), 0.9)
    ),
    "masks": lambda: masks_figure(
        SLICES[:4], 40.0, [CIRCLE] * 4, [CIRCLE.T] * 4, np.ones(4), "Predicted masks"
    ),
    "rules": lambda: rules_figure(rules()),
    "malignancy": lambda: malignancy_figure(READ),
    "agreement": lambda: agreement_figure(READ),
    "trajectory": lambda: trajectory(STEPS, [retrieved(one) for one in (0.05, 0.06, 0.08, 0.1)]),
    "epochs": lambda: epoch_figure(epochs()),
    "loss": lambda: loss_figure({"total": points(6, 5, 4, 3), "dino": points(6, 5, 3, 2)}, VERDICT, 6.2),
    "entropy": lambda: entropy_figure(
        {"teacher": points(6, 5, 4, 3), "student": points(6, 6, 5, 4)}, points(-1, 0, 1, 1), VERDICT, 6.2, 0.1
    ),
    "retrieval": lambda: retrieval_figure(found()),
    "attention": lambda: attention_figure(shown(), torch.rand(2, 2, 4) / 4),
    "components": lambda: pca_figure(shown(), torch.rand(2, 4, 5)),
    "gram": lambda: gram_figure(shown(), torch.rand(2, 4, 5) - 0.5),
    "class map": lambda: class_map_figure(
        RNG.normal(size=(2, 300, 6)).astype(np.float32), np.array([f"p{n // 30}" for n in range(300)])
    ),
    "audit": lambda: forest([encoder("A", f"runs:/{'4da8' * 8}/backbone", 204), encoder("B", "astra", 380)]),
}


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    made = {name: make() for name, make in FIGURES.items()}
    for figure in made.values():
        assert figure is not None
        sign(figure, "probe of teacher temperature 0.02", "cohort phantom")
        figure.draw_without_rendering()
    return made  # type: ignore[return-value]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fills_its_page_and_leaves_it_nowhere(drawn: dict[str, Figure], name: str) -> None:
    figure = drawn[name]
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02
    assert box.width >= 0.85 * width, "wide empty margins"
    assert box.height >= 0.85 * height, "wide empty margins"
    assert len(figure.get_suptitle().split("\n")) >= 2  # run and cohort, and what it is of


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_what_they_count_and_lines_differ_without_color(drawn: dict[str, Figure], name: str) -> None:
    for axis in drawn[name].axes:
        is_bar, is_hidden = axis.get_label() == "<colorbar>", not axis.axison
        if not (is_bar or is_hidden or axis.images):
            below = axis.get_subplotspec().is_last_row() or axis.get_xlabel()
            assert axis.get_xlabel() or axis.get_title() or axis.get_legend() or not below
        lines = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
        lines = [line for line in lines if line.get_linestyle() != "None"]
        looks = [(line._unscaled_dash_pattern, line.get_marker()) for line in lines]  # type: ignore[attr-defined]
        assert len(looks) == len({repr(one) for one in looks})
        for image in axis.images:
            if (colors := np.asarray(image.get_array())).ndim == 2 and colors.size:
                ramp = image.cmap(np.linspace(0, 1, 16))[:, :3] @ (0.2126, 0.7152, 0.0722)
                steps = np.array([after - before for before, after in pairwise(ramp)])
                assert (steps > 0).all() or (steps < 0).all(), "two values have one gray"


def test_no_figure_is_left_out() -> None:
    """Each function that returns a figure is drawn here, or named by a test of its own."""
    made, tests = (
        set(),
        " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")),
    )
    for path in (ROOT / "pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.returns is not None and node.name[0] != "_":
                if "Figure" in ast.unparse(node.returns).replace("EpochFigures", ""):
                    made.add(node.name)
    assert len(made) > 25
    indirect = {
        "example_figure",
        "neighbors_figure",
    }  # fill masks_figure and nearest_figure, in the tests of their probes
    assert {name for name in made - indirect if f"{name}(" not in tests} == set()


def test_a_trajectory_is_linear_from_zero_with_the_interval_of_top1_and_chance(
    drawn: dict[str, Figure],
) -> None:
    (axis,) = drawn["trajectory"].axes
    assert axis.get_yscale() == "linear"
    assert axis.get_ylim() == pytest.approx((0, 1.05 * 0.18))
    corners = axis.collections[0].get_paths()[0].vertices.round(6).tolist()
    assert [400, 0.08] in corners
    assert [400, 0.12] in corners
    assert legend_of(drawn["trajectory"]) == [
        "top-1",
        "95% interval over patients",
        "top-5",
        "chance, 1 / 256",
    ]


def test_a_spectrum_counts_from_one_and_names_random_weights(drawn: dict[str, Figure]) -> None:
    (axis,) = drawn["spectrum"].axes
    assert legend_of(drawn["spectrum"]) == ["backbone", "random weights"]
    assert axis.get_xlim()[0] == 1
    np.testing.assert_allclose(axis.lines[0].get_ydata(), 0.5 ** np.arange(9.0))
    assert "of 12 nodules" in drawn["spectrum"].get_suptitle()


def test_few_shots_show_mean_and_range_of_the_draws(drawn: dict[str, Figure]) -> None:
    (axis,) = drawn["few shots"].axes
    assert set(legend_of(drawn["few shots"])) == {"features", "diameter (readers')", "chance"}
    ends = [bars.get_segments()[0][:, 1].round(3).tolist() for bars in axis.collections]
    assert ends == [[0.6, 0.64]] * 2
    assert [line.get_ydata()[0] for line in axis.lines if len(line.get_ydata()) == 2][:1] == pytest.approx(
        [0.62]
    )


def test_the_forest_of_an_audit_states_n_and_shortens_what_is_long(drawn: dict[str, Figure]) -> None:
    names = [text.get_text() for text in drawn["audit"].axes[0].get_yticklabels()]
    assert names[:3] == ["A: runs:/4da8/backbone\n(n = 204)", "B: astra\n(n = 380)", "A, random weights"]
    assert "baselines on 380 nodules (30 malignant) of 50 patients" in drawn["audit"].get_suptitle()
    assert legend_of(drawn["audit"]) == ["all", "6-15 mm"]


def test_epochs_are_whole_numbers(drawn: dict[str, Figure]) -> None:
    for axis in drawn["epochs"].axes:
        assert all(tick == round(tick) for tick in axis.get_xticks())
    assert legend_of(drawn["epochs"]) == ["fold 0", "fold 1", "fold 2"]


def test_rules_and_ratings_are_counted(drawn: dict[str, Figure]) -> None:
    (axis,) = drawn["rules"].axes
    assert [bar.get_width() for bar in axis.patches] == [247, 190, 133, 190]
    assert "133 malignant + 247 benign; rated 3: benign" in axis.texts[0].get_text()
    left, right = drawn["malignancy"].axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["benign (8)", "malignant (4)"]
    assert left.get_xlim() == right.get_xlim() == pytest.approx((4 / 1.1, 15 * 1.1))
    assert sum(int(text.get_text()) for text in right.texts) == len(READ)


def test_a_map_of_many_slices_shows_some_of_them_and_says_so(drawn: dict[str, Figure]) -> None:
    assert "128 of 300 slices, 10 patients" in drawn["class map"].get_suptitle()
    assert len(drawn["class map"].axes[0].lines) == 128
