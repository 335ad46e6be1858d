"""The embedded cohorts: made when a command needs one and it is not there."""

from __future__ import annotations

from pathlib import Path

from pipelines.prepare import PrepareConfig, prepare_cohort
from pipelines.wall_cohort import WALL, make_wall_cohort

PHANTOM = "cohorts/phantom"


def ensure_cohort(root: Path) -> None:
    """Make the phantom or the wall cohort if `root` is its place and nothing is there; others are left to the user."""
    if (root / "series.parquet").is_file() or root not in (Path(PHANTOM), Path(WALL)):
        return
    if root == Path(PHANTOM):
        print(f"{root} is not there yet: making the phantom cohort")
        prepare_cohort(PrepareConfig(cohort=PHANTOM))
    else:
        print(f"{root} is not there yet: drawing the synthetic slices")
        make_wall_cohort(root)
