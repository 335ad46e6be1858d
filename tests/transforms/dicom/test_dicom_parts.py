"""One SeriesInstanceUID that holds more than one volume: each is read by itself, and none is a mixture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from transforms.dicom.load import LoadDicomSeries, SeriesRefusedError, read_series
from transforms.dicom.tree import find_series

Writer = Callable[..., list[Path]]
Change = Callable[[Dataset, int], None]


def placed(z_mm: Callable[[int], float], **values: Callable[[int], Any]) -> Change:
    """Slice i at a height in mm, with elements that depend on i; InstanceNumber counts the slices by default."""

    def change(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [-50, -40, z_mm(index)]
        dataset.InstanceNumber = index + 1
        for keyword, value in values.items():
            setattr(dataset, keyword, value(index))

    return change


def at_one_place(i: int) -> float:
    return -300 + 2.5 * (i % 6)


def between(i: int) -> float:
    return -300 + 2.5 * (i % 6) + 1.25 * (i // 6)


def there_and_back(i: int) -> float:
    return -300 + 2.5 * (i if i < 6 else 11 - i)


def second(i: int) -> int:
    return i // 6


TWO_VOLUMES: dict[str, tuple[Change, str]] = {
    "phases by AcquisitionNumber": (
        placed(at_one_place, AcquisitionNumber=lambda i: 1 + second(i)),
        "AcquisitionNumber",
    ),
    "phases by temporal position": (
        placed(at_one_place, TemporalPositionIdentifier=lambda i: 1 + second(i)),
        "TemporalPositionIdentifier",
    ),
    "contrast": (
        placed(at_one_place, ContrastBolusAgent=lambda i: ["", "given"][second(i)]),
        "ContrastBolusAgent",
    ),
    "two voltages": (placed(at_one_place, KVP=lambda i: [80, 140][second(i)]), "KVP"),
    "two kernels": (placed(at_one_place, ConvolutionKernel=lambda i: ["B30f", "B70f"][second(i)]), "Kernel"),
    "two kernels between each other": (
        placed(between, ConvolutionKernel=lambda i: ["B30f", "B70f"][second(i)]),
        "ConvolutionKernel",
    ),
    "original and derived": (
        placed(at_one_place, ImageType=lambda i: [["ORIGINAL", "DERIVED"][second(i)], "PRIMARY", "AXIAL"]),
        "ImageType",
    ),
    "two reconstructions of other thickness": (
        placed(between, SliceThickness=lambda i: [1, 5][second(i)]),
        "SliceThickness",
    ),
    "two fields of view": (
        placed(at_one_place, PixelSpacing=lambda i: [[0.7, 0.6], [0.5, 0.5]][second(i)]),
        "PixelSpacing",
    ),
    "two passes by AcquisitionNumber": (
        placed(between, AcquisitionNumber=lambda i: 1 + second(i)),
        "AcquisitionNumber",
    ),
    "two passes by one time each": (
        placed(between, AcquisitionTime=lambda i: ["101010", "101510"][second(i)]),
        "AcquisitionTime",
    ),
    "two passes with a time of each slice": (
        placed(between, AcquisitionTime=lambda i: f"10{10 + 5 * second(i)}10.{i % 6}"),
        "AcquisitionTime",
    ),
    "two passes with a number of each rotation": (
        placed(between, AcquisitionNumber=lambda i: 1 + i // 2),
        "AcquisitionNumber",
    ),
    "two passes that are numbered on": (placed(between), "InstanceNumber"),
    "two phases that are numbered on": (placed(at_one_place), "InstanceNumber"),
    "there and back": (
        placed(there_and_back, AcquisitionNumber=lambda i: 1 + second(i)),
        "AcquisitionNumber",
    ),
}


@pytest.mark.parametrize("kind", TWO_VOLUMES)
def test_two_volumes_under_one_uid_are_read_each_by_itself(
    kind: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    change, name = TWO_VOLUMES[kind]
    files = write_ct_series(tmp_path, n_slices=12, change=change)
    found = find_series(tmp_path)
    assert list(found.series) == ["1.2.3.4_part-1", "1.2.3.4_part-2"]
    assert not found.refused
    for part, key in enumerate(found.series):
        volume = read_series(found.series[key])
        assert volume.spacing_mm[0] == pytest.approx(2.5)
        assert (volume.gaps, volume.series_uid) == ((), "1.2.3.4")
        first_hu = {
            int(slice_hu[0, 0]) for slice_hu in volume.volume_hu
        }  # -1000 + 10 i in slice i as written
        assert first_hu == {-1000 + 10 * i for i in range(6 * part, 6 * part + 6)}
        assert found.parts[key].series_uid == "1.2.3.4"
        assert f"volume {part + 1} of 2" in found.parts[key].note
        assert name in found.parts[key].note
    with pytest.raises(
        SeriesRefusedError, match=f"holds 2 volumes .of 6, 6 slices., distinguished by .*{name}"
    ):
        read_series(files)
    np.testing.assert_array_equal(
        LoadDicomSeries(series_uid="1.2.3.4_part-2")(tmp_path)[0].numpy(), volume.volume_hu
    )


def test_ten_phases_of_a_4d_series_that_are_numbered_on_are_ten_volumes(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    write_ct_series(tmp_path, n_slices=50, change=placed(lambda i: -300 + 2.5 * (i % 5)))
    found = find_series(tmp_path)
    assert [len(files) for files in found.series.values()] == [5] * 10
    for key, files in found.series.items():
        phase = int(key.rpartition("-")[2]) - 1
        first_hu = read_series(files).volume_hu[:, 0, 0]
        np.testing.assert_array_equal(first_hu, -1000 + 10 * (5 * phase + np.arange(5)))


def test_phases_that_nothing_in_their_headers_tells_apart_are_refused_with_a_way_to_choose(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    alike = placed(at_one_place, InstanceNumber=lambda i: 1 + i % 6)
    files = write_ct_series(tmp_path, n_slices=12, change=alike)
    assert [len(of_series) for of_series in find_series(tmp_path).series.values()] == [12]
    with pytest.raises(
        SeriesRefusedError, match=r"6 of 12 images in all: .*name a folder that holds one of them"
    ):
        read_series(files)


ONE_VOLUME: dict[str, Change] = {
    "an acquisition of each rotation": placed(lambda i: 2.5 * i, AcquisitionNumber=lambda i: 1 + i // 4),
    "an acquisition of each slice": placed(lambda i: 2.5 * i, AcquisitionNumber=lambda i: 12 - i),
    "a time of each slice": placed(lambda i: -2.5 * i, AcquisitionTime=lambda i: f"10101{i % 10}.{i:02d}"),
    "times in no order": placed(
        lambda i: 2.5 * i,
        AcquisitionTime=lambda i: f"1010{[37, 12, 41, 11, 29, 14, 52, 13, 28, 16, 30, 15][i]}",
    ),
    "one odd acquisition": placed(lambda i: 2.5 * i, AcquisitionNumber=lambda i: 1 + (i == 5)),
    "one odd kernel": placed(lambda i: 2.5 * i, ConvolutionKernel=lambda i: ["B30f", ""][i == 5]),
    "contrast that arrives": placed(lambda i: 2.5 * i, ContrastBolusAgent=lambda i: ["", "given"][i > 5]),
    "numbers in no order": placed(
        lambda i: 2.5 * i, InstanceNumber=lambda i: [7, 2, 11, 1, 9, 4, 12, 3, 8, 6, 10, 5][i]
    ),
    "no numbers": placed(lambda i: 2.5 * i, InstanceNumber=lambda i: 0),
    "two halves, one after the other": placed(lambda i: 2.5 * ((i + 6) % 12)),
}


@pytest.mark.parametrize("kind", ONE_VOLUME)
def test_one_volume_stays_one_whatever_its_slices_say(
    kind: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    write_ct_series(tmp_path, n_slices=12, change=ONE_VOLUME[kind])
    found = find_series(tmp_path)
    assert list(found.series) == ["1.2.3.4"]
    volume = read_series(found.series["1.2.3.4"])
    assert (len(volume.volume_hu), volume.spacing_mm[0], volume.gaps) == (12, pytest.approx(2.5), ())
    assert ("ConvolutionKernel changes within the volume" in volume.notes) == (kind == "one odd kernel")


STRAY: dict[str, dict[str, Any]] = {
    "a coronal scout": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "Rows": 6, "Columns": 32},
    "a scout that is called axial": {"ImagePositionPatient": [-50, -40, -400], "Rows": 6, "Columns": 32},
    "a derived image": {"ImageType": ["DERIVED", "SECONDARY"], "ImagePositionPatient": [-50, -40, -295]},
    "a reconstruction of another field": {
        "PixelSpacing": [0.3, 0.3],
        "ImagePositionPatient": [-50, -40, -295],
    },
}


@pytest.mark.parametrize("kind", STRAY)
def test_a_stray_image_among_the_slices_is_refused_alone(
    kind: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        if index == 5:
            for keyword, value in STRAY[kind].items():
                setattr(dataset, keyword, value)

    files = write_ct_series(tmp_path, n_slices=6, change=change)
    found = find_series(tmp_path)
    assert {key: len(of_series) for key, of_series in found.series.items()} == {"1.2.3.4": 5}
    (refused,) = found.refused
    assert refused.path == files[5]
    assert "a single image that differs from the others of its series" in refused.reason
    assert read_series(found.series["1.2.3.4"]).gaps == ()


def test_slices_that_each_have_a_frame_of_reference_of_their_own_are_read_with_a_note(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    def own(dataset: Dataset, index: int) -> None:
        dataset.FrameOfReferenceUID = f"1.2.3.{index}.7"

    volume = read_series(write_ct_series(tmp_path / "own", change=own))
    plain = read_series(write_ct_series(tmp_path / "plain"))
    np.testing.assert_array_equal(volume.volume_hu, plain.volume_hu)
    np.testing.assert_array_equal(volume.affine_ras, plain.affine_ras)
    (note,) = volume.notes
    assert "every slice has a FrameOfReferenceUID of its own" in note


@pytest.mark.parametrize("n_slices", [2, 6])
def test_slices_of_two_frames_of_reference_are_refused(
    n_slices: int, write_ct_series: Writer, tmp_path: Path
) -> None:
    def halves(dataset: Dataset, index: int) -> None:
        dataset.FrameOfReferenceUID = f"1.2.3.{index // (n_slices // 2)}"

    with pytest.raises(SeriesRefusedError, match="FrameOfReferenceUID takes 2 values"):
        read_series(write_ct_series(tmp_path, n_slices=n_slices, change=halves))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    "series_uid", ["402915678123", "ID_0012", "5f3a9b1e-77aa-4c1d-9f00-aa12bb34cc56", "x"]
)
def test_any_id_groups_slices_and_no_sop_instance_costs_one(
    series_uid: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.SeriesInstanceUID = series_uid
        dataset.SOPInstanceUID = ["", "402915678123", "DOE^JANE", "1.2", "1.2"][index]
        dataset.StudyInstanceUID = "study 7"

    write_ct_series(tmp_path, change=change)
    found = find_series(tmp_path)
    assert list(found.series) == [series_uid]
    assert len(read_series(found.series[series_uid]).volume_hu) == 5


@pytest.mark.parametrize(
    ("thickness_mm", "step_mm", "n_slices", "reason"),
    [
        (1, 262, 2, "262.0 mm apart: single images"),
        (1, 200, 5, "200.0 mm apart: single images"),
        (None, 30, 2, "30.0 mm apart: single images"),
        (1, 10, 2, "10.0 mm apart: single images"),
        (1, 1e6, 2, "which is not plausible"),
    ],
)
def test_distances_that_make_no_series_are_refused(
    thickness_mm: float, step_mm: float, n_slices: int, reason: str, write_ct_series: Writer, tmp_path: Path
) -> None:
    change = placed(lambda i: step_mm * i, SliceThickness=lambda i: thickness_mm)
    with pytest.raises(SeriesRefusedError, match=reason):
        read_series(write_ct_series(tmp_path, n_slices=n_slices, change=change))


def test_thin_slices_far_apart_are_single_slices_with_a_gap_at_every_step(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    change = placed(lambda i: 20.0 * i, SliceThickness=lambda i: 1)
    volume = read_series(write_ct_series(tmp_path, change=change))
    assert volume.gaps == (0, 1, 2, 3)
    assert volume.slice_offsets_mm == (0, 20, 40, 60, 80)
    assert "thin slices lie 20 mm apart" in volume.notes[0]


@pytest.mark.parametrize("spacing", [[0.0007, 0.0006], [70, 60]])
def test_pixels_that_no_scanner_of_people_has_are_refused(
    spacing: list[float], write_ct_series: Writer, tmp_path: Path
) -> None:
    def change(dataset: Dataset, index: int) -> None:
        dataset.PixelSpacing = spacing

    with pytest.raises(SeriesRefusedError, match="no CT scanner for patients"):
        read_series(write_ct_series(tmp_path, change=change))


def test_a_copy_of_one_slice_does_not_part_its_series(write_ct_series: Writer, tmp_path: Path) -> None:
    files = write_ct_series(tmp_path, n_slices=9)
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(files[4].read_bytes())
    assert {len(of_series) for of_series in find_series(tmp_path).series.values()} == {10}
    assert any("duplicate" in note for note in read_series([*files, copy]).notes)
