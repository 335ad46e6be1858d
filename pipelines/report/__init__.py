"""Entry point `report`: compares the finished runs with the article, table by table and claim by claim."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """Which runs to report."""

    runs: str = ""
    """Comma-separated run ids; with neither runs nor campaign all runs of the store are taken."""
    campaign: str = ""
    """Name of a campaign, to report its runs only."""
    out: str = ""
    """File to write the Markdown to as well, such as docs/results.md."""
