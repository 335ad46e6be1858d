"""`python -m pipelines.campaign`."""

from pipelines.campaign.run import CampaignConfig, run_campaign
from pipelines.command.cli import main

if __name__ == "__main__":
    main("campaign", CampaignConfig, run_campaign)
