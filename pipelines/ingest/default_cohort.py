"""The built-in synthetic cohorts: made when a command needs one that does not exist yet."""

from pathlib import Path
from typing import Literal

from pipelines.cohort.union import cohort_roots

PHANTOM = "cohorts/phantom"
WALLS: dict[str, dict[str, float]] = {
    "cohorts/wall": {},
    "cohorts/wall_outline": {"body": 0.08},
    "cohorts/wall_still": {"lungs": 0.0, "heart": 0.0, "spine": 0.0},
}
"""The slices of the wall study; where bodies grow more too; where organs do not grow."""
QUESTIONS: dict[str, Literal["only_z", "only_mm"]] = {
    "cohorts/only_z": "only_z",
    "cohorts/only_mm": "only_mm",
}
"""What only the order along z tells, and what only millimeters tell."""
EMBEDDED = (PHANTOM, *WALLS, *QUESTIONS)


def make_missing(cohorts: str) -> None:
    """Make those of the cohorts that an option names that are ours and do not exist."""
    for root in cohort_roots(cohorts):
        ensure_cohort(root)


def ensure_cohort(root: Path) -> None:
    """Make one of the cohorts above if `root` is its folder and does not exist; no other cohort."""
    if (root / "series.parquet").is_file() or str(root) not in EMBEDDED:
        return
    # Imported here because it is heavy and most commands find their cohort.
    if root == Path(PHANTOM):
        from pipelines.ingest.config import PrepareConfig
        from pipelines.ingest.preparation import prepare_cohort

        print(f"{root} does not exist yet: making the phantom cohort")
        prepare_cohort(PrepareConfig(cohort=PHANTOM))
    elif str(root) in QUESTIONS:
        from pipelines.phantom.volumetric import make_volume_cohort

        print(f"{root} does not exist yet: drawing its volumes")
        make_volume_cohort(root, QUESTIONS[str(root)])
    else:
        from pipelines.phantom.wall_cohort import Growth, make_wall_cohort

        print(f"{root} does not exist yet: drawing the synthetic slices")
        make_wall_cohort(root, growth=Growth(**WALLS[str(root)]))
