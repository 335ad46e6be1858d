"""Headers and bytes changed at random: never a crash without a message, never a wrong volume."""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, event, given, settings, strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from transforms.dicom.elements import TAGS, Elements, _read_by_pydicom, read_elements
from transforms.dicom.frames import frame_elements
from transforms.dicom.series import CtSeries, read_series
from transforms.geometry import index_to_lps
from transforms.refusal import SeriesRefusedError

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


def replace_element(content: bytes, keyword: str, value: bytes | None, is_implicit: bool) -> bytes:
    """The bytes of a file with one element taken out, and put back with another value unless that is None."""
    tag = TAGS[keyword]
    start = (
        132 + 12 + struct.unpack_from("<L", content, 132 + 8)[0]
    )  # after the file meta group, by its length
    at, kept = start, [content[:start]]
    own = b""
    if value is not None:
        value += b" " * (len(value) % 2)
        vr = dictionary_VR(tag).removeprefix("US or ").encode()
        form = ("<HHL", len(value)) if is_implicit else ("<HH2sH", vr, len(value))
        own = struct.pack(form[0], tag >> 16, tag & 0xFFFF, *form[1:]) + value
    while at < len(content):
        group, element, vr, length = struct.unpack_from("<HH2sH", content, at)
        header = 8
        if is_implicit or vr in (b"OW", b"OB"):
            header = 8 if is_implicit else 12
            (length,) = struct.unpack_from("<L", content, at + header - 4)
        if own and (group << 16 | element) >= tag:
            kept.append(own)
            own = b""
        if (group << 16 | element) != tag:
            kept.append(content[at : at + header + length])
        at += header + length
    return b"".join(kept)


def read_or_reason(files: list[Path]) -> tuple[CtSeries | None, str]:
    """The series, or why it is refused; any other exception is a fault."""
    try:
        return read_series(files), ""
    except SeriesRefusedError as refusal:
        return None, refusal.reason


def assert_right_or_refused(files: list[Path]) -> CtSeries | None:
    series, reason = read_or_reason(files)
    event("read" if series else "refused")
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

    files = write(folder, n_slices=4, change=change)
    for keyword, value, where in changed:
        for file in files if where == "all" else files[2:3]:
            content = replace_element(file.read_bytes(), keyword, value, syntax == ImplicitVRLittleEndian)
            file.write_bytes(content)
    return assert_right_or_refused(files)


quietly = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(st.lists(mutations, min_size=1, max_size=2), syntaxes)
def test_a_mutated_header_is_read_right_or_refused(
    write_ct_series: Writer, tmp_path: Path, changed: list[tuple[str, bytes | None, str]], syntax: str
) -> None:
    check_mutated(write_ct_series, tmp_path, changed, syntax)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=quietly)
@given(st.lists(mutations, min_size=1, max_size=3), syntaxes)
def test_many_mutated_headers_are_read_right_or_refused(
    write_ct_series: Writer, tmp_path: Path, changed: list[tuple[str, bytes | None, str]], syntax: str
) -> None:
    check_mutated(write_ct_series, tmp_path, changed, syntax)


def damage(files: list[Path], flips: list[tuple[float, int]], cut: float) -> None:
    content = bytearray(files[1].read_bytes())
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    files[1].write_bytes(content[: int(len(content) * cut)])


flips = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4)
cuts = st.one_of(st.just(1.0), st.floats(0, 1))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(flips, cuts, st.sampled_from([ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless]))
def test_damaged_bytes_end_in_a_volume_or_in_words(
    write_ct_series: Writer, tmp_path: Path, flips: list[tuple[float, int]], cut: float, syntax: str
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        if syntax == RLELossless:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax

    files = write_ct_series(tmp_path, n_slices=4, change=change)
    damage(files, flips, cut)
    series, reason = read_or_reason(files)
    assert series.volume_hu.shape[1:] == (12, 16) if series else len(reason) > 10


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=quietly)
@given(flips, syntaxes)
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


@pytest.mark.parametrize("is_header", [True, False])
def test_an_element_that_claims_gigabytes_takes_no_memory(
    write_ct_series: Writer, tmp_path: Path, is_header: bool
) -> None:
    """Within an item without an end, where pydicom reads; for the header, and for the groups of frames."""
    (path, *_) = write_ct_series(tmp_path, n_slices=1)
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<L", content, 140)[0]
    claims = struct.pack("<HH2sHL", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF)
    claims += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    claims += struct.pack("<HH2sHL", 0x0009, 0x1001, b"UN", 0, 0xFFFFFF00)
    path.write_bytes(content[:start] + claims + content[start:])
    elements = Elements("1.2.840.10008.1.2.1", True, {})
    tracemalloc.start()
    try:
        with pytest.raises(SeriesRefusedError, match="damaged"):
            read_elements(path) if is_header else frame_elements(path, elements)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def same_elements(walked: Elements, by_pydicom: Elements) -> bool:
    def values(elements: Elements) -> dict[str, bytes]:
        return {name: value for name, (_, value) in elements.values.items() if value}

    return values(walked) == values(by_pydicom) and walked.transfer_syntax == by_pydicom.transfer_syntax
