"""kill -9 of `make demo` at random instants: given again it goes on, and ends with the table of an undisturbed one.

Run: python -m tests.kills_demo --folder DIR [--kills 10] [--seed 0]

A kill comes within a third of the demo's own time, so that the kills fall into all that it does: a demo given again
goes on where the one before was. Both demos run in clones of this checkout, with a store of their own.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipelines.runtime.paths import PROJECT_ROOT


def run(folder: Path, kills: int, seed: int) -> str:
    """Kill the demo, let it end, and return what differs from the table of an undisturbed one ("": nothing)."""
    draw, started = random.Random(seed), time.monotonic()
    code, expected = _demo(folder / "whole", None)
    seconds = time.monotonic() - started
    if code:
        raise RuntimeError(f"the undisturbed demo failed ({code}): {folder / 'whole.log'}")
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    done = ends = 0
    while done < kills:
        limit = draw.uniform(0.0, seconds / 3.0)
        code, table = _demo(folder / "killed", limit)
        if code not in (0, -signal.SIGKILL):
            return f"given again, it failed ({code}): {folder / 'killed.log'}"
        if code == 0 and table != expected:
            return f"it ended with\n{table}\ninstead of\n{expected}"
        done, ends = done + (code != 0), ends + (code == 0)
        print(f"{done} kills, {ends} ends, the last after {limit:.0f} s at most", flush=True)
    code, table = _demo(folder / "killed", None)
    return (
        "" if (code, table) == (0, expected) else f"it ended ({code}) with\n{table}\ninstead of\n{expected}"
    )


def _demo(clone: Path, limit: float | None) -> tuple[int, str]:
    """Run the demo in a clone of the checkout, killed after `limit` seconds; return its exit code and its table."""
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", str(PROJECT_ROOT), str(clone)], check=True)
    environment = os.environ | {
        "PYTHONPATH": f"{clone}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{clone / 'mlflow.db'}",
    }
    command = [sys.executable, "-m", "pipelines.demo"]
    with (clone.parent / f"{clone.name}.log").open("w+") as log:
        process = subprocess.Popen(
            command, cwd=clone, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(limit)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.seek(0)
        text = log.read()
    return process.returncode, text[text.rfind("teacher temperature   ") : text.rfind("A phantom shows")]


def main() -> int:
    """Return 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    fault = run(given.folder.resolve(), given.kills, given.seed)
    print(fault or "the table is that of the undisturbed demo")
    return int(bool(fault))


if __name__ == "__main__":
    sys.exit(main())
