"""A process ends at its deadline, whatever it does and even if its parent is gone."""

import signal
import subprocess
import sys

from pipelines.runtime.paths import PROJECT_ROOT
from tests.processes import WAIT_S

WATCHED = """
import os, signal, sys, time
from pipelines.runtime import interrupts
{before}
interrupts.GRACE_S = {grace_s}
os.environ[interrupts.DEADLINE_ENV] = repr(time.monotonic() + {left_s})
interrupts.watch_deadline()
interrupts.watch_deadline()
{body}
"""
LONG_S = 10 * WAIT_S  # Whoever has to wait for this has not been ended.
SLEEPS = f"time.sleep({LONG_S})"
WAITS = "time.sleep(1); sys.exit(3)"  # As long as a deadline that has passed by mistake needs to end it.


def ended(before: str, body: str, left_s: float, grace_s: float) -> int:
    """Exit code of a process that watches its deadline; minus the signal that ended it."""
    program = WATCHED.format(before=before, body=body, left_s=left_s, grace_s=grace_s)
    return subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, timeout=WAIT_S).returncode


def test_a_process_is_asked_first() -> None:
    answers = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"
    assert ended(answers, SLEEPS, left_s=0.5, grace_s=LONG_S) == 7


def test_one_that_is_deaf_to_signals_and_holds_the_interpreter_is_ended_by_the_kernel() -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    assert ended(deaf, "sum(range(10**13))", left_s=0.5, grace_s=0.5) == -signal.SIGALRM


def test_a_clock_that_is_set_moves_no_deadline() -> None:
    day_later = "now = time.time; time.time = lambda: now() + 86400.0"
    assert (
        ended(f"{day_later}; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", WAITS, LONG_S, LONG_S)
        == 3
    )
    day_earlier = day_later.replace("+ 8", "- 8")
    assert (
        ended(f"{day_earlier}; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", SLEEPS, 0.5, LONG_S)
        == 7
    )


def test_a_deadline_that_has_passed_ends_at_once() -> None:
    assert ended("", SLEEPS, left_s=-LONG_S, grace_s=LONG_S) == -signal.SIGTERM
