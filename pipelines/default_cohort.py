"""The embedded cohorts: made when a command needs one and it is not there."""

from __future__ import annotations

from pathlib import Path

PHANTOM = "cohorts/phantom"
WALLS = {"cohorts/wall": 1.0, "cohorts/wall_alike": 0.75, "cohorts/wall_unlike": 1.25}
"""The slices of the wall study by their variety."""
EMBEDDED = (PHANTOM, *WALLS)


def ensure_cohort(root: Path) -> None:
    """Make the phantom or a wall cohort if `root` is its place and nothing is there; others are left to the user."""
    if (root / "series.parquet").is_file() or str(root) not in EMBEDDED:
        return
    # What makes a cohort is heavy, and most commands find theirs.
    if root == Path(PHANTOM):
        from pipelines.prepare import PrepareConfig, prepare_cohort

        print(f"{root} is not there yet: making the phantom cohort")
        prepare_cohort(PrepareConfig(cohort=PHANTOM))
    else:
        from pipelines.wall_cohort import make_wall_cohort

        print(f"{root} is not there yet: drawing the synthetic slices")
        make_wall_cohort(root, variety=WALLS[str(root)])
