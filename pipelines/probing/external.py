"""A second cohort, on which nothing is fitted: all scores are frozen from the nodules of the first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import Ids, compare, ids_of
from pipelines.encoders.source import Source
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.question import BASELINE_DRAWS, Answer, Question, rating_of
from pipelines.probing.readers import ProbeError
from pipelines.probing.reading import NoduleVectors, readable, vectors_of
from pipelines.probing.rows import Found, Inputs, find_nodules, without_network
from pipelines.probing.setup import labeled_nodules, left_out, of_rows, pixels_of
from probes.partial.frozen import frozen_score, frozen_test
from probes.partial.nested import NestedResult
from probes.scoring import Parts, Target, permutation
from probes.splits import is_held_out
from probes.statistics.metrics import auroc
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of

FEW_SHOT_DRAWS = 20
SEEN = ("in the first cohort", "in the pretraining")


@dataclasses.dataclass(frozen=True)
class Both:
    """The nodules of both cohorts, those of the first before those of the second.

    Attributes:
        first: Number of nodules of the first cohort.
        unknown: Patients of the second whose ids cannot be compared with those of the first or of the pretraining.
        sha256: Of the second cohort.
    """

    nodules: NoduleSet
    found: Found
    inputs: Inputs
    first: int
    unknown: int
    sha256: str

    @property
    def fold(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fit on the first cohort, test on the second."""
        rows = np.arange(len(self.nodules.labels))
        return rows[: self.first], rows[self.first :]


def open_test_cohort(config: ProbeConfig, nodules: NoduleSet) -> Cohort | None:
    """Open the test cohort, if there is one, before anything else is computed.

    Raises:
        ProbeError: If the first cohort has fewer nodules than `shots` asks for.
        CohortError: If it cannot be opened.
    """
    n = len(nodules.labels)
    if max(shots_of(config), default=0) > n:
        raise ProbeError(f"shots={config.shots} asks for more nodules than the {n} to fit on")
    return Cohort.open(Path(config.test_cohort)) if config.test_cohort else None


def shots_of(config: ProbeConfig) -> list[int]:
    """Return the numbers of nodules of the few-shot curve."""
    return [int(part) for part in config.shots.split(",") if part]


def join_cohorts(
    config: ProbeConfig,
    cohort: Cohort,
    other: Cohort,
    reader: NoduleVectors,
    found: Found,
    diagnosis: pd.DataFrame | None,
) -> Both:
    """Leave out the patients of the test cohort that were seen before, and read both cohorts in one way.

    Args:
        config: Configuration of the probe.
        cohort: The first cohort.
        other: The test cohort.
        reader: Its features.
        found: Its nodules in their images.
        diagnosis: As in `nodule_set`.

    Raises:
        ProbeError: If no patient is left.
    """
    first = reader.nodules
    spec = CropSpec(size_mm=config.size_mm, out_px=first.crops_hu.shape[-1])
    everyone = labeled_nodules(config, other, spec, config.input == "whole_slice", diagnosis)
    everyone = readable(config, other, [reader.loaded], everyone)
    states = states_of(other, cohort, reader.loaded, sorted(set(everyone.patient_ids.tolist())))
    state = np.array([states[patient] for patient in everyone.patient_ids])
    is_seen = np.isin(state, SEEN)
    if is_seen.all():
        raise ProbeError(
            f"every patient of test_cohort={config.test_cohort} was seen before; use another one"
        )
    dropped = pd.concat([left_out(everyone, state == name, name) for name in SEEN])
    second = of_rows(everyone, np.flatnonzero(~is_seen), dropped)
    unknown = len(np.unique(everyone.patient_ids[state == "unknown"]))
    print(
        Accounting.of("nodules of the test cohort", len(state), "tested", len(second.labels), dropped["kind"])
    )
    if unknown:
        print(
            f"leak (unknown): ids of {number_of(unknown, 'patient')} cannot be compared with those seen before"
        )
    own = find_nodules(config, other, second, diagnosis)
    nodules = _joined(first, second)
    joined = found.and_then(own)
    rows = np.arange(len(nodules.labels))
    fold = (rows[: len(first.labels)], rows[len(first.labels) :])
    readers = (reader, vectors_of(config, reader.loaded, other, second, [cohort]))
    pixels = (pixels_of(config, cohort, first, diagnosis), pixels_of(config, other, second, diagnosis))
    inputs = Inputs(
        [(np.concatenate([one.learned() for one in readers]), [fold])],
        [
            [(np.concatenate([one.twin(config.seed + n) for one in readers]), [fold])]
            for n in range(reader.twins)
        ],
        without_network(joined, [fold], [(rows < len(first.labels), rows >= len(first.labels))], config.seed),
        [(np.concatenate(pixels), [fold])],
    )
    return Both(nodules, joined, inputs, len(first.labels), unknown, other.sha256)


def states_of(other: Cohort, cohort: Cohort, loaded: Source, patients: Sequence[str]) -> dict[str, str]:
    """Return of each patient of the test cohort whether he was seen before: where, "apart" or "unknown"."""
    first = ids_of(cohort, set(cohort.series["patient_id"]))
    trained = trained_on(loaded, cohort, other)
    states = {}
    for patient in patients:
        own = ids_of(other, [patient])
        with_first = compare(own, first)
        with_trained = (
            "unknown" if trained is None else compare(own, trained) if any(trained.values()) else "apart"
        )
        if with_first == "shared":
            states[patient] = SEEN[0]
        elif with_trained == "shared":
            states[patient] = SEEN[1]
        else:
            states[patient] = "apart" if with_first == with_trained == "apart" else "unknown"
    return states


def trained_on(loaded: Source, *cohorts: Cohort) -> Ids | None:
    """Return the ids that a backbone was trained on; empty for weights that saw no CT, None where it is not known."""
    if loaded.source.startswith("timm:"):
        return {}
    if "trained_on" in loaded.record:
        ids: Ids = loaded.record["trained_on"]
        return ids
    for cohort in cohorts:
        if loaded.record.get("cohort_sha") == cohort.sha256 and "holdout" in loaded.record:
            patients = cohort.series["patient_id"].unique()
            holdout = loaded.record["holdout"]
            return ids_of(cohort, [one for one in patients if not is_held_out(one, holdout)])
    return None


def ask_frozen(config: ProbeConfig, both: Both) -> Answer:
    """Ask the primary question of the second cohort, with scores frozen from the first."""
    train, test = both.fold
    ratings = both.nodules.table["malignancy_ratings"]
    rating = rating_of(both.nodules, config.target if all(len(one) for one in ratings) else "label")
    first, second = (
        Question.of(config, of_some(both.nodules, rows), both.found.of_rows(rows), rating[rows])
        for rows in (train, test)
    )

    def asked(parts: Parts, draws: int) -> NestedResult:
        features = np.asarray(parts[0][0], dtype=np.float64)
        score = frozen_score(
            features[train][first.rows], first.rating, first.base, features[test][second.rows]
        )
        return frozen_test(score, second.rating, second.base, second.patients, draws, config.seed)

    results = {"features": asked(both.inputs.features, config.draws)}
    twins = [asked(twin, BASELINE_DRAWS) for twin in both.inputs.twins]
    results |= dict(zip(("random",), twins, strict=False))
    results |= {
        name: asked(parts, BASELINE_DRAWS) for name, parts in both.inputs.others.items() if name != "hu"
    }
    answers = {name: second.answer(result) for name, result in results.items()}
    return Answer(answers, len(twins), *second.over_twins(results, twins))


def few_shots(config: ProbeConfig, both: Both, target: Target) -> pd.DataFrame:
    """Fit on a few nodules of the first cohort, score the second: AUROC of each row, number and draw."""
    train, test = both.fold
    rows: dict[str, Parts] = {"features": both.inputs.features}
    rows |= dict(zip(("random_weights",), both.inputs.twins, strict=False))
    rows |= {name: both.inputs.others[name] for name in ("dictionary",) if name in both.inputs.others}
    labels, once = target.labels[test], np.ones((1, len(test)))
    lines = []
    for number in shots_of(config):
        for draw in range(FEW_SHOT_DRAWS):
            # The first nodules of a random order that leaves both classes among them.
            fold = (np.arange(number), np.arange(number, len(train)))
            order = permutation(target.labels[train], target.patient_ids[train], [fold], config.seed + draw)
            own = np.sort(train[order[:number]])
            for name, parts in rows.items():
                scores = target.score([(parts[0][0], [(own, test)])])
                area = float(auroc(labels, scores[test], once)[0])
                lines.append({"row": name, "n_nodules": number, "draw": draw, "auroc": area})
    return pd.DataFrame(lines, columns=["row", "n_nodules", "draw", "auroc"])


def of_some(nodules: NoduleSet, rows: NDArray[np.int64]) -> NoduleSet:
    """Return some nodules of both cohorts."""
    return dataclasses.replace(nodules, table=nodules.table.iloc[rows].reset_index(drop=True))


def _joined(first: NoduleSet, second: NoduleSet) -> NoduleSet:
    return dataclasses.replace(
        first,
        table=pd.concat([first.table, second.table], ignore_index=True),
        crops_hu=np.concatenate([first.crops_hu, second.crops_hu]),
        is_replicated=np.concatenate([first.is_replicated, second.is_replicated]),
        mm_per_px=np.concatenate([first.mm_per_px, second.mm_per_px]),
    )
