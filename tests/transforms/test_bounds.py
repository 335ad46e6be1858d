"""Files that claim to be huge are refused before anything of that size is held."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from transforms.dicom.codestream import check_codestream
from transforms.dicom.series import read_series
from transforms.metaimage import read_metaimage
from transforms.nifti import read_nifti
from transforms.nrrd import read_nrrd
from transforms.png_slices import read_png_slices
from transforms.refusal import SeriesRefusedError

Writer = Callable[..., list[Path]]
MOST_MB = 200
HUGE = (1200, 1024, 1024)
"""(z, y, x) of int16: 2.5 GB."""


@contextmanager
def small_memory() -> Iterator[None]:
    """Fail where resident memory rises by more than 200 MB inside."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = _peak_mb()
    yield
    assert _peak_mb() - before < MOST_MB


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def zeros_deflated(n_mb: int, wbits: int, start: bytes = b"") -> bytes:
    """A stream of `start` and then so many MB of zeros, made of one compressed block again and again."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    opening = {31: b"\x1f\x8b\x08" + bytes(7), 15: b"\x78\x01", -15: b""}[wbits]
    return opening + head + block * n_mb + packer.flush(zlib.Z_FINISH) + bytes(8)


def encoded(kind: str, size: tuple[int, int] = (16, 12)) -> bytes:
    buffer = BytesIO()
    Image.linear_gradient("L").resize(size).save(
        buffer, kind, **({"no_jp2": True} if kind == "JPEG2000" else {})
    )
    return buffer.getvalue()


def with_size(codestream: bytes, rows: int, columns: int) -> bytes:
    """The image as if it had so many rows and columns."""
    if codestream[:2] == b"\xff\x4f":
        return codestream[:8] + struct.pack(">6L", columns, rows, 0, 0, columns, rows) + codestream[32:]
    at = codestream.index(b"\xff\xc0")
    return codestream[: at + 5] + struct.pack(">HH", rows, columns) + codestream[at + 9 :]


def of_8_bits(
    syntax: str, codestream: bytes, rows: int = 12, columns: int = 16
) -> Callable[[Dataset, int], None]:
    def change(dataset: Dataset, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelData = encapsulate([codestream])
        dataset["PixelData"].is_undefined_length = True

    return change


@pytest.mark.parametrize(("kind", "syntax"), [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGBaseline8Bit)])
@pytest.mark.parametrize("header", [(12, 16), (8192, 8192)])
def test_a_compressed_image_that_claims_another_size_or_a_huge_one_is_not_decoded(
    kind: str, syntax: str, header: tuple[int, int], write_ct_series: Writer, tmp_path: Path
) -> None:
    small = encoded(kind)
    files = write_ct_series(tmp_path / "small", change=of_8_bits(syntax, small))
    assert read_series(files).volume_hu.shape == (5, 12, 16)
    claimed = with_size(small, 30000, 30000) if header == (12, 16) else with_size(small, *header)
    files = write_ct_series(tmp_path / "huge", change=of_8_bits(syntax, claimed, *header))
    reason = "is 30000 x 30000" if header == (12, 16) else "bytes are too few for 671088640 bytes of voxels"
    with small_memory(), pytest.raises(SeriesRefusedError, match=reason):
        read_series(files)
    reason = "is 30000 x 30000" if header == (12, 16) else "are too few for an image of 8192 x 8192"
    with pytest.raises(SeriesRefusedError, match=reason):
        check_codestream(syntax, claimed, *header, 1)


def test_many_slices_of_a_few_bytes_each_are_not_decoded(write_ct_series: Writer, tmp_path: Path) -> None:
    blank = BytesIO()
    Image.new("L", (2048, 2048), 7).save(blank, "JPEG2000", no_jp2=True)
    change = of_8_bits(JPEG2000Lossless, blank.getvalue(), 2048, 2048)
    check_codestream(JPEG2000Lossless, blank.getvalue(), 2048, 2048, 1)  # one is small enough
    files = write_ct_series(tmp_path, n_slices=100, change=change)
    with small_memory(), pytest.raises(SeriesRefusedError, match="no CT is compressed 100 times"):
        read_series(files)


def test_pngs_of_a_few_bytes_each_are_not_decoded(tmp_path: Path) -> None:
    Image.fromarray(np.full((4096, 4096), 31768, np.uint16)).save(tmp_path / "s.png")
    with small_memory(), pytest.raises(SeriesRefusedError, match="no CT is compressed 100 times"):
        read_png_slices([tmp_path / "s.png"] * 5)


def test_a_series_of_zeros_of_any_length_is_not_held(write_ct_series: Writer, tmp_path: Path) -> None:
    def zeros(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = 1024
        dataset.PixelData = bytes(1024 * 1024 * 2)

    files = write_ct_series(tmp_path, n_slices=120, change=zeros)
    with small_memory(), pytest.raises(SeriesRefusedError, match="all voxels hold one value"):
        read_series(files)


def test_rle_of_fewer_bytes_than_the_matrix_needs_is_not_decoded(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    files = write_ct_series(tmp_path, change=of_8_bits(RLELossless, bytes(300), 2048, 2048))
    with small_memory(), pytest.raises(SeriesRefusedError, match="too few bytes of RLE"):
        read_series(files)


SOF = b"\x08\x02\x00\x02\x00\x01\x01\x11\x00"  # 512 x 512, one sample


@pytest.mark.parametrize(
    ("codestream", "reason"),
    [
        (b"\xff\xd8\xff\xf7\x00\x0b" + SOF + b"\xff\xda\x00\x02", ""),
        (b"\xff\xd8\xff\xff\xff\xc3\x00\x0b" + SOF + b"\xff\xda\x00\x02", ""),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc3\x00\x0b" + SOF + b"\xff\xda\x00\x02", ""),
        (
            b"\xff\xd8\xff\xc3\x00\x0b" + SOF.replace(b"\x01\x01", b"\x03\x01") + b"\xff\xda\x00\x02",
            "3 sample",
        ),
        (
            b"\xff\xd8\xff\xc3\x00\x0b" + SOF + b"\xff\xc3\x00\x0b" + SOF + b"\xff\xda\x00\x02",
            "not say its size",
        ),
        (b"\xff\xd8\xff\xf7\x00\x0b" + SOF[:3], "not say its size"),
        (b"\xff\xd8\xff\xd9", "not say its size"),
        (b"\xff\x4f\xff\x51\x00\x29\x00", "not say its size"),
        (b"no image at all", "not say its size"),
    ],
)
def test_the_size_of_a_codestream_is_read_as_its_standard_says(codestream: bytes, reason: str) -> None:
    for syntax in (JPEGLSLossless, JPEGLosslessSV1):
        if reason:
            with pytest.raises(SeriesRefusedError, match=reason):
                check_codestream(syntax, codestream, 512, 512, 2)
        else:
            check_codestream(syntax, codestream, 512, 512, 2)


def test_an_image_of_a_million_tiles_is_not_decoded() -> None:
    tiled = bytearray(with_size(encoded("JPEG2000"), 4096, 4096))
    tiled[24:32] = struct.pack(">2L", 4, 4)
    with pytest.raises(SeriesRefusedError, match="more than 4096 tiles"):
        check_codestream(JPEG2000Lossless, bytes(tiled), 4096, 4096, 2)


def deflated(dataset: Dataset, index: int) -> None:
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def test_deflated_slices_are_read_and_one_that_inflates_without_end_is_not(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    plain, files = write_ct_series(tmp_path / "plain"), write_ct_series(tmp_path / "d", change=deflated)
    series = read_series(files)
    np.testing.assert_array_equal(series.volume_hu, read_series(plain).volume_hu)
    assert series.transfer_syntax == DeflatedExplicitVRLittleEndian
    content = files[0].read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    inflated = zlib.decompress(content[at:], -15)
    files[0].write_bytes(content[:at] + zeros_deflated(400, -15, inflated))
    with small_memory(), pytest.raises(SeriesRefusedError, match=r"times their size: no CT|its header says"):
        read_series(files)


def test_a_fragment_of_gigabytes_is_not_read(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, change=of_8_bits(JPEG2000Lossless, encoded("JPEG2000")))
    content = files[0].read_bytes()
    at = (
        content.index(b"\xe0\x7f\x10\x00") + 12
    )  # behind the element's head: the table of offsets, then fragments
    with files[0].open("wb") as file:
        file.write(content[: at + 12] + b"\xfe\xff\x00\xe0" + (3 << 30).to_bytes(4, "little"))
        file.truncate((3 << 30) + at + 20)
    with small_memory(), pytest.raises(SeriesRefusedError, match="far more than the 192 of its pixels"):
        read_series(files)


def nifti_header(shape_zyx: tuple[int, int, int]) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape_zyx[::-1])
    header.set_sform(np.diag([-0.7, -0.7, 1.0, 1.0]), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return header.binaryblock + bytes(4)


MHD = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {2} {1} {0}\nElementSpacing = 0.7 0.7 1\n{c}"
)
MHD += "ElementByteOrderMSB = False\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {2} {1} {0}\n"
NRRD += (
    "space directions: (0.7,0,0) (0,0.7,0) (0,0,1)\nendian: little\nencoding: {c}\nspace origin: (0,0,0)\n\n"
)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_compressed_zeros_of_a_size_that_the_header_says_are_not_inflated_whole(
    ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"v{ending}"
    if ending == ".nii.gz":
        path.write_bytes(zeros_deflated(400, 31, nifti_header(HUGE)))
    elif ending == ".mha":
        path.write_bytes(MHD.format(*HUGE, c="CompressedData = True\n").encode() + zeros_deflated(400, 15))
    else:
        path.write_bytes(NRRD.format(*HUGE, c="gzip").encode() + zeros_deflated(400, 31))
    read = {".nii.gz": read_nifti, ".mha": read_metaimage, ".nrrd": read_nrrd}[ending]
    with small_memory(), pytest.raises(SeriesRefusedError, match="times their size: no CT"):
        read(path)


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_a_sparse_file_that_was_never_written_is_not_read_whole(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"v{ending}"
    header = {".nii": nifti_header(HUGE), ".mha": MHD.format(*HUGE, c="").encode()}.get(ending)
    header = header or NRRD.format(*HUGE, c="raw").encode()
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * int(np.prod(HUGE)))
    read = {".nii": read_nifti, ".mha": read_metaimage, ".nrrd": read_nrrd}[ending]
    with small_memory(), pytest.raises(SeriesRefusedError, match="zeros throughout"):
        read(path)


def test_slices_in_part_never_written_are_noted_and_a_series_of_zeros_is_refused(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 300, (16, 12, 8), dtype=np.int16)
    voxels[..., 5:] = 0
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-0.7, -0.7, 1.0, 1.0])), tmp_path / "v.nii")
    assert "3 slice(s) hold nothing but 0 HU" in "; ".join(read_nifti(tmp_path / "v.nii").notes)

    def never_written(dataset: Dataset, index: int) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))

    with pytest.raises(SeriesRefusedError, match="all voxels hold one value"):
        read_series(write_ct_series(tmp_path / "s", change=never_written))


def test_a_header_without_end_is_not_read_whole(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path)
    content = files[0].read_bytes()
    at = content.index(b"\x28\x00\x02\x00")  # the first element of the image's own group
    with files[0].open("wb") as file:
        file.write(content[:at] + b"\x27\x00\x10\x10OB\0\0" + (3 << 30).to_bytes(4, "little"))
        file.truncate(3 << 30)
    with (
        small_memory(),
        pytest.raises(SeriesRefusedError, match=r"no end within 16 MB|cannot be read to the end"),
    ):
        read_series(files)
