"""Every benchmark runs, one that fails hides no other; targets are judged where they hold."""

from collections.abc import Iterator

import pytest

from benchmarks.__main__ import benchmarks, main, verdict
from benchmarks.timing import Row

TAKES_LONGER = {"agreement", "campaign", "clusters", "cubes", "memory", "startup", "training"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in TAKES_LONGER else []) for n in benchmarks()]
)
def test_every_benchmark_runs(name: str) -> None:
    rows = list(benchmarks()[name](tiny=True))
    assert rows
    for row in rows:
        assert row.ratio == row.ratio
        assert verdict(row) or not row.target


def test_a_benchmark_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Row]:
        yield Row("before it broke", 2.0, "", "times")
        raise RuntimeError("no such peer")

    def sound() -> Iterator[Row]:
        yield Row("after the other broke", 3.0, ">= 2", "times")

    monkeypatch.setattr("benchmarks.__main__.benchmarks", lambda: {"first": broken, "second": sound})
    assert main([]) == 1
    said = capsys.readouterr()
    assert "before it broke" in said.out
    assert "| second | after the other broke | 3 | >= 2 | met | times |" in said.out
    assert said.out.rstrip().endswith("failed: first")
    assert "no such peer" in said.err
    assert main(["second"]) == 0


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (Row("", 2.0, ">= 2", ""), "met"),
        (Row("", 1.9, ">= 2", ""), "missed"),
        (Row("", 1.5, "<= 1.5", ""), "met"),
        (Row("", 1.6, "<= 1.5", ""), "missed"),
        (Row("", 1.6, "", ""), ""),
        (Row("", 1.0, ">= 2.2", "", missing="AMX"), "not judged: no AMX"),
    ],
)
def test_a_target_is_judged_where_it_holds(row: Row, expected: str) -> None:
    assert verdict(row) == expected
