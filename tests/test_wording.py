"""Counts in sentences."""

import pytest

from transforms.refusal import number_of


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (1, "patient", "1 patient"),
        (0, "patient", "0 patients"),
        (2, "slice", "2 slices"),
        (1, "series", "1 series"),
    ],
)
def test_a_count_of_one_is_singular(count: int, noun: str, said: str) -> None:
    assert number_of(count, noun) == said
