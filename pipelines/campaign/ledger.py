"""The ledger: arms, hours and cost of every campaign, from the records of its arms alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.campaign.records import ArmRecord
from pipelines.report.page import Table
from pipelines.stored_runs import search_runs


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """What one campaign used.

    Attributes:
        arms: Arms that were ever started.
        finished: Arms that are done.
        gpu_hours: Hours times GPUs of an arm; 0 where arms ran on a CPU.
    """

    campaign: str
    arms: int
    finished: int
    hours: float
    gpu_hours: float
    cost: float
    currency: str


def ledger(arms: Sequence[ArmRecord], now: float) -> list[LedgerRow]:
    """Sum the arms by campaign and currency; arms that never started are in no row."""
    started = [arm for arm in arms if arm.attempt]
    keys = sorted({(arm.tags["dinox.campaign"], arm.tags.get("dinox.currency", "")) for arm in started})
    return [
        _row(
            campaign,
            currency,
            [
                arm
                for arm in started
                if (arm.tags["dinox.campaign"], arm.tags.get("dinox.currency", "")) == (campaign, currency)
            ],
            now,
        )
        for campaign, currency in keys
    ]


def _row(campaign: str, currency: str, arms: Sequence[ArmRecord], now: float) -> LedgerRow:
    hours = [arm.hours(now) for arm in arms]
    return LedgerRow(
        campaign=campaign,
        arms=len(arms),
        finished=sum(arm.is_done for arm in arms),
        hours=sum(hours),
        gpu_hours=sum(h * int(arm.tags.get("dinox.gpus", "0")) for h, arm in zip(hours, arms, strict=True)),
        cost=sum(arm.cost(now) for arm in arms),
        currency=currency,
    )


def total(rows: Sequence[LedgerRow], currency: str) -> LedgerRow:
    """Sum the rows of one currency."""
    own = [row for row in rows if row.currency == currency]
    return LedgerRow(
        campaign="total",
        arms=sum(row.arms for row in own),
        finished=sum(row.finished for row in own),
        hours=sum(row.hours for row in own),
        gpu_hours=sum(row.gpu_hours for row in own),
        cost=sum(row.cost for row in own),
        currency=currency,
    )


def ledger_table(rows: Sequence[LedgerRow]) -> Table:
    """Lay out the rows with a total for each currency."""
    currencies = sorted({row.currency for row in rows})
    lines = [*rows, *(total(rows, currency) for currency in currencies)]
    cells = [
        (
            row.campaign,
            str(row.arms),
            str(row.finished),
            f"{row.hours:.3f}",
            f"{row.gpu_hours:.3f}",
            f"{row.cost:.4f} {row.currency}",
        )
        for row in lines
    ]
    return Table(("campaign", "arms started", "arms done", "hours", "GPU-hours", "cost"), cells)


def read_arms() -> list[ArmRecord]:
    """Read the arms of every campaign in the store."""
    found = search_runs(ArmRecord, None, "tags.`dinox.number` != ''")
    return [arm for arm in found if "dinox.arm" in arm.tags]
