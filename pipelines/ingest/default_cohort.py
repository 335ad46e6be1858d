"""The embedded cohorts: made when a command needs one and it is not there."""

from __future__ import annotations

from pathlib import Path

PHANTOM = "cohorts/phantom"
WALLS: dict[str, dict[str, float]] = {
    "cohorts/wall": {},
    "cohorts/wall_outline": {"body": 0.08},
    "cohorts/wall_still": {"lungs": 0.0, "heart": 0.0, "spine": 0.0},
}
"""The slices of the wall study; where bodies grow more too; where organs do not grow."""
EMBEDDED = (PHANTOM, *WALLS)


def ensure_cohort(root: Path) -> None:
    """Make the phantom or a wall cohort if `root` is its place and nothing is there; others are left to the user."""
    if (root / "series.parquet").is_file() or str(root) not in EMBEDDED:
        return
    # What makes a cohort is heavy, and most commands find theirs.
    if root == Path(PHANTOM):
        from pipelines.ingest.config import PrepareConfig
        from pipelines.ingest.preparation import prepare_cohort

        print(f"{root} is not there yet: making the phantom cohort")
        prepare_cohort(PrepareConfig(cohort=PHANTOM))
    else:
        from pipelines.phantom.wall_cohort import make_wall_cohort
        from pipelines.phantom.wall_slices import Growth

        print(f"{root} is not there yet: drawing the synthetic slices")
        make_wall_cohort(root, growth=Growth(**WALLS[str(root)]))
