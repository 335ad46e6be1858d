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
    records: str = ""
    """Files of records in place of the store, such as docs/records/real_small.jsonl; with commas between."""
    keep: str = ""
    """File to write the reported runs to as records, with their tables of nodules and slices, to report them again."""
    out: str = ""
    """File to write the Markdown to as well, such as docs/results.md."""
    article: Literal["answered", "all"] = "answered"
    """`all` shows every table and claim of the article, measured or not; `answered` those that these runs answer."""
