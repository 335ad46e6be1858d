"""A folder is replaced whole or not at all, and nothing is written past the one writer."""

import ast
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runtime import atomic
from pipelines.runtime.atomic import whole_folder, write_text
from tests.test_house import ROOT, parsed, sources

OWN = {"a", "b"}


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killed(work: Callable[[], object]) -> None:
    """Do some work in a process that ends without any cleaning up."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def write(target: Path, text: str, until: int = 9) -> None:
    with whole_folder(target, OWN) as made:
        for number, name in enumerate(("a", "b")):
            if number == until:
                os._exit(1)
            (made / name).write_text(text)
        if until == 2:
            os._exit(1)


@pytest.mark.parametrize("until", [0, 1, 2])
def test_a_writer_that_is_killed_leaves_the_old_folder_or_none(tmp_path: Path, until: int) -> None:
    target = tmp_path / "out"
    killed(lambda: write(target, "new", until))
    assert not target.exists()
    write(target, "old")
    killed(lambda: write(target, "new", until))
    assert contents(target) == {"a": "old", "b": "old"}
    write(target, "new")
    assert contents(target) == {"a": "new", "b": "new"}
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.lock"}


def test_a_failure_keeps_the_old_folder_and_what_others_put_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write(target, "old")
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("kept")
    with contextlib.suppress(RuntimeError), whole_folder(target, OWN) as made:
        (made / "a").write_text("half")
        raise RuntimeError
    assert contents(target) == {"a": "old", "b": "old", "notes/mine.txt": "kept"}
    with whole_folder(target, OWN) as made:
        (made / "a").write_text("new")
    assert contents(target) == {"a": "new", "notes/mine.txt": "kept"}


@pytest.mark.parametrize("step", ["after the first name", "after the second"])
def test_where_a_disk_cannot_exchange_names_the_next_writer_finds_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "out"
    write(target, "old")
    monkeypatch.setattr(atomic, "_EXCHANGE", 1 << 20)  # No flag of the kernel: it refuses.
    rename, calls = Path.rename, []

    def die(path: Path, new: Path) -> Path:
        done = rename(path, new)
        calls.append(new)
        if len(calls) == (1 if step == "after the first name" else 2):
            os._exit(1)
        return done

    def work() -> None:
        Path.rename = die  # type: ignore[method-assign, assignment]
        write(target, "new")

    killed(work)
    seen = {}
    with whole_folder(target, OWN) as made:
        seen = contents(target)
        (made / "a").write_text("newer")
    assert seen == dict.fromkeys(OWN, "old" if step == "after the first name" else "new")
    assert contents(target) == {"a": "newer"}


def test_a_secret_text_is_never_readable_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "s3cret", mode=0o600)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


WRITES = {
    "write_text", "write_bytes", "savefig", "save_file", "to_csv", "to_parquet", "save", "savez", "savez_compressed",
    "copyfile", "copy2", "copytree", "fdopen", "write_table", "open",
}  # fmt: skip
BY_ITSELF = {
    "pipelines/runtime/atomic.py": {"open"},
    "pipelines/cohort/pseudonyms.py": {
        "fdopen"
    },  # A key, which gets its name by a link, and never another content.
    "pipelines/phantom/source.py": {"write_text"},  # In a folder that gets its name last.
    "pipelines/tracking/outbox.py": {"copyfile", "copytree"},  # Before the record that names them.
    "pipelines/tracking/run.py": {"write_text"},  # In a temporary folder, to be sent.
    "pipelines/training/checkpoint.py": {"save_file", "write_text"},  # Of a part, which `settle` names.
}
"""Modules that write past `write_atomically`, and why nobody can find what they left half written."""


def direct_writes(tree: ast.AST) -> set[str]:
    """Names of methods that write to a path; not of functions of ours, nor what gets an open file."""
    found = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        has_file = any(
            isinstance(one, ast.Name) and one.id in ("file", "buffer", "content") for one in node.args
        )
        modes = [
            one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        is_ours = (
            owner is None and name in ("write_text", "write_table", "open") and "w" not in "".join(modes)
        )
        is_module = isinstance(owner, ast.Name) and owner.id in ("np", "torch", "pq")
        if name not in WRITES or has_file or is_ours or (name == "save" and not is_module):
            continue
        if name != "open" or any(set(mode) & set("wx") and set(mode) <= set("wxbt+") for mode in modes):
            found.add(name)
    return found


def test_everything_that_is_written_goes_through_one_writer() -> None:
    found = {str(source.relative_to(ROOT)): direct_writes(parsed(source)) for source in sources()}
    assert {file: names for file, names in found.items() if names} == BY_ITSELF


@pytest.mark.parametrize(
    "line",
    ["path.write_text(text)", "figure.savefig(path)", "open(path, 'w')", "np.save(path, one)", "torch.save(one, path)",
     "table.to_csv(path)", "path.open('wb')", "pq.write_table(table, path)"],
)  # fmt: skip
def test_a_planted_writer_is_found(line: str) -> None:
    assert direct_writes(ast.parse(line))
