"""Measure on one GPU in eight minutes: `python -m benchmarks.gpu`; `--rehearse` runs every line on a CPU, tiny.

Figures are on disk as they are found, in the folder of `--out`; a stage that fails does not stop the rest.
`docs/gpu.md` says how to prepare such a machine and how to read what comes back.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.__main__ import machine
from benchmarks.gpu.figures import LINES, TABLE, read, table
from benchmarks.gpu.stages import ALL, STAGES
from benchmarks.gpu.worker import command, run_all, work
from pipelines.runtime.paths import PROJECT_ROOT

TOTAL_S = 8 * 60


def main(words: list[str]) -> int:
    """Run the stages that are asked for; 1 if one has failed."""
    options = _options(words)
    folder: Path = options.out
    if options.worker:
        return work(options.stages, folder, options.rehearse)
    if options.train:
        return _train(options)
    if not options.rehearse and not torch.cuda.is_available():
        raise SystemExit("no GPU is here; --rehearse runs every stage on the CPU, which measures nothing")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LINES, TABLE, "errors.txt"):
        (folder / name).unlink(missing_ok=True)
    run_all(options.stages, folder, command(folder, options.rehearse), PROJECT_ROOT, TOTAL_S)
    lines = read(folder)
    titles = {letter: f"{letter}, {stage.title}" for letter, stage in ALL.items()}
    head = machine() + (" A rehearsal: these figures mean nothing." if options.rehearse else "")
    (folder / TABLE).write_text(table(lines, titles, head), encoding="utf-8")
    print((folder / TABLE).read_text(encoding="utf-8"))
    return int(any(line.figure.name in ("failed", "not run") for line in lines))


def _train(options: argparse.Namespace) -> int:
    from benchmarks.gpu.train import train  # What it needs may be missing where stages are measured.

    device = torch.device("cuda" if torch.cuda.is_available() and not options.rehearse else "cpu")
    train(options.train, options.cohort, options.out, device)
    return 0


def _options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny, on the CPU: shows that every line runs"
    )
    parser.add_argument("--stages", default="", help="letters of stages, in the order to run them")
    parser.add_argument(
        "--out", type=Path, default=PROJECT_ROOT / "runs" / "gpu", help="folder of the figures"
    )
    parser.add_argument(
        "--train", type=float, metavar="MINUTES", help="train on --cohort for that long instead"
    )
    parser.add_argument(
        "--cohort", type=Path, help="a cohort, such as one that benchmarks.gpu.pack made smaller"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.stages = options.stages or "".join(ALL if options.rehearse else STAGES)
    if options.train and not options.cohort:
        raise SystemExit("--train needs --cohort, the folder of a cohort")
    if unknown := sorted(set(options.stages) - set(ALL)):
        raise SystemExit(f"no stage is called {', '.join(unknown)}; there are {', '.join(ALL)}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
