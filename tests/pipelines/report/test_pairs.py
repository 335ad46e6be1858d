"""Two arms compared within a seed on the same items: planted differences are found, and no other."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipelines.report.facts import Evidence, gather
from pipelines.report.pairs import ENDPOINTS, LEVEL, Difference, PairSpec, compare_all, pairs_table
from pipelines.report.tables import load_article
from pipelines.tracking.reading import StoredRun

RETRIEVAL, KNOWN = ENDPOINTS
PATIENTS = np.repeat([f"p{number}" for number in range(60)], 5)


def arm(name: str, seed: int, entry_point: str = "probe_retrieval", **more: str) -> StoredRun:
    tags = {"dinox.entry_point": entry_point, "dinox.arm_of": name, "dinox.campaign": "real_small"} | more
    return StoredRun(f"{entry_point}-{name}-{seed}", "FINISHED", tags, {}, {"seed": str(seed)})


def ranks(hit: float, seed: int, random: float = 0.1) -> pd.DataFrame:
    """Slices of which a share is found, each with a place of its own among easy and hard ones."""
    generator = np.random.default_rng(seed)
    ease = np.random.default_rng(99).random(len(PATIENTS))
    noisy = ease + generator.normal(0, 0.05, len(PATIENTS))
    return pd.DataFrame(
        {
            "volume_id": PATIENTS,
            "slice_index": np.tile(np.arange(5), 60),
            "patient_id": PATIENTS,
            "rank": np.where(noisy < np.quantile(noisy, hit), 0, 3),
            "random_rank": np.where(ease < np.quantile(ease, random), 0, 7),
        }
    )


def compared(
    tables: dict[str, pd.DataFrame], runs: list[StoredRun], *pairs: PairSpec, endpoint: str = RETRIEVAL.name
) -> list[Difference]:
    evidence: list[Evidence] = gather(runs)
    return compare_all(pairs, evidence, lambda run: tables.get(run.run_id))[endpoint]


def two_arms(first: float, other: float) -> tuple[dict[str, pd.DataFrame], list[StoredRun]]:
    runs = [arm(name, seed) for name in ("new", "old") for seed in range(3)]
    hits = {"new": first, "old": other}
    tables = {run.run_id: ranks(hits[run.tags["dinox.arm_of"]], int(run.params["seed"])) for run in runs}
    return tables, runs


NEW_OVER_OLD = PairSpec(text="new is better", where={"arm": "new"}, than={"arm": "old"})


def verdicts(made: list[Difference]) -> list[str]:
    return [row[-1] for row in pairs_table(made).rows]


@pytest.mark.parametrize(
    ("first", "other", "verdict"),
    [
        (0.5, 0.3, "supported"),
        (0.3, 0.5, "not supported"),
        (0.3, 0.3, "not testable here"),
    ],
)
def test_a_planted_difference_is_judged_and_equal_arms_are_not(
    first: float, other: float, verdict: str
) -> None:
    made = compared(*two_arms(first, other), NEW_OVER_OLD)
    assert made[0].by_seed == pytest.approx([first - other] * 3, abs=0.01)
    assert verdicts(made) == [verdict]


def test_interval_is_that_of_a_bootstrap_over_patients_written_out() -> None:
    tables, runs = two_arms(0.5, 0.3)
    one = compared(tables, runs, NEW_OVER_OLD)[0]
    differences = np.mean(
        [
            (tables[f"probe_retrieval-new-{seed}"]["rank"] == 0).astype(float)
            - (tables[f"probe_retrieval-old-{seed}"]["rank"] == 0).astype(float)
            for seed in range(3)
        ],
        axis=0,
    ).reshape(60, 5)
    generator = np.random.default_rng(5)
    naive = [differences[generator.integers(0, 60, 60)].mean() for _ in range(4000)]
    np.testing.assert_allclose(
        np.quantile(one.draws, (0.025, 0.975)), np.quantile(naive, (0.025, 0.975)), atol=0.008
    )


def test_a_seed_of_the_other_sign_or_a_missing_one_is_not_testable() -> None:
    tables, runs = two_arms(0.6, 0.3)
    turned = tables | {"probe_retrieval-new-2": ranks(0.29, 2)}
    assert verdicts(compared(turned, runs, NEW_OVER_OLD)) == ["not testable here"]
    missing = compared(tables, runs[:-1], NEW_OVER_OLD)[0]
    assert (missing.why, missing.p) == ("2 of 3 seeds", 1.0)
    leaky = [replace(run, tags=run.tags | {"dinox.leak": "unknown"}) for run in runs]
    assert compared(tables, leaky, NEW_OVER_OLD)[0].why == "0 of 3 seeds"


def test_runs_of_other_slices_are_never_compared() -> None:
    tables, runs = two_arms(0.6, 0.3)
    moved = tables["probe_retrieval-old-1"].assign(slice_index=lambda table: table["slice_index"] + 1)
    one = compared(tables | {"probe_retrieval-old-1": moved}, runs, NEW_OVER_OLD)[0]
    assert one.why == "the runs are not of the same slices or nodules"


def test_without_a_second_arm_random_weights_are_compared() -> None:
    made = compared(*two_arms(0.5, 0.3), PairSpec(text="training helps", where={"arm": "new"}))
    assert made[0].by_seed == pytest.approx([0.4] * 3, abs=0.01)
    assert verdicts(made) == ["supported"]


def test_holm_counts_every_comparison_of_the_file_run_or_not() -> None:
    draws = np.concatenate([np.full(9900, 0.1), np.full(100, -0.1)])  # two-sided p 0.0202
    alone = Difference("a", RETRIEVAL.name, (0.1, 0.1, 0.1), draws)
    assert alone.p == pytest.approx(2 * 101 / 10_001)
    assert alone.p < LEVEL
    assert verdicts([alone]) == ["supported"]
    absent = [Difference(str(number), RETRIEVAL.name, why="0 of 3 seeds") for number in range(2)]
    assert verdicts([alone, *absent])[0] == "not testable here"  # 0.0202 > 0.05 / 3


def test_what_is_known_of_nodules_is_counted_over_each_arms_own_random_twins() -> None:
    generator = np.random.default_rng(0)
    observed = generator.normal(size=300)
    runs = [arm(name, seed, "probe_malignancy") for name in ("new", "old") for seed in range(3)]
    tables = {}
    for run in runs:
        share = 0.8 if run.tags["dinox.arm_of"] == "new" else 0.4
        twins = {f"random_{number}": 0.4 * observed for number in range(5)}
        columns = {"nodule_id": np.arange(300), "patient_id": PATIENTS, "observed": observed}
        tables[run.run_id] = pd.DataFrame(columns | {"features": share * observed} | twins)
    learned = PairSpec(text="training helps", where={"arm": "new"})
    made = compared(tables, runs, NEW_OVER_OLD, learned, endpoint=KNOWN.name)
    # R2 of predicting a share s of the residual itself is 1 - (1 - s)^2.
    assert made[0].by_seed == pytest.approx([0.96 - 0.64] * 3)
    assert made[1].by_seed == pytest.approx([0.96 - 0.64] * 3)
    assert verdicts(made) == ["supported", "supported"]


def test_the_article_lists_ten_comparisons_of_arms_that_the_campaign_has() -> None:
    from pipelines.campaign.arms import expand
    from pipelines.campaign.spec import load_campaign

    pairs = load_article().pairs
    assert len(pairs) == 10
    names = [one.name for one in expand(load_campaign("real_small"))]
    for pair in pairs:
        for side in (pair.where, pair.than):
            if side:
                prefix = str(side["arm"]).removesuffix("*")
                assert sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix)) == [
                    *"012"
                ]
