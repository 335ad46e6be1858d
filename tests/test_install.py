"""Files that nothing imports: how torch is chosen, what is released, and which Pythons are tested."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def setup_commands(folder: Path, *variables: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("no make")
    place = [f"VENV={folder / 'v'}", f"PYTHON={sys.executable}"]
    command = ["make", "--dry-run", "setup", *place, *variables]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_a_cpu_build_of_torch_is_asked_for_through_pip_and_its_absence_is_said(tmp_path: Path) -> None:
    known = dict(
        line.split("<=") for line in (ROOT / "constraints.txt").read_text().splitlines() if "<=" in line
    )
    bare = setup_commands(tmp_path, "TORCH=cpu")
    assert f"torch=={known['torch']}+cpu torchvision=={known['torchvision']}+cpu" in bare
    assert "make setup TORCH_INDEX=ADDRESS" in bare
    own = setup_commands(tmp_path, "TORCH=cpu", "TORCH_INDEX=https://wheels.example/cpu")
    assert "--index-url https://wheels.example/cpu torch torchvision" in own
    for text in (bare, own):  # The rest comes after it, so that pip keeps the torch that is there.
        assert text.index("torchvision") < text.index("--editable")
    assert '"cuda" = cpu' in setup_commands(tmp_path, "TORCH=cuda")


def test_a_release_has_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_workflow_tests_every_python_that_is_allowed() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8"))["jobs"]
    pythons = jobs["known"]["strategy"]["matrix"]["python"]
    assert PROJECT["requires-python"] == f">={pythons[0]}"
    assert {"known", "newest", "lowest", "wheel"} <= jobs.keys()


def test_the_audit_asks_for_one_version_of_every_package_and_passes_none_in_silence(tmp_path: Path) -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text(encoding="utf-8"))["jobs"]
    (line,) = (
        step["run"] for job in jobs.values() for step in job["steps"] if "pip-audit" in step.get("run", "")
    )
    lock, audit = line.removeprefix("pip install pip-audit && ").split(" && ")
    assert f"{lock} && {audit}" in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert "--strict" in audit  # Else what is not found counts as free of advisories.
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    subprocess.run(lock, shell=True, cwd=tmp_path, check=True)
    locked = (tmp_path / audit.partition("--requirement ")[2].split()[0]).read_text()
    pins = [one for one in locked.splitlines() if one and not one.startswith("#")]
    assert len(pins) > 40
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", one) for one in pins)


def test_the_image_says_that_shared_memory_is_needed_and_runs_as_no_root() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "--shm-size" in text
    assert "\nUSER 10001\n" in text
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".git", "runs", "cohorts"} <= set(ignored)
