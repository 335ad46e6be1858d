"""The overview of a cohort: each series the right way round, at its true size, and what is wrong with it said first."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from pipelines.cohort.folder import Cohort, CohortWriter, write_volume
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, empty_table
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.overview import Glance, in_most, look_at_cohort
from pipelines.ingest.overview_page import overview
from pipelines.ingest.preparation import prepare_cohort
from pipelines.ingest.report import counts, lines

SHAPE, SPACING = (60, 128, 128), (5.0, 2.8, 2.8)


def chest() -> np.ndarray:
    """(z, y, x), x toward the left, y toward the back, z toward the head: heart on the left, narrow apexes, spine."""
    z, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    volume = np.full(SHAPE, -1000, dtype=np.int16)
    volume[((y - 63) / 45) ** 2 + ((x - 63) / 58) ** 2 < 1] = -100
    volume[((y - 63) / 41) ** 2 + ((x - 63) / 54) ** 2 < 1] = 40
    tall = 1 - 0.6 * z / SHAPE[0]
    for middle in (38, 90):
        volume[((y - 63) / (30 * tall)) ** 2 + ((x - middle) / (20 * tall)) ** 2 < 1] = -860
    volume[((y - 48) / 20) ** 2 + ((x - 82) / 18) ** 2 < 1] = 40
    volume[((y - 92) / 8) ** 2 + ((x - 63) / 7) ** 2 < 1] = 400
    volume[((y - 30) / 9) ** 2 + ((x - 63) / 9) ** 2 + ((z - 20) / 12) ** 2 < 1] = (
        600  # contrast medium in the heart
    )
    volume = gaussian_filter(volume, (2.0, 1.0, 1.0))  # as slices of 5 mm blur what they cut
    volume += np.random.default_rng(0).normal(0, 15, SHAPE).astype(np.int16)
    return volume


def row(volume_id: str, affine: np.ndarray, **changes: object) -> dict[str, object]:
    texts = dict.fromkeys(("patient_id", "study_uid", "series_uid", "manufacturer", "kernel"), volume_id)
    numbers = {"slice_thickness_mm": 5.0, "n_padding_voxels": 0, "is_lossy": False}
    geometry = {
        "spacing_mm": list(SPACING),
        "affine_ras": affine.ravel().tolist(),
        "gaps": [],
        "slice_offsets_mm": [],
    }
    others = {"transfer_syntax": "", "kind": "series", "notes": ""}
    return {"volume_id": volume_id, **texts, **numbers, **geometry, **others, **changes}


def affine_of(x: int = -1, y: int = -1, step_mm: float = SPACING[0]) -> np.ndarray:
    return np.array([[0, 0, x * 2.8, 0], [0, y * 2.8, 0, 0], [step_mm, 0, 0, 0], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Glance]:
    """By what was planted: a chest as it is, in other orders of voxels, and wrong in one way each."""
    root = tmp_path_factory.mktemp("seen") / "c"
    writer, volume = CohortWriter(root), chest()
    write_volume(root, row("good", affine_of()), volume)
    write_volume(root, row("flipped", affine_of(1, 1)), volume[:, ::-1, ::-1])
    write_volume(root, row("mirrored", affine_of()), volume[:, :, ::-1])
    write_volume(root, row("backward", affine_of()), volume[:, ::-1])
    write_volume(
        root, row("shuffled", affine_of()), volume[np.random.default_rng(1).permutation(len(volume))]
    )
    write_volume(root, row("two_passes", affine_of()), np.concatenate([volume[::2], volume[1::2]]))
    write_volume(root, row("brighter", affine_of()), volume + 150)
    write_volume(root, row("stretched", affine_of(step_mm=15), spacing_mm=[15.0, 2.8, 2.8]), volume)
    noted = {"notes": "slices are missing at 1 place(s)", "slice_thickness_mm": None}
    write_volume(root, row("noted", affine_of(), **noted), volume)
    write_volume(root, row("patch", affine_of(), kind="patch"), volume[:4, 60:80, 60:80])
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), "s")
    writer.close()
    return {str(glance.row["volume_id"]): glance for glance in look_at_cohort(Cohort.open(root))}


def test_a_sound_chest_has_nothing_unusual_and_its_figures(seen: dict[str, Glance]) -> None:
    for name in ("good", "flipped"):
        assert seen[name].unusual == {"pixel_mm": "pixels of 2.8 mm"}, name  # as this test draws them
    assert seen["patch"].unusual == {}
    figures = seen["good"].figures
    assert figures["air_hu"] == pytest.approx(-1000, abs=5)
    assert figures["lung_hu"] == pytest.approx(-860, abs=15)  # blurred
    assert figures["fat_hu"] == pytest.approx(-100, abs=5)
    assert figures["height_mm"] == 300


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("mirrored", "of the lung is on the left, where the heart is"),
        ("backward", "% of it at the back: front and back exchanged"),
        ("shuffled", "as much as those four apart: shuffled?"),
        ("two_passes", "times the greatest over two: two passes?"),
        ("brighter", r"air of -8[0-9]{2} HU"),
        ("stretched", "900 mm from feet to head"),
        ("noted", "slices are missing at 1 place"),
    ],
)
def test_what_was_planted_is_said(planted: str, said: str, seen: dict[str, Glance]) -> None:
    assert re.search(said, "; ".join(seen[planted].unusual.values()))


def test_what_most_series_have_is_not_unusual_and_is_said_once(seen: dict[str, Glance]) -> None:
    most = in_most(list(seen.values()))
    assert most == {"pixel_mm": "9 of 10 series: pixels of 2.8 mm"}
    assert in_most([seen["good"]] * 4) == {}  # too few to say what is usual here
    noted = [replace(seen["good"], unusual={"a note": "a note"})] * 6
    assert in_most(noted) == {"a note": "6 of 6 series: a note"}


def test_the_phantoms_page_names_what_it_is_and_flags_none_of_its_series(small_cohort: Cohort) -> None:
    page, _ = overview(small_cohort)
    assert re.search(r"something unusual come first: [01]\.", page)
    assert re.search(r"<li>6 of 6 series: [0-9]+ mm from feet to head</li>", page)


def test_beside_the_liver_a_lung_on_one_side_alone_is_no_mirror_image(tmp_path: Path) -> None:
    writer, volume = CohortWriter(tmp_path / "c"), chest()[:, :, ::-1]
    write_volume(tmp_path / "c", row("slab", affine_of()), volume[:15])
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), empty_table(REFUSED), "s")
    writer.close()
    (glance,) = look_at_cohort(Cohort.open(tmp_path / "c"))
    assert set(glance.unusual) == {"pixel_mm", "height_mm"}


def test_every_series_is_drawn_from_the_patients_right_to_left_head_up_at_one_scale(
    seen: dict[str, Glance],
) -> None:
    good, flipped, mirrored = (
        np.asarray(seen[name].axial)[20:-20] for name in ("good", "flipped", "mirrored")
    )
    np.testing.assert_allclose(flipped.astype(int), good.astype(int), atol=40)
    np.testing.assert_allclose(mirrored[:, ::-1].astype(int), good.astype(int), atol=40)
    assert good.shape[1] == round(128 * 2.8 / 2.5)
    dark = [int((np.asarray(seen[name].axial)[:, :71] < 130).sum()) for name in ("good", "mirrored")]
    assert dark[0] > dark[1]  # the right lung, without the heart, is drawn on the left
    coronal = np.asarray(seen["good"].coronal)
    assert coronal.shape[0] == 300 / 2.5
    lung = (coronal < 130)[:, 20:-20]
    assert lung[20:50].sum() < lung[60:90].sum()  # apexes up
    assert np.asarray(seen["stretched"].coronal).shape[0] == 260  # cut off, and said


def test_the_page_shows_the_unusual_first_and_needs_nothing_else(
    seen: dict[str, Glance], tmp_path: Path
) -> None:
    writer = CohortWriter(tmp_path / "c")
    for name in ("good", "mirrored"):
        write_volume(tmp_path / "c", row(name, affine_of()), chest()[:, :, :: 1 if name == "good" else -1])
    refused = empty_table(REFUSED).drop(columns="source_id")
    refused.loc[0] = ["", ".", 3, 0, "RescaleSlope <b> is missing"]
    writer.write_tables(empty_table(ANNOTATIONS), empty_table(NODULES), refused, "s")
    writer.close()
    page, figure = overview(Cohort.open(tmp_path / "c"))
    assert page.index(">mirrored</code>") < page.index(">good</code>")
    assert "<td>3</td><td></td><td>RescaleSlope &lt;b&gt; is missing</td>" in page
    assert set(re.findall(r"src='([a-z]+:)", page)) == {"data:"}
    assert "http" not in page
    assert str(tmp_path) not in page
    figure.savefig(tmp_path / "o.png")


def test_refusals_are_told_by_reason_with_a_path_and_files_of_no_image_apart(
    write_ct_series: object, tmp_path: Path, own_key: None
) -> None:
    def no_slope(dataset: object, index: int) -> None:
        del dataset.RescaleSlope  # type: ignore[attr-defined]

    write_ct_series(tmp_path / "s" / "good")  # type: ignore[operator]
    write_ct_series(tmp_path / "s" / "bad", series_uid="1.2.3.5", change=no_slope)  # type: ignore[operator]
    (tmp_path / "s" / "letter.txt").write_text("to the clinic")
    done = prepare_cohort(
        PrepareConfig(source=str(tmp_path / "s"), cohort=str(tmp_path / "c"), witness="simpleitk", workers=1)
    )
    said = "\n".join(lines(done))
    assert f"11 files of {tmp_path}/s: 5 in volumes, 5 refused" in said
    assert f"1 are no images (such as {tmp_path}/s/letter.txt)" in said
    assert re.search(rf"5 refused: RescaleSlope .* is missing.*\n    such as {tmp_path}/s/bad/", said)
    assert "witness: 1 of 1 series equal, worst 0 HU" in said
    assert counts(done)["prepare/witness_worst_hu"] == 0
    assert counts(done)["prepare/files_of_no_image"] == 1
