"""kill -9 of every command at random instants: nothing torn, each goes on when given again, and ends as if undisturbed.

Run: python -m tests.kills --folder DIR [--kills 200] [--minutes 60] [--seed 0] [--only prepare,campaign]

A cycle is a folder of its own in which a command is killed a few times, is given once more, and is compared with one
that nothing happened to. Cycles are drawn from the seed, and counts are kept in DIR/counts.json, so the same command
line goes on after any interruption. Commands are forks of one process that has imported everything: to import takes
longer than these commands do. The demo has a module of its own, `tests.kills_demo`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import chdir, suppress
from hashlib import sha256
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pandas as pd
import yaml
from safetensors import safe_open

from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[1]
KILLS_A_CYCLE = 4
SHARES = {"prepare": 30, "pretrain": 40, "probe_malignancy": 30, "finetune": 30, "export": 20, "nodules": 30}
SHARES |= {"report": 20, "campaign": 10}
"""Kills of each command, in proportion to `--kills`."""
_PRETRAIN = {
    "steps": 12, "batch_size": 4, "log_every": 2, "save_every": 2, "eval_every": 6, "eval_slices": 8,
    "backbone.depth": 1, "backbone.embed_dim": 16, "backbone.heads": 2, "backbone.image_px": 28,
    "views.size_px": 28, "head.prototypes": 32, "device": "cpu", "resume": "auto",
}  # fmt: skip
_PROBE = {
    "rule": "given", "size_mm": 14.0, "folds": 2, "repeats": 1, "n_bootstrap": 20, "draws": 99, "device": "cpu",
    "window": "full",
}  # fmt: skip
_CAMPAIGN = {
    "name": "killed",
    "question": "Is anything lost or paid twice?",
    "endpoint": {"metric": "loss/total", "goal": "minimize"},
    "stages": {"rehearsal": {"steps": 4, "seconds": 4.0}},
    "price_per_hour": 0.5,
    "budget": {"hours": 10.0},
    "stop": {"retries": 100},
    "arms": [{"name": "a"}, {"name": "b", "overrides": {"lr": 0.1}}],
}


class Place:
    """A folder with a store, in which one command is given, killed, and given again."""

    def __init__(self, setup: Path, folder: Path, command: str) -> None:
        self.setup, self.folder, self.command = setup, folder, command
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(setup / ("filled.db" if command == "report" else "blank.db"), folder / "mlflow.db")
        self.store = f"sqlite:///{folder / 'mlflow.db'}"
        self.kills_arms = False
        """Whether the running arms of a campaign are killed with it."""
        (folder / "campaign.yaml").write_text(yaml.safe_dump(_CAMPAIGN))

    def options(self) -> dict[str, Any]:
        """The options of the command in this place."""
        setup, own = self.setup, self.folder
        read = {"cohort": setup / "grained" / "c"}
        grained = read | {"backbone": setup / "b", "runs_dir": own / "runs"}
        return {
            "prepare": {"source": setup / "source", "cohort": own / "c", "workers": 2},
            "pretrain": _PRETRAIN | {"cohort": setup / "small", "runs_dir": own / "runs"},
            "probe_malignancy": _PROBE | grained,
            "finetune": _PROBE
            | grained
            | {"features": "mean_patch", "max_epochs": 3, "batch_size": 8, "mode": "full", "resume": "auto"},
            "export": {"backbone": setup / "b", "out": own / "e", "onnx": "no"},
            "nodules": {"rule": "given", "folds": 2, "repeats": 1, "n_bootstrap": 20} | read,
            "report": {"runs": (setup / "ids").read_text() if (setup / "ids").exists() else "", "out": own / "r.md"},
            "campaign": {"spec": own / "campaign.yaml", "parallel": 2},
        }[self.command]  # fmt: skip

    def start(self) -> int:
        """Fork a process that does what the command line would do; its output goes to `log.txt`."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["MLFLOW_TRACKING_URI"] = self.store
            os.environ["XDG_CONFIG_HOME"] = str(self.setup / "config")
            words = [word for key, value in self.options().items() for word in (f"--{key}", str(value))]
            resolve_name("pipelines.campaign.run").JOBS = self.folder / "jobs"
            one = ENTRY_POINTS[self.command]
            with chdir(self.folder):
                code = run_entry_point(one.name, one.load_schema(), one.run, one.recipe, words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def finish(self) -> float:
        """Give the command until it ends, and return its seconds."""
        begun = time.monotonic()
        _, status = os.waitpid(self.start(), 0)
        if code := os.waitstatus_to_exitcode(status):
            raise AssertionError(f"{self.command} ended with {code}: {self.log()[-1500:]}")
        return time.monotonic() - begun

    def kill_after(self, seconds: float) -> bool:
        """Give the command and kill it with all that it started; return whether it still ran."""
        pid, until = self.start(), time.monotonic() + seconds
        while time.monotonic() < until:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return False
            time.sleep(0.002)
        for one in [pid, *(self.arms() if self.kills_arms else ())]:
            with suppress(ProcessLookupError):
                os.killpg(one, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        return os.WIFSIGNALED(status)

    def arms(self) -> list[int]:
        """Return the processes of a campaign's running arms, by their command lines: numbers are used again."""
        numbers = [int(file.read_text() or 0) for file in self.folder.glob("jobs/*/*/pid")]
        commands = {number: Path(f"/proc/{number}/cmdline") for number in numbers}
        return [n for n, file in commands.items() if file.exists() and b"campaign.arm" in file.read_bytes()]

    def log(self) -> str:
        """What the commands of this place printed."""
        file = self.folder / "log.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def refuse_torn(self) -> None:
        """Read every file that has its name: none may be half of one."""
        with sqlite3.connect(self.folder / "mlflow.db") as store:
            assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        store.close()
        for checkpoints in self.folder.glob("runs/*/checkpoints"):
            for folder in (checkpoints, *(one for one in checkpoints.iterdir() if one.is_dir())):
                load_checkpoint(folder)
        for file in (one for one in self.folder.rglob("*") if one.is_file() and not one.name.startswith(".")):
            match file.suffix:
                case ".json":
                    json.loads(file.read_bytes())
                case ".npy":
                    np.load(file, mmap_mode="r")
                case ".parquet":
                    pd.read_parquet(file)
                case ".safetensors":
                    with safe_open(file, "np") as tensors:
                        assert tensors.keys()
        if (report := self.folder / "r.md").exists():
            assert report.read_text().rstrip().endswith("evidence about cancer.")

    def result(self) -> Any:
        """What must not depend on kills."""
        folder = self.folder
        if self.command == "prepare":
            return Cohort.open(folder / "c").sha256, _hashes(folder / "c", "*.parquet")
        if self.command == "export":
            return _hashes(folder / "e", "**/*")
        if self.command == "report":
            return [line for line in (folder / "r.md").read_text().splitlines() if "Generated" not in line]
        return _in_a_fork(lambda: self._recorded())

    def _recorded(self) -> Any:
        """Curves of the newest finished run or of all arms, hashes of its tables and of what was learned."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store)
        found = client.search_runs(["0"], "attributes.status = 'FINISHED'")
        if self.command == "campaign":
            found = [run for run in found if "dinox.arm" in run.data.tags]
            assert len(found) == len(_CAMPAIGN["arms"])
        else:
            found = [run for run in found if "dinox.resumes" not in run.data.tags][:1]
        kept: dict[str, Any] = {}
        for run in found:
            name = run.data.tags.get("dinox.arm", "")
            for metric in run.data.metrics:
                if not metric.startswith(("perf/", "system/", "campaign/")):
                    points = client.get_metric_history(run.info.run_id, metric)
                    kept[f"{name}{metric}"] = sorted({(point.step, point.value) for point in points})
            artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
            kept |= {f"{name}{key}": one for key, one in _hashes(artifacts, "tables/*").items()}
            kept |= {
                f"{name}{key}": one for key, one in _hashes(artifacts, "backbone*/*.safetensors").items()
            }
            own = self.folder / "runs" / run.info.run_id
            kept |= {f"{name}{key}": one for key, one in _hashes(own, "adapters/*/*.safetensors").items()}
        return kept


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


def _in_a_fork(read: Callable[[], Any]) -> Any:
    """Read the store in a process of its own: what this one opens, every fork of it would inherit."""
    end, begin = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = json.dumps(read())
        except BaseException:
            text = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(begin, "w") as pipe:
            pipe.write(text)
        os._exit(0)
    os.close(begin)
    with os.fdopen(end) as pipe:
        told = json.loads(pipe.read())
    os.waitpid(pid, 0)
    assert "error" not in told, told
    return told


def make_setup(setup: Path) -> None:
    """Write what the commands read: a source, two cohorts, a backbone, an empty store, and one with runs to report."""
    from mlflow import MlflowClient

    from pipelines.ingest.config import PrepareConfig
    from pipelines.ingest.preparation import prepare_cohort
    from pipelines.phantom.source import write_phantom
    from tests.pipelines.probing.grain import LABELS, nodule_with_grain
    from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of

    setup.mkdir(parents=True)
    os.environ["XDG_CONFIG_HOME"] = str(setup / "config")
    write_phantom(setup / "source", n_patients=6, size_px=64, height_mm=30.0, workers=1)
    prepare_cohort(PrepareConfig(source=str(setup / "source"), cohort=str(setup / "small"), workers=1))
    cohort_of(setup / "grained", nodule_with_grain, LABELS)
    backbone(setup / "b", holdout=1.0)
    with chdir(setup):
        MlflowClient(f"sqlite:///{setup / 'blank.db'}").search_experiments()


def fill_store(setup: Path) -> None:
    """Keep a pretraining and a probe of it for `report`."""
    place = Place(setup, setup / "filled", "pretrain")
    place.finish()
    place.command = "probe_malignancy"
    place.finish()
    ids = _in_a_fork(lambda: _ids(place.store))
    shutil.copy(setup / "filled" / "mlflow.db", setup / "filled.db")
    (setup / "ids").write_text(",".join(ids))


def _ids(store: str) -> list[str]:
    from mlflow import MlflowClient

    return [run.info.run_id for run in MlflowClient(store).search_runs(["0"])]


def cycle(setup: Path, folder: Path, command: str, seed: str, seconds: float, expected: Any) -> int:
    """Kill a command a few times, give it once more and compare; return the number of kills."""
    draw, kills, place = random.Random(seed), 0, Place(setup, folder, command)
    for number in range(KILLS_A_CYCLE):
        place.kills_arms = number % 2 == 1
        kills += place.kill_after(draw.uniform(0.0, seconds))
        place.refuse_torn()
    place.finish()
    place.refuse_torn()
    found = json.loads(json.dumps(place.result()))
    if found != expected:
        differing = (
            [key for key in expected if found.get(key) != expected[key]] if isinstance(found, dict) else found
        )
        raise AssertionError(f"{command} ended otherwise than undisturbed: {differing}"[:2000])
    shutil.rmtree(folder)
    return kills


def main() -> int:
    """Go on until all kills are done or the time is over; return 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES))
    given = parser.parse_args()
    folder, until = given.folder.resolve(), time.monotonic() + 60.0 * given.minutes
    setup, file = folder / "setup", folder / "counts.json"
    for command in SHARES:
        resolve_name(ENTRY_POINTS[command].body)  # Imported here, for all forks.
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        done = os.fork()  # What it opens is its own.
        if not done:
            try:
                make_setup(setup)
                fill_store(setup)
                (folder / "ready").touch()
            finally:
                os._exit(0)
        os.waitpid(done, 0)
        assert (folder / "ready").exists()
    counts = json.loads(file.read_text()) if file.exists() else {}

    def keep() -> None:
        temporary = file.with_suffix(".part")
        temporary.write_text(json.dumps(counts, indent=1) + "\n")
        temporary.replace(file)

    names = given.only.split(",")
    while time.monotonic() < until:
        wanted = {n: given.kills * SHARES[n] / sum(SHARES.values()) for n in names if n in SHARES}
        left = [n for n in wanted if counts.get(n, {}).get("kills", 0) < wanted[n]]
        if not left:
            break
        command = min(left, key=lambda n: counts.get(n, {}).get("kills", 0) / wanted[n])
        own = counts.setdefault(command, {"kills": 0, "cycles": 0, "faults": []})
        if "expected" not in own:
            place = Place(setup, folder / "whole" / command, command)
            own["seconds"] = place.finish()
            own["expected"] = json.loads(json.dumps(place.result()))
        try:
            seed = f"{given.seed}-{command}-{own['cycles']}"
            work = folder / "work" / f"{command}-{own['cycles']}"
            own["kills"] += cycle(setup, work, command, seed, own["seconds"], own["expected"])
        except AssertionError as fault:
            own["faults"].append(str(fault))
            own["kills"] += KILLS_A_CYCLE
        except Exception:
            own["faults"].append(traceback.format_exc())
            own["kills"] += KILLS_A_CYCLE
        own["cycles"] += 1
        keep()
        print(command, own["cycles"], own["kills"], len(own["faults"]), flush=True)
    for name, own in counts.items():
        print(f"{name}: {own['kills']} kills in {own['cycles']} cycles, {len(own['faults'])} faults")
    return int(any(own["faults"] for own in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
