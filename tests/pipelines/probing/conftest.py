"""A cohort whose label shows in the grain of its nodules, one probe of it, which takes seconds, and a rated phantom."""

import pickle
import shutil
from pathlib import Path

import pytest

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import NODULES, SERIES, write_table
from tests.conftest import MakeOnce
from tests.pipelines.probing.grain import LABELS, QUESTION, marks_of_grain, nodule_with_grain
from tests.pipelines.probing.test_probe_malignancy import backbone, cohort_of, probed
from tests.recorder import Recorder


@pytest.fixture(scope="session")
def grained_cohort(make_once: MakeOnce) -> Cohort:
    """Sixty patients, p0 to p59; read only."""
    root = make_once("grained", lambda folder: cohort_of(folder, nodule_with_grain, LABELS))
    return Cohort.open(root / "c")


@pytest.fixture(scope="session")
def grained(grained_cohort: Cohort, make_once: MakeOnce) -> Recorder:
    """A probe of that cohort, with readers' marks, and of a test cohort whose first ten patients are the same."""

    def probe(folder: Path) -> None:
        # Other voxels: the same would be the same person.
        second = cohort_of(folder / "second", lambda number: nodule_with_grain(number) + 1, LABELS[:40], "q")
        renamed = {f"q{number}": f"p{number}" for number in range(10)}
        for name, schema in (("series", SERIES), ("nodules", NODULES)):
            table = getattr(second, name)
            table["patient_id"] = table["patient_id"].replace(renamed)
            write_table(second.root / f"{name}.parquet", table, schema)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipelines.probing.malignancy.marks_of", marks_of_grain)
            own = backbone(folder / "b", holdout=1.0)
            options = QUESTION | {"test_cohort": str(second.root), "shots": "16,40"}
            run = probed(grained_cohort, own, folder / "runs", **options)
        (folder / "run.pickle").write_bytes(pickle.dumps((run.metrics, run.tables, run.tags)))

    run = Recorder(draws=False)
    content = (make_once("grained_probe", probe) / "run.pickle").read_bytes()
    run.metrics, run.tables, run.tags = pickle.loads(content)
    return run


@pytest.fixture(scope="module")
def rated_cohort(small_cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six patients with ratings assigned in turn, so that both classes suffice for folds within folds."""
    root = tmp_path_factory.mktemp("cohorts") / "rated"
    shutil.copytree(small_cohort.root, root)
    turns = [[5, 5, 4] if number % 2 else [1, 2, 1] for number in range(len(small_cohort.nodules))]
    nodules = small_cohort.nodules.assign(malignancy_ratings=turns)
    write_table(root / "nodules.parquet", nodules, NODULES)
    return root
