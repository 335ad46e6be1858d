"""A folder of anything is walked once: what is CT is sorted into series, every other file gets a reason."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from transforms.dicom.tree import find_series

Writer = Callable[..., list[Path]]


def as_localizer(dataset: Dataset, index: int) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def test_a_tree_is_searched_once_and_each_odd_file_gets_a_reason(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    root = tmp_path / "tree"
    files = write_ct_series(root / "a", series_uid="1.2.3.4")
    write_ct_series(root / "b", n_slices=3, series_uid="1.2.3.5")
    write_ct_series(root / "a" / "scout", n_slices=1, change=as_localizer)
    (root / "empty.dcm").write_bytes(b"")
    (root / "notes.txt").write_text("not an image" * 50)
    (root / "all.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    (root / "half.dcm").write_bytes(files[0].read_bytes()[:300])
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "nowhere").symlink_to(root / "missing.dcm")
    (root / "itself").symlink_to(root / "itself")
    os.mkfifo(root / "pipe")
    found = find_series(root)
    assert {uid: len(paths) for uid, paths in found.series.items()} == {"1.2.3.4": 5, "1.2.3.5": 3}
    reasons = {refused.path.relative_to(root).as_posix(): refused.reason for refused in found.refused}
    assert reasons["empty.dcm"] == "the file is empty"
    assert "no DICM mark" in reasons["notes.txt"]
    assert reasons["nowhere"] == "a broken link"
    assert reasons["itself"] == "a broken link"
    assert reasons["pipe"] == "not a regular file"
    assert "unpack it" in reasons["all.zip"]
    assert "half.dcm" in reasons
    assert "localizer" in reasons["a/scout/0-0.dcm"]
    assert len(reasons) == 8


def test_a_folder_that_may_not_be_entered_is_refused_and_the_rest_is_read(
    write_ct_series: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ct_series(tmp_path / "open")
    write_ct_series(tmp_path / "listed" / "inner", series_uid="1.2.3.5")
    tmp_path.chmod(0o755)
    (tmp_path / "listed").chmod(0o444)  # its entries can be listed, and none of them reached
    monkeypatch.chdir(tmp_path)
    is_superuser = os.geteuid() == 0  # not restricted by permissions
    if is_superuser:
        os.seteuid(65534)
    try:
        found = find_series(Path())
    finally:
        if is_superuser:
            os.seteuid(0)
        (tmp_path / "listed").chmod(0o755)
    assert {uid: len(paths) for uid, paths in found.series.items()} == {"1.2.3.4": 5}
    (refused,) = found.refused
    assert (refused.path, refused.reason) == (
        Path("listed/inner"),
        "the file cannot be opened (Permission denied)",
    )
