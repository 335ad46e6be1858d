"""The budget: what is spent, what may start, and that leases can never add up to more than the rest."""

import numpy as np
import pytest

from pipelines.campaign.budget import ENDING_S, MIN_LEASE_S, Usage, is_arm_spent, is_spent, lease_hours, spent
from pipelines.campaign.spec import BudgetSpec

LEAST, ENDING = MIN_LEASE_S / 3600.0, ENDING_S / 3600.0


def test_spent_is_price_times_hours_of_every_arm() -> None:
    used = spent([Usage(1.0, 0.5), Usage(2.0, 0.25, is_running=True)])
    assert (used.hours, used.cost) == (3.0, 1.0)


def test_a_price_that_rose_does_not_reprice_the_hours_before() -> None:
    # 2 h at 0.5, then 0.1 h at 3.0, which still runs.
    usage = Usage(2.1, 3.0, leased_hours=0.1, is_running=True, surcharge=2.0 * (0.5 - 3.0))
    assert spent([usage]).cost == pytest.approx(1.3)
    assert not is_spent(BudgetSpec(cost=2.0), [usage], 1.0)
    assert lease_hours(BudgetSpec(cost=4.6), [usage], 3.0, 0.0, 1) == pytest.approx(1.0 - 2 * ENDING)


def test_the_cap_is_met_before_the_next_look_would_pass_it() -> None:
    budget = BudgetSpec(hours=1.0)
    poll_s = 36.0 - ENDING_S  # with the time to end, 0.01 h for each of two running arms
    assert not is_spent(
        budget, [Usage(0.49, 1.0, is_running=True), Usage(0.48, 1.0, is_running=True)], poll_s
    )
    assert is_spent(budget, [Usage(0.49, 1.0, is_running=True), Usage(0.49, 1.0, is_running=True)], poll_s)
    assert not is_spent(budget, [Usage(0.49, 1.0), Usage(0.49, 1.0)], poll_s)
    assert is_spent(BudgetSpec(cost=0.2), [Usage(0.4, 0.5)], poll_s)


def test_what_is_left_is_shared_and_what_is_leased_is_not_left() -> None:
    budget = BudgetSpec(hours=10.0, cost=4.0)
    assert lease_hours(budget, [], 0.5, 0.0, 2) == pytest.approx(4.0 - ENDING)  # 8 h of money for two
    running = [Usage(1.0, 0.5, leased_hours=3.0, is_running=True)]
    assert lease_hours(budget, running, 0.5, 0.0, 1) == pytest.approx(
        4.0 - 2 * ENDING
    )  # 2.0 of 4.0 is promised
    assert lease_hours(budget, [Usage(8.0, 0.5)], 0.5, 0.0, 1) == 0.0


def test_an_arm_has_hours_of_its_own() -> None:
    budget = BudgetSpec(hours=10.0, arm_hours=2.0)
    assert lease_hours(budget, [], 1.0, 0.5, 1) == pytest.approx(1.5 - ENDING)
    assert lease_hours(budget, [], 1.0, 2.0 - ENDING - LEAST / 2, 1) == 0.0
    assert is_arm_spent(budget, 2.0 - ENDING - LEAST / 2)
    assert is_arm_spent(budget, 2.0)
    assert not is_arm_spent(budget, 1.0)
    assert not is_arm_spent(BudgetSpec(hours=1.0), 100.0)


@pytest.mark.parametrize("seed", range(20))
def test_arms_that_use_their_whole_lease_never_pass_the_budget(seed: int) -> None:
    # A campaign that dies at any instant leaves arms that run to the end of their leases, and then save and end.
    rng = np.random.default_rng(seed)
    price, slots = float(rng.uniform(0.1, 2.0)), int(rng.integers(1, 6))
    budget = BudgetSpec(hours=float(rng.uniform(1, 5)), cost=float(rng.uniform(0.5, 5)))
    arms: list[Usage] = []
    for _ in range(200):
        running = [i for i, arm in enumerate(arms) if arm.is_running]
        for i in running:
            is_running = bool(rng.random() < 0.6)
            used = float(rng.uniform(0, arms[i].leased_hours)) + (0.0 if is_running else ENDING)
            left = arms[i].leased_hours - used if is_running else 0.0
            arms[i] = Usage(arms[i].hours + used, price, left, is_running)
        free = slots - sum(arm.is_running for arm in arms)
        for slot in range(free, 0, -1):
            lease = lease_hours(budget, arms, price, 0.0, slot)
            if lease:
                arms.append(Usage(0.0, price, lease, is_running=True))
        worst = spent([Usage(arm.hours + arm.leased_hours + ENDING * arm.is_running, price) for arm in arms])
        assert worst.hours <= budget.hours + 1e-9
        assert worst.cost <= budget.cost + 1e-9
    assert spent(arms).cost > 0.5 * min(budget.cost, budget.hours * price)
