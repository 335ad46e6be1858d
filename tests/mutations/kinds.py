"""What is changed and what reads it: seven kinds of files that users get from others."""

import contextlib
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.embedding import run_embed
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.campaign.arms import expand
from pipelines.campaign.plan import plan_table
from pipelines.campaign.run import check_arms
from pipelines.campaign.spec import CAMPAIGNS, load_campaign
from pipelines.cohort.folder import Cohort
from pipelines.command.cli import resolve
from pipelines.command.config import RECIPES, flatten, load_recipe, nested
from pipelines.command.help import describe
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.config import NodulesConfig
from pipelines.nodule.overview import run_nodules
from pipelines.phantom.source import write_phantom
from pipelines.training.config import PretrainConfig
from pipelines.training.run import TrainingRun
from tests.conftest import _write_ct_series
from tests.mutations import change
from tests.recorder import Recorder

_TINY = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
_RECORD = {
    "run_id": "a" * 32, "recipe": "demo", "cohort_sha": "0" * 64, "holdout": 0.3, "leak": "", "seed": 0, "steps": 2,
    "trained_on": {"patient": ["a"], "series": ["b"], "voxels": ["c"]}, "first_weights": "", "mm_per_pixel": [0.5, 2.0],
    "mm_per_slice": [1.0, 3.0], "window_policy": "lung_aware", "hu_scale": 1.0, "network": "backbone",
}  # fmt: skip
TRAINING = [
    "--recipe", "demo", "--batch_size", "4", "--eval_slices", "8", "--device", "cpu", "--eval_every", "1000",
    "--backbone.depth", "1", "--backbone.embed_dim", "16", "--backbone.heads", "2", "--backbone.image_px", "28",
    "--views.size_px", "28", "--head.prototypes", "32", "--save_every", "1", "--workers", "0", "--log_every", "1",
]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        change: Changes what lies in a folder, a copy of that of `make`.
        read: Reads it, given the folder and that of all kinds; what must not be refused is in the second.
        command: Entry point and arguments that read it.
    """

    make: Callable[[Path, Path], object]
    change: Callable[[random.Random, Path], object]
    read: Callable[[Path, Path], object]
    command: Callable[[Path, Path], tuple[str, list[str]]]


def make_shared(shared: Path) -> None:
    """Make the phantom, its cohort and a small series, which several kinds need unchanged."""
    write_phantom(shared / "phantom", n_patients=6, size_px=64, height_mm=30.0, workers=1)
    prepare_cohort(PrepareConfig(source=str(shared / "phantom"), cohort=str(shared / "cohort"), workers=1))
    _write_ct_series(shared / "ct", n_slices=3)


def _named(path: Path) -> None:
    """Give the series a patient whose name may appear nowhere."""

    def name(dataset: Any, index: int) -> None:
        dataset.PatientName, dataset.PatientID = change.SECRET, f"{change.SECRET}7"

    _write_ct_series(path / "ct", n_slices=4, change=name)


def _prepare(folder: Path, *more: str) -> list[str]:
    return ["--cohort", str(folder / "out"), "--workers", "1", *more]


def _read_dicom(folder: Path, shared: Path) -> None:
    prepare_cohort(PrepareConfig(source=str(folder / "ct"), cohort=str(folder / "out"), workers=1))


def _read_recipe(folder: Path, shared: Path) -> None:
    config, name = resolve(PretrainConfig, ["--recipe", str(folder / "recipe.yaml")], "demo")
    describe("pretrain", config, name)
    yaml.safe_dump(nested(config))
    assert load_recipe(PretrainConfig, nested(config)) == config
    json.dumps(flatten(nested(config)), default=str)


def _read_campaign(folder: Path, shared: Path) -> None:
    spec = load_campaign(str(folder / "campaign.yaml"))
    arms = expand(spec)
    plan_table(spec, arms, check_arms(spec, arms, []))


def _change_cohort(rng: random.Random, folder: Path) -> None:
    roll = rng.random()
    if roll < 0.8:
        change.change_parquet(
            rng, folder / f"{rng.choice(['series', 'series', 'nodules', 'annotations', 'refused'])}.parquet"
        )
    elif roll < 0.9:
        change.change_json(rng, folder / "cohort.json")
    else:
        path = rng.choice(sorted((folder / rng.choice(["volumes", "body"])).glob("*.npy")))
        path.write_bytes(change.change_bytes(rng, path.read_bytes(), 0, rng.choice([128, None])))


def _read_cohort(folder: Path, shared: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        run_nodules(NodulesConfig(cohort=str(folder), repeats=1, n_bootstrap=20), Recorder(draws=False))


def _make_backbone(folder: Path, shared: Path) -> None:
    torch.manual_seed(0)
    save_backbone(folder, build_backbone(_TINY), _TINY, _RECORD)


def _change_backbone(rng: random.Random, folder: Path) -> None:
    name = rng.choice(["config.json", "config.json", "dinox.json", "dinox.json", "model.safetensors"])
    (change.change_tensors if name.endswith("rs") else change.change_json)(rng, folder / name)


def _embed(folder: Path, shared: Path, backbone: str) -> None:
    config = EmbedConfig(
        source=str(shared / "ct"), backbone=backbone, out=str(folder / "out.parquet"), device="cpu"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        run_embed(config, Recorder())


def _make_run(folder: Path, shared: Path) -> None:
    _train_on(_training(folder, shared), shared)
    torch.manual_seed(0)
    vit = build_backbone(_TINY).vit
    torch.save({"teacher": dict(vit.state_dict()), "epoch": 3}, folder / "weights.pth")


def _training(folder: Path, shared: Path) -> PretrainConfig:
    given = [
        *TRAINING,
        "--cohort",
        str(shared / "cohort"),
        "--runs_dir",
        str(folder / "runs"),
        "--steps",
        "9",
    ]
    return resolve(PretrainConfig, given, "demo")[0]


def _change_run(rng: random.Random, folder: Path) -> None:
    if (folder / "weights.pth").is_file() and rng.random() < 0.4:
        path = folder / "weights.pth"
        path.write_bytes(change.change_bytes(rng, path.read_bytes()))
        (folder / "foreign").touch()
        return
    run = folder / "runs" / "a_run"
    head, body = (next((run / "checkpoints").glob(f"*.{end}")) for end in ("json", "safetensors"))
    match rng.randrange(4):
        case 0:
            change.change_json(rng, run / "run.json")
        case 1:
            change.change_json(rng, head)
        case 2:
            change.change_tensors(rng, body)
        case _:  # As an enemy would: with a hash that fits.
            change.change_tensors(rng, body)
            record = json.loads(head.read_text())
            record["sha256"] = hashlib.sha256(body.read_bytes()).hexdigest()
            head.write_text(json.dumps(record))


def _read_run(folder: Path, shared: Path) -> None:
    if (folder / "foreign").exists():
        open_backbone(f"{folder}/weights.pth:heads=2")
        return
    _train_on(_training(folder, shared), shared)


def _train_on(config: PretrainConfig, shared: Path) -> None:
    """Go back to the checkpoint of the run, if it has one, and make one update."""
    with contextlib.redirect_stdout(io.StringIO()):
        training = TrainingRun(
            config, Recorder(draws=False), Cohort.open(shared / "cohort"), torch.device("cpu")
        )
        training.trainer.update(training._batches())
        training.trainer.report()
        training._save()
        training._release()


def _run_command(folder: Path, shared: Path) -> tuple[str, list[str]]:
    if (folder / "foreign").exists():
        return _embed_command(folder, shared, f"{folder}/weights.pth:heads=2")
    more = [
        "--cohort",
        str(shared / "cohort"),
        "--runs_dir",
        str(folder / "runs"),
        "--steps",
        "2",
        "--resume",
        "auto",
    ]
    return "pretrain", [*TRAINING, *more]


def _make_table(folder: Path, shared: Path) -> None:
    cohort = Cohort.open(shared / "cohort")
    rows = cohort.nodules.head(4)[
        ["patient_id", "series_uid", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm"]
    ]
    rows.assign(malignancy_ratings=["1;2", "5", "2;2", "4"], note="x").to_csv(
        folder / "nodules.csv", index=False
    )


def _read_table(folder: Path, shared: Path) -> None:
    shutil.copytree(shared / "cohort", folder / "out")
    table = str(folder / "nodules.csv")
    source, out = str(shared / "phantom"), str(folder / "out")
    config = PrepareConfig(source=source, cohort=out, workers=1, annotations=table)
    prepare_cohort(config)


def _table_command(folder: Path, shared: Path) -> tuple[str, list[str]]:
    table = str(folder / "nodules.csv")
    return "prepare", _prepare(folder, "--source", str(shared / "phantom"), "--annotations", table)


def _embed_command(folder: Path, shared: Path, backbone: str) -> tuple[str, list[str]]:
    more = ["--backbone", backbone, "--out", str(folder / "out.parquet"), "--device", "cpu"]
    return "embed", ["--source", str(shared / "ct"), *more]


KINDS = {
    "dicom": Kind(
        lambda folder, shared: _named(folder),
        lambda rng, folder: change.change_dicom(rng, sorted((folder / "ct").iterdir())),
        _read_dicom,
        lambda folder, shared: ("prepare", _prepare(folder, "--source", str(folder / "ct"))),
    ),
    "recipe": Kind(
        lambda folder, shared: shutil.copy(RECIPES / "nodule_mae_3d.yaml", folder / "recipe.yaml"),
        lambda rng, folder: change.change_yaml(rng, folder / "recipe.yaml"),
        _read_recipe,
        lambda folder, shared: ("pretrain", ["--recipe", str(folder / "recipe.yaml"), "--help"]),
    ),
    "campaign": Kind(
        lambda folder, shared: shutil.copy(CAMPAIGNS / "demo.yaml", folder / "campaign.yaml"),
        lambda rng, folder: change.change_yaml(rng, folder / "campaign.yaml"),
        _read_campaign,
        lambda folder, shared: ("campaign", ["--spec", str(folder / "campaign.yaml"), "--dry_run", "true"]),
    ),
    "cohort": Kind(
        lambda folder, shared: shutil.copytree(shared / "cohort", folder, dirs_exist_ok=True),
        _change_cohort,
        _read_cohort,
        lambda folder, shared: ("nodules", ["--cohort", str(folder)]),
    ),
    "checkpoint": Kind(_make_run, _change_run, _read_run, _run_command),
    "backbone": Kind(
        _make_backbone,
        _change_backbone,
        lambda folder, shared: _embed(folder, shared, str(folder)),
        lambda folder, shared: _embed_command(folder, shared, str(folder)),
    ),
    "table": Kind(
        _make_table,
        lambda rng, folder: change.change_csv(rng, folder / "nodules.csv"),
        _read_table,
        _table_command,
    ),
}
