"""The ledger: derived from records, and its rows sum to its total."""

import numpy as np
import pytest

from pipelines.report.tables import cost_table, ledger_table, load_article
from pipelines.tracking.arms import ArmRecord, ledger
from pipelines.tracking.heartbeat import HOURS


def arm(campaign: str, number: int, hours: float, price: float, **tags: str) -> ArmRecord:
    own = {
        "dinox.campaign": campaign,
        "dinox.arm": f"a{number}",
        "dinox.attempt": "1",
        "dinox.attempts_closed": "1",
        "dinox.hours_closed": repr(hours),
        "dinox.price_per_hour": repr(price),
        "dinox.currency": "USD",
        "dinox.gpus": "1",
    }
    return ArmRecord(f"{campaign}{number}", "FINISHED", own | tags, {HOURS: hours}, {})


def test_rows_sum_to_the_total_and_to_the_arms() -> None:
    rng = np.random.default_rng(0)
    arms = [
        arm(f"c{rng.integers(5)}", number, float(rng.uniform(0, 9)), float(rng.uniform(0.1, 0.5)))
        for number in range(64)
    ]
    rows = ledger(arms, now=0.0)
    assert set(rows["currency"]) == {"USD"}
    whole = rows.sum(numeric_only=True)
    assert whole.arms == 64
    assert whole.hours == pytest.approx(sum(float(one.tags["dinox.hours_closed"]) for one in arms))
    assert whole.cost == pytest.approx(sum(one.hours(0.0) * one.price_per_hour for one in arms))
    shown = ledger_table(rows).rows
    assert shown[-1][0] == "total"
    assert int(shown[-1][1]) == sum(int(line[1]) for line in shown[:-1])
    assert float(shown[-1][5].split()[0]) == pytest.approx(
        sum(float(line[5].split()[0]) for line in shown[:-1]), abs=5e-4
    )


def test_running_arms_count_and_planned_ones_do_not() -> None:
    running = arm("c", 1, 1.0, 0.5, **{"dinox.attempt": "2", "dinox.attempt_started": "0"})
    planned = ArmRecord("p", "SCHEDULED", {"dinox.campaign": "c", "dinox.arm": "p"}, {}, {})
    (row,) = ledger([running, planned], now=7200.0).itertuples()
    assert (row.arms, row.hours, row.cost) == (1, 3.0, 1.5)


def test_currencies_are_never_added() -> None:
    rows = ledger([arm("c", 1, 1.0, 0.5), arm("d", 2, 1.0, 9.0, **{"dinox.currency": "EUR"})], now=0.0)
    assert [line[0] for line in ledger_table(rows).rows] == ["c", "d", "total", "total"]
    assert [line[-1] for line in ledger_table(rows).rows[2:]] == ["9.0000 EUR", "0.5000 USD"]


def test_the_article_s_cost_table_adds_up_beside_ours() -> None:
    rows = ledger([arm("article_loss", number, 0.5, 0.4) for number in range(10)], now=0.0)
    lines = cost_table(load_article(), rows).rows
    assert lines[-1] == ("total", "64", "105", "35.60", "10", "5.00", "2.00")
    assert lines[0][4:] == ("10", "5.00", "2.00 USD")
    assert lines[1][4] == "not run"
