"""The budget of a campaign: what was spent, what may still be started, and for how long.

Spent is price times wall hours of every arm ever started, from the records, those that run included. Each start gets a
lease, a part of what is left, and ends itself when it is over: so the leases of all that run never add up to more than
the rest, and a campaign that dies cannot be overspent by what it left running.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipelines.campaign.spec import BudgetSpec

MIN_LEASE_S = 5.0
"""Less is not worth a start."""
ENDING_S = 15.0
"""What an arm takes from being asked to end until it has saved and ended; it costs, so it is set aside beforehand."""
_ENDING_H = ENDING_S / 3600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What one arm used and may still use without being asked again.

    Attributes:
        hours: Wall hours so far, over all attempts.
        leased_hours: Hours that its running attempt may still go on; 0 when nothing runs.
        is_running: Whether it costs now.
        surcharge: What earlier attempts cost beyond `price_per_hour`, where the price has changed since.
    """

    hours: float
    price_per_hour: float
    leased_hours: float = 0.0
    is_running: bool = False
    surcharge: float = 0.0


class Spent(NamedTuple):
    """Wall hours and their cost."""

    hours: float
    cost: float


def spent(usages: Sequence[Usage]) -> Spent:
    """Add up what all arms used so far."""
    return Spent(sum(u.hours for u in usages), sum(u.hours * u.price_per_hour + u.surcharge for u in usages))


def is_spent(budget: BudgetSpec, usages: Sequence[Usage], poll_s: float) -> bool:
    """Whether what runs would pass a limit if it were asked to end at the next look, `poll_s` seconds from now."""
    ahead = poll_s / 3600.0 + _ENDING_H
    soon = [replace(u, hours=u.hours + ahead) if u.is_running else u for u in usages]
    after = spent(soon)
    is_over_hours = bool(budget.hours) and after.hours >= budget.hours
    is_over_cost = bool(budget.cost) and after.cost >= budget.cost
    return is_over_hours or is_over_cost


def is_arm_spent(budget: BudgetSpec, arm_hours_used: float) -> bool:
    """Whether an arm has used up its own hours."""
    return bool(budget.arm_hours) and (budget.arm_hours - arm_hours_used - _ENDING_H) * 3600.0 < MIN_LEASE_S


def lease_hours(
    budget: BudgetSpec, usages: Sequence[Usage], price_per_hour: float, arm_hours_used: float, slots: int
) -> float:
    """Return how long an arm may run from now on; 0 when what is left is not worth a start.

    Args:
        budget: The limits.
        usages: Of every arm of the campaign.
        price_per_hour: Of the arm to start.
        arm_hours_used: What this arm used before.
        slots: Arms that could start now: what is left is shared among them.
    """
    used = spent(usages)
    reserved = [
        (u.leased_hours + _ENDING_H, u.price_per_hour) for u in usages if u.leased_hours or u.is_running
    ]
    reserved_hours = sum(hours for hours, _ in reserved)
    reserved_cost = sum(hours * price for hours, price in reserved)
    left = math.inf
    if budget.hours:
        left = budget.hours - used.hours - reserved_hours
    if budget.cost and price_per_hour:
        left = min(left, (budget.cost - used.cost - reserved_cost) / price_per_hour)
    lease = left / max(slots, 1)
    if budget.arm_hours:
        lease = min(lease, budget.arm_hours - arm_hours_used)
    lease -= _ENDING_H
    return lease if lease * 3600.0 >= MIN_LEASE_S else 0.0
