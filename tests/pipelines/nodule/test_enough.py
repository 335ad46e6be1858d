"""Too little data to probe or to train on is refused before torch loads, with advice that helps, and no other."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, write_table
from pipelines.nodule.enough import refuse_too_few
from pipelines.probing.config import ProbeConfig, SupervisedConfig
from pipelines.probing.setup import tag_probe
from pipelines.training.config import PretrainConfig
from pipelines.training.patients import divide_patients, nodules_used, refuse_too_few as refuse_too_few_slices
from probes.splits import is_held_out
from probes.statistics.checks import TooFewError
from tests.conftest import MakeOnce
from tests.pipelines.probing.grain import nodule_with_grain
from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of, probed
from tests.recorder import Recorder
from transforms.refusal import Refusal
from transforms.views.config import ViewConfig

LABELS = [1, 0, 0] * 4
"""Four patients with a malignant nodule, eight with a benign one."""


@pytest.fixture(scope="module")
def few(make_once: MakeOnce) -> Cohort:
    return Cohort.open(
        make_once("few_patients", lambda folder: cohort_of(folder, nodule_with_grain, LABELS)) / "c"
    )


def config_of(cohort: Cohort, **options: Any) -> ProbeConfig:
    settings = {"rule": "given", "backbone": "timm:any", "repeats": 1}
    return ProbeConfig(cohort=str(cohort.root), **(settings | options))


def refused(config: ProbeConfig | SupervisedConfig) -> str:
    with pytest.raises(TooFewError) as caught:
        refuse_too_few(config)
    return str(caught.value)


def with_nodules(cohort: Cohort, folder: Path, **columns: Any) -> Cohort:
    """The tables of a cohort, with other columns of nodules; without volumes."""
    shutil.copytree(cohort.root, folder, ignore=shutil.ignore_patterns("volumes", "body"))
    write_table(folder / "nodules.parquet", cohort.nodules.assign(**columns), NODULES)
    return Cohort.open(folder)


def test_fewer_folds_are_named_where_they_would_do_and_then_the_probe_runs(
    few: Cohort, tmp_path: Path
) -> None:
    said = refused(config_of(few, folds=5))
    assert "with a malignant nodule: 4, with a benign one: 8 (rule given), too few for 5 folds" in said
    assert said.endswith("what would do: folds=4")
    refuse_too_few(config_of(few, folds=4))
    run = probed(few, backbone(tmp_path / "b", holdout=1.0), tmp_path / "runs", folds=4)
    assert np.isfinite(run.metrics["probe/auroc"])


def test_what_a_backbone_saw_is_left_out_and_each_way_around_it_that_is_named_works(
    few: Cohort, tmp_path: Path
) -> None:
    shares = {share: sum(is_held_out(f"p{n}", share) for n in range(0, 12, 3)) for share in (0.1, 0.4, 0.5)}
    own = backbone(tmp_path / "b", holdout=0.1)
    said = refused(config_of(few, backbone=own, folds=3))
    n_malignant = shares[0.1]
    assert f"pretrained with holdout=0.1, with a malignant nodule: {n_malignant}," in said
    assert "leak=allow" in said
    refuse_too_few(config_of(few, backbone=own, folds=3, leak="allow"))
    named = re.search(r"holdout=(0\.\d+)(?!,)(?:;|$)", said)
    assert (named is not None) == (max(shares.values()) >= 3)
    for number, found in enumerate([named] if named else []):
        other = backbone(tmp_path / str(number), holdout=float(found[1]))
        refuse_too_few(config_of(few, backbone=other, folds=3))
    run = probed(few, own, tmp_path / "runs", folds=3, leak="allow")
    assert np.isfinite(run.metrics["probe/auroc"])


def test_where_nothing_would_help_nothing_is_advised(tmp_path: Path, few: Cohort) -> None:
    poor = with_nodules(few, tmp_path / "poor", label=[1.0, 1.0] + [0.0] * 10)
    said = refused(config_of(poor))
    assert said.endswith("prepare more patients")
    assert "what would do" not in said
    with pytest.raises(
        Refusal
    ):  # Two folds can be dealt, and neither leaves two malignant patients to learn from.
        refuse_too_few(config_of(poor, folds=2))
    # No backbone is advised to one who gave none: networks trained on labels test everyone.
    options = {"cohort": str(poor.root), "rule": "given", "folds": 3}
    assert "holdout" not in refused(SupervisedConfig(**options))  # type: ignore[arg-type]


def test_rules_that_give_enough_patients_are_named_and_no_other(tmp_path: Path, few: Cohort) -> None:
    """Two readers of each nodule: `consensus` takes three, `lora` two, `any_reader` one; no label is given."""
    rated = with_nodules(
        few,
        tmp_path / "rated",
        malignancy_ratings=[[4, 5] if label else [1, 2] for label in LABELS],
        label=np.nan,
    )
    said = refused(config_of(rated, rule="consensus", folds=4))
    assert said.endswith("what would do: rule=any_reader or lora")
    for rule in ("any_reader", "lora"):
        refuse_too_few(config_of(rated, rule=rule, folds=4))


def test_a_training_of_few_slices_is_told_batch_size_and_holdout_that_would_do(few: Cohort) -> None:
    n = {share: sum(5 for p in range(12) if not is_held_out(f"p{p}", share)) for share in (0.5, 0.1)}
    assert n[0.5] < n[0.1] < 60
    config = PretrainConfig(cohort=str(few.root), holdout=0.5, batch_size=n[0.1])
    with pytest.raises(Refusal) as caught:
        refuse_too_few_slices(config)
    said = str(caught.value)
    assert f"{n[0.5]} slices of " in said
    assert f"are too few for batch_size={n[0.1]}" in said
    assert f"batch_size={n[0.5]} or less" in said
    share = float(said.rpartition("holdout=")[2])
    other = PretrainConfig(cohort=str(few.root), holdout=share, batch_size=n[0.1])
    refuse_too_few_slices(other)
    assert divide_patients(few, other).held_out
    refuse_too_few_slices(PretrainConfig(cohort=str(few.root), holdout=0.5, batch_size=n[0.5]))


def test_a_nodule_table_that_changed_since_the_pretraining_is_said(
    few: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where views were drawn by it, and the CT is the same: in another cohort other nodules are no news."""
    views = ViewConfig(size_px=28, center="point", extent="mm", fov_mm=(20.0, 30.0))
    around = PretrainConfig(backbone=BackboneConfig(image_px=28), views=views)
    drawn_by = nodules_used(around, few)
    assert (
        nodules_used(dataclasses.replace(around, points="blobs"), few)
        == nodules_used(PretrainConfig(), few)
        == ""
    )
    moved = with_nodules(few, tmp_path / "moved", x_lps_mm=few.nodules["x_lps_mm"] + 1)
    turned = with_nodules(few, tmp_path / "turned")
    turned.nodules = turned.nodules.iloc[::-1]
    assert drawn_by == nodules_used(around, turned) != nodules_used(around, moved)
    for number, (cohort, record, is_said) in enumerate(
        [
            (moved, {"nodules_sha": drawn_by, "cohort_sha": few.sha256}, True),
            (moved, {"nodules_sha": drawn_by, "cohort_sha": "another"}, False),
            (moved, {"nodules_sha": "", "cohort_sha": few.sha256}, False),
            (few, {"nodules_sha": drawn_by, "cohort_sha": few.sha256}, False),
        ]
    ):
        run = Recorder()
        tag_probe(run, cohort, open_backbone(backbone(tmp_path / str(number), **record)), "")
        assert (run.tags.get("dinox.nodules") == "changed") == is_said
        assert ("has changed since the pretraining" in capsys.readouterr().out) == is_said


def test_all_of_them_are_refused_before_torch_is_imported(few: Cohort, own_store: Path) -> None:
    """A fresh process, whose modules are listed after each refusal."""
    names = [
        "probe_malignancy",
        "finetune",
        "probe_supervised",
        "probe_aggregation",
        "probe_dense",
        "pretrain",
    ]
    script = (
        "import json, sys\n"
        "from pipelines.command.cli import main\n"
        "ends = {}\n"
        "for name in sys.argv[2:]:\n"
        "    options = {'pretrain': ['--batch_size', '4096'], 'probe_dense': ['--folds', '13']}\n"
        "    options = options.get(name, ['--rule', 'given'])\n"
        "    try:\n"
        "        main(name, ['--cohort', sys.argv[1], *options])\n"
        "    except SystemExit as end:\n"
        "        heavy = [one for one in ('torch', 'monai', 'timm') if one in sys.modules]\n"
        "        ends[name] = [end.code, heavy]\n"
        "print(json.dumps(ends))\n"
    )
    command = [sys.executable, "-c", script, str(few.root), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {name: [2, []] for name in names}
    assert done.stderr.count("what would do") == len(names)
