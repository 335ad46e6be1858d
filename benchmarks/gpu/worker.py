"""One process that measures stages in turn, and the parent that goes on with the next when it fails or hangs."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.figures import Figure, append, read
from benchmarks.gpu.stages import ALL, Setting

BEGINS, ENDS = Figure("", None, "", "begins"), Figure("", None, "", "ends")
_POLL_S = 0.2
_GRACE = 1.3
"""A stage may overrun its budget by this factor before its process is ended."""
Command = Callable[[Sequence[str]], list[str]]


def work(letters: Sequence[str], folder: Path, is_rehearsal: bool) -> int:
    """Measure stages in this process; the first that fails ends it, since a failed kernel spoils all later ones."""
    device = torch.device("cpu" if is_rehearsal else "cuda")
    for letter in letters:
        append(folder, letter, BEGINS)
        deadline = time.monotonic() + ALL[letter].budget_s
        setting = Setting(device, is_rehearsal, deadline, folder, read(folder))
        try:
            for figure in ALL[letter].measure()(setting):
                append(folder, letter, figure)
                print(f"{letter} {figure.name}: {figure.value} {figure.unit} {figure.note}", flush=True)
        except Exception as error:  # Whatever it is, the other stages are still worth their figures.
            with (folder / "errors.txt").open("a", encoding="utf-8") as file:
                file.write(f"stage {letter}\n{traceback.format_exc()}\n")
            said = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            append(folder, letter, Figure("failed", None, "", said))
            print(f"{letter} failed: {said}", flush=True)
            return 1
        append(folder, letter, ENDS)
    return 0


def command(folder: Path, is_rehearsal: bool) -> Command:
    """How the parent starts a worker for some stages."""
    options = ["--rehearse"] if is_rehearsal else []
    start = [sys.executable, "-m", "benchmarks.gpu", "--worker", "--out", str(folder), *options, "--stages"]
    return lambda letters: [*start, "".join(letters)]


def run_all(letters: Sequence[str], folder: Path, start: Command, cwd: Path, total_s: float) -> None:
    """Measure every stage; one that fails, hangs or ends its process is noted and the next ones go on."""
    left, deadline = list(letters), time.monotonic() + total_s
    while left and time.monotonic() < deadline:
        seen = len(read(folder))
        process = subprocess.Popen(start(left), cwd=cwd, start_new_session=True)
        try:
            why = _watched(process, folder, seen, deadline)
        finally:
            _end(process)
        lines = read(folder)[seen:]
        done = {line.stage for line in lines if line.figure == ENDS}
        left = [letter for letter in left if letter not in done]
        if left and why:
            at = lines[-1].stage if lines and lines[-1].stage in left else left[0]
            if not any(line.stage == at and line.figure.name == "failed" for line in lines):
                append(folder, at, Figure("failed", None, "", why))
            left.remove(at)
    for letter in left:
        append(folder, letter, Figure("not run", None, "", "the time for all stages was spent"))


def _watched(process: subprocess.Popen[bytes], folder: Path, seen: int, deadline: float) -> str:
    """Wait for a worker; return why it did not end well, or ""."""
    began, at = time.monotonic(), ""
    while process.poll() is None:
        time.sleep(_POLL_S)
        starts = [line.stage for line in read(folder)[seen:] if line.figure == BEGINS]
        if starts and starts[-1] != at:
            began, at = time.monotonic(), starts[-1]
        limit = ALL[at].budget_s * _GRACE if at else ALL["a"].budget_s
        if time.monotonic() - began > limit:
            return f"ended after {limit:.0f} s, over its budget"
        if time.monotonic() > deadline:
            return "ended: the time for all stages was spent"
    return f"its process ended with {process.returncode}" if process.returncode else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker with its loaders and tests."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
