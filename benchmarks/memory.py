"""Does a run grow? Resident memory of a whole `pretrain` of 2000 tiny updates, with its evaluations and checkpoints."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.timing import Row
from pipelines.phantom.wall_cohort import make_wall_cohort
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.store import STORE_ENV

UPDATES, SETTLED, EVERY = 2000, 500, 100
"""An evaluation and a checkpoint every 100 updates. Up to the fifth evaluation the allocator's pools still fill (some
45 MiB), so memory is compared from there on: a leak would go on."""
VIEWS: dict[str, dict[str, object]] = {
    "triplets": {},
    "cubes": {
        "slices": "all",
        "backbone.image_depth_px": 8,
        "backbone.patch_depth_px": 8,
        "views.depth_px": 8,
        "views.extent": "mm",
        "views.fov_mm": "[20,30]",
    },
}

CHILD = """
import sys
from pathlib import Path
from pipelines.command.cli import run_entry_point
from pipelines.training.run import train
from pipelines.training.config import PretrainConfig
from pipelines.training.trainer import Trainer

plain, settled, updates = Trainer.update, int(sys.argv[1]), int(sys.argv[2])

def watched(self, batches):
    plain(self, batches)
    if self.step in (settled, updates):
        resident = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))
        print("resident", self.step, resident.split()[1], flush=True)

Trainer.update = watched
sys.exit(run_entry_point("pretrain", PretrainConfig, train, "wall", sys.argv[3:]))
"""


def measure(tiny: bool = False) -> list[Row]:
    """Train in a process of its own and compare its memory early and late."""
    if not Path("/proc/self/status").exists():
        return []
    settled, updates, every = (2, 4, 2) if tiny else (SETTLED, UPDATES, EVERY)
    return [_row_of(what, views, settled, updates, every) for what, views in VIEWS.items()]


def _row_of(what: str, views: dict[str, object], settled: int, updates: int, every: int) -> Row:
    with TemporaryDirectory(prefix="dinox-bench-") as folder:
        make_wall_cohort(Path(folder) / "cohort", volumes=8, slices_each=32)
        settings = {
            "cohort": f"{folder}/cohort",
            "runs_dir": f"{folder}/runs",
            "steps": updates,
            "batch_size": 8,
            "backbone.depth": 1,
            "backbone.embed_dim": 16,
            "backbone.heads": 2,
            "eval_every": every,
            "save_every": every,
            "eval_slices": 32,
            "workers": 0,
        } | views
        arguments = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            STORE_ENV: f"sqlite:///{folder}/mlflow.db",
            "PYTHONPATH": str(PROJECT_ROOT),
        }
        # The folder is the child's: a store keeps artifacts below the folder in which it is made.
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(settled), str(updates), *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("resident")]
    resident_mib = {int(step): int(kib) / 1024 for _, step, kib in lines}
    return Row(
        f"memory that a run on {what} gains from update {settled} to {updates}",
        resident_mib[updates] - resident_mib[settled],
        "<= 20",
        f"MiB on {resident_mib[settled]:.0f} MiB, with {(updates - settled) // every} evaluations and checkpoints",
    )
