"""Files that others damaged, and places that cannot be written: exit 2, one sentence that names the file, no trace."""

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines import prepare
from pipelines.backbones.config import EmbedConfig, ExportConfig
from pipelines.backbones.embedding import run_embed
from pipelines.backbones.exporting import run_export
from pipelines.backbones.features import FeatureCache
from pipelines.backbones.folder import save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import run_entry_point
from pipelines.export_png import ExportPngConfig, run_export_png
from pipelines.ingest.preparation import PrepareConfig
from pipelines.runtime.atomic import TargetError, make_folder, write_atomically
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
TRAINING = [
    "--recipe", "demo", "--steps", "1", "--batch_size", "4", "--eval_slices", "8", "--device", "cpu",
    "--backbone.depth", "1", "--backbone.embed_dim", "16", "--backbone.heads", "2", "--backbone.image_px", "28",
    "--views.size_px", "28", "--head.prototypes", "32",
]  # fmt: skip

Damage = Callable[[Path], object]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00 no such thing" * 40)


def without(column: str) -> Damage:
    def damage(path: Path) -> None:
        pq.write_table(pq.read_table(path).drop_columns([column]), path)

    return damage


def holding(tree: object) -> Damage:
    return lambda path: path.write_text(json.dumps(tree))


def without_key(key: str) -> Damage:
    def damage(path: Path) -> None:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return damage


def one_sentence(capsys: pytest.CaptureFixture[str], name: str) -> str:
    """What the command printed to the user: it names the file, and is no trace."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    sentence = said.strip().splitlines()[-1]
    assert name in sentence
    return sentence


@pytest.fixture
def copied(own_store: Path, small_cohort: Cohort) -> Path:
    """The small cohort, to be damaged."""
    shutil.copytree(small_cohort.root, own_store / "cohort")
    return own_store / "cohort"


def first(folder: Path, pattern: str) -> Path:
    return min(folder.glob(pattern))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("cohort.json", empty),
        ("cohort.json", garbage),
        ("cohort.json", holding([])),
        ("cohort.json", holding({})),
        ("series.parquet", empty),
        ("series.parquet", cut),
        ("series.parquet", garbage),
        ("series.parquet", without("affine_ras")),
        ("nodules.parquet", without("diameter_mm")),
        ("volumes/*.npy", empty),
        ("volumes/*.npy", cut),
        ("volumes/*.npy", garbage),
        ("volumes/*.npy", lambda path: np.save(path, np.zeros(3))),
    ],
)
def test_a_damaged_file_of_a_cohort_is_named(
    copied: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    path = first(copied, name)
    damage(path)
    # In this process, but for one: its error comes from another.
    workers = "2" if damage is cut else "1"
    words = ["--cohort", str(copied), "--out", str(copied.parent / "png"), "--workers", workers]
    assert run_entry_point("export_png", ExportPngConfig, run_export_png, None, words) == 2
    assert "prepare the cohort again" in one_sentence(capsys, str(path))


@pytest.mark.parametrize("damage", [empty, cut, garbage, lambda path: np.save(path, np.zeros((2, 32, 32)))])
def test_a_damaged_body_grid_is_named(
    copied: Path, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    for path in (copied / "body").glob("*.npy"):
        damage(path)
    words = [*TRAINING, "--cohort", str(copied), "--runs_dir", str(copied.parent / "runs")]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo", words) == 2
    one_sentence(capsys, str(copied / "body"))


@pytest.mark.parametrize("damage", [empty, cut, garbage, without_key("shape")])
def test_a_damaged_row_of_a_cohort_is_named(
    copied: Path, small_phantom_source: Path, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    path = first(copied, "rows/*.json")
    damage(path)
    words = ["--source", str(small_phantom_source), "--cohort", str(copied), "--workers", "1"]
    assert run_entry_point("prepare", PrepareConfig, prepare.run_prepare, None, words) == 2
    assert "remove it, and prepare the cohort again" in one_sentence(capsys, str(path))


def embedded(backbone: str, out: str = "out.parquet") -> int:
    words = ["--source", "nowhere", "--backbone", backbone, "--out", out, "--device", "cpu"]
    return run_entry_point("embed", EmbedConfig, run_embed, None, words)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", empty),
        ("model.safetensors", cut),
        ("model.safetensors", garbage),
        ("model.safetensors", Path.unlink),
        ("config.json", cut),
        ("config.json", Path.unlink),
        ("config.json", holding(3)),
        ("config.json", without_key("pretrained_cfg")),
        ("dinox.json", empty),
        ("dinox.json", without_key("backbone")),
        ("dinox.json", holding({"backbone": [1]})),
        ("dinox.json", holding({"backbone": {"arch": "custom", "depth": "many"}})),
        ("dinox.json", holding({"backbone": {"arch": "custom", "heads": 5}})),
    ],
)
def test_a_damaged_file_of_a_backbone_is_named(
    own_store: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Damage
) -> None:
    save_backbone(own_store / "vit", build_backbone(TINY), TINY, {})
    damage(own_store / "vit" / name)
    assert embedded(str(own_store / "vit")) == 2
    one_sentence(capsys, name)


def test_arguments_that_timm_does_not_take_are_named(
    own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_backbone(own_store / "vit", build_backbone(TINY), TINY, {})
    config = own_store / "vit" / "config.json"
    tree = json.loads(config.read_text())
    config.write_text(json.dumps(tree | {"model_args": tree["model_args"] | {"heads_of_tomorrow": 3}}))
    assert embedded(str(own_store / "vit")) == 2
    assert "heads_of_tomorrow" in one_sentence(capsys, "config.json")


@pytest.mark.parametrize("damage", [empty, garbage, Path.unlink])
def test_a_damaged_folder_of_timm_is_named(
    own_store: Path, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    save_backbone(own_store / "vit", build_backbone(TINY), TINY, {})
    damage(own_store / "vit" / "config.json")
    assert embedded(f"timm:local-dir:{own_store / 'vit'}") == 2
    one_sentence(capsys, f"timm model 'local-dir:{own_store / 'vit'}' cannot be opened")


@pytest.mark.parametrize("damage", [empty, cut, garbage])
def test_damaged_first_weights_are_named(
    own_store: Path, small_cohort: Cohort, capsys: pytest.CaptureFixture[str], damage: Damage
) -> None:
    save_backbone(own_store / "vit", build_backbone(TINY), TINY, {})
    path = own_store / "vit" / "model.safetensors"
    damage(path)
    words = [*TRAINING, "--cohort", str(small_cohort.root), "--runs_dir", str(own_store / "runs")]
    words += ["--backbone.weights", str(path)]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo", words) == 2
    one_sentence(capsys, str(path))


@pytest.mark.parametrize("damage", [empty, cut, garbage])
def test_a_damaged_entry_of_the_feature_cache_is_computed_again(tmp_path: Path, damage: Damage) -> None:
    cache, features = FeatureCache(tmp_path / "features"), np.arange(6, dtype=np.float32).reshape(2, 3)
    assert cache.read("a") is None
    cache.write("a", features)
    assert np.array_equal(cache.read("a"), features)  # type: ignore[arg-type]
    damage(tmp_path / "features" / "a.npy")
    assert cache.read("a") is None
    cache.write("a", features)
    assert np.array_equal(cache.read("a"), features)  # type: ignore[arg-type]


def test_a_file_in_the_place_of_a_folder_is_named_by_every_command_that_writes(
    own_store: Path, small_cohort: Cohort, small_phantom_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_store / "file").write_text("mine")
    below, cohort = str(own_store / "file" / "below"), str(small_cohort.root)
    source = str(small_phantom_source)
    save_backbone(own_store / "vit", build_backbone(TINY), TINY, {})
    vit = str(own_store / "vit")
    commands = [
        ("pretrain", PretrainConfig, train, "demo", [*TRAINING, "--cohort", cohort, "--runs_dir", below]),
        ("export_png", ExportPngConfig, run_export_png, None, ["--cohort", cohort, "--out", below]),
        ("export", ExportConfig, run_export, None, ["--backbone", vit, "--out", below, "--onnx", "no"]),
        ("embed", EmbedConfig, run_embed, None, ["--source", cohort, "--backbone", vit, "--out", f"{below}/x.parquet"]),
        ("prepare", PrepareConfig, prepare.run_prepare, None, ["--source", source, "--cohort", below]),
    ]  # fmt: skip
    for name, schema, body, recipe, words in commands:
        assert run_entry_point(name, schema, body, recipe, words) == 2, name  # type: ignore[type-var]
        assert re.search("cannot be written: (Not a directory|File exists)", one_sentence(capsys, below)), (
            name
        )
    assert (own_store / "file").read_text() == "mine"


def test_a_disk_that_takes_no_more_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for write in (
            lambda file: file.write(bytes(5000)),
            lambda file: np.lib.format.write_array(file, np.zeros(5000)),
        ):
            with pytest.raises(TargetError, match=r"x\.npy cannot be written: .*; free disk space"):
                write_atomically(path, write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_an_error_about_another_file_is_not_taken_for_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write_atomically(tmp_path / "x", lambda file: (tmp_path / "elsewhere").read_bytes())
    (tmp_path / "file").touch()
    with pytest.raises(TargetError, match="file/below cannot be written"):
        make_folder(tmp_path / "file" / "below")
