"""Configuration of `campaign`; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class CampaignConfig:
    """Which campaign to run, and where; its budget is set in its file only."""

    spec: str = "demo"
    """A name in mlflow_projects/campaigns, or a path."""
    dry_run: bool = False
    """Show arms, hours and cost; start nothing."""
    executor: str = "local"
    """local, submitit or skypilot."""
    parallel: int = 0
    """Arms at a time; 0 takes the executor's default."""
