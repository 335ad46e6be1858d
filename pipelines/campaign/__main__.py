"""`python -m pipelines.campaign`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipelines.campaign.config import CampaignConfig
from pipelines.command.cli import main

if TYPE_CHECKING:
    from pipelines.tracking.run import Run


def run_campaign(config: CampaignConfig, run: Run) -> None:
    """See `pipelines.campaign.run`."""
    from pipelines.campaign.run import run_campaign  # heavy: not for --help

    run_campaign(config, run)


if __name__ == "__main__":
    main("campaign", CampaignConfig, run_campaign)
