"""Executors run the arms of a campaign: one small interface, and a thin adapter for each engine."""

from pathlib import Path

from pipelines.campaign import ExecutorName
from pipelines.campaign.executors.base import Executor
from pipelines.campaign.executors.local import LocalExecutor
from pipelines.campaign.executors.skypilot import SkyPilotExecutor
from pipelines.campaign.executors.submitit import SubmititExecutor
from pipelines.campaign.spec import CampaignSpec


def open_executor(name: ExecutorName, spec: CampaignSpec, parallel: int, folder: Path) -> Executor:
    """Open an executor, after checking that it can run this campaign; `folder` holds logs and locks of jobs.

    Raises:
        CampaignError: If what the executor needs is missing.
    """
    if name == "skypilot":
        return SkyPilotExecutor(spec, parallel)
    kind = SubmititExecutor if name == "submitit" else LocalExecutor
    return kind(spec.resources, parallel, folder)
