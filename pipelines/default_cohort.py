"""The embedded default: a phantom cohort that is made when a bare command needs it."""

from __future__ import annotations

from pathlib import Path

from pipelines.prepare import PrepareConfig, prepare_cohort

PHANTOM = "cohorts/phantom"


def ensure_cohort(root: Path) -> None:
    """Make the phantom cohort if `root` is its place and nothing is there; any other folder is left to the user."""
    if root == Path(PHANTOM) and not (root / "series.parquet").is_file():
        print(f"{root} is not there yet: making the phantom cohort")
        prepare_cohort(PrepareConfig(cohort=PHANTOM))
