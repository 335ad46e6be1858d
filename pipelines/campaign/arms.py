"""From a campaign file to its arms: expand grids and seeds, write and check their arguments, hash the design."""

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import yaml

from pipelines.campaign.spec import ArmSpec, CampaignError, CampaignSpec
from pipelines.cohort.union import open_cohorts
from pipelines.command.cli import resolve, run_entry_point
from pipelines.command.config import RecipeError, find_recipe, flatten, nested, read_yaml
from pipelines.command.entry_points import ENTRY_POINTS, EntryPoint
from pipelines.ingest.default_cohort import make_missing
from pipelines.tracking.arms import NAME, ArmRecord
from pipelines.tracking.names import Tag

STAGES: dict[str, EntryPoint] = {name: one for name, one in ENTRY_POINTS.items() if one.is_stage}
"""Entry points that can be stages of an arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One arm: its name and how it differs from the others.

    Attributes:
        overrides: Dotted keys of the first stage with their values.
        stages: Its entry points in order, each with keys shared by all arms.
        hypothesis: Why a proposer added it; "" for arms of the file.
        slices_per_s: Training slices per second for estimates; 0 takes the campaign's.
    """

    name: str
    seed: int
    overrides: dict[str, Any]
    stages: dict[str, dict[str, Any]]
    on_record: bool | None = None
    note: str = ""
    hypothesis: str = ""
    slices_per_s: float = 0.0


def expand(spec: CampaignSpec) -> list[Arm]:
    """Expand every line of the file into all combinations of its grid and seeds.

    Raises:
        CampaignError: If there are no arms, more than `max_arms`, or two with the same name.
    """
    named = [*spec.stages, *(name for line in spec.arms for name in line.stages)]
    unknown = [name for name in named if name not in STAGES]
    if unknown:
        raise CampaignError(f"stage '{unknown[0]}' cannot be part of an arm; known: {', '.join(STAGES)}")
    counts = [len(line.seeds or spec.seeds) * math.prod(map(len, line.grid.values())) for line in spec.arms]
    if sum(counts) > spec.max_arms:
        raise CampaignError(
            f"campaign {spec.name} expands to {sum(counts)} arms, above its max_arms of {spec.max_arms}"
        )
    arms = [arm for line in spec.arms for arm in _arms_of(spec, line)]
    for line, count in zip(spec.arms, counts, strict=True):
        if not count:
            raise CampaignError(
                f"the grid of arm {line.name} has a key without values, so it expands to no arms"
            )
    if not arms and spec.proposer.kind == "none":
        raise CampaignError(f"campaign {spec.name} expands to no arm; list arms or name a proposer")
    names = [arm.name for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise CampaignError(f"two arms of campaign {spec.name} are called {twice}; give each its own name")
    return arms


def _arms_of(spec: CampaignSpec, line: ArmSpec) -> list[Arm]:
    seeds = line.seeds or spec.seeds
    arms = []
    for values in itertools.product(*line.grid.values()):
        chosen = dict(zip(line.grid, values, strict=True))
        parts = [line.name, *(f"{key.split('.')[-1]}={_short(value)}" for key, value in chosen.items())]
        for seed in seeds:
            name = "-".join([*parts, f"seed={seed}"] if len(seeds) > 1 else parts)
            if not NAME.fullmatch(name):
                raise CampaignError(
                    f"arm {line.name} expands to the invalid name {name!r}; list its values as separate arms"
                )
            arms.append(
                Arm(
                    name=name,
                    seed=seed,
                    overrides=flatten(line.overrides) | chosen,
                    stages=line.stages or spec.stages,
                    on_record=line.on_record,
                    note=line.note,
                    slices_per_s=line.slices_per_s,
                )
            )
    return arms


def _short(value: Any) -> str:
    return "_".join(map(str, value)) if isinstance(value, list) else str(value)


def stage_arguments(spec: CampaignSpec, arm: Arm, run_ids: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return (entry point, arguments) of each stage of an arm; later stages use the backbone of the first run."""
    lines = []
    for number, (entry_point, common) in enumerate(arm.stages.items()):
        stage = STAGES[entry_point]
        overrides = {"cohort": spec.cohort} | flatten(common)
        if stage.recipe is not None:
            overrides = {"recipe": spec.recipe} | overrides
        if entry_point == "pretrain" and spec.stop.hopeless:
            overrides |= {"stop_when": "hopeless", "watch.patience_steps": spec.stop.patience_steps}
        if number == 0:
            overrides |= {"seed": arm.seed} | arm.overrides
        elif entry_point != "pretrain":
            overrides["backbone"] = f"runs:/{run_ids[0]}/backbone"
        lines.append((entry_point, arguments_of(overrides)))
    return lines


def refuse_alike(arms: Sequence[Arm], configurations: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Refuse two arms whose stages resolve to the same configurations.

    Raises:
        CampaignError: With the names of both.
    """
    seen: dict[str, str] = {}
    for arm, of_arm in zip(arms, configurations, strict=True):
        key = json.dumps([list(arm.stages), *map(dict, of_arm)], sort_keys=True, default=str)
        if key in seen:
            raise CampaignError(
                f"arms {seen[key]} and {arm.name} are alike: they resolve to the same configuration"
            )
        seen[key] = arm.name


def design_sha256(spec: CampaignSpec, arms: Sequence[Arm]) -> str:
    """Hash what is fixed before the first arm: question, endpoint, correction, arms, seeds, recipe.

    Budget, price and resources are left out: they may change while a campaign runs.
    """
    recipes = {spec.recipe, *(str(arm.overrides["recipe"]) for arm in arms if "recipe" in arm.overrides)}
    tree = {
        "name": spec.name,
        "question": spec.question,
        # Older campaigns were registered with this spelling, and a design is compared by its hash.
        "endpoint": {**asdict(spec.endpoint), "goal": spec.endpoint.goal.replace("imize", "imise")},
        "correction": spec.correction,
        "cohort": spec.cohort,
        "recipes": {name: read_yaml(find_recipe(name)) for name in sorted(recipes)},
        "arms": [(arm.name, arm.seed, arm.overrides, arm.stages) for arm in arms],
        "hopeless": (spec.stop.hopeless, spec.stop.patience_steps),
        "proposer": asdict(spec.proposer),
    }
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def arm_of(record: ArmRecord) -> Arm:
    """Return the arm of a stored run."""
    tags = record.tags
    return Arm(
        name=tags[Tag.ARM],
        seed=int(tags[Tag.SEED]),
        overrides=json.loads(tags[Tag.OVERRIDES]),
        stages=json.loads(tags[Tag.ENTRY_POINTS]),
        on_record={"true": True, "false": False}.get(tags.get(Tag.ON_RECORD, "")),
        note=tags.get(Tag.NOTE, ""),
        hypothesis=tags.get(Tag.HYPOTHESIS, ""),
    )


def run_stage(entry_point: str, arguments: Sequence[str]) -> int:
    """Run an entry point in this process and return its exit code; 1, a crash, if the store could not be reached."""
    stage = STAGES[entry_point]
    return run_entry_point(entry_point, stage.load_schema(), stage.run, stage.recipe, arguments, away_code=1)


def check_arguments(
    lines: Sequence[tuple[str, str, list[str]]], cohorts: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Resolve the arguments of many stages as their entry points would.

    Args:
        lines: (arm, entry point, arguments) of each stage.
        cohorts: Folders to open; default cohorts are made if they are missing.

    Returns:
        Every configuration by its dotted keys, in the order of `lines`, with JSON types.

    Raises:
        RecipeError: If an argument is not valid; the message ends with the arm.
        Refusal: If a cohort is missing.
    """
    configurations = []
    for arm, entry_point, arguments in lines:
        stage = STAGES[entry_point]
        try:
            config, recipe = resolve(stage.load_schema(), arguments, stage.recipe)
        except RecipeError as error:
            raise RecipeError(f"{error} (arm {arm}, {entry_point})") from error
        configurations.append({"recipe": recipe} | flatten(nested(config)))
    for cohort in cohorts:
        make_missing(cohort)
        open_cohorts(cohort)
    return list(json.loads(json.dumps(configurations, default=str)))


def arguments_of(overrides: dict[str, Any]) -> list[str]:
    """Write overrides as `--key value`, so that the same values are read back."""
    return [text for key, value in overrides.items() for text in (f"--{key}", _text(value))]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | list | tuple | dict) or value is None:
        return json.dumps(value)
    return str(yaml.safe_dump(value)).split("\n")[0]
