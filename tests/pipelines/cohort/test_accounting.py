"""Rows in = rows out + rows left out by reason; a row that goes missing is a bug."""

from collections import Counter

import pytest

from pipelines.cohort.accounting import Accounting


def test_the_line_counts_what_was_kept_and_each_reason_from_the_most_frequent() -> None:
    reasons = ["no crop: center outside the volume"] * 2 + ["fewer than 3 readers"] * 3
    found = Accounting.of("nodules", 9, "tested", 4, reasons)
    assert str(found) == (
        "9 nodules: 4 tested, 5 left out: 3 fewer than 3 readers; 2 no crop: center outside the volume"
    )
    assert str(Accounting.of("nodules", 4, "tested", 4, [])) == "4 nodules: 4 tested"


def test_reasons_beyond_the_fifth_are_summed() -> None:
    found = Accounting(
        "files", 22, "in volumes", 1, Counter(dict(zip("abcdefg", (6, 5, 4, 3, 1, 1, 1), strict=True)))
    )
    assert str(found).endswith("21 left out: 6 a; 5 b; 4 c; 3 d; 1 e; 2 for 2 other reasons")


@pytest.mark.parametrize(("n_kept", "reasons"), [(4, ["a"]), (5, ["a", "a"]), (7, [])])
def test_rows_that_went_missing_or_came_from_nowhere_end_as_a_bug(n_kept: int, reasons: list[str]) -> None:
    with pytest.raises(RuntimeError, match="6 nodules came in"):
        Accounting.of("nodules", 6, "tested", n_kept, reasons)
