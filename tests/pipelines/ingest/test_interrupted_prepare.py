"""`prepare`, killed or started twice at any time, ends in the same bytes as an undisturbed run."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cohort.description import described
from pipelines.cohort.folder import Cohort
from tests.processes import OpenProcess

pytestmark = pytest.mark.slow

Start = Callable[[Path], "subprocess.Popen[bytes]"]

PROGRAM = """
import sys
from pipelines.ingest.preparation import prepare_cohort
from pipelines.ingest.config import PrepareConfig
if __name__ == "__main__":
    prepare_cohort(PrepareConfig(source=sys.argv[1], cohort=sys.argv[2], workers=2))
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    path = tmp_path / "prepare_it.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def start(program: Path, small_phantom_source: Path, open_process: OpenProcess) -> Start:
    """Starts to prepare the phantom into a cohort."""

    def begin(cohort: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, str(program), str(small_phantom_source), str(cohort)]
        with program.with_suffix(".stderr").open("ab") as log:
            return open_process(command, stderr=log)

    return begin


def said(program: Path) -> str:
    return program.with_suffix(".stderr").read_text(errors="replace")[-3000:]


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def assert_only_whole_files(cohort: Path) -> None:
    """What a row names is there and is what the row says, whatever else was cut off."""
    for row in (cohort / "rows").glob("[!.]*.json"):
        assert (cohort / "volumes" / f"{row.stem}.npy").is_file()
        assert (cohort / "body" / f"{row.stem}.npy").is_file()
    if (cohort / "series.parquet").is_file() and "next" not in described(cohort):
        assert Cohort.open(cohort).verify() == []


def test_killed_50_times_it_resumes_to_the_same_bytes(start: Start, program: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0, said(program)
    duration = time.monotonic() - began
    draw = random.Random(0)
    cohort = tmp_path / "killed"
    n_killed = 0
    for round_number in range(500):
        if draw.random() < 0.3:  # else all volumes are soon there, and nothing is left to interrupt
            for row in (cohort / "rows").glob("[!.]*.json"):
                row.unlink()
        process = start(cohort)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0.3, 1.1) * duration)  # Any instant will do.
        if process.poll() is None:
            # Half of the time the parent alone, so that its workers have to notice.
            (os.killpg if round_number % 2 else os.kill)(process.pid, signal.SIGKILL)
            n_killed += 1
        process.wait()
        assert_only_whole_files(cohort)
        if n_killed == 50:
            break
    assert n_killed == 50
    assert start(cohort).wait() == 0, said(program)
    assert contents(cohort) == contents(tmp_path / "undisturbed")


def test_two_at_once_do_no_harm(start: Start, program: Path, tmp_path: Path) -> None:
    assert start(tmp_path / "alone").wait() == 0, said(program)
    both = [start(tmp_path / "both") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0], said(program)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
