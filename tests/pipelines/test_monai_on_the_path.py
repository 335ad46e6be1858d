"""Entry points read, window, cut and crop through the MONAI transforms; what those wrap is equal where it is called."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.embedding import run_embed
from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import mapped_volume
from pipelines.cohort.slices import SliceIndex
from pipelines.command.cli import run_entry_point
from pipelines.ingest.config import PrepareConfig
from pipelines.prepare import run_prepare
from pipelines.probing.config import ProbeConfig
from pipelines.probing.malignancy import run_probe
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train
from transforms import LoadDicomSeries, NoduleCrop, RandWindowHU, SliceTriplet, WindowHU, read_series

PRETRAIN = [
    "--recipe", "demo", "--steps", "2", "--batch_size", "4", "--log_every", "2", "--eval_slices", "8",
    "--backbone.depth", "1", "--backbone.embed_dim", "16", "--backbone.heads", "2", "--backbone.image_px", "28",
    "--views.size_px", "28", "--head.prototypes", "32",
]  # fmt: skip
PROBE = ["--n_bootstrap", "20", "--draws", "19", "--folds", "2", "--repeats", "1", "--leak", "allow"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of each transform, which still does its work."""
    counted: Counter[str] = Counter()

    def count(kind: type) -> None:
        work = kind.__call__

        def counting(self, *arguments, **named):
            counted[kind.__name__] += 1
            return work(self, *arguments, **named)

        monkeypatch.setattr(kind, "__call__", counting)

    for kind in (LoadDicomSeries, WindowHU, RandWindowHU, SliceTriplet, NoduleCrop):
        count(kind)
    return counted


def test_every_kind_of_transform_is_at_work_over_prepare_pretrain_embed_and_probe(
    own_store: Path, small_phantom_source: Path, calls: Counter[str]
) -> None:
    source, cohort = str(small_phantom_source), str(own_store / "cohort")
    words = ["--source", source, "--cohort", cohort, "--workers", "1"]
    assert run_entry_point("prepare", PrepareConfig, run_prepare, None, words) == 0
    assert not calls  # many new processes: they call `read_series`, equal by the test below

    words = [*PRETRAIN, "--cohort", cohort, "--runs_dir", str(own_store / "runs"), "--device", "cpu"]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo", words) == 0
    assert min(calls["SliceTriplet"], calls["RandWindowHU"], calls["WindowHU"]) > 0
    calls.clear()

    words = ["--source", source, "--out", str(own_store / "tokens.parquet"), "--device", "cpu"]
    assert run_entry_point("embed", EmbedConfig, run_embed, None, words) == 0
    opened = Cohort.open(Path(cohort))
    assert calls["LoadDicomSeries"] == len(opened.series)
    assert calls["SliceTriplet"] == sum(shape[0] for shape in opened.series["shape"])
    assert calls["WindowHU"] > 0
    calls.clear()

    words = [*PROBE, "--cohort", cohort, "--runs_dir", str(own_store / "runs"), "--device", "cpu"]
    assert run_entry_point("probe_malignancy", ProbeConfig, run_probe, None, words) == 0
    assert calls["NoduleCrop"] >= 2  # one for the backbone and one for the pixels of every nodule
    assert calls["WindowHU"] > 0


def test_prepare_stores_what_the_transform_loads(small_phantom_source: Path, small_cohort: Cohort) -> None:
    rows = {row["series_uid"]: row for row in small_cohort.series.to_dict("records")}
    folders = sorted({path.parent for path in small_phantom_source.rglob("*.dcm")})[:2]
    for folder in folders:
        loaded, series = LoadDicomSeries(allow_gaps=True)(folder), read_series(sorted(folder.glob("*.dcm")))
        np.testing.assert_array_equal(loaded[0], series.volume_hu)
        stored = mapped_volume(small_cohort, rows[series.series_uid])
        torch.testing.assert_close(stored.as_tensor(), loaded.as_tensor(), rtol=0, atol=0)
        np.testing.assert_array_equal(stored.affine, loaded.affine)
        assert {name: stored.meta[name] for name in ("gaps", "slice_offsets_mm")} == {
            name: loaded.meta[name] for name in ("gaps", "slice_offsets_mm")
        }


def test_the_loader_reads_the_triplets_that_the_transform_cuts(small_cohort: Cohort) -> None:
    index = SliceIndex(small_cohort, set(small_cohort.series["patient_id"]))
    rows = {row["volume_id"]: row for row in small_cohort.series.to_dict("records")}
    cut = SliceTriplet()
    for volume_id in index.volume_ids[:3]:
        number = index.volume_ids.index(volume_id)
        own = np.flatnonzero(index.volume == number)
        volume = mapped_volume(small_cohort, rows[volume_id])
        expected = torch.stack([cut(volume, int(index.z[row])).as_tensor() for row in own])
        torch.testing.assert_close(index.read(own).triplets_hu, expected, rtol=0, atol=0)
