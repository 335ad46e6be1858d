"""A training and the processes around it: one that should have been several, and one above that ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime.distributed import WorldError
from pipelines.tracking.run import SilentRun
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train
from tests.processes import OpenProcess


def test_a_training_within_one_process_is_not_several() -> None:
    with pytest.raises(WorldError, match="nproc=2 starts processes from the command line only"):
        train(PretrainConfig(nproc=2), SilentRun())


FOLLOW = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import sys, time
from pipelines.runtime.interrupts import StopWatch
watch = StopWatch()
print("listening", flush=True)
while watch.exit_code is None:
    time.sleep(0.02)
print(watch.exit_code, flush=True)
'''])
sys.stdin.read()
"""


def test_the_end_of_the_process_above_is_heard(open_process: OpenProcess) -> None:
    environment = {
        **os.environ,
        "MLFLOW_RUN_ID": "any",
        "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }
    environment.pop("DINOX_DEADLINE", None)
    pipe, command = subprocess.PIPE, [sys.executable, "-W", "ignore", "-c", FOLLOW]
    above = open_process(command, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert above.stdout.readline() == "listening\n"
    above.kill()
    above.wait()
    assert above.stdout.readline() == "143\n"
