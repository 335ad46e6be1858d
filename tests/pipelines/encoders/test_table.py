"""Tables of features from elsewhere: whose vector is whose, and what is refused in one sentence."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.encoders.table import TableError, open_table

NODULES = pd.DataFrame(
    {
        "nodule_id": ["a", "b", "c"],
        "patient_id": ["p", "p", "q"],
        "x_lps_mm": [0.0, 50.0, 1.0],
        "y_lps_mm": [0.0, 0.0, 0.0],
        "z_lps_mm": [0.0, 0.0, 0.0],
    }
)
GOOD = pd.DataFrame({"nodule_id": ["c", "a", "b"], "f0": [3.0, 1.0, 2.0], "f1": [30.0, 10.0, 20.0]})


def written(frame: pd.DataFrame, folder: Path, suffix: str = ".csv", **options: object) -> str:
    path = folder / f"t{suffix}"
    if suffix == ".csv":
        frame.to_csv(path, **{"index": False, **options})
    else:
        frame.to_parquet(path, **options)
    return f"table:{path}"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_find_their_nodules_in_any_order(tmp_path: Path, suffix: str) -> None:
    table = open_table(written(GOOD, tmp_path, suffix))
    np.testing.assert_array_equal(table.vectors[table.rows_of(NODULES)], [[1, 10], [2, 20], [3, 30]])
    assert table.columns == ("f0", "f1")


def test_a_column_of_lists_is_the_vector(tmp_path: Path) -> None:
    lists = GOOD[["nodule_id"]].assign(vector=[[3.0, 30.0], [1.0, 10.0], [2.0, 20.0]])
    table = open_table(written(lists, tmp_path, ".parquet"))
    np.testing.assert_array_equal(table.vectors[table.rows_of(NODULES)], [[1, 10], [2, 20], [3, 30]])


def placed(**changes: object) -> pd.DataFrame:
    frame = NODULES.drop(columns="nodule_id").assign(f=[1.0, 2.0, 3.0])
    return frame.assign(x_lps_mm=frame["x_lps_mm"] + 2.0, **changes)


def test_places_belong_to_the_nodule_within_the_distance_of_their_patient(tmp_path: Path) -> None:
    table = open_table(written(placed().iloc[::-1], tmp_path), match_mm=2.5)
    np.testing.assert_array_equal(table.vectors[table.rows_of(NODULES), 0], [1, 2, 3])


def test_a_place_near_two_nodules_or_none_is_refused(tmp_path: Path) -> None:
    nameless = placed().drop(columns="patient_id")
    with pytest.raises(TableError, match="within 3 mm of 2 nodules; places are LPS mm, and patient_id"):
        open_table(written(nameless, tmp_path)).rows_of(NODULES)
    with pytest.raises(TableError, match=r"within 1 mm of 0 nodules; the nearest is 2\.0 mm away"):
        open_table(written(placed(), tmp_path), match_mm=1.0).rows_of(NODULES)


def test_rows_of_nodules_that_the_rule_left_out_are_no_fault(tmp_path: Path) -> None:
    table = open_table(written(GOOD, tmp_path))
    np.testing.assert_array_equal(table.rows_of(NODULES[:2], [NODULES]), [1, 2])


def test_an_id_of_two_cohorts_does_not_say_whose_row_it_is(tmp_path: Path) -> None:
    table = open_table(written(GOOD, tmp_path))
    with pytest.raises(TableError, match="both cohorts have a nodule 'a'"):
        table.rows_of(NODULES, [NODULES[:1].assign(patient_id="r")])


Change = Callable[[pd.DataFrame], pd.DataFrame]
REFUSED: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t[t["nodule_id"] != "b"], r"lacks 1 of 3 nodules, such as 'b'"),
    "doubled": (lambda t: pd.concat([t, t[:1]]), r"several rows of nodule 'c'"),
    "unmatched": (lambda t: pd.concat([t, t[:1].assign(nodule_id="x")]), r"1 ids that no nodule .* as 'x'"),
    "floats": (
        lambda t: t.assign(nodule_id=["1.0", "2.0", "3.0"]),
        r"decimal point: ids were read as floats",
    ),
    "NaN": (lambda t: t.assign(f1=[1.0, np.nan, 2.0]), r"row 2 has no finite number in column 'f1' \(1 rows"),
    "infinite": (lambda t: t.assign(f1=[1.0, np.inf, 2.0]), r"row 2 has no finite number in column 'f1'"),
    "no id": (lambda t: t.assign(nodule_id=["a", None, "b"]), r"row 2 has no nodule_id"),
    "counted": (lambda t: t.assign(n=[0, 1, 2]), r"column 'n' that counts its rows, an index"),
    "text": (lambda t: t.assign(kernel="B30f"), r"column 'kernel' holds no numbers"),
    "empty": (lambda t: t[:0], r"has no rows"),
    "ids alone": (lambda t: t[["nodule_id"]], r"no column of numbers beside its ids"),
    "no key": (lambda t: t[["f0"]], r"has neither nodule_id nor x_lps_mm, y_lps_mm, z_lps_mm; it has f0"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_table_that_is_not_clear_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    change, sentence = REFUSED[fault]
    with pytest.raises(TableError) as refused:
        open_table(written(change(GOOD), tmp_path)).rows_of(NODULES)
    assert re.search(sentence, str(refused.value))
    assert "\n" not in str(refused.value)


def test_an_index_column_is_refused_in_either_format(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="column 'Unnamed: 0' that counts its rows"):
        open_table(written(GOOD, tmp_path, index=True))
    with pytest.raises(TableError, match="written with an index of rows"):
        open_table(written(GOOD.set_index("nodule_id"), tmp_path, ".parquet"))


def test_floats_of_a_parquet_file_are_no_ids(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nodule_id holds floats, such as 1\.0"):
        open_table(written(GOOD.assign(nodule_id=[1.0, 2.0, 3.0]), tmp_path, ".parquet"))


def test_vectors_of_two_lengths_are_refused(tmp_path: Path) -> None:
    lists = GOOD[["nodule_id"]].assign(vector=[[3.0, 30.0], [1.0, 10.0], [2.0]])
    with pytest.raises(TableError, match="row 3 has 1 numbers, others 2"):
        open_table(written(lists, tmp_path, ".parquet"))


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"PAR1 not really"])
def test_a_damaged_file_is_no_table(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(TableError, match="is damaged, or no table"):
        open_table(f"table:{path}")
    with pytest.raises(TableError, match=r"names no file that ends in \.csv or \.parquet"):
        open_table(f"table:{tmp_path / 'gone.csv'}")
