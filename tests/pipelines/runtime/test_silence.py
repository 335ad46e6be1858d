"""Long work is never silent, and what is printed reaches a pipe line by line."""

import io
import sys

import pytest

from pipelines.runtime.silence import never_silent
from tests.processes import wait_until


class Pipe(io.StringIO):
    """A stream that shows its reader only what was flushed, as a pipe does."""

    read = ""

    def flush(self) -> None:
        self.read = self.getvalue()


def test_silence_ends_with_a_line_that_says_where_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Pipe(), Pipe()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with never_silent("probe", silent_s=0.02):
        wait_until(lambda: out.read.count("\n") >= 2)
    line = out.read.splitlines()[0]
    assert line.startswith("probe: at work for 0 s")
    assert not err.read
    assert (sys.stdout, sys.stderr) == (out, err)


def test_who_speaks_is_not_interrupted_and_is_heard_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Pipe(), Pipe()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with never_silent("probe", silent_s=60.0):
        print("first")
        assert out.read == "first\n"  # A pipe would otherwise hold 8 kB back.
        print("a bar", end="\r", file=sys.stderr)
        assert sys.stderr.isatty() is False
    assert out.getvalue() == "first\n"
