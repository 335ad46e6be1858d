"""Change inputs at random and read each in a forked process; what fails is listed, and the same command goes on.

python -m tests.mutations --out FOLDER [--kinds dicom,recipe,...] [--count N] [--through read|command] [--again]

Each case is made from (seed, kind, number) alone. FOLDER/KIND-read.jsonl gets one line a case: read, refused, crash (an
exception that is no refusal, a message that is no sentence, a process that ended), hang (10 s of processor time; of a
command, 10 s more than with the unchanged input) or memory (1 GB more than at the start). `--again NUMBER` repeats one
case of one kind with its trace.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from tests.mutations.kinds import Kind

MOST_S, MOST_MB = 10.0, 1000
"""A command does its whole work, a training and its figures: it may take 10 s more than with the unchanged input."""
_TOGETHER = {"read": 25, "command": 1}
"""Cases that share a fork: to fork, and to write to memory for the first time, takes as long as to read a case."""
_WALL_S = 120.0
"""Of a case that computes nothing and does not end either; other work on the machine must not make a hang."""
_ENDINGS = {0: "read", 2: "refused", 3: "refused"}


def _mb(key: str) -> float:
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(key))


def _is_sentence(text: str) -> bool:
    from tests.mutations.change import SECRET

    return (
        10 < len(text) < 1500 and "\n" not in text.strip() and "Traceback" not in text and SECRET not in text
    )


def _outcome(kind: Any, folder: Path, shared: Path, through: str) -> tuple[str, str]:
    """Read a case here and return what came of it."""
    from transforms.refusal import Refusal, SeriesRefusedError

    try:
        if through == "read":
            kind.read(folder, shared)
            return "read", ""
        return _by_command(*kind.command(folder, shared), folder, shared.parent / "mlflow.db")
    except (Refusal, SeriesRefusedError) as refusal:
        said = " ".join(str(refusal).split())
        return ("refused" if _is_sentence(said) else "crash"), said[:300]
    except MemoryError:
        return "memory", traceback.format_exc()[-600:]
    except BaseException:
        return "crash", traceback.format_exc()[-1500:]


def _by_command(name: str, arguments: list[str], folder: Path, store: Path) -> tuple[str, str]:
    """Call the command line's own function, in this process, with a store of its own."""
    from pipelines.command.cli import main

    shutil.copy(store, folder / "mlflow.db")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.chdir(folder)
    said = open(folder / "said.txt", "w+", encoding="utf-8")
    sys.stdout = sys.stderr = said
    try:
        main(name, arguments)
    except SystemExit as ending:
        code = int(ending.code or 0)
    said.flush()
    lines = (folder / "said.txt").read_text().strip().splitlines()
    last = lines[-1] if lines else ""
    outcome = _ENDINGS.get(code, "crash")
    is_said = outcome != "refused" or _is_sentence(last)
    return (outcome if is_said else "crash"), f"exit {code}: {last[:300]}"


def _changed(kind: "Kind", case: str, unchanged: Path, scratch: Path, is_changed: bool) -> Path:
    """Return a copy of an input with the change of a case; a change that no file can hold is drawn again."""
    for draw in itertools.count():
        folder = Path(shutil.copytree(unchanged, scratch / f"case{draw}"))
        try:
            if is_changed:
                kind.change(random.Random(case if not draw else f"{case}/{draw}"), folder)
        except (ValueError, pa.ArrowException):  # Circular JSON, a type that Parquet does not have.
            continue
        return folder
    raise AssertionError


def _one(name: str, number: int, seed: int, base: Path, through: str, most_s: float) -> dict[str, Any]:
    """Make a case (unchanged if its number is below 0), read it in this process, and return its line."""
    from tests.mutations.kinds import KINDS

    kind, began = KINDS[name], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _changed(kind, f"{seed}/{name}/{number}", base / name, Path(scratch), number >= 0)
        Path("/proc/self/clear_refs").write_text("5")  # The highest memory counts from here.
        before, used = _mb("VmRSS"), time.process_time()
        for limit, most in (("AS", (_mb("VmSize") + 4000) * 2**20), ("CPU", used + most_s + 1)):
            which = getattr(resource, f"RLIMIT_{limit}")
            resource.setrlimit(which, (int(most), resource.getrlimit(which)[1]))
        outcome, said = _outcome(kind, folder, base / "shared", through)
        os.chdir(base)
        peak, cpu = _mb("VmHWM") - before, time.process_time() - used
    if peak > MOST_MB:
        outcome, said = "memory", f"{peak:.0f} MB; {outcome}: {said}"
    told = {"number": number, "seconds": round(time.monotonic() - began, 2), "cpu": round(cpu, 2)}
    return told | {"outcome": outcome, "said": said, "mb": round(peak)}


def _in_fork(
    name: str, numbers: list[int], seed: int, base: Path, through: str, most_s: float = MOST_S
) -> list[dict[str, Any]]:
    """Read cases one after the other in one fork; return their lines, up to the one that ended the fork."""
    with tempfile.TemporaryDirectory(dir=base) as scratch:
        report = Path(scratch) / "lines.jsonl"
        report.touch()
        pid = os.fork()
        if not pid:
            code = 1
            try:
                tempfile.tempdir = scratch
                with report.open("a", encoding="utf-8") as file:
                    for number in numbers:
                        line = _one(name, number, seed, base, through, most_s)
                        file.write(json.dumps(line) + "\n")
                        file.flush()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            time.sleep(0.01)
            if time.time() - report.stat().st_mtime > _WALL_S + 6 * most_s:
                os.kill(pid, signal.SIGKILL)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
    if len(lines) < len(numbers):
        by = os.waitstatus_to_exitcode(ended[1])
        outcome = "hang" if by in (-signal.SIGXCPU, -signal.SIGKILL) else "crash"
        lines.append(
            {"number": numbers[len(lines)], "outcome": outcome, "said": f"its process ended with {by}"}
        )
    return lines


def _warm(name: str, base: Path) -> None:
    """Read the unchanged input here once, so that no fork imports or builds again what all of them need."""
    from tests.mutations.kinds import KINDS

    with tempfile.TemporaryDirectory(dir=base) as scratch, Path("/dev/null").open("w") as nowhere:
        folder = Path(shutil.copytree(base / name, Path(scratch) / "case"))
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            KINDS[name].read(folder, base / "shared")


def _most_s(name: str, base: Path) -> float:
    """Return the processor time that a command may take: what it takes with the unchanged input, and the limit more."""
    line = _in_fork(name, [-1], 0, base, "command", 1e6)[0]
    if line["outcome"] != "read":
        raise SystemExit(f"the unchanged input of {name} is not read: {line}")
    print(f"{name}: its command takes {line['cpu']} s of processor time with the unchanged input", flush=True)
    return float(line["cpu"]) + MOST_S


def make_bases(base: Path, names: list[str]) -> None:
    """Make what is changed, once, in a fork: threads that start there do not trouble the forks that follow."""
    if (base / "mlflow.db").exists() and all((base / f"{name}.done").exists() for name in names):
        return
    pid = os.fork()
    if not pid:
        code = 1
        try:
            from mlflow import MlflowClient

            from tests.mutations.kinds import KINDS, make_shared

            MlflowClient().search_experiments()  # Makes the tables of an empty store, which takes seconds.
            if not (base / "shared" / "cohort" / "series.parquet").is_file():
                make_shared(base / "shared")
            for name in names:
                if not (base / f"{name}.done").exists():
                    shutil.rmtree(base / name, ignore_errors=True)
                    (base / name).mkdir(parents=True)
                    KINDS[name].make(base / name, base / "shared")
                    (base / f"{name}.done").touch()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("the inputs to change could not be made")


def run(
    base: Path, names: list[str], count: int, seed: int, through: str = "read"
) -> dict[str, Counter[str]]:
    """Run the cases that have no line yet, and return how all of them ended, by kind."""
    os.environ |= {"OMP_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(base / "config")}
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
    import torch

    torch.set_num_threads(1)
    (base / "config").mkdir(parents=True, exist_ok=True)
    make_bases(base, names)
    ended = {}
    for name in names:
        log = base / f"{name}-{through}.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        done = {line["number"] for line in lines}
        missing = [number for number in range(count) if number not in done]
        if missing:
            _warm(name, base)
        most_s = MOST_S if through == "read" or not missing else _most_s(name, base)
        with log.open("a", encoding="utf-8") as file:
            while missing:
                new = _in_fork(name, missing[: _TOGETHER[through]], seed, base, through, most_s)
                file.writelines(json.dumps(line) + "\n" for line in new)
                file.flush()
                lines += new
                missing = missing[len(new) :]
        ended[name] = Counter(line["outcome"] for line in lines if line["number"] < count)
    return ended


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", default="dicom,recipe,campaign,cohort,checkpoint,backbone,table")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--through", choices=["read", "command"], default="read")
    parser.add_argument("--again", type=int, default=-1)
    given = parser.parse_args()
    base, names = given.out.resolve(), given.kinds.split(",")
    if given.again >= 0:
        run(base, names, 0, given.seed)
        line = _in_fork(names[0], [given.again], given.seed, base, given.through, 600.0)[0]
        print(json.dumps(line, indent=1).replace("\\n", "\n"))
        return
    for name, ended in run(base, names, given.count, given.seed, given.through).items():
        print(f"{name:12} {sum(ended.values()):6} cases: {dict(ended)}")


if __name__ == "__main__":
    main()
