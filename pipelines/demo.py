"""The whole pipeline on a laptop: phantom, cohort, two pretrainings that differ in one key, their probes, one table."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, compare_page, how_served, newest_run
from probes.statistics.estimate import Estimate

LEARNS = ("optim.teacher_temp=0.02",)
"""Teacher temperature below the student's (0.1): the information gain between two views grows."""
MEETS_THE_WALL = ("optim.teacher_temp=0.1",)
"""Teacher temperature equal to the student's: the gain shrinks and the loss stays at ln K (entropy wall)."""

HELD_OUT = "holdout=0.6"
"""Twice as many patients as in the recipe, so that about 200 nodules are left to tell features from one another."""
GOES_ON = ("save_every=100", "resume=auto")
"""A demo that was interrupted, given again, continues its trainings at what they saved. The recipe saves less often and
stays as it is: a campaign is known by the hash of its recipe."""
AT_THE_NODULE = ("features=roi", "window=full", "size_mm=36", "image_px=168")
"""How the probe reads: patches of 3 mm inside a nodule and around it, with all of its HU."""

_ROWS = (
    ("loss (ln K = 6.24)", "loss/dino", "{:.3f}"),
    ("information gain G, nats", "teacher/gain", "{:.3f}"),
    ("retrieval top-1", "retrieval/top1", ""),
    ("  random weights", "retrieval/random_top1", ""),
    ("nodules held out", "probe/n_nodules", "{:.0f}"),
    ("malignancy AUROC", "probe/auroc", ""),
    ("  diameter alone", "probe/diameter_auroc", ""),
    ("  random weights", "probe/random_auroc", ""),
    ("beyond size and HU: z", "probe/nested_z", "{:.2f}"),
    ("  p", "probe/nested_p", "{:.4f}"),
    ("  partial R2", "probe/partial_r2", ""),
    ("  random weights", "probe/random_partial_r2", ""),
    ("  dictionary", "probe/dictionary_partial_r2", ""),
    ("partial R2 above random", "probe/over_random_r2", ""),
    ("  dictionary", "probe/dictionary_over_random_r2", ""),
)
"""Label, metric, and how to print it; "" prints it with its interval."""


def start(entry_point: str, name: str, *parameters: str, log: IO[str] | None = None) -> subprocess.Popen[str]:
    """Start an entry point as a user would, under a run name; its output goes to `log`, or to this terminal."""
    arguments = [text for parameter in parameters for text in ("-P", parameter)]
    mlflow = Path(sys.executable).with_name("mlflow")
    print(f"$ mlflow run . -e {entry_point} {' '.join(arguments)}".rstrip(), flush=True)
    command = [str(mlflow), "run", ".", "-e", entry_point, "--run-name", name, *arguments]
    # One thread each: on two cores two small networks at the same time are faster than one after the other.
    return subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true"},
        stdout=log,
        stderr=log,
        text=True,
    )


def side_by_side(entry_point: str, arms: Sequence[tuple[str, tuple[str, ...]]]) -> list[StoredRun]:
    """Run an entry point once per (run name, parameters) at the same time; only the output of the first is shown.

    Returns:
        The runs.

    Raises:
        subprocess.CalledProcessError: If one fails; its output is printed.
    """
    print()
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in arms[1:]]
        started = []
        for (name, parameters), log in zip(arms, [None, *logs], strict=True):
            started.append(start(entry_point, name, *parameters, log=log))
            stack.callback(started[-1].wait)  # After Ctrl-C too, which each of them answers by itself.
        codes = [process.wait() for process in started]
        for log, code in zip(logs, codes[1:], strict=True):
            if code:
                log.seek(0)
                print(log.read())
    for process, code in zip(started, codes, strict=True):
        if code:
            raise subprocess.CalledProcessError(code, process.args)
    return [newest_run(entry_point, name) for name, _ in arms]


def table(columns: list[dict[str, float]], statuses: list[str]) -> str:
    """Return the metrics of the two runs side by side, with their intervals."""
    heads = [choice[0].partition("=")[2] for choice in (LEARNS, MEETS_THE_WALL)]
    lines = [f"{'teacher temperature':24}" + "".join(f"{head:>28}" for head in heads)]
    lines.append(f"{'verdict':24}" + "".join(f"{status:>28}" for status in statuses))
    for label, key, form in _ROWS:
        cells = [_cell(metrics, key, form) for metrics in columns]
        lines.append(f"{label:24}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join(lines)


def _name(choice: tuple[str, ...]) -> str:
    return f"teacher temperature {choice[0].partition('=')[2]}"


def _cell(metrics: dict[str, float], key: str, form: str) -> str:
    if key not in metrics:
        return "-"
    if form:
        return form.format(metrics[key])
    return str(Estimate(metrics[key], metrics[f"{key}_ci_low"], metrics[f"{key}_ci_high"]))


def main() -> int:
    """Run the demo and return 0, or the exit code of the first entry point that fails."""
    try:
        side_by_side("prepare", [("phantom", ())])
        arms = [(_name(choice), (*choice, HELD_OUT, *GOES_ON)) for choice in (LEARNS, MEETS_THE_WALL)]
        trained = side_by_side("pretrain", arms)
        backbones = [(f"backbone=runs:/{run.run_id}/backbone", *AT_THE_NODULE) for run in trained]
        names = [f"probe of {name}" for name, _ in arms]
        probed = side_by_side("probe_malignancy", list(zip(names, backbones, strict=True)))
    except subprocess.CalledProcessError as error:
        return error.returncode
    columns = [one.metrics | other.metrics for one, other in zip(trained, probed, strict=True)]
    statuses = [run.tags[Tag.STATUS] for run in trained]
    print("\n" + table(columns, statuses))
    print("\nA phantom shows that the pipeline works; these results do not apply to patients.")
    command = how_served()
    print(f"Compare the two runs in the browser:  {f'{command}, then open' if command else ''}")
    print(compare_page([run.run_id for run in trained], trained[0].experiment_id))
    return 0


if __name__ == "__main__":
    if sys.argv[1:]:  # `--help` must not start minutes of work.
        print(f"{__doc__} It takes no options.")
        sys.exit(0 if "--help" in sys.argv else 2)
    sys.exit(main())
