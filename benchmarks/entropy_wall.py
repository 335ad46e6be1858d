"""The entropy wall, regenerated: center momentum x the tensor that KoLeo sees, on small networks and synthetic slices.

Run:      python -m benchmarks.entropy_wall            (18 arms of 3000 updates; under 40 minutes on 2 cores)
Expected: center momentum 0.9 with KoLeo on logits stays at ln K (wall); 0.999 without KoLeo collapses; 0.9 with KoLeo
          on the class token and 0.999 with KoLeo on logits learn; where one of these cells fails, the exit code is 1
          (docs/decisions/0003). Evidence of a mechanism on toy data, no more.

It runs what is missing of the campaign `wall` and reads its results from MLflow. A second call only prints.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence

import pandas as pd

from pipelines.campaign.arms import arm_of
from pipelines.campaign.records import find_parent
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.reading import search_runs

CELL = ["center momentum", "KoLeo on"]
COLUMNS = ["loss", "G", "prototypes used", "effective rank"]
LN_K = math.log(512)
HARD: dict[tuple[float, str], tuple[str, Callable[[float, float], bool]]] = {
    (0.9, "head_logits"): ("wall", lambda loss, gain: abs(loss - LN_K) < 0.1 and gain < 0.1),
    (0.999, "none"): ("collapsed", lambda loss, gain: loss < 0.1 and gain < 0.1),
    (0.9, "class_token"): ("learning", lambda loss, gain: gain > 0.2),
    (0.999, "head_logits"): ("learning", lambda loss, gain: gain > 0.2),
}
"""Cells with a known outcome."""


def table_of(records: Sequence[ArmRecord]) -> pd.DataFrame:
    """Lay out the last figures of every finished arm."""
    rows = []
    for record in records:
        arm, metrics = arm_of(record), record.metrics
        is_without = float(str(arm.overrides.get("objective.koleo_weight", 0.1))) == 0.0
        rows.append(
            {
                "center momentum": float(str(arm.overrides["objective.center_momentum"])),
                "KoLeo on": "none" if is_without else arm.overrides["objective.koleo_on"],
                "seed": arm.seed,
                "loss": metrics["loss/dino"],
                "G": metrics["teacher/gain"],
                "prototypes used": metrics["teacher/prototypes_used"],
                "effective rank": metrics["teacher/effective_rank"],
                "verdict": record.tags["dinox.status"],
            }
        )
    return pd.DataFrame(rows)


def hard_cells(table: pd.DataFrame) -> dict[str, bool]:
    """Judge the cells whose outcome is known: in at least two of three seeds and on average."""
    by_cell = dict(iter(table.groupby(CELL)))
    judged = {}
    for (momentum, tensor), (verdict, is_so) in HARD.items():
        cell = by_cell.get((momentum, tensor))
        holds = False
        if cell is not None:
            each = [is_so(loss, gain) for loss, gain in zip(cell["loss"], cell["G"], strict=True)]
            holds = 3 * sum(each) >= 2 * len(each) and is_so(cell["loss"].mean(), cell["G"].mean())
        judged[f"{momentum}, KoLeo on {tensor}: {verdict}"] = holds
    return judged


def main() -> int:
    """Run what is missing of the campaign, print the table and whether the hard cells hold; 1 if one does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parallel", default="2", help="arms at a time")
    parser.add_argument("--json", default="", help="file for the rows")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "pipelines.campaign", "--spec", "wall", "--parallel", arguments.parallel]
    code = subprocess.run(command, cwd=PROJECT_ROOT, check=False).returncode
    parent = find_parent("wall")
    if code or parent is None:
        return code or 1
    children = search_runs(ArmRecord, f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    table = table_of([record for record in children if record.status == "FINISHED"])
    print(f"\nln K = {LN_K:.3f}; mean over {table['seed'].nunique()} seeds, last 4096 samples of each run")
    print(table.groupby(CELL)[COLUMNS].mean().round(3).to_string())
    print("\nEach seed: verdict (G)")
    table["seen"] = [f"{row.verdict} ({row.G:.2f})" for row in table.itertuples()]
    print(table.pivot(index=CELL, columns="seed", values="seen").to_string())
    judged = hard_cells(table)
    for name, holds in judged.items():
        print(f"{'holds' if holds else 'FAILS'}: {name}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(table.to_dict("records"), file, indent=1)
    return 0 if all(judged.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
