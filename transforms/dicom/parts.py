"""The volumes that one SeriesInstanceUID holds: acquisitions, phases, kernels, reconstructions, separated.

Many header elements differ between the volumes of a series, but some also within one volume (each rotation of a
sequence may have its own AcquisitionNumber). So slice positions decide: a series is split only where the parts are
spaced at least as evenly as the whole, and never where one part fills the gaps of another.
"""

import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from transforms.dicom.header import TRAITS, SliceHeader, as_number
from transforms.dicom.slice_stack import SAME_POSITION_MM, is_axial, slice_normal

Groups = list[list[int]]

_FIRST_TIMES = ("AcquisitionDateTime", "AcquisitionTime")
_PHASES = ("TemporalPositionIdentifier", "NominalPercentageOfCardiacPhase", "ContrastBolusAgent", "KVP")
_MIN_PASS = 3
"""Fewer slices in a row are no pass: any two are evenly spaced."""
_MAX_PASSES = 32
"""4D CT has 10 phases, cardiac CT up to 20."""


@lru_cache(maxsize=64)  # the slices of a series have one
def _axial_normal(orientation: tuple[float, ...]) -> tuple[float, ...] | None:
    vectors = np.array(orientation)
    return tuple(slice_normal(vectors).tolist()) if is_axial(vectors) else None


@dataclass(frozen=True, slots=True)
class SlicePlace:
    """What is kept of a slice's header for sorting: its position, and the elements that may distinguish volumes.

    `along_mm` is its place along the slice normal (0 where the slice is not axial).
    """

    path: Path
    series_uid: str
    is_axial: bool
    along_mm: float
    matrix: tuple[int, int]
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, ...]
    slice_thickness_mm: float
    instance_number: int
    traits: tuple[str, ...]
    n_frames: int = 1

    @classmethod
    def of(cls, header: SliceHeader, n_frames: int = 1) -> "SlicePlace":
        """Take a header; a multi-frame file is one place."""
        normal = _axial_normal(header.orientation)
        axial = normal is not None
        along = sum(map(operator.mul, header.position_lps_mm, normal)) if normal is not None else 0.0
        return cls(
            header.path,
            header.series_uid,
            axial,
            along,
            (header.pixels.rows, header.pixels.columns),
            header.orientation,
            header.pixel_spacing_mm,
            header.slice_thickness_mm,
            header.instance_number,
            header.traits,
            n_frames,
        )

    def trait(self, name: str) -> str:
        """An element of `TRAITS`."""
        return self.traits[TRAITS.index(name)]


@dataclass(frozen=True, slots=True)
class Parting:
    """The volumes of one SeriesInstanceUID: indices of their slices, and the elements that distinguish them."""

    groups: Groups
    distinguished_by: tuple[str, ...] = ()


def part(places: Sequence[SlicePlace]) -> Parting:
    """Sort the slices of one SeriesInstanceUID into volumes.

    Groups are ordered by AcquisitionNumber, then by InstanceNumber. Most series are one group.
    """
    groups: Groups = [list(range(len(places)))]
    names: list[str] = []
    is_done = False
    while not is_done:
        is_done = True
        for name, propose in _PROPOSALS:
            parted = [propose([places[i] for i in group]) for group in groups]
            if any(len(local) > 1 for local in parted):
                groups = [
                    [group[i] for i in one]
                    for group, local in zip(groups, parted, strict=True)
                    for one in local
                ]
                is_done = False
                if name not in names:
                    names.append(name)
    return Parting(sorted(groups, key=lambda group: _rank([places[i] for i in group])), tuple(names))


def _rank(places: Sequence[SlicePlace]) -> tuple[float, int, str]:
    numbers = [as_number(place.trait("AcquisitionNumber")) for place in places]
    return (
        min((number for number in numbers if number is not None), default=0.0),
        min(place.instance_number for place in places),
        min(str(place.path) for place in places),
    )


def _by(places: Sequence[SlicePlace], value: Callable[[SlicePlace], Hashable]) -> Groups:
    groups = defaultdict(list)
    for i, place in enumerate(places):
        groups[value(place)].append(i)
    return list(groups.values())


def _n_flaws(along: Sequence[float]) -> int:
    """Count irregular steps: slices at the same position, and distances other than the usual one."""
    steps = np.diff(np.sort(np.array(along)))
    apart = steps[steps > SAME_POSITION_MM]
    if not len(apart):
        return len(steps)
    usual = float(np.median(apart))
    return int(np.count_nonzero(np.abs(steps - usual) > max(0.1 * usual, 0.1) + 1e-6))


def _keeps_even(places: Sequence[SlicePlace], groups: Groups) -> bool:
    along = [place.along_mm for place in places]
    return sum(_n_flaws([along[i] for i in group]) for group in groups) <= _n_flaws(along)


def _lie_apart(places: Sequence[SlicePlace], groups: Groups) -> bool:
    """Whether the groups follow each other along the patient, as the rotations of one acquisition do."""
    ends = sorted((min(a), max(a)) for a in ([places[i].along_mm for i in group] for group in groups))
    return all(following[0] - one[1] > SAME_POSITION_MM for one, following in pairwise(ends))


def _never_one(value: Callable[[SlicePlace], Hashable]) -> Callable[[Sequence[SlicePlace]], Groups]:
    """Split by a value that no volume may mix, unless that leaves gaps: then the differing slices are refused."""

    def propose(places: Sequence[SlicePlace]) -> Groups:
        groups = _by(places, value)
        return groups if len(groups) > 1 and _keeps_even(places, groups) else [list(range(len(places)))]

    return propose


def _where_mixed(
    *ways: Callable[[Sequence[SlicePlace]], Groups],
) -> Callable[[Sequence[SlicePlace]], Groups]:
    """Split by values that may change along one volume, unless each follows another along the patient."""

    def propose(places: Sequence[SlicePlace]) -> Groups:
        proposals = [way(places) for way in ways]
        sound = [
            groups
            for groups in proposals
            if 1 < len(groups) <= max(2, len(places) // 2)
            and not _lie_apart(places, groups)
            and _keeps_even(places, groups)
        ]
        return min(sound, key=len, default=[list(range(len(places)))])

    return propose


def _values_of(name: str) -> Callable[[Sequence[SlicePlace]], Groups]:
    return lambda places: _by(places, lambda place: place.trait(name))


def _passes(places: Sequence[SlicePlace], key: Callable[[SlicePlace], float | None]) -> Groups:
    """Runs in which the slices, in the order of a number, move one way along the patient."""
    keys = [key(place) for place in places]
    known = [k for k in keys if k is not None]
    if len(known) < len(keys) or len(set(known)) < 2:
        return [list(range(len(places)))]
    order = sorted(
        range(len(places)), key=lambda i: (known[i], places[i].instance_number, places[i].along_mm)
    )
    runs, direction = [[order[0]]], 0.0
    for before, i in pairwise(order):
        step = places[i].along_mm - places[before].along_mm
        turn = float(np.sign(step)) if abs(step) > SAME_POSITION_MM else 0.0
        is_copy = not turn and known[i] == known[before]
        if (turn and direction in (0.0, turn)) or (
            is_copy and places[i].instance_number == places[before].instance_number
        ):
            runs[-1].append(i)
            direction = turn or direction
        else:
            runs.append([i])
            direction = 0.0
    is_short = len(runs) > _MAX_PASSES or min(map(len, runs)) < _MIN_PASS
    return [list(range(len(places)))] if is_short else runs


def _passes_in(name: str) -> Callable[[Sequence[SlicePlace]], Groups]:
    return lambda places: _passes(places, lambda place: as_number(place.trait(name)))


def _numbered_twice(places: Sequence[SlicePlace]) -> Groups:
    """Passes that only InstanceNumber shows: each counts through an even stack, and no time contradicts it."""
    whole = [list(range(len(places)))]
    if any(len({place.trait(name) for place in places}) > 1 for name in _FIRST_TIMES):
        return whole
    runs = _passes(places, lambda place: float(place.instance_number))
    is_even = all(not _n_flaws([places[i].along_mm for i in run]) for run in runs)
    return runs if is_even else whole


_PROPOSALS: tuple[tuple[str, Callable[[Sequence[SlicePlace]], Groups]], ...] = (
    ("ImageOrientationPatient", lambda places: _by(places, lambda place: place.is_axial)),
    ("the matrix", _never_one(lambda place: place.matrix)),
    ("ImageOrientationPatient", _never_one(lambda place: tuple(round(v, 2) for v in place.orientation))),
    ("PixelSpacing", _never_one(lambda place: tuple(round(v, 4) for v in place.pixel_spacing_mm))),
    ("ImageType", _never_one(lambda place: place.trait("ImageType").partition("\\")[0].strip().upper())),
    ("ConvolutionKernel", _never_one(lambda place: place.trait("ConvolutionKernel"))),
    *((name, _where_mixed(_values_of(name))) for name in (*_PHASES, "ImageType")),
    ("AcquisitionNumber", _where_mixed(_values_of("AcquisitionNumber"), _passes_in("AcquisitionNumber"))),
    *((name, _where_mixed(_passes_in(name), _values_of(name))) for name in _FIRST_TIMES),
    (
        "SliceThickness",
        _where_mixed(
            lambda places: _by(places, lambda place: f"{place.slice_thickness_mm:.3f}")
        ),  # NaN is no key
    ),
    ("InstanceNumber", _where_mixed(_numbered_twice)),
)
