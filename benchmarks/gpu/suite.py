"""Stage a: the tests that need a GPU, as far as what they import is there."""

import re
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.stages import Setting
from pipelines.runtime.paths import PROJECT_ROOT

_MARK = re.compile(r"pytest\.mark\.gpu\b")
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected)")


def measure(setting: Setting) -> Iterator[Figure]:
    """Run them in a process of their own; a rehearsal collects them only."""
    files = marked_files()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command += [
        "--continue-on-collection-errors",
        *(["--collect-only"] if setting.is_rehearsal else []),
        *files,
    ]
    with (setting.folder / "suite.txt").open("w", encoding="utf-8") as log:
        ended = subprocess.run(command, cwd=PROJECT_ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    last = (setting.folder / "suite.txt").read_text(encoding="utf-8").strip().splitlines()[-1:]
    yield Figure("exit status of pytest", ended.returncode, "", "suite.txt holds what it said")
    for count, what in _COUNT.findall("".join(last)):
        yield Figure(f"tests {what}", float(count))


def marked_files() -> list[str]:
    """Test files that hold a test marked `gpu`: collecting all others would take longer than running these."""
    files = sorted((PROJECT_ROOT / "tests").rglob("test_*.py"))
    return [
        str(one.relative_to(PROJECT_ROOT)) for one in files if _MARK.search(one.read_text(encoding="utf-8"))
    ]
