"""What `campaign` is configured by; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignConfig:
    """Which campaign, and where; what it may cost stands in its file alone."""

    spec: str = "demo"
    """A name in mlflow_projects/campaigns, or a path."""
    dry_run: bool = False
    """Show arms, hours and cost; start nothing."""
    executor: str = "local"
    """local, submitit or skypilot."""
    parallel: int = 0
    """Arms at a time; 0 takes what suits the executor."""
