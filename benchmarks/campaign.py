"""What a campaign costs beside its arms: no-op arms through it, against the same processes without it.

Run:      python -m benchmarks.campaign      (64 arms, 4 at a time; about two minutes on 2 cores)
Expected: below 2 s an arm beyond the bare processes, and little memory beside what MLflow itself takes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from benchmarks.timing import Row
from pipelines.runtime.paths import PROJECT_ROOT

PARALLEL = 4
# Both ways end by printing their own peak memory, in MB. Not ru_maxrss: a process inherits that of its parent.
PEAK = "print('peak', next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM')) // 1024)"
CAMPAIGN = "import sys; sys.argv = ['campaign', '--spec', '{spec}', '--parallel', '{parallel}']\n" + (
    "from pipelines.command.cli import main\ntry:\n    main('campaign')\nfinally:\n    " + PEAK
)
STORE = f"from pipelines.tracking.store import client\nclient().search_runs(['0'])\n{PEAK}"


def measure(tiny: bool = False, arms: int = 12) -> Iterator[Row]:
    """Compare wall time and memory."""
    arms = 1 if tiny else arms
    with tempfile.TemporaryDirectory(prefix="dinox-bench-") as folder:
        root = Path(folder)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
        }
        own_mb = peak_mb(STORE, environment)  # Makes the store too.
        start = time.perf_counter()
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(lambda seed: bare(seed, environment), range(arms)))
        bare_s = time.perf_counter() - start
        start = time.perf_counter()
        with_mb = peak_mb(CAMPAIGN.format(spec=campaign_file(root, arms), parallel=PARALLEL), environment)
        campaign_s = time.perf_counter() - start
    name = f"campaign of {arms} no-op arms, {PARALLEL} at a time"
    yield Row(
        f"{name}, over the bare processes", campaign_s / bare_s, "", f"{campaign_s:.0f} s : {bare_s:.0f} s"
    )
    yield Row(f"{name}, overhead an arm / 2 s", (campaign_s - bare_s) / arms / 2.0, "<= 1", "wall time")
    yield Row(
        "memory of a campaign, over MLflow with a store open",
        with_mb / own_mb,
        "",
        f"{with_mb} : {own_mb} MB",
    )


def campaign_file(root: Path, arms: int) -> Path:
    """Write a campaign of rehearsals that do nothing."""
    tree = {
        "name": f"noop-{os.getpid()}",
        "question": "What does the orchestrator cost?",
        "endpoint": {"metric": "loss/total", "goal": "minimize"},
        "stages": {"rehearsal": {"steps": 1}},
        "seeds": list(range(arms)),
        "budget": {"hours": 10.0},
        "arms": [{"name": "arm"}],
    }
    file = root / "campaign.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def bare(seed: int, environment: dict[str, str]) -> None:
    """Run one arm's entry point without a campaign."""
    command = [sys.executable, "-m", "pipelines.rehearsal", "--steps", "1", "--seed", str(seed)]
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True, capture_output=True)


def peak_mb(code: str, environment: dict[str, str]) -> int:
    """Run code in a process of its own and return the peak memory that it prints at its end."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(done.stdout.strip().splitlines()[-1].split()[1])


if __name__ == "__main__":
    for line in measure(arms=64):
        print(f"{line.name}: {line.ratio:.2f} {line.target} ({line.unit})")
