"""Proposers suggest new arms from the results so far; they cannot change the search space or the budget."""

from pipelines.campaign.proposers.base import Proposer
from pipelines.campaign.proposers.llm import LlmProposer
from pipelines.campaign.proposers.optuna import OptunaProposer
from pipelines.campaign.spec import CampaignSpec


def open_proposer(spec: CampaignSpec) -> Proposer:
    """Open the proposer that a campaign names.

    Raises:
        CampaignError: If what it needs is missing.
    """
    return LlmProposer(spec) if spec.proposer.kind == "llm" else OptunaProposer(spec)
