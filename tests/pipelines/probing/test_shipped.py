"""Weights that ship: every patient is read by a network that never saw him, and nothing else is done silently."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.backbone import BackboneError
from pipelines.backbones import shipped
from pipelines.backbones.exporting import export_box, in_roles
from pipelines.backbones.features import encode
from pipelines.backbones.folder import open_backbone
from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import NODULES, SERIES, write_table
from pipelines.probing import malignancy
from pipelines.probing.aggregation import run_aggregation
from pipelines.probing.config import AggregationConfig, DenseConfig, ProbeConfig, SupervisedConfig
from pipelines.probing.dense import run_dense
from pipelines.probing.readers import ProbeError, open_backbones, reader_of, readers_of
from pipelines.probing.supervised import run_supervised
from pipelines.training.config import PretrainConfig
from pipelines.training.first_backbone import first_backbone
from probes.heads.fitting import FitSettings
from probes.splits import is_held_out
from tests.pipelines.probing.test_probe_malignancy import TINY, backbone, cohort_of, noise
from tests.recorder import Recorder
from transforms.views.config import ViewConfig

PUBLIC = sorted({patient for patient, _ in lidc_scans().values()})
IN_A, IN_B = ([one for one in PUBLIC if is_held_out(one, half)][:12] for half in shipped.HALVES)
OTHERS = PUBLIC[-8:]
"""Patients of LIDC-IDRI whom no network was trained on."""
assert not set(OTHERS) & {*IN_A, *IN_B}
N = 32


def ids(patients: list[str]) -> dict[str, list[str]]:
    return {"patient": patients, "study": [], "series": []}


def write_box(root: Path, name: str = "tiny", **trained: list[str]) -> None:
    patients = {"all": [*IN_A, *IN_B], "half_a": IN_B, "half_b": IN_A} | trained
    for seed, network in enumerate(shipped.NETWORKS):
        holdout = 0.0 if network == "all" else network
        record = {"holdout": holdout, "leak": "no_holdout" if network == "all" else ""}
        backbone(root / "runs" / network, seed, trained_on=ids(patients[network]), **record)
    networks = [open_backbone(str(root / "runs" / network)) for network in shipped.NETWORKS]
    export_box(networks, root / "weights" / name)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boxes")
    write_box(root)
    write_box(root, "seen", half_a=[*IN_B, IN_A[0]])
    return root / "weights"


@pytest.fixture(autouse=True)
def _boxes(boxes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "BOXES", boxes)


def renamed(cohort: Cohort, names: list[str], prefix: str = "p") -> Cohort:
    """Give the patients other names."""
    by_old = {f"{prefix}{number}": name for number, name in enumerate(names)}
    for table, schema in (("series", SERIES), ("nodules", NODULES)):
        rows = getattr(cohort, table)
        rows["patient_id"] = rows["patient_id"].map(by_old)
        if table == "series":
            rows["kind"] = "series"  # so small a file is taken for a patch
        write_table(cohort.root / f"{table}.parquet", rows, schema)
    return Cohort.open(cohort.root)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cohort")
    return renamed(cohort_of(root, noise, [number % 2 for number in range(N)]), [*IN_A, *IN_B, *OTHERS])


def network_for(patient: str) -> str:
    """Who may read a patient: half_a was trained without the patients of half_a."""
    return "all" if patient in OTHERS else "half_a" if patient in IN_A else "half_b"


def test_each_patient_is_read_by_the_network_that_never_saw_him(
    boxes: Path, cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, kept = Recorder(draws=False), {}

    class Gathered(Exception):
        """All is read; what is fitted to it is tested elsewhere."""

    def gathered(*arguments: Any) -> None:
        kept["nodules"], kept["inputs"] = arguments[3][0].nodules, gather(*arguments)
        raise Gathered

    gather = malignancy.gather_inputs
    monkeypatch.setattr(malignancy, "gather_inputs", gathered)
    monkeypatch.setattr("pipelines.probing.reading.TWINS", 1)
    monkeypatch.setattr("probes.dictionary._PATCHES_PER_CROP", 40)
    with pytest.raises(Gathered):
        malignancy.run_probe(config_of(cohort, "shipped:tiny", runs_dir=str(tmp_path)), run)
    nodules, times = kept["nodules"], np.zeros(N)
    direct = {
        name: encode(
            open_backbone(str(boxes / "tiny" / name)).backbone,
            nodules.crops_hu,
            1.0,
            "lung",
            "class_token",
            torch.device("cpu"),
        )
        for name in shipped.NETWORKS
    }
    for features, folds in kept["inputs"].features:
        for _, test in folds:
            for row in test:
                own = network_for(nodules.patient_ids[row])
                np.testing.assert_array_equal(features[row], direct[own][row])
                assert all(
                    np.abs(features[row] - direct[name][row]).max() > 0.1 for name in direct if name != own
                )
                times[row] += 1
    assert (times == 1).all()
    assert run.tags["dinox.probed"] == "shipped:tiny/all,shipped:tiny/half_a,shipped:tiny/half_b"
    assert len(set(run.tags["dinox.backbone_sha"].split(","))) == 3
    assert "dinox.leak" not in run.tags


def config_of(cohort: Cohort, name: str, **changes: Any) -> ProbeConfig:
    common = {"rule": "given", "size_mm": 14.0, "folds": 2, "repeats": 1, "device": "cpu"}
    return ProbeConfig(cohort=str(cohort.root), backbone=name, **(common | changes))


def test_a_patient_whom_every_network_saw_is_refused_or_by_request_read_with_a_tag(cohort: Cohort) -> None:
    with pytest.raises(ProbeError, match=r"all networks of shipped:seen were trained on 1 of 32 patients"):
        malignancy.run_probe(config_of(cohort, "shipped:seen"), Recorder(draws=False))
    patients = cohort.series["patient_id"].to_numpy(dtype=np.str_)
    (reader,) = readers_of("shipped:seen", open_backbones("shipped:seen"), cohort, patients, "allow")
    assert (reader.loaded.source, reader.leak) == ("shipped:seen/all", "allowed")
    assert reader.tested == set(patients.tolist())


def test_patients_of_unlike_ids_are_read_by_all_and_are_unknown(tmp_path: Path) -> None:
    strange = cohort_of(tmp_path, noise, [number % 2 for number in range(8)])
    patients = strange.nodules["patient_id"].to_numpy(dtype=np.str_)
    (reader,) = readers_of("shipped:tiny", open_backbones("shipped:tiny"), strange, patients, "avoid")
    assert (reader.loaded.source, reader.leak) == ("shipped:tiny/all", "unknown")
    assert reader.tested == set(patients.tolist())


def test_one_network_alone_tests_whom_it_never_saw_and_says_so_otherwise(cohort: Cohort) -> None:
    patients = cohort.series["patient_id"].to_numpy(dtype=np.str_)
    for name, unseen in (("shipped:tiny", OTHERS), ("shipped:tiny/half_b", [*IN_B, *OTHERS])):
        reader = reader_of(open_backbone(name), cohort, patients, "avoid")
        assert (reader.tested, reader.leak) == (set(unseen), "")
    assert reader_of(open_backbone("shipped:tiny"), cohort, patients, "allow").leak == "allowed"
    trained = np.array([*IN_A, *IN_B])
    everyone = reader_of(open_backbone("shipped:tiny"), cohort, trained, "avoid")
    assert (everyone.tested, everyone.leak) == ({*IN_A, *IN_B}, "no_holdout")


@pytest.mark.parametrize(
    ("run", "config", "settings"),
    [
        (run_dense, DenseConfig, {"jitter_mm": 2.0}),
        (run_aggregation, AggregationConfig, {"z_range_mm": 2.0}),
        pytest.param(
            run_supervised,
            SupervisedConfig,
            {"networks": "2d", "max_epochs": 1, "image_px": 16},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_other_probes_pool_the_networks_too(
    cohort: Cohort,
    run: Any,
    config: Any,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipelines.probing.aggregation._NAMES", ("center", "mean"))
    monkeypatch.setattr("probes.aggregation.FitSettings", lambda: FitSettings(max_epochs=1))
    recorder = Recorder(draws=False)
    common = {"rule": "given", "size_mm": 14.0, "folds": 2, "device": "cpu"}
    if config is SupervisedConfig:
        common["runs_dir"] = str(tmp_path)
    run(config(cohort=str(cohort.root), backbone="shipped:tiny", **common, **settings), recorder)
    assert recorder.tags["dinox.probed"] == "shipped:tiny/all,shipped:tiny/half_a,shipped:tiny/half_b"
    assert sorted(recorder.tables["tables/splits.parquet"]["patient_id"]) == sorted([*IN_A, *IN_B, *OTHERS])
    (counted,) = (value for name, value in recorder.metrics.items() if name.endswith("/n_nodules"))
    assert counted == N


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda box: (box / "half_b" / "model.safetensors").unlink(), "half_b/model.safetensors is missing"),
        (lambda box: shutil.rmtree(box / "half_a"), "half_a/config.json is missing"),
        (
            lambda box: shutil.copy(box / "all" / "model.safetensors", box / "half_a" / "model.safetensors"),
            "half_a/model.safetensors was altered",
        ),
        (lambda box: forget(box / "half_a" / "dinox.json"), "half_a/dinox.json was altered"),
        (lambda box: (box / "SHA256SUMS").unlink(), "SHA256SUMS is missing"),
        (lambda box: (box / "SHA256SUMS").write_bytes(b"\xff\xfe nothing"), "is missing"),
    ],
)
def test_a_network_that_is_missing_or_altered_is_refused(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, sentence: str
) -> None:
    shutil.copytree(boxes / "tiny", tmp_path / "tiny")
    monkeypatch.setattr(shipped, "BOXES", tmp_path)
    open_backbone("shipped:tiny")
    spoil(tmp_path / "tiny")
    with pytest.raises(BackboneError, match=f"^shipped:tiny: .*{sentence}.*fetch models/weights again"):
        open_backbone("shipped:tiny")


def forget(path: Path) -> None:
    """Whoever removes a patient from the record of a training would have him read by a network that saw him."""
    record = json.loads(path.read_text())
    del record["trained_on"]["patient"][0]
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("shipped:tyni", "no weights named 'tyni' are shipped; there are: seen, tiny"),
        ("shipped:..", "no weights named '..' are shipped"),
        ("shipped:tiny/half_c", "shipped:tiny holds all, half_a, half_b, and no 'half_c'"),
    ],
)
def test_a_name_that_is_not_there_lists_those_that_are(name: str, sentence: str) -> None:
    with pytest.raises(BackboneError, match=sentence):
        open_backbones(name)


def test_where_no_patient_is_tested_all_is_taken(boxes: Path) -> None:
    assert open_backbone("shipped:tiny").sha256 == open_backbone(str(boxes / "tiny" / "all")).sha256


def test_a_training_starts_from_a_network_that_never_saw_whom_it_holds_out(cohort: Cohort) -> None:
    def first(holdout: Any, held_out: list[str]) -> tuple[Any, Any]:
        start = TINY.__class__(
            **{name: getattr(TINY, name) for name in TINY.__slots__} | {"weights": "shipped:tiny"}
        )
        config = PretrainConfig(backbone=start, views=ViewConfig(size_px=14), holdout=holdout)
        index = SliceIndex(cohort, [patient for patient in PUBLIC if patient not in held_out])
        return first_backbone(config, cohort, index, held_out)

    for holdout, held_out, network in (
        ("half_a", [*IN_A, OTHERS[0]], "half_a"),
        ("half_b", IN_B, "half_b"),
        (0.01, OTHERS, "all"),
        (0.0, [], "all"),
    ):
        made, seen = first(holdout, held_out)
        loaded = open_backbone(f"shipped:tiny/{network}")
        for name, tensor in loaded.backbone.vit.state_dict().items():
            assert torch.equal(made.vit.state_dict()[name], tensor)
        assert seen == loaded.record["trained_on"]
    with pytest.raises(BackboneError, match="every network of shipped:tiny was trained on patients"):
        first(0.7, [IN_A[0], IN_B[0]])


def test_roles_follow_the_record_whatever_the_order(boxes: Path) -> None:
    folders = [boxes / "tiny" / name for name in ("half_b", "all", "half_a")]
    ordered = in_roles([open_backbone(str(folder)) for folder in folders])
    assert [Path(one.source).name for one in ordered] == ["all", "half_a", "half_b"]
