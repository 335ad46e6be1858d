"""kill -9 of `make demo` at random instants: given again it goes on, and ends with the table of an undisturbed one.

Run: python -m tests.kills_demo --folder DIR [--kills 10] [--within 180] [--seed 0]

A kill comes within 180 s, so that kills fall into all that the demo does: given again it goes on where the one before
was. Both demos run in clones of this checkout, with a store of their own; the same command line goes on after any
interruption.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pipelines.runtime.paths import PROJECT_ROOT


def run(folder: Path, kills: int, within_s: float, seed: int) -> str:
    """Kill the demo, let it end, and return what differs from the table of an undisturbed one ("": nothing)."""
    whole, counted = folder / "whole.json", folder / "counts.json"
    if not whole.exists():
        code, table = _demo(folder / "whole", None)
        if code:
            raise RuntimeError(f"the undisturbed demo failed ({code}): {folder / 'whole.log'}")
        whole.write_text(json.dumps(table))
    expected = json.loads(whole.read_text())
    done, ends = json.loads(counted.read_text()) if counted.exists() else (0, 0)
    while True:
        limit = random.Random(f"{seed}-{done}-{ends}").uniform(0.0, within_s) if done < kills else None
        code, table = _demo(folder / "killed", limit)
        if code not in (0, -signal.SIGKILL):
            return f"given again, it failed ({code}): {folder / 'killed.log'}"
        if code == 0 and table != expected:
            return f"it ended with\n{table}\ninstead of\n{expected}"
        if limit is None:
            return ""
        done, ends = done + (code != 0), ends + (code == 0)
        counted.write_text(json.dumps([done, ends]))
        print(f"{done} kills, {ends} ends; the last within {limit:.0f} s", flush=True)


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
    parser.add_argument("--within", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    fault = run(given.folder.resolve(), given.kills, given.within, given.seed)
    print(fault or "the table is that of the undisturbed demo")
    return int(bool(fault))


if __name__ == "__main__":
    sys.exit(main())
