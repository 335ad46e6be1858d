"""A cohort as 16-bit PNG and back, and the published data set of PNG: HU + 32768 at slope 1, or a refusal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from pipelines.cohort.folder import Cohort
from pipelines.cohort.png_export import export_png
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import NothingReadError, Prepared, prepare_cohort
from pipelines.ingest.sources.found import SourceError
from pipelines.phantom.wall_cohort import make_wall_cohort

Writer = Callable[..., list[Path]]


pytestmark = pytest.mark.usefixtures("own_key")


def prepared(source: Path, cohort: Path, **changes: Any) -> Prepared:
    return prepare_cohort(
        PrepareConfig(**{"source": str(source), "cohort": str(cohort), "workers": 1} | changes)
    )


def test_export_and_back_gives_the_same_voxels_at_the_same_place(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    files = write_ct_series(tmp_path / "s" / "a", n_slices=9, series_uid="1.2.3.4")
    files[4].unlink()  # a gap
    write_ct_series(tmp_path / "s" / "b", n_slices=3, series_uid="1.2.3.5")
    first = prepared(tmp_path / "s", tmp_path / "c").cohort
    assert export_png(first, tmp_path / "png") == 11
    back = prepared(tmp_path / "png", tmp_path / "d", from_="png").cohort
    assert back.sha256 == first.sha256
    for column in ("volume_id", "patient_id", "series_uid", "study_uid", "gaps", "spacing_mm", "affine_ras"):
        for one, other in zip(first.series[column], back.series[column], strict=True):
            np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        back.series["slice_offsets_mm"].iloc[0], first.series["slice_offsets_mm"].iloc[0]
    )


@pytest.mark.parametrize("kind", ["phantom", "synthetic slices"])
def test_a_phantom_that_was_exported_comes_back_as_one(
    kind: str, small_cohort: Cohort, tmp_path: Path
) -> None:
    cohort = small_cohort
    if kind == "synthetic slices":
        make_wall_cohort(tmp_path / "wall", volumes=2, slices_each=4)
        cohort = Cohort.open(tmp_path / "wall")
    assert cohort.kind == kind
    export_png(cohort, tmp_path / "png")
    back = prepared(tmp_path / "png", tmp_path / "d").cohort
    assert back.nodules.empty
    assert back.kind == kind
    export_png(back, tmp_path / "again")
    assert prepared(tmp_path / "again", tmp_path / "e").cohort.kind == kind
    index = pd.read_csv(tmp_path / "png" / "index.csv", dtype=str).assign(
        origin="Mrs Quill", manufacturer="x"
    )
    index.to_csv(tmp_path / "png" / "index.csv", index=False)
    assert set(prepared(tmp_path / "png", tmp_path / "f").cohort.series["origin"]) == {""}


def test_gaps_that_are_no_whole_number_of_slices_survive_the_way_there_and_back(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    z_mm = 2.5 * np.array([0, 1, 2, 3, 4, 5, 6, 7.53, 8.53, 9.53, 10.53, 11.53, 12.53, 14.07, 15.07])

    def move(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [-50, -40, round(-300 + z_mm[index], 3)]

    write_ct_series(tmp_path / "s", n_slices=len(z_mm), change=move)
    first = prepared(tmp_path / "s", tmp_path / "c").cohort
    assert list(first.series["gaps"].iloc[0]) == [6, 12]
    export_png(first, tmp_path / "png")
    back = prepared(tmp_path / "png", tmp_path / "d", from_="png").cohort
    assert list(back.series["gaps"].iloc[0]) == [6, 12]
    np.testing.assert_allclose(back.series["slice_offsets_mm"].iloc[0], z_mm, atol=1e-3)


def test_a_volume_that_has_grown_since_is_exported_as_it_is_now(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    files = write_ct_series(tmp_path / "s", n_slices=6)
    files[0].rename(tmp_path / "late.dcm")  # the lowest slice: with it every other moves up by one
    export_png(prepared(tmp_path / "s", tmp_path / "c").cohort, tmp_path / "png")
    (tmp_path / "late.dcm").rename(files[0])
    grown = prepared(tmp_path / "s", tmp_path / "c").cohort
    export_png(grown, tmp_path / "png")
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("png/*/*.png")}
    export_png(grown, tmp_path / "png")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    back = prepared(tmp_path / "png", tmp_path / "d", from_="png").cohort
    assert back.sha256 == grown.sha256


def hub_form(root: Path, decode: Callable[[np.ndarray], np.ndarray], encoding: str = "hu_plus_32768") -> Path:
    """Slices as the Hub's data set stores them: an index without any position."""
    rows = []
    (root / "png").mkdir(parents=True)
    for z in range(4):
        hu = np.linspace(-1000, 1500, 400).reshape(20, 20) + z
        Image.fromarray(decode(hu).astype(np.uint16)).save(root / "png" / f"{z}.png")
        rows.append(
            {
                "png_path": f"png/{z}.png",
                "series_dir": "P1/1.2.3/1.2.3.4",
                "slice_index": str(z),
                "encoding": encoding,
                "spacing_x": "0.7",
                "spacing_y": "0.7",
                "spacing_z": "2.5",
            }
        )
    pd.DataFrame(rows).to_csv(root / "index.csv", index=False)
    return root


def test_a_patch_comes_back_as_a_patch_and_a_scanner_as_itself(
    write_ct_series: Writer, tmp_path: Path
) -> None:
    path = tmp_path / "s" / "LIDC-IDRI-0003_n1.nii.gz"
    path.parent.mkdir()
    voxels = np.random.default_rng(0).integers(-900, 300, (10, 12, 8)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    write_ct_series(tmp_path / "d", series_uid="1.2.3.4")
    prepared(tmp_path / "s", tmp_path / "c", from_="nifti")
    first = prepared(tmp_path / "d", tmp_path / "c").cohort
    export_png(first, tmp_path / "png")
    back = prepared(tmp_path / "png", tmp_path / "b", from_="png").cohort
    kept = ["volume_id", "patient_id", "kind", "is_lossy", "manufacturer", "kernel"]
    pd.testing.assert_frame_equal(back.series[kept], first.series[kept])
    assert sorted(back.series["kind"]) == ["patch", "series"]
    index = pd.read_csv(tmp_path / "png" / "index.csv").replace({"kind": {"patch": "part"}})
    index.to_csv(tmp_path / "png" / "index.csv", index=False)
    refused = prepared(tmp_path / "png", tmp_path / "e", from_="png").cohort.refused
    assert refused["reason"].str.startswith("kind is neither series nor patch").tolist() == [True]


def test_the_hubs_png_are_hu_plus_32768_at_slope_1(tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    cohort = prepared(source, tmp_path / "c", from_="png", keep_ids=True).cohort
    volume = cohort.volume("1.2.3.4")
    assert (int(volume.min()), int(volume.max())) == (-1000, 1503)
    assert "has no position" in cohort.series["notes"].iloc[0]


@pytest.mark.parametrize(
    ("decode", "encoding"),
    [
        (lambda hu: hu + 1024, ""),
        (lambda hu: hu * 10 + 32768, ""),
        (lambda hu: hu * 0.1 + 32768, ""),
        (lambda hu: hu + 32768, "hu_plus_1024"),
    ],
)
def test_another_convention_is_refused(
    decode: Callable[[np.ndarray], np.ndarray], encoding: str, tmp_path: Path
) -> None:
    with pytest.raises(NothingReadError, match="another"):
        prepared(hub_form(tmp_path / "s", decode, encoding), tmp_path / "c", from_="png")


def test_png_of_8_bits_cut_short_or_led_outside_are_refused(tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    png = source / "png" / "2.png"
    whole = png.read_bytes()
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(png)
    with pytest.raises(NothingReadError, match="16-bit"):
        prepared(source, tmp_path / "c1", from_="png")
    png.write_bytes(whole[:-60])
    with pytest.raises(NothingReadError, match="cut short"):
        prepared(source, tmp_path / "c2", from_="png")
    index = pd.read_csv(source / "index.csv", dtype=str)
    index.loc[1, "png_path"] = "../../etc/passwd"
    index.to_csv(source / "index.csv", index=False)
    with pytest.raises(NothingReadError, match="leads out of the folder"):
        prepared(source, tmp_path / "c3", from_="png")


def test_ids_that_are_none_and_ids_of_two_series_are_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    index = pd.read_csv(source / "index.csv", dtype=str)
    ids = {"P1": "../outside", "P2": "twice", "P3": "twice", "P4/a b": ""}
    rows = [index.assign(series_dir=name, volume_id=volume_id) for name, volume_id in ids.items()]
    pd.concat(rows).to_csv(source / "index.csv", index=False)
    done = prepared(source, tmp_path / "c", from_="png", keep_ids=True)
    assert done.cohort.series["volume_id"].str.fullmatch(r"name-[0-9a-f]{16}").tolist() == [True]
    reasons = dict(zip(done.cohort.refused["reason"], done.cohort.refused["n_files"], strict=True))
    assert [(reason[:21], n_files) for reason, n_files in sorted(reasons.items())] == [
        ("the index gives one i", 8),
        ("volume_id or series_u", 4),
    ]


@pytest.mark.parametrize("offset", ["nan", "0"])
def test_slices_that_do_not_follow_each_other_are_refused(offset: str, tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    index = pd.read_csv(source / "index.csv", dtype=str)
    index = index.assign(slice_index=["0", "1", "5", "6"], slice_offset_mm=["0", "2.5", offset, "15"])
    index.to_csv(source / "index.csv", index=False)
    with pytest.raises(NothingReadError, match="slice_offset_mm does not rise"):
        prepared(source, tmp_path / "c", from_="png")


def test_a_csv_of_something_else_beside_the_index_is_passed_over(tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    (source / "a.csv").write_bytes(b"")
    (source / "b.csv").write_bytes(b"x,y\n1,2,3\n\xff\n")
    (source / "c.csv").mkdir()
    assert prepared(source, tmp_path / "c", from_="png").n_new == 1


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(SourceError, match="holds no index of PNG slices"):
        prepared(tmp_path / "s", tmp_path / "c", from_="png")
