"""Headers and bytes changed at random: never a crash without a message, never a wrong volume."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from transforms.dicom_elements import TAGS, Elements, _read_by_pydicom, read_elements
from transforms.dicom_series import CtSeries, read_series
from transforms.geometry import index_to_lps
from transforms.refused import SeriesRefusedError

Writer = Callable[..., list[Path]]
SECRET = "Quillfeather"

numbers = st.one_of(
    st.sampled_from([0.0, -1.0, 1e-9, 1e9, 1e308, 0.5, -0.7, 2.5]),
    st.floats(-1e4, 1e4).map(lambda v: round(v, 3)),
)
texts = st.one_of(
    st.lists(numbers, min_size=0, max_size=7).map(lambda values: "\\".join(f"{v:g}" for v in values)),
    st.sampled_from(
        ["nan", "inf", "1_0", "0x10", SECRET, "1\\2\\x", "1.2.840.10008.1.2", "\\", "HU", "AXIAL"]
    ),
)
raw_values = st.one_of(
    texts.map(str.encode),
    st.binary(max_size=12),
    st.integers(0, 65535).map(lambda v: v.to_bytes(2, "little")),
)
mutations = st.tuples(
    st.sampled_from(sorted(TAGS)), st.one_of(st.none(), raw_values), st.sampled_from(["one", "all"])
)
syntaxes = st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian])


def mutate(dataset: Dataset, keyword: str, value: bytes | None) -> None:
    dataset["PixelData"].VR = "OW"  # else pydicom's writer asks the header that is about to change
    tag = Tag(TAGS[keyword])
    dataset.pop(tag, None)
    if value is not None:
        value += b" " * (len(value) % 2)
        vr = {"PixelPaddingValue": "SS", "PixelPaddingRangeLimit": "SS"}.get(keyword)
        vr = vr or ("US" if TAGS[keyword] >> 16 == 0x28 and len(value) == 2 else "LO")
        is_implicit = dataset.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
        dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit, True)


def read_or_reason(files: list[Path]) -> tuple[CtSeries | None, str]:
    """The series, or why it is refused; any other exception is a fault."""
    try:
        return read_series(files), ""
    except SeriesRefusedError as refusal:
        return None, refusal.reason


def assert_right_or_refused(files: list[Path]) -> CtSeries | None:
    series, reason = read_or_reason(files)
    if series is None:
        assert len(reason) > 10
        assert SECRET not in reason
        return None
    for k, header in enumerate(series.slices):
        position = [float(v) for v in dcmread(header.path).ImagePositionPatient]
        np.testing.assert_allclose(
            index_to_lps(series.affine_ras, (k, 0, 0), series.slice_offsets_mm), position, atol=0.6
        )
        witness = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(header.path), imageIO="GDCMImageIO"))[0]
        expected = np.rint(witness.astype(float))
        is_padding = series.volume_hu[k] == -1024
        np.testing.assert_array_equal(series.volume_hu[k][~is_padding], expected[~is_padding])
        if header.pixels.padding is None:
            np.testing.assert_array_equal(series.volume_hu[k], expected)
    assert np.isfinite(series.affine_ras).all()
    assert min(series.spacing_mm) > 0
    return series


def check_mutated(
    write: Writer, folder: Path, changed: list[tuple[str, bytes | None, str]], syntax: str
) -> CtSeries | None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        for keyword, value, where in changed:
            if where == "all" or index == 2:
                mutate(dataset, keyword, value)

    return assert_right_or_refused(write(folder, n_slices=4, change=change))


quietly = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(st.lists(mutations, min_size=1, max_size=2), syntaxes)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mutated_header_is_read_right_or_refused(
    write_ct_series: Writer, tmp_path: Path, changed: list[tuple[str, bytes | None, str]], syntax: str
) -> None:
    check_mutated(write_ct_series, tmp_path, changed, syntax)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=quietly)
@given(st.lists(mutations, min_size=1, max_size=3), syntaxes)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_many_mutated_headers_are_read_right_or_refused(
    write_ct_series: Writer, tmp_path: Path, changed: list[tuple[str, bytes | None, str]], syntax: str
) -> None:
    check_mutated(write_ct_series, tmp_path, changed, syntax)


def damage(files: list[Path], flips: list[tuple[float, int]], cut: float) -> None:
    content = bytearray(files[1].read_bytes())
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    files[1].write_bytes(content[: int(len(content) * cut)])


flips = st.lists(st.tuples(st.floats(0, 0.8), st.integers(0, 255)), min_size=1, max_size=4)
cuts = st.one_of(st.just(1.0), st.floats(0, 1))


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(flips, cuts)
def test_damaged_bytes_end_in_a_volume_or_in_words(
    write_ct_series: Writer, tmp_path: Path, flips: list[tuple[float, int]], cut: float
) -> None:
    files = write_ct_series(tmp_path, n_slices=4)
    damage(files, flips, cut)
    series, reason = read_or_reason(files)
    assert series.volume_hu.shape[1:] == (12, 16) if series else len(reason) > 10


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(flips, syntaxes)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_short_walk_and_pydicom_read_the_same_elements(
    write_ct_series: Writer, tmp_path: Path, flips: list[tuple[float, int]], syntax: str
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax

    files = write_ct_series(tmp_path, n_slices=2, change=change)
    damage(files, flips, 1.0)
    try:
        walked = read_elements(files[1])
    except SeriesRefusedError:
        return
    if walked.pixel_offset >= 0:
        assert same_elements(walked, _read_by_pydicom(files[1]))
        assert walked.pixel_offset + walked.pixel_bytes <= os.path.getsize(files[1])


def same_elements(walked: Elements, by_pydicom: Elements) -> bool:
    def values(elements: Elements) -> dict[str, bytes]:
        return {name: value for name, (_, value) in elements.values.items() if value}

    return values(walked) == values(by_pydicom) and walked.transfer_syntax == by_pydicom.transfer_syntax
