"""Entry point `report`: finished runs beside each other, and beside the article, claim by claim."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Which runs to report."""

    runs: str = ""
    """Comma-separated run ids; with neither runs nor campaign all runs of the store are taken."""
    campaign: str = ""
    """Name of a campaign, to report its runs only."""
    out: str = ""
    """File to write the Markdown to as well, such as docs/results.md."""
    article: Literal["answered", "all"] = "answered"
    """`all` shows every table and claim of the article, measured or not; `answered` those that these runs answer."""
