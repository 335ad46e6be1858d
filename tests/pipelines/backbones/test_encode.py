"""`embed`: bright structures lie where the tokens place them, for every kind of source."""

from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from models.backbone import BackboneError, Tokens, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.embedding import run_embed
from pipelines.backbones.encode import EncodeSettings, encode
from pipelines.backbones.folder import LoadedBackbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.ingest.ct_volumes import CtFolder, CtVolume
from pipelines.tracking.run import SilentRun
from transforms.dicom.load import LoadDicomSeries
from transforms.geometry import VolumeGeometry, index_to_lps
from transforms.refusal import TransformError

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)


class Brightness(nn.Module):
    """Stands where a backbone stands; a patch token is the mean of its patch in the middle channel."""

    def __init__(self, image_px: int, patch_px: int) -> None:
        super().__init__()
        self.image_px, self.patch_px, self.embed_dim = image_px, patch_px, 1
        self.mean, self.std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        self.image_depth_px, self.takes_spacing = 0, False

    def forward(self, images: Tensor) -> Tokens:
        means = nn.functional.avg_pool2d(images[:, 1:2], self.patch_px).flatten(2).transpose(1, 2)
        return Tokens(means.mean(1), means, means[:, :0])


def brightness(image_px: int = 80, patch_px: int = 4) -> LoadedBackbone:
    config = BackboneConfig(arch="custom", image_px=image_px, patch_px=patch_px)
    return LoadedBackbone(Brightness(image_px, patch_px), config, "test", {}, "", {})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "backbone"
    save_backbone(folder, build_backbone(TINY), TINY, {"mm_per_pixel": [0.1, 0.2], "hu_scale": 1.0})
    return folder


def ct_volume(volume_hu: np.ndarray, affine_ras: np.ndarray, *gap: tuple) -> CtVolume:
    return CtVolume("v", "p", volume_hu, VolumeGeometry(volume_hu.shape, affine_ras, *gap))


@pytest.mark.parametrize("size_mm", [0.0, 40.0])
@pytest.mark.parametrize("flip", [(), (1,), (2,), (1, 2)])
def test_the_brightest_patch_lies_on_the_sphere(
    phantom_sphere, flip: tuple[int, ...], size_mm: float
) -> None:
    affine = phantom_sphere.affine_ras.copy()
    for axis in flip:  # The same patient, stored the other way round.
        affine[:, 3] += affine[:, axis] * (phantom_sphere.volume_hu.shape[axis] - 1)
        affine[:, axis] *= -1
    volume = ct_volume(np.flip(phantom_sphere.volume_hu, flip), affine)
    loaded = brightness()
    settings = EncodeSettings(size_mm=size_mm, window="wide", batch_size=5)
    (encoded,) = encode(volume, loaded, settings, device="cpu")
    assert encoded.mm_per_px == pytest.approx((size_mm or 96 * 0.7) / 80)
    z, patch = np.unravel_index(encoded.patch_tokens[..., 0].argmax(), encoded.patch_tokens.shape[:2])
    away_mm = np.abs(encoded.patch_lps_mm[z, patch] - phantom_sphere.center_lps_mm)
    assert (away_mm <= [phantom_sphere.diameter_mm / 2] * 2 + [2.5]).all()
    # Brightness as the weight: the sphere's center to a fraction of a patch.
    weight = np.maximum(encoded.patch_tokens[..., 0] - np.quantile(encoded.patch_tokens, 0.95), 0)
    near = np.linalg.norm(encoded.patch_lps_mm - phantom_sphere.center_lps_mm, axis=-1) < 12
    found = (encoded.patch_lps_mm * (weight * near)[..., None]).sum((0, 1)) / (weight * near).sum()
    assert np.abs(found - phantom_sphere.center_lps_mm).max() < 0.6


def test_the_middle_of_the_field_is_the_middle_of_the_slice(phantom_sphere) -> None:
    volume = ct_volume(phantom_sphere.volume_hu, phantom_sphere.affine_ras)
    (encoded,) = encode(volume, brightness(), device="cpu")
    middle = index_to_lps(phantom_sphere.affine_ras, [[z, 47.5, 39.5] for z in range(16)])
    assert np.allclose(encoded.center_lps_mm, middle)
    assert np.allclose(encoded.patch_lps_mm.mean(1), middle)
    assert encoded.is_replicated.tolist() == [True] + [False] * 14 + [True]


def test_beyond_a_gap_slices_lie_where_their_offset_says(phantom_sphere) -> None:
    keep = [0, 1, 2, 3, 8, 9, 10]
    offsets = tuple(2.5 * z for z in keep)
    volume = ct_volume(phantom_sphere.volume_hu[keep], phantom_sphere.affine_ras, (3,), offsets)
    (encoded,) = encode(volume, brightness(), device="cpu")
    assert np.allclose(encoded.center_lps_mm[:, 2] - encoded.center_lps_mm[0, 2], offsets)
    assert np.flatnonzero(encoded.is_replicated).tolist() == [0, 3, 4, 6]


def test_a_folder_a_cohort_and_a_meta_tensor_give_the_same_tokens(
    small_phantom_source: Path, small_cohort: Cohort, tiny: Path
) -> None:
    by_id = {one.volume_id: one for one in encode(small_cohort.root, str(tiny), device="cpu")}
    assert set(by_id) == set(small_cohort.series["volume_id"])
    patient = min(path for path in small_phantom_source.iterdir() if path.is_dir())
    (from_folder,) = encode(patient, str(tiny), device="cpu")
    (from_memory,) = encode(LoadDicomSeries()(patient), str(tiny), EncodeSettings(batch_size=3), device="cpu")
    for one in (from_folder, from_memory):  # below the phantom's root its public UIDs are not known
        same = by_id[from_memory.volume_id]
        assert np.allclose(one.class_token, same.class_token, atol=1e-5)
        assert np.allclose(one.patch_tokens, same.patch_tokens, atol=1e-5)
        assert np.allclose(one.patch_lps_mm, same.patch_lps_mm)


def test_a_nifti_file_is_a_folder_of_one(phantom_sphere, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    # NIfTI is (x, y, z): the affine's columns and the array's axes are turned round together.
    affine = phantom_sphere.affine_ras[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(phantom_sphere.volume_hu.transpose(2, 1, 0), affine)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    (encoded,) = encode(tmp_path / "ct.nii.gz", brightness(), folder_format="nifti", device="cpu")
    volume = ct_volume(phantom_sphere.volume_hu, phantom_sphere.affine_ras)
    (expected,) = encode(volume, brightness(), device="cpu")
    assert np.allclose(encoded.patch_tokens, expected.patch_tokens, atol=1e-4)
    assert np.allclose(encoded.patch_lps_mm, expected.patch_lps_mm, atol=1e-3)


def test_what_cannot_be_encoded_is_refused(phantom_sphere, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size_mm must be 0 or more"):
        EncodeSettings(size_mm=-1.0)
    with pytest.raises(TransformError, match=r"a volume is a MetaTensor \(1, Z, Y, X\)"):
        next(encode(MetaTensor(torch.zeros(4, 4, 4)), brightness(), device="cpu"))
    sideways = ct_volume(phantom_sphere.volume_hu, phantom_sphere.affine_ras[:, [2, 1, 0, 3]])
    with pytest.raises(TransformError, match="axes are not"):
        next(encode(sideways, brightness(), device="cpu"))
    with pytest.raises(TransformError, match="nowhere"):
        next(encode(tmp_path / "nowhere", brightness(), device="cpu"))


def embed(*words: str) -> int:
    return run_entry_point("embed", EmbedConfig, run_embed, None, [*words, "--device", "cpu"])


def test_a_folder_becomes_one_row_a_slice(
    small_phantom_source: Path, small_cohort: Cohort, tiny: Path, own_store: Path, capsys
) -> None:
    out = (
        own_store / "exports" / "embeddings.parquet"
    )  # As MLproject has it: in a folder that does not exist yet.
    words = ["--backbone", str(tiny), "--out", str(out), "--features", "both"]
    assert embed("--source", str(small_phantom_source), *words) == 0
    said = capsys.readouterr().out
    assert "outside the 0.10 .. 0.20 of its pretraining" in said
    table = pq.read_table(out)
    n_slices = sum(shape[0] for shape in small_cohort.series["shape"])
    assert len(table) == n_slices
    assert f"{n_slices} slices of {len(small_cohort.series)} volumes" in said
    assert table.schema.metadata[b"features"] == b"both"
    first = {one.volume_id: one for one in encode(small_cohort.root, str(tiny), device="cpu")}
    rows = table.to_pandas()
    for volume_id, group in rows.groupby("volume_id"):
        one = first[volume_id]
        features = np.stack(group["features"])
        assert np.allclose(features[:, :16], one.class_token, atol=1e-5)
        assert np.allclose(features[:, 16:], one.patch_tokens.mean(1), atol=1e-5)
        assert np.allclose(group[["x_lps_mm", "y_lps_mm", "z_lps_mm"]], one.center_lps_mm)
        assert group["z"].tolist() == list(range(len(group)))
    patients = dict(small_cohort.series[["volume_id", "patient_id"]].itertuples(index=False))
    assert dict(rows[["volume_id", "patient_id"]].drop_duplicates().itertuples(index=False)) == patients

    # A folder without CT leaves the table of before as it was.
    (own_store / "empty").mkdir()
    (own_store / "empty" / "letter.txt").write_text("no CT")
    assert embed("--source", str(own_store / "empty"), *words) == 3
    assert "no CT series could be read" in capsys.readouterr().err
    assert len(pq.read_table(out)) == n_slices
    assert embed("--source", str(own_store / "empty"), "--backbone", str(tiny), "--out", "x/y.csv") == 2


def test_refused_series_are_named_and_the_rest_is_read(small_phantom_source: Path, tmp_path: Path) -> None:
    patients = sorted(path for path in small_phantom_source.iterdir() if path.is_dir())[:2]
    for number, patient in enumerate(patients):
        for i, file in enumerate(sorted(patient.rglob("*.dcm"))):
            content = file.read_bytes()
            (tmp_path / f"{number}-{i}.dcm").write_bytes(content[:-50] if number else content)
    folder = CtFolder(tmp_path)
    assert len(list(folder)) == 1
    assert len(folder.refused) == len(list(tmp_path.glob("1-*")))


class CubeBrightness(nn.Module):
    """Stands where a 3D backbone stands; a patch token is the mean of its patch, and the spacing is remembered."""

    def __init__(self, cube: tuple[int, int], patch: tuple[int, int]) -> None:
        super().__init__()
        (self.image_depth_px, self.image_px), (self.patch_depth_px, self.patch_px) = cube, patch
        self.embed_dim, self.mean, self.std, self.takes_spacing = 1, (0.5,), (0.5,), True
        self.told: list[Tensor] = []

    def forward(self, images: Tensor, spacing_mm: Tensor) -> Tokens:
        self.told.append(spacing_mm)
        patch = (self.patch_depth_px, self.patch_px, self.patch_px)
        means = nn.functional.avg_pool3d(images, patch).flatten(2).transpose(1, 2)
        return Tokens(means.mean(1), means, means[:, :0])


def cube_brightness(record: dict | None = None) -> LoadedBackbone:
    stub = CubeBrightness((8, 16), (2, 4))
    return LoadedBackbone(
        stub, BackboneConfig(arch="custom", image_px=16, patch_px=4), "test", record or {}, "", {}
    )


@pytest.mark.parametrize("flip", [(), (1,), (2,), (1, 2)])
def test_sliding_cubes_cover_the_volume_and_find_the_sphere(phantom_sphere, flip: tuple[int, ...]) -> None:
    affine = phantom_sphere.affine_ras.copy()
    for axis in flip:
        affine[:, 3] += affine[:, axis] * (phantom_sphere.volume_hu.shape[axis] - 1)
        affine[:, axis] *= -1
    volume = ct_volume(np.flip(phantom_sphere.volume_hu, flip), affine)
    loaded, settings = (
        cube_brightness(),
        EncodeSettings(size_mm=32.0, window="wide", overlap=0.5, batch_size=7),
    )
    (encoded,) = encode(volume, loaded, settings, device="cpu")
    assert encoded.mm_per_px == 2.0
    assert encoded.patch_tokens.shape[1:] == (64, 1)
    # 40 mm high in cubes of 16 mm, 67.2 and 56 mm wide in cubes of 32 mm, each sharing half or more with the next.
    assert len(encoded.class_token) == 4 * 4 * 3
    assert not encoded.is_replicated.any()
    assert torch.cat(loaded.backbone.told).unique(dim=0).tolist() == [[2.0, 2.0, 2.0]]
    # The first and the last cube end with the volume, whichever way it is stored.
    corners = index_to_lps(affine, [[-0.5, -0.5, -0.5], np.array(volume.volume_hu.shape) - 0.5])
    half = np.array([16.0, 16.0, 8.0])
    np.testing.assert_allclose(encoded.center_lps_mm.min(0) - half, corners.min(0), atol=1e-6)
    np.testing.assert_allclose(encoded.center_lps_mm.max(0) + half, corners.max(0), atol=1e-6)
    # Brightness as the weight: the sphere's center to a fraction of a patch of 4 x 8 x 8 mm.
    at = np.unravel_index(encoded.patch_tokens[..., 0].argmax(), encoded.patch_tokens.shape[:2])
    away_mm = np.abs(encoded.patch_lps_mm[at] - phantom_sphere.center_lps_mm)
    assert (away_mm <= [5.0, 5.0, 4.0]).all()
    weight = np.maximum(encoded.patch_tokens[..., 0] - np.quantile(encoded.patch_tokens, 0.97), 0)
    near = np.linalg.norm(encoded.patch_lps_mm - phantom_sphere.center_lps_mm, axis=-1) < 12
    found = (encoded.patch_lps_mm * (weight * near)[..., None]).sum((0, 1)) / (weight * near).sum()
    assert np.abs(found - phantom_sphere.center_lps_mm).max() < 2.0


def test_no_cube_reaches_across_a_gap_and_what_is_smaller_gets_air(phantom_sphere) -> None:
    offsets = tuple(2.5 * k + (20.0 if k > 3 else 0.0) for k in range(16))
    volume = ct_volume(phantom_sphere.volume_hu, phantom_sphere.affine_ras, (3,), offsets)
    settings = EncodeSettings(size_mm=32.0, overlap=0.0)
    (encoded,) = encode(volume, cube_brightness(), settings, device="cpu")
    head = encoded.center_lps_mm[:, 2] - phantom_sphere.affine_ras[2, 3]
    # Four slices below the gap, 10 mm, in one layer of cubes of 16 mm; twelve above it, 30 mm, in two.
    np.testing.assert_allclose(np.unique(head.round(6)), [3.75, 20 + 8.75 + 8.0, 20 + 38.75 - 8.0])
    assert encoded.is_replicated.tolist() == (head < 10).tolist()


def test_the_size_of_cubes_is_that_of_the_pretraining_or_given(phantom_sphere) -> None:
    volume = ct_volume(phantom_sphere.volume_hu, phantom_sphere.affine_ras)
    (encoded,) = encode(volume, cube_brightness({"mm_per_pixel": [1.0, 2.25]}), device="cpu")
    assert encoded.mm_per_px == pytest.approx(1.5)
    with pytest.raises(BackboneError, match="give size_mm, the side of a cube"):
        list(encode(volume, cube_brightness(), device="cpu"))


def test_embed_of_a_3d_backbone_writes_a_row_a_cube(
    tmp_path: Path, small_cohort: Cohort, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = BackboneConfig(
        arch="custom", depth=1, embed_dim=16, heads=2, image_px=16, patch_px=8, image_depth_px=8, registers=0
    )
    save_backbone(tmp_path / "b", build_backbone(config), config, {})
    source = str(small_cohort.root)
    embed = EmbedConfig(source=source, backbone="b", out="e.parquet", size_mm=80.0, overlap=0.0, device="cpu")
    run_embed(embed, SilentRun())
    rows = pq.read_table("e.parquet").to_pandas()
    assert set(rows["volume_id"]) == set(small_cohort.series["volume_id"])
    one = rows[rows["volume_id"] == rows["volume_id"][0]]
    shape, spacing = next(
        (row["shape"], row["spacing_mm"])
        for row in small_cohort.series.to_dict("records")
        if row["volume_id"] == rows["volume_id"][0]
    )
    counts = [
        max(1, int(np.ceil(n * mm / side))) for n, mm, side in zip(shape, spacing, (40, 80, 80), strict=True)
    ]
    assert len(one) == np.prod(counts)
    assert one[["x_lps_mm", "y_lps_mm", "z_lps_mm"]].drop_duplicates().shape[0] == len(one)
    assert (one["mm_per_px"] == 5.0).all()
