"""Three finished runs become weights that ship, by one command; what must not ship is refused."""

import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones import exporting, shipped
from pipelines.backbones.config import ExportConfig
from pipelines.backbones.exporting import ExportError, in_roles, run_export
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from tests.pipelines.test_export import RECORD, TINY


def public_ids(patients: list[str]) -> dict[str, list[str]]:
    return {"patient": patients, "study": [], "series": []}


def three_runs(
    own_store: Path, changed: str = "", tiny: BackboneConfig = TINY, **change: Any
) -> dict[str, str]:
    """Runs that pretrained one recipe on four public patients, without half_a, without half_b, and on all."""
    patients = sorted({patient for patient, _ in lidc_scans().values()})[:4]
    names = {}
    roles = {"half_b": ("half_b", patients[:2]), "all": (0.0, patients), "half_a": ("half_a", patients[2:])}
    for seed, (role, (holdout, own)) in enumerate(roles.items()):
        run = Run.start("pretrain")
        record = RECORD | {
            "run_id": run.run_id,
            "holdout": holdout,
            "trained_on": public_ids(own),
            "seed": seed,
        }
        torch.manual_seed(seed)
        save_backbone(
            own_store / role, build_backbone(tiny), tiny, record | (change if role == changed else {})
        )
        run.log_file(own_store / role, "backbone")
        run.log_text("cohort: /home/somebody/cohort\nsteps: 20\nruns_dir: /home/x\n", "config.yaml")
        names[role] = f"runs:/{run.run_id}/backbone"
    return names


def test_three_runs_make_weights_that_ship_and_the_card_has_what_probes_found(
    own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = three_runs(own_store)
    hashes = {role: open_backbone(name).sha256 for role, name in names.items()}
    probe = Run.start("probe_malignancy")
    probe.set_tags({Tag.BACKBONE_SHA: f"{hashes['half_a']},{hashes['half_b']}"})
    probe.log_params({"features": "roi", "size_mm": 24.0})
    probe.log_metrics({"probe/auroc": 0.71, "probe/auroc_ci_low": 0.61, "probe/auroc_ci_high": 0.81})
    probe.log_metrics({"probe/nested_z": 2.5, "probe/nested_p": 0.0042})
    probe.finish("FINISHED")
    config = ExportConfig(backbone=",".join(names.values()), out="weights/tiny")
    run_export(config, Run.start("export"))
    run_export(config, Run.start("export"))  # the same command again, as after a probe of what it wrote
    box = own_store / "weights" / "tiny"
    assert sorted(path.name for path in box.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "all",
        "half_a",
        "half_b",
    ]
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=box).returncode == 0
    monkeypatch.setattr(shipped, "BOXES", own_store / "weights")
    for role in names:
        opened = open_backbone(f"shipped:tiny/{role}")
        assert opened.sha256 == hashes[role]
        assert opened.record["trained_on"] == open_backbone(names[role]).record["trained_on"]
        assert str(own_store) not in (box / role / "dinox.json").read_text()
    card = (box / "README.md").read_text()
    assert "```yaml\nsteps: 20\n```" in card
    assert "/home/" not in card
    assert "| probe/auroc | 0.710 | 0.610 to 0.810 |" in card
    assert "| probe/nested_p | 0.0042 | |" in card
    assert "Settings: `features=roi size_mm=24.0`" in card
    assert f"| `half_a` | half_a | 2 | 20 | 2 | `{names['half_a'][6:-9]}` | `{hashes['half_a']}` |" in card
    for said in ("https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX", "creativecommons.org/licenses/by/3.0"):
        assert said in card


@pytest.mark.parametrize(
    ("changed", "change", "sentence"),
    [
        ("half_a", {"holdout": 0.2}, "three backbones of one recipe: .* got holdout half_b, 0.0, 0.2"),
        ("half_a", {"trained_on": public_ids(["anon-1"])}, "no record of its patients that may be shown"),
        (
            "half_a",
            {"trained_on": public_ids(["LIDC-IDRI-0001"])},
            "both halves were trained on the same 1 patient;",
        ),
        ("half_b", {"hu_scale": 0.1}, "are of two architectures"),
    ],
)
def test_runs_that_make_no_weights_to_ship_are_refused(
    own_store: Path, changed: str, change: dict[str, Any], sentence: str
) -> None:
    names = three_runs(own_store, changed, **change)
    with pytest.raises(ExportError, match=sentence):
        run_export(ExportConfig(backbone=",".join(names.values()), out="box"), Run.start("export"))
    assert not Path("box").exists()


def test_a_stem_that_timm_does_not_know_ships_too(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stem = replace(TINY, patch_px=4, registers=0, stem="whitened")
    names = three_runs(own_store, tiny=stem)
    run_export(ExportConfig(backbone=",".join(names.values()), out="weights/tiny"), Run.start("export"))
    monkeypatch.setattr(shipped, "BOXES", own_store / "weights")
    images = torch.randn(1, 3, 28, 28)
    for role, name in names.items():
        ours, theirs = (open_backbone(one).backbone(images) for one in (f"shipped:tiny/{role}", name))
        assert torch.equal(ours.patch_tokens, theirs.patch_tokens)


def test_weights_too_large_to_ship_are_refused(own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_BYTES", 10_000)
    names = three_runs(own_store)
    with pytest.raises(ExportError, match=r"together 0\.\d MB; at most 0.01 MB ship"):
        run_export(ExportConfig(backbone=",".join(names.values()), out="box"), Run.start("export"))


def test_pip_installs_the_weights_that_are_here() -> None:
    tree = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
    assert tree["tool"]["setuptools"]["package-data"]["models"] == ["weights/**"]
    assert PROJECT_ROOT / "models" / "weights" == shipped.BOXES


@pytest.mark.parametrize("box", sorted(path.name for path in shipped.BOXES.glob("*")))
def test_what_ships_is_whole_public_small_and_says_whom_to_cite(box: str) -> None:
    networks = [open_backbone(f"shipped:{box}/{network}") for network in shipped.NETWORKS]
    assert in_roles(networks) == networks  # public ids, halves apart, one architecture
    files = [path for path in (shipped.BOXES / box).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    card = (shipped.BOXES / box / "README.md").read_text()
    for said in (
        "10.7937/K9/TCIA.2015.LO9QL9SX",
        "creativecommons.org/licenses/by/3.0",
    ):
        assert said in card
