"""Campaign files: what they may say, what they expand to, and how a slip is answered."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.campaign import CampaignConfig
from pipelines.campaign.arms import check_arguments, design_sha256, expand, refuse_alike, stage_arguments
from pipelines.campaign.executors import open_executor
from pipelines.campaign.plan import plan_table
from pipelines.campaign.research import Research
from pipelines.campaign.spec import CAMPAIGNS, CampaignError, CampaignSpec, load_campaign
from pipelines.command.config import RecipeError, load_recipe
from pipelines.tracking.arms import ArmRecord

ARTICLE_COUNTS = {
    "article_loss": 10,
    "article_augmentation": 11,
    "article_vit_s": 6,
    "article_vit_l": 9,
    "article_clinical": 28,
}
TREE: dict[str, Any] = {
    "name": "small",
    "question": "Does it work?",
    "endpoint": {"metric": "loss/total", "goal": "minimize"},
    "stages": {"rehearsal": {"steps": 2}},
    "price_per_hour": 0.5,
    "budget": {"hours": 1.0, "cost": 0.4},
    "arms": [{"name": "a", "grid": {"lr": [0.1, 0.01]}, "seeds": [0, 1]}],
}


def written(tmp_path: Path, **changes: Any) -> CampaignSpec:
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(TREE | changes))
    return load_campaign(str(file))


@pytest.mark.parametrize("name", sorted(path.stem for path in CAMPAIGNS.glob("*.yaml")))
def test_every_campaign_resolves_and_opens_with_command_time_and_expectation(name: str) -> None:
    spec = load_campaign(name)
    arms = expand(spec)
    lines = [(arm.name, *line) for arm in arms for line in stage_arguments(spec, arm, ["0"])]
    resolved = iter(check_arguments(lines))
    of_arms = [[next(resolved) for _ in arm.stages] for arm in arms]
    refuse_alike(arms, of_arms)
    head = (CAMPAIGNS / f"{name}.yaml").read_text().split("\nname:")[0]
    for word in ("Run:", "Time:", "Expected:", f"mlflow run . -e campaign -P spec={name}"):
        assert word in head
    assert spec.name == name
    table = plan_table(replace(spec, recipe="none such"), arms, [stages[0] for stages in of_arms])
    assert f"\n{len(arms)} arms\n" in table
    if name in ARTICLE_COUNTS:
        assert len(arms) == ARTICLE_COUNTS[name]
        assert all(arm.on_record is not None for arm in arms)


def test_the_article_s_sets_have_its_64_arms() -> None:
    assert sum(len(expand(load_campaign(name))) for name in ARTICLE_COUNTS) == 64


@pytest.mark.parametrize("name", sorted(set(ARTICLE_COUNTS) - {"article_clinical"}))
def test_the_article_s_arms_see_its_views_and_its_optimizer_in_true_hu(name: str) -> None:
    spec = load_campaign(name)
    lines = [(arm.name, *stage_arguments(spec, arm, ["0"])[0]) for arm in expand(spec)]
    size = {"article_vit_l": ("vit_large", 16, True)}.get(name, ("vit_small", 64, False))
    for one in check_arguments(lines):
        # RandomResizedCrop lies anywhere in the slice; AdamW over all parameters, one group.
        assert (one["views.center"], one["views.window.policy"]) == ("uniform", "article")
        assert (one["views.window.hu_scale"], one["optim.decay_everything"]) == (1.0, True)
        keys = ("backbone.arch", "batch_size", "backbone.grad_checkpointing")
        assert tuple(one[key] for key in keys) == size
        assert (one["optim.teacher_temp"], one["optim.ema_momentum"], one["optim.ema_momentum_end"]) == (
            0.04,
            0.996,
            0.996,
        )


def test_the_plan_for_whole_lidc_takes_each_network_at_its_own_speed(own_store: Path) -> None:
    spec = load_campaign("whole_lidc")
    arms = expand(spec)
    first = check_arguments([(arm.name, *stage_arguments(spec, arm, ["0"])[0]) for arm in arms])
    assert [one["backbone.arch"] for one in first] == ["vit_small"] * 3 + ["vit_large"] * 3
    assert {(one["views.extent"], one["steps"]) for one in first} == {("mm", 100_000)}
    table = plan_table(spec, arms, first)
    small, large = 100_000 * 64 / 1770 / 3600 + 3 * 0.2, 100_000 * 16 / 180 / 3600 + 3 * 0.2
    assert f"vit_s-seed=0   100000 steps  {small:7.3f} h  {small * 2.5:.3f} USD" in table
    assert f"vit_l-seed=2   100000 steps  {large:7.3f} h  {large * 2.5:.3f} USD" in table
    assert f"total {3 * (small + large):7.3f} h" in table
    assert "from 1770 slices/s given in the file; from 180 slices/s given in the file" in table


def test_grids_and_seeds_are_crossed(tmp_path: Path) -> None:
    arms = expand(written(tmp_path))
    assert [arm.name for arm in arms] == [f"a-lr={lr}-seed={seed}" for lr in (0.1, 0.01) for seed in (0, 1)]
    assert [arm.overrides["lr"] for arm in arms] == [0.1, 0.1, 0.01, 0.01]
    assert [arm.seed for arm in arms] == [0, 1, 0, 1]


def test_words_carry_every_value_through_the_strict_door(tmp_path: Path) -> None:
    overrides = {"optim": {"lr": 1e-05}, "views.fraction": [0.25, 1.0], "compile": True, "device": "cpu"}
    spec = written(
        tmp_path,
        stages={"pretrain": {"steps": 7}},
        arms=[{"name": "a", "overrides": overrides, "seeds": [3]}],
    )
    (line,) = stage_arguments(spec, expand(spec)[0], ["0"])
    (configuration,) = check_arguments([("a", *line)])
    assert configuration["optim.lr"] == 1e-05
    assert configuration["views.fraction"] == [0.25, 1.0]
    assert (configuration["compile"], configuration["device"]) == (True, "cpu")
    assert (configuration["steps"], configuration["seed"], configuration["recipe"]) == (7, 3, "demo")


def test_later_stages_work_on_the_backbone_of_the_first_run(tmp_path: Path) -> None:
    stages = {"pretrain": {}, "probe_malignancy": {"window": "wide"}}
    spec = written(tmp_path, stages=stages, arms=[{"name": "a", "seeds": [3]}])
    lines = stage_arguments(spec, expand(spec)[0], ["abc", "def"])
    configuration = check_arguments([("a", *line) for line in lines])[1]
    assert configuration["backbone"] == "runs:/abc/backbone"
    # The seed makes arms; folds of a probe stay the same for all of them.
    assert (configuration["seed"], configuration["window"]) == (0, "wide")


def test_hopeless_arms_are_told_so(tmp_path: Path) -> None:
    stop = {"hopeless": True, "patience_steps": 77}
    spec = written(tmp_path, stages={"pretrain": {}}, arms=[{"name": "a"}], stop=stop)
    (configuration,) = check_arguments(
        [("a", *line) for line in stage_arguments(spec, expand(spec)[0], ["0"])]
    )
    assert (configuration["stop_when"], configuration["watch.patience_steps"]) == ("hopeless", 77)


def test_the_design_is_question_endpoint_arms_and_recipe_but_not_money(tmp_path: Path) -> None:
    def design(**changes: Any) -> str:
        spec = written(tmp_path, **changes)
        return design_sha256(spec, expand(spec))

    first = design()
    assert design(budget={"hours": 9.0}, price_per_hour=3.0, resources={"cpus": 4}) == first
    for changes in (
        {"question": "Another?"},
        {"endpoint": {"metric": "loss/total", "goal": "maximize"}},
        {"correction": "none"},
        {"recipe": "wall"},
        {"stages": {"rehearsal": {"steps": 3}}},
        {"arms": [{"name": "a", "grid": {"lr": [0.1, 0.01]}, "seeds": [0, 2]}]},
    ):
        assert design(**changes) != first


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": [{"name": "a", "grid": {"lr": []}}]}, "expands to no arms"),
        ({"arms": []}, "expands to no arm"),
        ({"max_arms": 3}, "expands to 4 arms, above its max_arms of 3"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "two arms of campaign small are called a"),
        ({"arms": [{"name": "a b"}]}, "'arms.0.name' must be letters"),
        (
            {"arms": [{"name": "a", "gird": {}}]},
            r"unknown key 'gird'; did you mean 'grid'\? \(arm a\)",
        ),
        ({"arms": "all"}, "key 'arms' is a list"),
        ({"stages": {"pretrian": {}}}, "stage 'pretrian' cannot be part of an arm"),
        ({"stages": {}}, "stages is empty"),
        ({"budget": {"cost": 1.0}, "price_per_hour": -1.0}, "price_per_hour is missing"),
        ({"budget": {"cost": 1.0}, "price_per_hour": 0.0}, "budget.cost has no effect"),
        ({"budget": {}}, "budget has no limit"),
        ({"budget": {"hours": -1.0}}, "cannot be negative"),
        ({"price_per_huor": 1}, "unknown key 'price_per_huor'; did you mean 'price_per_hour'"),
        ({"question": ""}, "question and endpoint.metric must be given"),
        ({"name": "../x"}, "name must be letters"),
        ({"proposer": {"kind": "optuna"}}, "needs a space of keys"),
        (
            {"proposer": {"kind": "llm", "max_arms": 2, "space": {"lr": {"low": 2, "high": 1}}}},
            "with low < high",
        ),
        ({"proposer": {"kind": "llm", "max_arms": 2, "space": {"lr": {"choices": []}}}}, "choices"),
        ({"endpoint": {"goal": "win"}}, "was given 'win'"),
        ({"seeds": [0, 2**32]}, "was given 4294967296: input should be less than"),
    ],
)
def test_a_campaign_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CampaignError, match=sentence) as caught:
        expand(written(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"name": "x" * 5000 + "!"}, {"arms": "x" * 5000}, {"arms": ["x" * 5000]}]
)
def test_what_is_quoted_of_a_campaign_does_not_hide_the_sentence(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(
        CampaignError, match=r"name must be letters|key 'arms(.0)?' is a (list|mapping)"
    ) as error:
        written(tmp_path, **changes)
    assert len(str(error.value)) < 1500


def test_a_second_budget_does_not_replace_the_first_without_a_word(tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(yaml.safe_dump(TREE) + "budget: {hours: 100.0}\n")
    with pytest.raises(CampaignError, match=r"campaign campaign\.yaml names the key 'budget' twice"):
        load_campaign(str(file))


def test_two_arms_alike_are_refused_by_what_they_resolve_to(tmp_path: Path) -> None:
    # One states the default that the other leaves out.
    arms_tree = [{"name": "a", "overrides": {"lr": 0.001}}, {"name": "b"}]
    spec = written(tmp_path, arms=arms_tree)
    arms = expand(spec)
    resolved = check_arguments(
        [(arm.name, *line) for arm in arms for line in stage_arguments(spec, arm, ["0"])]
    )
    with pytest.raises(CampaignError, match="arms a and b are alike"):
        refuse_alike(arms, [[one] for one in resolved])


def test_a_key_that_no_entry_point_knows_names_its_arm(tmp_path: Path) -> None:
    spec = written(tmp_path, arms=[{"name": "a", "overrides": {"lrr": 1}}])
    with pytest.raises(RecipeError, match=r"unknown key 'lrr'; did you mean 'lr'\? \(arm a, rehearsal\)"):
        check_arguments([("a", *line) for line in stage_arguments(spec, expand(spec)[0], ["0"])])


def test_an_unknown_executor_and_gpus_that_are_not_there_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RecipeError, match="'cluster': input should be 'local', 'submitit' or 'skypilot'"):
        load_recipe(CampaignConfig, {}, [("executor", "cluster")])
    with pytest.raises(CampaignError, match="needs 2 GPU but this machine has 0"):
        open_executor("local", written(tmp_path, resources={"gpus": 2}), 0, tmp_path)
    with pytest.raises(
        RecipeError, match="'parallel' was given -1: input should be greater than or equal to 0"
    ):
        load_recipe(CampaignConfig, {}, [("parallel", "-1")])


OLDER = """
name: pooling
question: Does the third dimension tell what the centre slice does not?
endpoint: {metric: aggregation/centre3_mean_auroc, goal: maximise}
cohort: cohorts/phantom
stages:
  probe_aggregation: {features: neighbourhood}
budget: {hours: 1.0}
arms:
  - name: both
    grid: {features: [neighbourhood, class_token]}
  - name: one
    overrides: {features: neighbourhood, seed: 3}
"""
"""A file of the time before names were spelled as today, and the hash under which it was registered then."""
OLDER_SHA256 = "0587a965ce5b98067a5466339e6f2a4b9057f4ba79a0c3b7e67460ebbc60e40b"


@pytest.fixture
def older(tmp_path: Path) -> CampaignSpec:
    (tmp_path / "older.yaml").write_text(OLDER)
    return load_campaign(str(tmp_path / "older.yaml"))


def test_a_campaign_registered_with_older_names_keeps_its_hash_and_its_arms_run(older: CampaignSpec) -> None:
    arms = expand(older)
    assert design_sha256(older, arms) == OLDER_SHA256
    resolved = check_arguments(
        [(arm.name, *line) for arm in arms for line in stage_arguments(older, arm, ["0"])]
    )
    assert [one["features"] for one in resolved] == ["neighborhood", "class_token", "neighborhood"]


def test_an_endpoint_in_its_older_name_is_found_in_what_arms_logged(older: CampaignSpec) -> None:
    tags = {"dinox.arm": "one", "dinox.seed": "0", "dinox.overrides": "{}", "dinox.entry_points": "{}"}
    arm = ArmRecord("a", "FINISHED", tags, {"aggregation/center3_mean_auroc": 0.75}, {})
    assert Research(older, None)._outcome(arm).value == 0.75  # type: ignore[arg-type]
