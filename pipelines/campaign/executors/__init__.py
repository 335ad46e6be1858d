"""Executors run the arms of a campaign: one small interface, and a thin adapter for each engine."""

from pathlib import Path

from pipelines.campaign.executors.base import Executor
from pipelines.campaign.executors.local import LocalExecutor
from pipelines.campaign.executors.skypilot import SkyPilotExecutor
from pipelines.campaign.executors.submitit import SubmititExecutor
from pipelines.campaign.spec import CampaignError, CampaignSpec


def open_executor(name: str, spec: CampaignSpec, parallel: int, folder: Path) -> Executor:
    """Open an executor, after checking that it can run this campaign; `folder` holds logs and locks of jobs.

    Raises:
        CampaignError: If the name is unknown, or what the executor needs is missing.
    """
    if parallel < 0:
        raise CampaignError(f"parallel is the number of arms at a time, 0 or more, got {parallel}")
    match name:
        case "local":
            return LocalExecutor(spec.resources, parallel, folder)
        case "submitit":
            return SubmititExecutor(spec.resources, parallel, folder)
        case "skypilot":
            return SkyPilotExecutor(spec, parallel)
    raise CampaignError(f"executor '{name}' is unknown; use local, submitit or skypilot")
