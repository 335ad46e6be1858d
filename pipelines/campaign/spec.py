"""The schema of a campaign file: question, arms, budget, and rules for stopping.

Campaigns are YAML files, `mlflow_projects/campaigns/*.yaml`. This module reads one into frozen dataclasses, as strictly
as a recipe; `pipelines.campaign.arms` expands it into arms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from pipelines.command.config import RecipeError, Seed, find_recipe, load_recipe, read_yaml, shown
from pipelines.runtime.paths import RESOURCES
from pipelines.tracking.arms import NAME
from transforms.refusal import Refusal

CAMPAIGNS = RESOURCES / "mlflow_projects" / "campaigns"


class CampaignError(Refusal):
    """A campaign is not valid or cannot run; one sentence gives the reason and the remedy."""


def _american(goal: object) -> object:
    """Accept the spelling of older campaign files too."""
    return goal.replace("imise", "imize") if isinstance(goal, str) else goal


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointSpec:
    """The primary endpoint: the metric that answers the question, fixed before the first arm runs."""

    metric: str = ""
    goal: Annotated[Literal["maximize", "minimize"], BeforeValidator(_american)] = "maximize"


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSpec:
    """One line of the study; grid and seeds expand it into several arms."""

    name: str = ""
    on_record: bool | None = None
    """In a set that repeats a published study: whether the study lists this arm, or it was added."""
    note: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of the first stage, dotted or nested."""
    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Keys of the first stage with the values to cross."""
    seeds: tuple[Seed, ...] = ()
    """Seeds of this arm; empty takes those of the campaign."""
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entry points of this arm if they differ from the campaign's."""
    slices_per_s: float = 0.0
    """As in `resources`, for an arm of another speed; 0 takes the campaign's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesSpec:
    """Hardware that one arm needs, and its measured speed there."""

    cpus: int = 1
    gpus: int = 0
    memory_gb: float = 4.0
    accelerator: str = ""
    """Rented GPU by its usual name, such as RTX4090."""
    infra: str = ""
    """Where to rent, such as vast; empty leaves the choice to the engine."""
    partition: str = ""
    """Slurm partition; empty takes the default one."""
    cohort_uri: str = ""
    """Where a rented machine pulls the cohort from, such as s3://bucket/lidc."""
    slices_per_s: float = 0.0
    """Training slices per second on this hardware, for estimates; 0 if not measured."""
    stage_hours: float = 0.0
    """Hours of each stage after training, for estimates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetSpec:
    """Limits for all arms together; 0 means no limit. They can be raised only here."""

    hours: float = 0.0
    """Wall hours, summed over arms."""
    cost: float = 0.0
    """In the campaign's currency."""
    arm_hours: float = 0.0
    """Wall hours of one arm over all its attempts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StopSpec:
    """When an arm is stopped or no longer restarted."""

    hopeless: bool = False
    """End an arm whose verdict is wall or collapse for `patience_steps` updates."""
    patience_steps: int = 5000
    retries: int = 2
    """How often an arm that crashed is restarted within one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposerSpec:
    """The proposer that adds arms from the results so far, within the search space given here."""

    kind: Literal["none", "optuna", "llm"] = "none"
    max_arms: int = 0
    seed: Seed = 0
    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per key of the first stage `{low, high, log}` or `{choices}`; proposals outside are refused."""
    prune_metric: str = ""
    """In-run metric by which optuna halves the running arms, in the direction of the endpoint; empty prunes nothing."""
    prune_from_step: int = 0
    """Update of the first halving; each further one follows at twice the step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignSpec:
    """A whole campaign, as in its file."""

    name: str = ""
    question: str = ""
    endpoint: EndpointSpec = field(default_factory=EndpointSpec)
    correction: Literal["holm", "none"] = "holm"
    recipe: str = "demo"
    cohort: str = "cohorts/phantom"
    seeds: tuple[Seed, ...] = (0,)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entry points of every arm in order, each with keys that all arms share."""
    max_arms: int = 64
    resources: ResourcesSpec = field(default_factory=ResourcesSpec)
    price_per_hour: float = -1.0
    """Price of one arm's machine per hour; required if the budget has a cost limit."""
    currency: str = "USD"
    budget: BudgetSpec = field(default_factory=BudgetSpec)
    stop: StopSpec = field(default_factory=StopSpec)
    proposer: ProposerSpec = field(default_factory=ProposerSpec)
    arms: tuple[ArmSpec, ...] = ()

    def __post_init__(self) -> None:
        """Refuse campaigns that cannot be run or judged."""
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name must be letters, digits and _.=- only, got {self.name!r}")
        if not self.question or not self.endpoint.metric:
            raise ValueError(
                "question and endpoint.metric must be given: both are fixed before the first arm runs"
            )
        if not self.stages:
            raise ValueError("stages is empty; name at least one entry point, such as pretrain")
        if not self.seeds:
            raise ValueError("seeds is empty; give at least one")
        self._check_budget()
        self._check_proposer()

    @property
    def price(self) -> float:
        """Price of an arm's hour; 0 if none is given."""
        return max(self.price_per_hour, 0.0)

    def _check_budget(self) -> None:
        budget = self.budget
        if min(budget.hours, budget.cost, budget.arm_hours) < 0:
            raise ValueError("limits of the budget cannot be negative; 0 means no limit")
        if not budget.hours and not budget.cost:
            raise ValueError("budget has no limit; give budget.hours or budget.cost")
        if budget.cost and self.price_per_hour < 0:
            raise ValueError(
                f"budget.cost is {budget.cost:g} {self.currency} but price_per_hour is missing;"
                " give the cost of an hour"
            )
        if budget.cost and not self.price_per_hour and not budget.hours:
            raise ValueError("price_per_hour is 0, so budget.cost has no effect; give budget.hours instead")

    def _check_proposer(self) -> None:
        proposer = self.proposer
        if proposer.kind == "none":
            return
        if not proposer.space or proposer.max_arms < 1:
            raise ValueError(
                f"proposer {proposer.kind} needs a space of keys to vary, and max_arms of 1 or more"
            )
        if proposer.prune_metric and proposer.prune_from_step < 1:
            raise ValueError("proposer.prune_metric needs prune_from_step, the update of the first halving")
        for key, bounds in proposer.space.items():
            is_choice = (
                set(bounds) == {"choices"} and isinstance(bounds["choices"], list) and bounds["choices"]
            )
            is_range = {"low", "high"} <= set(bounds) <= {"low", "high", "log"} and _rises(bounds)
            if not is_choice and not is_range:
                raise ValueError(
                    f"proposer.space of '{key}' must be {{low, high}} or {{low, high, log}} with low < high,"
                    " or {choices: [...]}"
                )


def _rises(bounds: Mapping[str, Any]) -> bool:
    low, high = bounds["low"], bounds["high"]
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    return are_numbers and low < high and (not bounds.get("log") or low > 0)


def load_campaign(name_or_path: str) -> CampaignSpec:
    """Read a campaign by its name in `mlflow_projects/campaigns` or by a path.

    Raises:
        CampaignError: If there is none, or it holds an unknown key, a wrong type or an invalid combination.
    """
    try:
        tree = read_yaml(find_recipe(name_or_path, CAMPAIGNS))
        arms = tree.pop("arms", None) or []
        if not isinstance(arms, list):
            raise RecipeError(f"key 'arms' is a list; it was given {shown(arms)}")
        return load_recipe(
            CampaignSpec, tree | {"arms": [_arm(number, arm) for number, arm in enumerate(arms)]}
        )
    except RecipeError as error:
        # The strict reader names recipes in its messages; here it reads a campaign.
        raise CampaignError(str(error).replace("recipe", "campaign", 1)) from error


def _arm(number: int, tree: Any) -> ArmSpec:
    if not isinstance(tree, dict):
        raise RecipeError(f"key 'arms.{number}' is a mapping; it was given {shown(tree)}")
    try:
        arm = load_recipe(ArmSpec, tree)
    except RecipeError as error:
        raise RecipeError(f"{error} (arm {tree.get('name', number)})") from error
    if not NAME.fullmatch(arm.name):
        raise RecipeError(f"key 'arms.{number}.name' must be letters, digits and _.=- only, got {arm.name!r}")
    return arm
