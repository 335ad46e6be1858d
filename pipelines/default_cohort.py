"""The embedded cohorts: made when a command needs one and it is not there."""

from __future__ import annotations

from pathlib import Path

PHANTOM = "cohorts/phantom"
WALLS = {"cohorts/wall": (1.0, 1.0), "cohorts/wall_sizes": (2.5, 1.0), "cohorts/wall_still": (1.0, 0.0)}
"""Spread of bodies and growth of organs: the slices of the wall study; with bodies of more sizes; with still organs."""
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
        body_spread, organ_growth = WALLS[str(root)]
        make_wall_cohort(root, body_spread=body_spread, organ_growth=organ_growth)
