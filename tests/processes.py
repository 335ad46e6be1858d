"""Whole processes in tests: started as `subprocess.Popen` starts them, never left behind, waited for by condition."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

WAIT_S = 120.0
"""A limit against hanging, far above what a busy machine needs; that something is fast is asserted nowhere."""

OpenProcess = Callable[..., "subprocess.Popen[Any]"]


@contextlib.contextmanager
def opening_processes() -> Iterator[OpenProcess]:
    """Give a `subprocess.Popen` whose processes lead groups; at the end those that run are killed and waited for."""
    with contextlib.ExitStack() as stack:

        def start(*args: Any, **options: Any) -> "subprocess.Popen[Any]":
            process = stack.enter_context(subprocess.Popen(*args, start_new_session=True, **options))
            stack.callback(kill_group, process)
            return process

        yield start


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that runs, with its children, and wait for it."""
    if process.poll() is None:  # Otherwise its number may be another's by now.
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(
    holds: Callable[[], object], process: "subprocess.Popen[Any] | None" = None, every_s: float = 0.001
) -> None:
    """Return when a condition holds; fail when the process that is to bring it about has ended, or never does."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert process is None or process.poll() is None or holds(), f"it ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(every_s)


def free_port() -> int:
    """Find a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Tell whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
