"""Entry point `campaign`: a study described in a file, run arm by arm within its budget, continued if interrupted."""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt

ExecutorName = Literal["local", "submitit", "skypilot"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignConfig:
    """Which campaign to run, and where; its budget is set in its file only."""

    spec: str = "demo"
    """A name in mlflow_projects/campaigns, or a path."""
    dry_run: bool = False
    """Show arms, hours and cost; start nothing."""
    executor: ExecutorName = "local"
    """Processes of this machine, Slurm jobs, or rented machines."""
    parallel: NonNegativeInt = 0
    """Arms at a time; 0 takes the executor's default."""
