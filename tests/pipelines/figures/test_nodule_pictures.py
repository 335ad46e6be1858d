"""Pictures of nodules: the right ones are shown, with what is known of them, marked and to scale."""

import numpy as np
import pandas as pd
import pytest

from pipelines.figures.features import map_figure
from pipelines.figures.nodule_pictures import errors_figure, masks_figure, nearest_figure
from probes.representation import nearest_of_others

N = 12
TABLE = pd.DataFrame(
    {
        "is_malignant": [number % 3 == 0 for number in range(N)],
        "diameter_mm": np.arange(N) + 4.0,
        "malignancy_ratings": [[1, 2, 5]] * N,
    }
)
SLICES = np.arange(N, dtype=np.float32)[:, None, None] * np.ones((N, 8, 8), np.float32)
SCORES = np.linspace(0.95, 0.05, N)


def number_of(axis) -> int:  # type: ignore[no-untyped-def]
    return int(axis.images[0].get_array()[0, 0])


def is_marked(axis) -> bool:  # type: ignore[no-untyped-def]
    texts = {text.get_text(): text.get_position()[0] for text in axis.texts}
    return texts["R"] < texts["L"] and {"A", "-1350 .. 150 HU", "10 mm"} <= texts.keys()


def test_errors_are_the_lowest_malignant_and_the_highest_benign_scores() -> None:
    figure = errors_figure(TABLE, SLICES, 40.0, SCORES, count=3)
    assert [number_of(axis) for axis in figure.axes] == [9, 6, 3, 1, 2, 4]
    assert figure.axes[0].get_title() == f"malignant, score {SCORES[9]:.2f}\n13.0 mm, rated 1,2,5"
    assert figure.axes[3].get_title().startswith(f"benign, score {SCORES[1]:.2f}\n5.0 mm")
    assert "12 nodules (4 malignant)" in figure.get_suptitle()
    assert all(is_marked(axis) for axis in figure.axes)


def test_neighbors_are_those_of_other_patients_nearest_first() -> None:
    angles = np.array([0.0, 0.01, 0.3, 0.2, 2.0])
    features = np.column_stack([np.cos(angles), np.sin(angles)])
    patients = np.array(["a", "a", "b", "c", "d"])
    nearest, cosine = nearest_of_others(features, patients, np.array([0, 3]), 2)
    assert nearest.tolist() == [[3, 2], [2, 1]]
    np.testing.assert_allclose(cosine, np.cos([[0.2, 0.3], [0.1, 0.19]]))
    assert nearest_of_others(features, patients, np.array([0]), 9)[0].shape == (1, 3)
    figure = nearest_figure(TABLE, SLICES, 40.0, np.array([0, 3]), nearest, cosine)
    assert [number_of(axis) for axis in figure.axes] == [0, 3, 2, 3, 2, 1]
    assert figure.axes[1].get_title() == "cosine 0.980\n7.0 mm, rated 1,2,5"
    assert all(is_marked(axis) for axis in figure.axes)


def test_masks_lie_where_they_are_in_millimeters_with_their_dice() -> None:
    mask, found = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    mask[1:3, 4:7], found[1:3, 3:6] = True, True
    figure = masks_figure(
        SLICES[:2], 40.0, [mask, mask], [found, ~(mask | ~mask)], np.array([0.67, 0.0]), "masks"
    )
    first, second = figure.axes
    assert [axis.get_title() for axis in (first, second)] == ["Dice 0.67", "Dice 0.00"]
    reference, predicted = first.collections
    # Pixels of 5 mm from the left edge at -20: columns 4 to 6 are 0 .. 15 mm, rows 1 and 2 are -15 .. -5 mm.
    box = reference.get_paths()[0].get_extents()
    assert [box.x0, box.x1, box.y0, box.y1] == pytest.approx([0, 15, -15, -5])
    assert predicted.get_paths()[0].get_extents().x0 == pytest.approx(-5)
    assert reference.get_linestyle() != predicted.get_linestyle()
    assert len(second.collections) == 1  # an empty prediction has no outline
    assert first.get_xlim() == (-20, 20)


def test_a_map_colors_known_numbers_and_tells_names_apart_by_marker() -> None:
    places = np.random.default_rng(0).normal(size=(N, 2))
    size = TABLE["diameter_mm"].to_numpy().copy()
    size[0] = np.nan
    scanner = np.array(["GE"] * 6 + ["SIEMENS"] * 4 + [""] * 2)
    figure = map_figure(places, {"diameter, mm": size, "scanner": scanner}, "Map")
    numbers, names = figure.axes[:2]
    unknown, known = numbers.collections
    assert (len(unknown.get_offsets()), len(known.get_offsets())) == (1, N - 1)
    np.testing.assert_array_equal(known.get_array(), size[1:])
    legend = [text.get_text() for text in names.get_legend().get_texts()]
    assert legend == ["GE (6)", "SIEMENS (4)", "unknown (2)"]
    shapes = {one.get_paths()[0].vertices.shape for one in names.collections}
    assert len(shapes) > 1
    many = np.array([f"v{number}" for number in range(N)])
    crowded = map_figure(places, {"scanner": many}, "Map").axes[0]
    assert crowded.get_legend().get_texts()[-1].get_text() == "5 others (5)"
    assert sum(len(one.get_offsets()) for one in crowded.collections) == N
