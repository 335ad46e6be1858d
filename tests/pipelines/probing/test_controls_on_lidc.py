"""Controls of the primary question on 740 real nodules: what cannot know anything must say nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.features import encode
from pipelines.cohort.folder import Cohort
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.labeled import NoduleSet, nodule_set
from pipelines.probing.config import ProbeConfig
from pipelines.probing.question import LEAK_SPEARMAN, Question, rating_of
from pipelines.probing.rows import Found, find_nodules
from probes.nodule_rays import nodule_region
from probes.scoring import Target
from probes.splits import patient_folds
from probes.statistics.metrics import auroc_with_interval
from transforms.nodule_crop import CropSpec

pytestmark = [pytest.mark.slow, pytest.mark.lidc]
Asked = tuple[Cohort, NoduleSet, Found, Question, list[tuple[np.ndarray, np.ndarray]]]


@pytest.fixture(scope="module")
def asked(dinox_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    source = dinox_data / "lidc_nodules"
    config = PrepareConfig(
        source=str(source / "volumes"),
        cohort=str(tmp_path_factory.mktemp("lidc") / "c"),
        from_="nifti",
        annotations=str(source / "nodules.csv"),
        keep_ids=True,
        workers=1,
    )
    cohort = prepare_cohort(config).cohort
    probe = ProbeConfig(cohort=str(cohort.root), n_bootstrap=200)
    nodules = nodule_set(cohort, probe.rule, CropSpec(size_mm=24.0, out_px=48))
    found = find_nodules(probe, cohort, nodules, None)
    question = Question.of(probe, nodules, found, rating_of(nodules))
    patients = nodules.patient_ids
    splits = patient_folds(patients.tolist(), nodules.labels, tested=set(patients), n_repeats=2)
    return cohort, nodules, found, question, [(fold.train, fold.test) for fold in splits]


def test_constant_images_read_in_the_mask_know_its_shape_at_most(asked: Asked) -> None:
    _, nodules, _, question, folds = asked
    config = BackboneConfig(
        arch="custom", depth=2, embed_dim=64, heads=4, patch_px=4, registers=0, image_px=48
    )
    torch.manual_seed(0)
    region = nodule_region(nodules.crops_hu[:, 1], 0.5)
    flat = np.full_like(nodules.crops_hu, -700.0)
    cpu = torch.device("cpu")
    features = encode(build_backbone(config), flat, 0.5, "full", "roi", cpu, region=region)
    z = question.test([(features, folds)], 999).z
    print(f"constant images, position alone: z {z:.2f}")
    assert -2 <= z <= 2
    silent = question.test([(np.ones((len(flat), 8)), folds)], 99)
    assert (silent.z, silent.p) == (0.0, 1.0)


def test_the_number_of_slices_of_a_patch_says_nothing_beyond_size_and_attenuation(asked: Asked) -> None:
    cohort, nodules, _, question, folds = asked
    counts = cohort.series.set_index("volume_id")["shape"].map(lambda shape: float(shape[0]))
    slices = counts.loc[nodules.table["volume_id"]].to_numpy()[:, None]
    z = question.test([(slices, folds)], 999).z
    print(f"number of slices: z {z:.2f}")
    assert -2 <= z <= 2


def test_features_that_nodules_of_like_diameter_exchanged_say_nothing(asked: Asked) -> None:
    _, _, found, question, folds = asked
    pixels = found.slices_hu[:, 40:60:2, 40:60:2].reshape(len(found.slices_hu), -1)
    permuted = question.permuted([(pixels, folds)], repeats=2)
    print(f"permuted in diameter bins: mean z {np.mean(permuted):.2f}")
    assert -1.5 <= np.mean(permuted) <= 0.5


def test_the_rating_itself_is_known_whole(asked: Asked) -> None:
    _, nodules, _, question, folds = asked
    rating = rating_of(nodules)
    answer = question.answer(question.test([(rating[:, None], folds)], 99))
    scores = Target(nodules.labels, nodules.patient_ids, rating=rating).score([(rating[:, None], folds)])
    area = auroc_with_interval(nodules.labels, scores, nodules.patient_ids, 50).value
    print(f"the rating itself: partial Spearman {answer.spearman.value:.4f}, AUROC {area:.4f}")
    assert answer.spearman.value >= 0.99 > LEAK_SPEARMAN
    assert area >= 0.985
