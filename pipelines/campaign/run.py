"""Entry point `campaign`: a study described in a file, run arm by arm within its budget, continued if interrupted."""

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipelines.campaign import CampaignConfig
from pipelines.campaign.arms import Arm, check_arguments, design_sha256, expand, refuse_alike, stage_arguments
from pipelines.campaign.executors import open_executor
from pipelines.campaign.loop import CampaignLoop
from pipelines.campaign.plan import check_store, plan_table, refuse_arms_elsewhere, resolved_backbones
from pipelines.campaign.records import CampaignRecord, find_parent
from pipelines.campaign.spec import CAMPAIGNS, CampaignError, CampaignSpec, load_campaign
from pipelines.command.config import find_recipe
from pipelines.runtime.atomic import make_folder
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from pipelines.tracking.store import tracking_uri

JOBS = PROJECT_ROOT / "runs" / "campaigns"


def run_campaign(config: CampaignConfig, run: Run) -> None:
    """Run every arm that is not finished, within the budget.

    Raises:
        CampaignError: If the campaign or its executor is not valid; then nothing was started.
        Interrupted: When asked to stop.
    """
    spec = load_campaign(config.spec)
    arms = expand(spec)
    if config.dry_run:
        print(plan_table(spec, arms, check_arms(spec, arms, [])))
        return
    with alone(spec.name):
        design = design_sha256(spec, arms)
        executor = open_executor(config.executor, spec, config.parallel, JOBS / _key(spec.name))
        check_store(config.executor, run.stored().artifact_uri)
        arms = resolved_backbones(arms)
        parent = find_parent(spec.name)
        # Else an earlier call has checked and registered exactly this design.
        if parent is None or parent.tags[Tag.DESIGN] != design:
            check_arms(spec, arms, cohorts_of(spec, arms, config.executor))
        text = find_recipe(config.spec, CAMPAIGNS).read_text(encoding="utf-8")
        record = CampaignRecord.open(run, spec, design, text)
        record.add_arms(arms)
        refuse_arms_elsewhere(record.arms(), config.executor, record.now())
        CampaignLoop(spec, record, executor, config.executor).go()


def check_arms(spec: CampaignSpec, arms: Sequence[Arm], cohorts: Sequence[str]) -> list[dict[str, Any]]:
    """Resolve every stage of every arm, and return the configuration of each arm's first stage.

    Raises:
        CampaignError: If two arms have the same configuration.
        Refusal: If a key or value is not valid, or a cohort is missing.
    """
    lines = [(arm.name, *line) for arm in arms for line in stage_arguments(spec, arm, ["0"])]
    resolved = iter(check_arguments(lines, cohorts))
    of_arms = [[next(resolved) for _ in arm.stages] for arm in arms]
    refuse_alike(arms, of_arms)
    return [stages[0] for stages in of_arms]


def cohorts_of(spec: CampaignSpec, arms: Sequence[Arm], executor: str) -> list[str]:
    """Return the cohorts that must be on this machine before the first arm starts."""
    if executor == "skypilot" or all(set(arm.stages) == {"rehearsal"} for arm in arms):
        return []
    return sorted({spec.cohort, *(str(arm.overrides["cohort"]) for arm in arms if "cohort" in arm.overrides)})


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Lock a campaign for this process, so that two calls never start the same arm.

    Raises:
        CampaignError: If another process of this machine runs it.
    """
    folder = JOBS / _key(name)
    make_folder(folder)
    with (folder / "lock").open("a", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CampaignError(
                f"campaign {name} is already run by another process of this machine"
            ) from error
        yield


def _key(name: str) -> str:
    """Return the folder name of a campaign: one per store, so that stores do not share locks."""
    return f"{name}-{hashlib.sha256(tracking_uri().encode()).hexdigest()[:8]}"
