"""Which images of Modality CT are no slices of attenuation: scouts, projections, maps, reformats along curves.

ImageType is written by each vendor in its own way (`CT_SOM5 MIP`, `CSA MIP`, `PROJECTION IMAGE`), so that its values
are read word by word. Sources: PS3.3 C.7.6.1.1.2, C.8.15.2.1.1, C.8.16.1 and C.8.16.2.
"""

import re
from functools import lru_cache

from transforms.refusal import SeriesRefusedError

_LOCALIZER = "a localizer (scout view), which is a projection and not a slice"
_MAXIMUM = "a maximum intensity projection and not a slice"
_MINIMUM = "a minimum intensity projection and not a slice"
_AVERAGE = "an average over several slices or times and not a slice"
_PROJECTION = "a projection and not a slice"
_CURVED = "resampled along a curve and not a slice"
_RENDERED = "a rendering and not a slice"
_SUBTRACTED = "a subtraction image: its values are differences and not attenuation"
_PERFUSION = "a perfusion map or image: its values are not attenuation alone"
_MATERIAL = "a map of a material (iodine, effective atomic number, ...): its values are not attenuation"
_MASK = "a mask or an overlay and not a slice"
_SCREEN = "a screen save and not a slice"
_REPORT = "a report and not a slice"

_BY_WORDS = {
    _LOCALIZER: "LOCALIZER LOCALISER SCOUT TOPOGRAM SURVIEW SCANOGRAM SCANOSCOPE",
    _MAXIMUM: "MIP MIPS TMIP MAXIP MAX_IP MAXIMUM",
    _MINIMUM: "MINIP MIN_IP MINMIP MNIP MINIMUM",
    _AVERAGE: "AVERAGE AVERAGED AVG AVIP AVE_IP AVG_IP MEAN AIP",
    _PROJECTION: "PROJECTION SAMPLED RAYSUM RAY_SUM",
    _CURVED: "DISTORTED CURVED CPR CURVED_MPR",
    _RENDERED: "VOLUME_RENDER VOLUME_RENDERING SURFACE_RENDER RENDER RENDERED RENDERING VRT SSD",
    _SUBTRACTED: "SUBTRACTION SUBTRACTED SUBTRACT DSA",
    _PERFUSION: "PERFUSION PERF PBV LUNGPBV CBF CBV MTT TTP TMAX STD_DEVIATION QUANTITY",
    _MATERIAL: "IODINE IODINEMAP IODINE_MAP ZEFF RHOZ RHO_Z EFF_ATOMIC_NUM ELECTRON_DENSITY MATERIAL_DENSITY GSI_MD "
    "MAT_SPECIFIC MAT_FRACTIONAL MAT_VALUE_BASED URIC_ACID FAT_FRACTION",
    _MASK: "MASK SEGMENTATION LABELMAP OVERLAY",
    _SCREEN: "SCREEN_SAVE SCREENSAVE SCREENSHOT SCREEN_CAPTURE",
    _REPORT: "DOSE_INFO DOSEINFO DOSE_REPORT REPORT",
}
_REASONS = {tuple(words.split("_")): reason for reason, of in _BY_WORDS.items() for words in of.split()}
_LONGEST = max(map(len, _REASONS))
_WORD = re.compile(r"[A-Z0-9]+")


def check_is_attenuation(values: str) -> None:
    """Refuse an image that is no slice of attenuation.

    Args:
        values: ImageType, FrameType, VolumetricProperties and VolumeBasedCalculationTechnique, each value behind a
            backslash.

    Raises:
        SeriesRefusedError: For what the values name; words in them are separated by anything but letters and digits.
    """
    reason = _reason(values)
    if reason:
        raise SeriesRefusedError(reason)


@lru_cache(maxsize=64)  # the slices of a series say the same
def _reason(values: str) -> str:
    for value in values.upper().split("\\"):
        words = _WORD.findall(value)
        for start in range(len(words)):
            for length in range(1, _LONGEST + 1):
                reason = _REASONS.get(tuple(words[start : start + length]))
                if reason:
                    return reason
    return ""
