"""The budget of a campaign: what was spent, what may still be started, and for how long.

Spent is the price times the wall hours of every arm ever started, running ones included, as recorded in MLflow. Each
start gets a lease, a part of the remaining budget, and ends itself when it is over. So the leases of running arms
never add up to more than what remains, and arms cannot overspend the budget after the campaign's process has died.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipelines.campaign.spec import BudgetSpec

MIN_LEASE_S = 5.0
"""An arm is not started with a shorter lease."""
ENDING_S = 15.0
"""Time that an arm needs to save and end after a stop request; it costs, so it is reserved in advance."""
_ENDING_H = ENDING_S / 3600.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What one arm used and may still use within its lease.

    Attributes:
        hours: Wall hours so far, over all attempts.
        leased_hours: Hours left in the lease of its running attempt; 0 when none runs.
        is_running: Whether it costs now.
        surcharge: Cost of earlier attempts beyond `price_per_hour`, if the price has changed since.
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
    """Add up hours and cost of all arms so far."""
    return Spent(sum(u.hours for u in usages), sum(u.hours * u.price_per_hour + u.surcharge for u in usages))


def is_spent(budget: BudgetSpec, usages: Sequence[Usage], poll_s: float) -> bool:
    """Whether running arms would exceed a limit if they were stopped at the next poll, `poll_s` seconds from now."""
    ahead = poll_s / 3600.0 + _ENDING_H
    after = spent([replace(u, hours=u.hours + ahead) if u.is_running else u for u in usages])
    return 0 < budget.hours <= after.hours or 0 < budget.cost <= after.cost


def is_arm_spent(budget: BudgetSpec, arm_hours_used: float) -> bool:
    """Whether an arm has used up its own hours."""
    return bool(budget.arm_hours) and (budget.arm_hours - arm_hours_used - _ENDING_H) * 3600.0 < MIN_LEASE_S


def lease_hours(
    budget: BudgetSpec, usages: Sequence[Usage], price_per_hour: float, arm_hours_used: float, slots: int
) -> float:
    """Return how long an arm may run from now on; 0 when the remaining budget is too small to start it.

    Args:
        budget: The limits.
        usages: Usage of every arm of the campaign.
        price_per_hour: Price of the arm to start.
        arm_hours_used: Hours that this arm used before.
        slots: Arms that could start now; the remaining budget is divided among them.
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
