"""Every file of a folder tree: the CT series it holds, and each other file with the reason why it is none."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transforms.dicom.header import read_slice_headers
from transforms.refusal import RefusedFile, SeriesRefusedError, TransformError


@dataclass(slots=True)
class FoundSeries:
    """Files by SeriesInstanceUID, sorted by path, and the files that were refused."""

    series: dict[str, list[Path]] = field(default_factory=dict)
    refused: list[RefusedFile] = field(default_factory=list)


def find_series(root: Path) -> FoundSeries:
    """Search a folder through all its levels."""
    return sort_into_series(map(look_at, walk_files(root)))


def walk_files(root: Path) -> Iterator[Path]:
    """Every file below `root` once, in sorted order; links are followed, loops of links are not.

    Raises:
        TransformError: If `root` is no folder.
    """
    if not root.is_dir():
        raise TransformError(f"{root} is not a folder; name a folder that holds the files")
    seen = {_identity(root)}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield folder  # refused by whoever looks at it
            continue
        folders = []
        for entry in entries:
            path = Path(entry.path)
            try:
                is_folder = entry.is_dir()
                identity = _identity(path) if is_folder or entry.is_symlink() else None
            except OSError:
                yield path  # a link to nowhere or to itself, a folder that may not be entered: refused likewise
                continue
            if identity is None:
                yield path
            elif identity not in seen:
                seen.add(identity)
                if is_folder:
                    folders.append(path)
                else:
                    yield path
        waiting.extend(reversed(folders))


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def look_at(path: Path) -> tuple[Path, str] | RefusedFile:
    """The SeriesInstanceUID of a CT slice, or why the file is none."""
    try:
        if not path.exists():
            raise SeriesRefusedError("a link that leads nowhere")
        if not path.is_file():
            raise SeriesRefusedError(
                "a folder that cannot be opened" if path.is_dir() else "not a regular file"
            )
        return path, read_slice_headers(path)[0].series_uid
    except SeriesRefusedError as refusal:
        return RefusedFile(path, refusal.series_uid, refusal.reason)
    except OSError as error:
        return RefusedFile(path, "", f"the file cannot be opened ({error.strerror})")


def sort_into_series(looked_at: Iterable[tuple[Path, str] | RefusedFile]) -> FoundSeries:
    """Group what `look_at` said of each file."""
    found = FoundSeries()
    for one in looked_at:
        if isinstance(one, RefusedFile):
            found.refused.append(one)
        else:
            found.series.setdefault(one[1], []).append(one[0])
    for files in found.series.values():
        files.sort()
    return found
