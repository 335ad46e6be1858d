"""The dead man's switch: a process ends at its deadline, whatever it does and whoever is gone."""

import subprocess
import sys
import time

from pipelines.runtime.paths import PROJECT_ROOT

DEAF = """
import os, signal, sys, time
from pipelines.runtime import interrupts
interrupts.GRACE_S = 0.5
os.environ[interrupts.DEADLINE_ENV] = repr(time.time() + 0.5)
interrupts.watch_deadline()
interrupts.watch_deadline()
{body}
"""


def ended(body: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DEAF.format(body=body)]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)


def test_a_process_is_asked_first() -> None:
    body = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\ntime.sleep(30)"
    assert ended(body).returncode == 7


def test_one_that_is_deaf_to_signals_and_holds_the_interpreter_is_ended_by_the_kernel() -> None:
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsum(range(10**13))"
    assert ended(body).returncode == -14


def test_a_deadline_that_has_passed_ends_at_once() -> None:
    body = "time.sleep(30)"
    before = time.monotonic()
    assert ended(body).returncode == -15
    assert time.monotonic() - before < 25
