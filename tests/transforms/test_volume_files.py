"""MetaImage and NRRD: what SimpleITK writes is read as one volume, and nothing damaged or contradictory is."""

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from transforms.dicom.series import read_series
from transforms.geometry import index_to_lps
from transforms.metaimage import read_metaimage
from transforms.nifti import read_nifti
from transforms.nrrd import read_nrrd
from transforms.refusal import SeriesRefusedError
from transforms.volume_file import FileVolume

HU = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 8)).astype(np.int16)  # (z, y, x), LPS
AFFINE = np.array([[0, 0, -0.6, 50.0], [0, -0.7, 0, 40.0], [2.5, 0, 0, -300.0], [0, 0, 0, 1]])
AXES = [
    "".join(code)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for code in itertools.islice(itertools.product(*axes), 0, 8, 3)
]


def image(voxels: np.ndarray = HU) -> SimpleITK.Image:
    made = SimpleITK.GetImageFromArray(voxels)
    made.SetSpacing((0.6, 0.7, 2.5))
    made.SetOrigin((-50.0, -40.0, -300.0))
    return made


def read(path: Path) -> FileVolume:
    by_ending = {".mha": read_metaimage, ".mhd": read_metaimage, ".nrrd": read_nrrd, ".nhdr": read_nrrd}
    return by_ending.get(path.suffix, read_nifti)(path)


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("name", ["v.mha", "v.mhd", "v.nrrd", "v.nhdr", "v.nii.gz"])
def test_every_format_and_orientation_gives_the_same_volume(
    name: str, is_compressed: bool, tmp_path: Path
) -> None:
    for axes in AXES:
        SimpleITK.WriteImage(
            SimpleITK.DICOMOrient(image(), axes), tmp_path / name, useCompression=is_compressed
        )
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.volume_hu, HU)
        np.testing.assert_allclose(volume.affine_ras, AFFINE, atol=1e-4)
        assert volume.spacing_mm == pytest.approx((2.5, 0.7, 0.6), abs=1e-5)
        assert (volume.notes, volume.n_padding_voxels) == ((), 0)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.float32, np.float64])
def test_every_type_of_number_is_read(kind: type, ending: str, tmp_path: Path) -> None:
    voxels = HU // 8 - 1 if kind is np.int8 else HU
    voxels = np.where(voxels == voxels.min(), voxels, voxels).clip(-128 if kind is np.int8 else -1000)
    if kind is np.int8:
        SimpleITK.WriteImage(image(voxels.astype(kind)), tmp_path / f"v{ending}")
        with pytest.raises(SeriesRefusedError, match="no value lies below -200 HU"):  # read, and no CT
            read(tmp_path / f"v{ending}")
        return
    SimpleITK.WriteImage(image(voxels.astype(kind)), tmp_path / f"v{ending}")
    np.testing.assert_array_equal(read(tmp_path / f"v{ending}").volume_hu, HU)


def test_bytes_in_the_other_order_are_read(tmp_path: Path) -> None:
    (tmp_path / "v.mha").write_bytes(
        META + b"BinaryDataByteOrderMSB = True\n" + LOCAL + HU.astype(">i2").tobytes()
    )
    np.testing.assert_array_equal(read(tmp_path / "v.mha").volume_hu, HU)
    (tmp_path / "v.nrrd").write_bytes(NRRD.replace(b"little", b"big") + HU.astype(">i2").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "v.nrrd").volume_hu, HU)


META = (
    b"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = False\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    b"Offset = -50 -40 -300\nElementSpacing = 0.6 0.7 2.5\nDimSize = 8 6 5\nElementType = MET_SHORT\n"
)
LITTLE = b"BinaryDataByteOrderMSB = False\n"
LOCAL = b"ElementDataFile = LOCAL\n"
NRRD = (
    b"NRRD0004\n# made by a test\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 8 6 5\n"
    b"space directions: (0.6,0,0) (0,0.7,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
    b"space origin: (-50,-40,-300)\n\n"
)
VOXELS = HU.tobytes()
Change = Callable[[bytes], bytes]


def line(name: bytes, value: bytes) -> Change:
    """A header in which one line says something else; nothing, where the value is empty."""

    def change(header: bytes) -> bytes:
        lines = header.splitlines(keepends=True)
        at = next(i for i, one in enumerate(lines) if one.startswith(name))
        separator = b": " if header.startswith(b"NRRD") else b" = "
        lines[at] = name + separator + value + b"\n" if value else b""
        return b"".join(lines)

    return change


META_REFUSED: dict[str, tuple[Change, str]] = {
    "no image": (line(b"ObjectType", b"Tube"), "not a MetaImage"),
    "two dimensions": (line(b"NDims", b"2"), "three-dimensional"),
    "four sizes": (line(b"DimSize", b"8 6 5 1"), "DimSize must be 3 whole"),
    "a negative size": (line(b"DimSize", b"8 -6 5"), "DimSize must be 3 whole"),
    "no size": (line(b"DimSize", b""), "DimSize must be 3 whole"),
    "a vast size": (line(b"DimSize", b"90000 90000 90000"), "three-dimensional volume: its shape"),
    "a slice too many": (line(b"DimSize", b"8 6 6"), "480 bytes and not the 576"),
    "a slice too few": (line(b"DimSize", b"8 6 4"), "480 bytes and not the 384"),
    "channels": (lambda h: h + b"ElementNumberOfChannels = 3\n", "ElementNumberOfChannels"),
    "MR": (lambda h: h + b"Modality = MET_MOD_MR\n", "not CT by its Modality"),
    "another scale": (lambda h: h + b"ElementToIntensityFunctionSlope = 2\n", "is not 1: readers differ"),
    "text": (line(b"BinaryData", b"False"), "text"),
    "no truth": (line(b"CompressedData", b"maybe"), "CompressedData must be True or False"),
    "a type of no size": (line(b"ElementType", b"MET_LONG"), "ElementType is not an integer"),
    "no type": (line(b"ElementType", b""), "ElementType is not an integer"),
    "no spacing": (line(b"ElementSpacing", b""), "ElementSpacing must be 3"),
    "spacing zero": (line(b"ElementSpacing", b"0.6 0 2.5"), "above zero"),
    "spacing below zero": (line(b"ElementSpacing", b"0.6 -0.7 2.5"), "above zero"),
    "spacing in meters": (line(b"ElementSpacing", b"0.0006 0.0007 0.0025"), "no CT of people"),
    "spacing nan": (line(b"ElementSpacing", b"nan 0.7 2.5"), "ElementSpacing must be 3"),
    "a matrix of zeros": (line(b"TransformMatrix", b"0 0 0 0 0 0 0 0 0"), "unit vectors"),
    "a matrix of four": (line(b"TransformMatrix", b"1 0 0 1"), "TransformMatrix must be 9"),
    "a sheared matrix": (line(b"TransformMatrix", b"1 0 0 0.6 0.8 0 0 0 1"), "not orthogonal"),
    "two axes that are one": (line(b"TransformMatrix", b"1 0 0 1 0 0 0 0 1"), "not orthogonal"),
    "an offset of two": (line(b"Offset", b"1 2"), "Offset must be 3"),
    "two offsets": (lambda h: h + b"Position = 1 2 3\n", "two names of one field, differ"),
    "a field twice": (lambda h: h + b"DimSize = 8 6 5\n", "says DimSize twice"),
    "no field": (lambda h: h + b"a line\n", "without a name and `=`"),
    "a value of nothing": (lambda h: h + b"= 3\n", "without a name and `=`"),
    "another case": (
        lambda h: h + b"elementspacing = 9 9 9\n",
        "writes ElementSpacing in letters of another",
    ),
    "centimeters": (lambda h: h + b"DistanceUnits = cm\n", "not in millimeters"),
    "an endless name": (lambda h: h + b"ElementDataFile = " + b"a" * 300 + b"\n", "without a folder"),
    "strange letters": (lambda h: h + b"AnatomicalOrientation = RAX\n", "not three letters"),
    "one axis twice": (lambda h: h + b"AnatomicalOrientation = RRI\n", "not three letters"),
    "a header of its own": (lambda h: h + b"HeaderSize = 12\n", "HeaderSize must be 0"),
    "voxels at the end of too short a file": (
        lambda h: line(b"DimSize", b"8 6 9")(h) + b"HeaderSize = -1\nElementDataFile = r.raw\n",
        "480 bytes and not the 864",
    ),
    "an index of files": (lambda h: h + b"ElementDataFile = LIST\n", "is not there"),
    "another folder": (lambda h: h + b"ElementDataFile = ../v.raw\n", "without a folder"),
    "an absolute path": (lambda h: h + b"ElementDataFile = /etc/hostname\n", "without a folder"),
    "not compressed": (line(b"CompressedData", b"True"), "damaged"),
}


@pytest.mark.parametrize("kind", META_REFUSED)
def test_a_metaimage_that_cannot_be_is_refused_with_its_reason(kind: str, tmp_path: Path) -> None:
    change, reason = META_REFUSED[kind]
    header = change(META + LITTLE)
    (tmp_path / "v.mha").write_bytes(header + (b"" if b"DataFile" in header else LOCAL) + VOXELS)
    (tmp_path / "r.raw").write_bytes(VOXELS)
    with pytest.raises(SeriesRefusedError, match=reason):
        read(tmp_path / "v.mha")


def test_what_a_metaimage_leaves_open_is_said(tmp_path: Path) -> None:
    def notes(header: bytes) -> str:
        (tmp_path / "v.mha").write_bytes(header + LITTLE + LOCAL + VOXELS)
        volume = read(tmp_path / "v.mha")
        np.testing.assert_array_equal(volume.volume_hu, HU)
        return "; ".join(volume.notes)

    assert (
        notes(META) == notes(META + b"AnatomicalOrientation = RAI\n") == notes(META + b"Comment = x\n") == ""
    )
    assert "no TransformMatrix" in notes(line(b"TransformMatrix", b"")(META))
    assert "no Offset" in notes(line(b"Offset", b"")(META))
    assert "contradicts TransformMatrix" in notes(META + b"AnatomicalOrientation = LPS\n")
    (tmp_path / "v.mha").write_bytes(META + LOCAL + VOXELS)
    with pytest.raises(SeriesRefusedError, match="ElementByteOrderMSB must be True or False"):
        read(tmp_path / "v.mha")


NRRD_REFUSED: dict[str, tuple[Change, str]] = {
    "another version": (lambda h: h.replace(b"NRRD0004", b"NRRD0009"), "version 1 to 5"),
    "four dimensions": (line(b"dimension", b"4"), "dimension 3"),
    "a slice too many": (line(b"sizes", b"8 6 6"), "576 bytes"),
    "no type": (line(b"type", b""), "`type` is not an integer"),
    "a block": (line(b"type", b"block"), "`type` is not an integer"),
    "no order of bytes": (line(b"endian", b""), "order of bytes"),
    "bzip2": (line(b"encoding", b"bzip2"), "neither raw nor gzip"),
    "no encoding": (line(b"encoding", b""), "neither raw nor gzip"),
    "not gzip": (line(b"encoding", b"gzip"), "damaged"),
    "no space": (line(b"space", b""), "`space` is neither"),
    "a scanner's space": (line(b"space", b"scanner-xyz"), "`space` is neither"),
    "inches": (lambda h: h.replace(b"\n\n", b'\nspace units: "in" "in" "in"\n\n'), "not in millimeters"),
    "centimeters by axis": (
        lambda h: h.replace(b"\n\n", b'\nunits: "cm" "cm" "cm"\n\n'),
        "not in millimeters",
    ),
    "an axis that begins elsewhere": (
        lambda h: h.replace(b"\n\n", b"\naxismins: 5 5 5\n\n"),
        "`axis mins` beside",
    ),
    "values mapped": (lambda h: h.replace(b"\n\n", b"\nold min: -1000\n\n"), "mapped to another range"),
    "other units": (lambda h: h.replace(b"\n\n", b'\nsample units: "HU x 10"\n\n'), "not in HU"),
    "four dimensions of space": (
        lambda h: line(b"dimension", b"4")(h).replace(b"\n\n", b"\nspace dimension: 4\n\n"),
        "dimension 3",
    ),
    "no directions": (line(b"space directions", b""), "three vectors"),
    "two directions": (line(b"space directions", b"(1,0,0) (0,1,0)"), "three vectors"),
    "a list": (line(b"space directions", b"none (1,0,0) (0,1,0) (0,0,1)"), "three vectors"),
    "directions of nothing": (line(b"space directions", b"(0,0,0) (0,1,0) (0,0,1)"), "no extent"),
    "sheared": (line(b"space directions", b"(1,0,0) (0.3,1,0) (0,0,1)"), "not orthogonal"),
    "colors": (line(b"kinds", b"RGB-color domain domain"), "not three of space"),
    "no origin": (line(b"space origin", b""), "`space origin` must be"),
    "spacings too": (lambda h: h.replace(b"\n\n", b"\nspacings: 1 1 1\n\n"), "`spacings` beside"),
    "a skip": (lambda h: h.replace(b"\n\n", b"\nbyte skip: 4\n\n"), "skip"),
    "a field twice": (lambda h: h.replace(b"\n\n", b"\nsizes: 8 6 5\n\n"), "a field twice"),
    "no end": (lambda h: h[:-1], "neither a field|does not end"),
    "a file elsewhere": (lambda h: h.replace(b"\n\n", b"\ndata file: ../v.raw\n\n"), "without a folder"),
}


@pytest.mark.parametrize("kind", NRRD_REFUSED)
def test_an_nrrd_that_cannot_be_is_refused_with_its_reason(kind: str, tmp_path: Path) -> None:
    change, reason = NRRD_REFUSED[kind]
    (tmp_path / "v.nrrd").write_bytes(NRRD + VOXELS)
    np.testing.assert_array_equal(read(tmp_path / "v.nrrd").volume_hu, HU)
    (tmp_path / "v.nrrd").write_bytes(change(NRRD) + VOXELS)
    with pytest.raises(SeriesRefusedError, match=reason):
        read(tmp_path / "v.nrrd")


@pytest.mark.parametrize("name", ["v.mha", "v.zraw", "v.nrrd", "v.raw.gz"])
def test_no_bit_of_compressed_voxels_changes_one_unseen(name: str, tmp_path: Path) -> None:
    header = tmp_path / {"v.zraw": "v.mhd", "v.raw.gz": "v.nhdr"}.get(name, name)
    SimpleITK.WriteImage(image(), header, useCompression=True)
    content = (tmp_path / name).read_bytes()
    start = 0
    if name == "v.mha":
        start = content.index(LOCAL) + len(LOCAL)
    elif name == "v.nrrd":
        start = content.index(b"\n\n") + 2
    rng = np.random.default_rng(3)
    n_refused = 0
    for bit in rng.choice(8 * (len(content) - start), 300, replace=False):
        flipped = bytearray(content)
        flipped[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            np.testing.assert_array_equal(read(header).volume_hu, HU)
        except SeriesRefusedError:
            n_refused += 1
    assert n_refused > 270
    (tmp_path / name).write_bytes(content[:-3])
    with pytest.raises(SeriesRefusedError, match=r"cut short|CompressedDataSize"):
        read(header)


def test_a_header_changed_at_random_is_read_as_simpleitk_reads_it_or_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    junk = [
        b"",
        b"0",
        b"-1",
        b"nan",
        b"1e400",
        b"3 3 3",
        b"True",
        b"0 0 1 0 1 0 1 0 0",
        b"MET_USHORT",
        b"ushort",
        b"=",
    ]
    junk += [
        b"0.7 0.6 2.5",
        b"RAS",
        b"SAL",
        b"(1,0,0) (0,1,0) (0,0,2)",
        b"big",
        b"gzip",
        b"8 5 6",
        b"x.raw",
        b"\xff",
    ]
    n_read = 0
    for trial in range(300):
        header = META + LITTLE + LOCAL if trial % 2 else NRRD[:-1]
        lines = header.splitlines(keepends=True)
        at = int(rng.integers(0, len(lines)))
        separator = b" = " if trial % 2 else b": "
        name = lines[at].partition(separator)[0]
        changed = name + separator + junk[rng.integers(len(junk))] + b"\n"
        lines[at : at + int(rng.integers(0, 2))] = [changed]
        path = tmp_path / ("v.mha" if trial % 2 else "v.nrrd")
        path.write_bytes(b"".join(lines) + (b"" if trial % 2 else b"\n") + VOXELS)
        try:
            volume = read(path)
        except SeriesRefusedError:
            continue
        n_read += 1
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        witness = SimpleITK.ReadImage(path)
        for index in rng.integers(0, volume.volume_hu.shape, (10, 3)):
            place = index_to_lps(volume.affine_ras, index)
            at_witness = witness.TransformPhysicalPointToIndex(place.tolist())
            assert witness[at_witness] == volume.volume_hu[tuple(index)]
    assert n_read >= 5


def test_a_zlib_stream_that_inflates_beyond_its_header_is_refused_before_it_is_held(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(1 << 26))
    header = line(b"CompressedData", b"True")(META) + LITTLE + LOCAL
    (tmp_path / "v.mha").write_bytes(header + bomb)
    with pytest.raises(SeriesRefusedError, match="more than its header says"):
        read(tmp_path / "v.mha")


@pytest.mark.lidc
def test_real_dicom_written_in_other_formats_is_the_same_volume(dinox_data: Path, tmp_path: Path) -> None:
    files = sorted((dinox_data / "lidc").rglob("*.dcm"))
    whole = sorted(
        files, key=lambda file: float(dcmread(file, stop_before_pixels=True).get("SliceLocation", 0))
    )
    series = read_series(whole[40:56])  # GE, with fill around the circle of reconstruction
    assert series.n_padding_voxels
    dicom = SimpleITK.ReadImage([str(header.path) for header in series.slices])
    for name, axes in (("v.mha", "LPS"), ("v.mhd", "RAS"), ("v.nrrd", "SAL"), ("v.nii.gz", "SAL")):
        SimpleITK.WriteImage(
            SimpleITK.DICOMOrient(dicom, axes), tmp_path / name, useCompression=name != "v.mhd"
        )
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.volume_hu, series.volume_hu)
        np.testing.assert_allclose(volume.affine_ras, series.affine_ras, atol=1e-3)
        assert volume.n_padding_voxels == series.n_padding_voxels
