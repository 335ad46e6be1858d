"""The frames of an Enhanced CT, each as if it were a file of its own. Source: PS3.3 A.38.1, C.7.6.16."""

import dataclasses
from pathlib import Path

import pydicom

from transforms.dicom.elements import DEFLATED, Elements, dcmread, decoding, raw_values, read_deflated
from transforms.refusal import refuse_if

_GROUPS = (
    "PixelMeasuresSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "CTImageFrameTypeSequence",
    "CTReconstructionSequence",
)
"""Functional groups that say what the header of a single slice says; a frame's own group goes before the shared one."""


def frame_elements(path: Path, elements: Elements) -> list[Elements]:
    """Elements of each frame: those of the file, with those of the frame's functional groups over them.

    Raises:
        SeriesRefusedError: If the groups are missing, are not one per frame, or cannot be read.
    """
    of_frames = []
    with decoding("the file is damaged: its functional groups cannot be read"):
        if elements.transfer_syntax == DEFLATED:
            dataset: pydicom.Dataset = read_deflated(path)
        else:
            dataset = dcmread(path, stop_before_pixels=True, force=True)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
        frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
        n_frames = int(dataset.get("NumberOfFrames") or 0)
        refuse_if(
            not n_frames or len(frames) != n_frames,
            f"{n_frames} frames, but functional groups for {len(frames)}: their positions are not stated",
        )
        for frame in frames:
            values = dict(elements.values)
            for keyword in _GROUPS:
                group = frame.get(keyword) or shared.get(keyword)
                if group:
                    values |= raw_values(group[0])
            of_frames.append(dataclasses.replace(elements, values=values))
    return of_frames
