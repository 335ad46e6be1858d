"""Which run is continued: the newest free unfinished one of the same recipe and cohort, with the same settings."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.runtime.json_files import DamagedFileError
from pipelines.tracking.changes import Change
from pipelines.training.run_folder import ResumeError, RunFolder
from tests.processes import OpenProcess

CONFIG = {"steps": 100, "optim.lr": 1e-3, "views.fraction": (0.5, 1.0), "workers": 0, "cohort": "a/b"}
DEFAULTS = {"views.size_px": 224, "views.mirror": "x"}


def create(runs: Path, run_id: str, recipe: str = "demo", cohort: str = "sha", age_s: float = 0.0) -> Path:
    folder = RunFolder.create(runs, run_id, recipe, cohort, CONFIG)
    folder.release()
    when = (folder.path / "run.json").stat().st_mtime - age_s
    os.utime(folder.path / "run.json", (when, when))
    return folder.path


def find(
    runs: Path, resume: str = "auto", config: dict = CONFIG, allowed: tuple[str, ...] = ()
) -> str | None:
    folder = RunFolder.find(runs, resume, "demo", "sha", config, set(allowed), DEFAULTS)
    if folder is None:
        return None
    assert folder.is_resumed
    folder.release()
    return folder.run_id


def finish(runs: Path, run_id: str) -> None:
    folder = RunFolder.find(runs, run_id, "demo", "sha", CONFIG, set(), DEFAULTS)
    assert folder is not None
    folder.mark_finished()
    folder.release()


def test_auto_takes_the_newest_unfinished_run_of_the_recipe_and_cohort(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    create(tmp_path, "oldest", age_s=300)
    create(tmp_path, "middle", age_s=200)
    create(tmp_path, "other-recipe", recipe="vit_small", age_s=100)
    create(tmp_path, "other-cohort", cohort="elsewhere", age_s=50)
    create(tmp_path, "newest")
    assert find(tmp_path) == "newest"
    finish(tmp_path, "newest")
    assert find(tmp_path) == "middle"
    assert find(tmp_path, "oldest") == "oldest"
    assert RunFolder.state(tmp_path, "newest") == "finished"
    assert RunFolder.state(tmp_path, "middle") == "begun"
    assert RunFolder.state(tmp_path, "never") == "absent"


@pytest.mark.parametrize(
    ("run_id", "words"), [("done", "it is finished"), ("never", "there is no run 'never'")]
)
def test_a_named_run_that_cannot_be_continued_is_refused(tmp_path: Path, run_id: str, words: str) -> None:
    create(tmp_path, "done")
    finish(tmp_path, "done")
    with pytest.raises(ResumeError, match=words):
        find(tmp_path, run_id)


def test_an_option_younger_than_the_run_had_its_default(tmp_path: Path) -> None:
    create(tmp_path, "older")
    assert find(tmp_path, config=CONFIG | {"views.mirror": "x"}) == "older"
    with pytest.raises(ResumeError, match=r"had views\.mirror=x, this command has y"):
        find(tmp_path, config=CONFIG | {"views.mirror": "y"})


@pytest.mark.parametrize("damage", [b"", b'{"recipe": "demo"', b"\xff\xfe", b"[]", b'{"recipe": "demo"}'])
def test_a_damaged_record_of_another_run_does_not_block_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes
) -> None:
    create(tmp_path, "mine", age_s=100)
    other = create(tmp_path, "other")
    (other / "run.json").write_bytes(damage)
    assert find(tmp_path) == "mine"
    assert f"skipped: {other / 'run.json'} is damaged" in capsys.readouterr().out
    for look in (lambda: find(tmp_path, "other"), lambda: RunFolder.state(tmp_path, "other")):
        with pytest.raises(DamagedFileError, match=r"other/run\.json is damaged"):
            look()


def test_a_process_killed_while_it_writes_a_record_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path, "run", "demo", "sha", CONFIG)

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.mark_finished()
    folder.release()
    assert find(tmp_path) == "run"


def test_a_record_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses power must not keep the name and lose the content, which is what an empty file is."""
    folder = RunFolder.create(tmp_path, "run", "demo", "sha", CONFIG)
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def replaced(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    folder.mark_finished()
    folder.release()
    temporary = steps[0].removeprefix("sync ")
    assert temporary != "run.json"
    assert steps == [f"sync {temporary}", f"rename {temporary}", "sync run"]


HOLD = """
import os, sys
from pathlib import Path
from pipelines.training.checkpoint import lock_folder
held = lock_folder(Path(sys.argv[1]))
child = os.fork()  # as a loader process is made, which inherits every open file
if child:
    print(held is not None, flush=True)
sys.stdin.read()
os._exit(0)
"""


def test_a_held_run_is_passed_over_and_a_killed_one_is_free_at_once(
    tmp_path: Path, open_process: OpenProcess
) -> None:
    create(tmp_path, "older", age_s=100)
    path = create(tmp_path, "newer")
    pipe, command = subprocess.PIPE, [sys.executable, "-W", "ignore", "-c", HOLD, str(path)]
    holder = open_process(command, stdin=pipe, stdout=pipe, text=True)
    assert holder.stdout.readline() == "True\n"
    assert find(tmp_path) == "older"
    with pytest.raises(ResumeError, match="locked by another process"):
        find(tmp_path, "newer")
    with pytest.raises(ResumeError, match="is being trained by another process"):
        RunFolder.create(tmp_path, "newer", "demo", "sha", CONFIG)
    holder.kill()
    holder.wait()
    assert find(tmp_path) == "newer"  # though its loader process lives on


def test_a_changed_hyper_parameter_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    create(tmp_path, "run")
    changed = CONFIG | {"optim.lr": 3e-4, "steps": 200}
    with pytest.raises(
        ResumeError, match=r"had steps=100, this command has 200: .* allow_changes=steps,optim\.lr"
    ):
        find(tmp_path, config=changed)
    with pytest.raises(ResumeError, match=r"had optim\.lr=0\.001"):
        find(tmp_path, config=changed, allowed=("steps",))
    assert find(tmp_path, config=changed, allowed=("steps", "optim.lr")) == "run"


def test_a_newer_run_with_other_settings_does_not_hide_the_one_that_fits(tmp_path: Path) -> None:
    create(tmp_path, "mine", age_s=100)
    other = RunFolder.create(tmp_path, "arm", "demo", "sha", CONFIG | {"steps": 900})
    other.release()
    assert find(tmp_path) == "mine"
    with pytest.raises(ResumeError, match="had steps=900, this command has 7"):
        find(tmp_path, config=CONFIG | {"steps": 7})


def test_what_changes_nothing_that_is_learned_is_free(tmp_path: Path) -> None:
    create(tmp_path, "run")
    moved = CONFIG | {
        "workers": 4,
        "cohort": "/elsewhere/b",
        "resume": "auto",
        "eval_every": 7,
        "device": "cpu",
    }
    assert find(tmp_path, config=moved) == "run"


def test_a_tuple_that_went_through_json_is_the_same_tuple(tmp_path: Path) -> None:
    create(tmp_path, "run")
    assert find(tmp_path, config=CONFIG | {"views.fraction": (0.5, 1.0)}) == "run"
    with pytest.raises(ResumeError, match=r"views\.fraction"):
        find(tmp_path, config=CONFIG | {"views.fraction": (0.4, 1.0)})


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int = 100
    lr: float = 1e-3
    workers: int = 0


def test_what_a_resumed_run_changes_is_noted_with_its_step_and_what_was_lost_with_its_updates_is_not(
    tmp_path: Path,
) -> None:
    folder = RunFolder.create(tmp_path, "run", "demo", "sha", dataclasses.asdict(Settings()))
    assert folder.note_changes(0, Settings()) == []
    slower = [Change(40, "lr", 1e-3, 1e-4)]
    assert folder.note_changes(40, Settings(lr=1e-4, workers=3)) == slower
    assert folder.note_changes(60, Settings(lr=1e-4)) == slower
    longer = Settings(steps=200, lr=1e-4)
    assert folder.note_changes(60, longer) == [*slower, Change(60, "steps", 100, 200)]
    # Killed before its next checkpoint, or that one is damaged: what was changed since then changed nothing.
    assert folder.note_changes(50, Settings(steps=150, lr=1e-4)) == [*slower, Change(50, "steps", 100, 150)]
    assert folder.note_changes(40, Settings(steps=100, lr=1e-3)) == []
    folder.release()
    assert json.loads((folder.path / "run.json").read_text())["config"]["steps"] == 100
