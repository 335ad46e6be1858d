"""The whole path on a laptop: phantom, cohort, two pretrainings that differ in one thing, their probes, one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from pipelines import tracking
from pipelines.config import PROJECT_ROOT

LEARNS = ("objective.koleo_on=class_token",)
MEETS_THE_WALL = ("objective.koleo_on=head_logits",)

_ROWS = (
    ("loss (ln K = 6.24)", "loss/dino", ""),
    ("gain G, nats", "teacher/gain", ""),
    ("retrieval top-1", "retrieval/top1", "retrieval/top1_ci_{}"),
    ("  random weights", "retrieval/random_top1", "retrieval/random_top1_ci_{}"),
    ("malignancy AUROC", "probe/auroc", "probe/auroc_ci_{}"),
    ("  diameter alone", "probe/diameter_auroc", "probe/diameter_auroc_ci_{}"),
    ("  random weights", "probe/random_auroc", "probe/random_auroc_ci_{}"),
    ("  features + diameter", "probe/with_diameter_auroc", "probe/with_diameter_auroc_ci_{}"),
    ("  gain over diameter", "probe/gain_over_diameter", "probe/gain_over_diameter_ci_{}"),
)


def mlflow_run(entry_point: str, *parameters: str) -> str:
    """Run an entry point as a user would, and return the id of its run."""
    words = [word for parameter in parameters for word in ("-P", parameter)]
    mlflow = Path(sys.executable).with_name("mlflow")
    print(f"\n$ mlflow run . -e {entry_point} {' '.join(words)}".rstrip(), flush=True)
    subprocess.run([mlflow, "run", ".", "-e", entry_point, *words], cwd=PROJECT_ROOT, check=True)
    return tracking.newest_run(entry_point)


def table(columns: list[dict[str, float]], statuses: list[str]) -> str:
    """Lay the metrics of the two runs side by side, each with its interval."""
    heads = [choice[0].partition("=")[2] for choice in (LEARNS, MEETS_THE_WALL)]
    lines = [f"{'KoLeo on':24}" + "".join(f"{head:>28}" for head in heads)]
    lines.append(f"{'verdict':24}" + "".join(f"{status:>28}" for status in statuses))
    for label, key, interval in _ROWS:
        cells = [_cell(metrics, key, interval) for metrics in columns]
        lines.append(f"{label:24}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def _cell(metrics: dict[str, float], key: str, interval: str) -> str:
    if key not in metrics:
        return "-"
    if not interval:
        return f"{metrics[key]:.3f}"
    low, high = (metrics[interval.format(end)] for end in ("low", "high"))
    return f"{metrics[key]:.3f} [{low:.3f}, {high:.3f}]"


def compare_page(run_ids: list[str], experiment_id: str) -> str:
    """Return the address of MLflow's compare page on the server that `make ui` starts."""
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([experiment_id]))
    return f"http://127.0.0.1:5000/#/compare-runs?runs={runs}&experiments={experiments}"


def main() -> int:
    """Run the demo; the exit code of the first entry point that fails."""
    try:
        mlflow_run("prepare")
        trained = [mlflow_run("pretrain", *choice) for choice in (LEARNS, MEETS_THE_WALL)]
        probed = [mlflow_run("probe_malignancy", f"backbone=runs:/{run_id}/backbone") for run_id in trained]
    except subprocess.CalledProcessError as error:
        return error.returncode
    columns = [
        tracking.run_metrics(one) | tracking.run_metrics(other)
        for one, other in zip(trained, probed, strict=True)
    ]
    statuses = [tracking.run_tags(run_id)["dinox.status"] for run_id in trained]
    print("\n" + table(columns, statuses))
    print("\nA phantom shows that the path works; it says nothing about patients.")
    print("Compare the two runs in the browser:  make ui")
    print(f"then open  {compare_page(trained, tracking.experiment_of(trained[0]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
