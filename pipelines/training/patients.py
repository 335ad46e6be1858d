"""Which patients a training uses, and whether they have enough slices; nothing heavy is imported here."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.cohort.folder import Cohort
from pipelines.cohort.tables import CohortError
from pipelines.cohort.union import cohort_roots, open_cohorts
from pipelines.training.config import PretrainConfig
from probes.splits import is_held_out, patient_hash
from transforms.refusal import number_of

_HOLDOUTS = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05)


@dataclass(frozen=True)
class Patients:
    """Patients for training, patients held out, and the leak tag if tests would use training patients."""

    train: list[str]
    held_out: list[str]
    leak: str


def divide_patients(cohort: Cohort, config: PretrainConfig) -> Patients:
    """Divide the cohort's patients by the hash of their ids.

    If no patient would be left for training, none is held out and the leak is "no_holdout".

    Raises:
        CohortError: If the cohort holds no patient.
    """
    everyone = sorted(cohort.series["patient_id"].unique(), key=patient_hash)
    if not everyone:
        raise CohortError(f"cohort {cohort.root} holds no series to train on; prepare one first")
    held_out = [patient for patient in everyone if is_held_out(patient, config.holdout)]
    train = [patient for patient in everyone if patient not in set(held_out)]
    if not train:
        return Patients(everyone, [], "no_holdout")
    if config.max_patients:
        # In the order of the hash, so that the choice does not depend on the cohort's size.
        train = train[: config.max_patients]
    return Patients(train, held_out, "" if held_out else "no_holdout")


def nodules_used(config: PretrainConfig, cohort: Cohort) -> str:
    """Return the hash of the nodule table that a training draws by; "" if it draws by none."""
    is_centered = config.views.center == "point" and config.points != "blobs"
    return cohort.nodules_sha256 if is_centered or config.batches == "diameter" else ""


def refuse_too_few(config: PretrainConfig) -> None:
    """Refuse a training whose patients have fewer slices than a batch, and say which options would do.

    A cohort that is missing is another matter; slices that turn out to have no neighbor or no room are not known here.

    Raises:
        CohortError: If there are too few slices, or a cohort cannot be opened.
    """
    if not all((root / "series.parquet").is_file() for root in cohort_roots(config.cohort)):
        return
    cohort = open_cohorts(config.cohort)
    n_patients, n_slices = len(divide_patients(cohort, config).train), _n_slices(cohort, config)
    if n_slices >= config.batch_size:
        return
    found = "; or ".join(_remedies(cohort, config, n_slices))
    raise CohortError(
        f"{number_of(n_slices, 'slice')} of {number_of(n_patients, 'training patient')} of cohort {config.cohort}"
        f" (holdout={config.holdout}) are too few for batch_size={config.batch_size};"
        f" {f'what would do: {found}' if found else 'prepare more series'}"
    )


def _remedies(cohort: Cohort, config: PretrainConfig, n_slices: int) -> Iterator[str]:
    smaller = n_slices // config.nproc * config.nproc
    if smaller >= 2:
        yield f"batch_size={smaller} or less"
    if (
        config.max_patients
        and _n_slices(cohort, dataclasses.replace(config, max_patients=0)) >= config.batch_size
    ):
        yield "max_patients=0"
    for share in _HOLDOUTS:
        other = dataclasses.replace(config, holdout=share)
        if divide_patients(cohort, other).held_out and _n_slices(cohort, other) >= config.batch_size:
            yield f"holdout={share}"
            return


def _n_slices(cohort: Cohort, config: PretrainConfig) -> int:
    """Slices of the training patients, the most that there can be to draw from."""
    train = cohort.series["patient_id"].isin(divide_patients(cohort, config).train)
    return sum(int(shape[0]) for shape in cohort.series.loc[train, "shape"])
