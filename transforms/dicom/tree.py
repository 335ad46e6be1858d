"""Every file of a folder tree: the CT series it holds, and every other file with the reason for its refusal."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transforms.dicom.header import read_slice_headers
from transforms.dicom.parts import Parting, SlicePlace, part
from transforms.refusal import NoImageError, RefusedFile, SeriesRefusedError, TransformError


@dataclass(frozen=True, slots=True)
class SeriesPart:
    """One of the volumes that one SeriesInstanceUID holds, and a note on it ("" for the only one)."""

    series_uid: str
    note: str = ""


@dataclass(slots=True)
class FoundSeries:
    """Files of each volume, sorted by path, and the files that were refused.

    The key is the SeriesInstanceUID, with `_part-1`, `_part-2`, ... behind it where that holds several volumes; `parts`
    gives the series of each key and how its parts were distinguished.
    """

    series: dict[str, list[Path]] = field(default_factory=dict)
    refused: list[RefusedFile] = field(default_factory=list)
    parts: dict[str, SeriesPart] = field(default_factory=dict)


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
            yield folder  # refused where it is read
            continue
        folders = []
        for entry in entries:
            path = Path(entry.path)
            try:
                is_folder = entry.is_dir()
                identity = _identity(path) if is_folder or entry.is_symlink() else None
            except OSError:
                yield path  # broken or circular links and folders without permission: refused likewise
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


LookedAt = SlicePlace | RefusedFile


def look_at(path: Path) -> LookedAt:
    """Read the position and distinguishing elements of a CT slice, or the reason why the file is refused."""
    try:
        if not path.exists():
            raise SeriesRefusedError("a broken link")
        if not path.is_file():
            raise SeriesRefusedError(
                "a folder that cannot be opened" if path.is_dir() else "not a regular file"
            )
        headers = read_slice_headers(path)
        return SlicePlace.of(headers[0], len(headers))
    except SeriesRefusedError as refusal:
        return RefusedFile(path, refusal.series_uid, refusal.reason, not isinstance(refusal, NoImageError))
    except OSError as error:
        return RefusedFile(path, "", f"the file cannot be opened ({error.strerror})")


def sort_into_series(looked_at: Iterable[LookedAt]) -> FoundSeries:
    """Group the results of `look_at` into volumes."""
    found = FoundSeries()
    by_uid: dict[str, list[SlicePlace]] = {}
    for one in looked_at:
        if isinstance(one, RefusedFile):
            found.refused.append(one)
        else:
            by_uid.setdefault(one.series_uid, []).append(one)
    for series_uid, places in by_uid.items():
        _add_volumes(found, series_uid, places)
    for files in found.series.values():
        files.sort()
    return found


def _add_volumes(found: FoundSeries, series_uid: str, places: list[SlicePlace]) -> None:
    has_frames = any(place.n_frames > 1 for place in places)  # a multi-frame file is not split
    parting = part(places) if not has_frames else Parting([list(range(len(places)))])
    names = ", ".join(parting.distinguished_by)
    volumes = [group for group in parting.groups if len(group) > 1 or len(parting.groups) == 1]
    for group in parting.groups:
        files = [places[i].path for i in group]
        if group not in volumes:
            reason = (
                f"a single image that differs from the others of its series in {names}: no slice of theirs"
            )
            found.refused += [RefusedFile(path, series_uid, reason) for path in files]
            continue
        key, note = series_uid, ""
        if len(volumes) > 1:
            number = volumes.index(group) + 1
            key = f"{series_uid}_part-{number}"
            note = f"volume {number} of {len(volumes)} of one SeriesInstanceUID, distinguished by {names}"
        found.series[key] = files
        found.parts[key] = SeriesPart(series_uid, note)
