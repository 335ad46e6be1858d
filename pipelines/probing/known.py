"""What features know of a nodule: characteristics by the primary test, and one other reader as a ceiling."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.config import ProbeConfig
from pipelines.probing.question import BASELINE_DRAWS, Question
from pipelines.probing.rows import Found, Inputs
from probes.evaluation import evaluate_nodules, headline
from probes.scoring import Parts, Target, as_pairs
from probes.size_baseline import NOT_CALCIFIED, ORDINAL, SOFT_TISSUE
from probes.statistics.checks import UnmeasurableError
from probes.statistics.metrics import auroc_with_interval

CHARACTERISTICS = ("calcification", "texture", "spiculation", "lobulation", "margin", "sphericity")
_READERS = 4


def characteristics(marks: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the mean of the readers' marks by characteristic, n rows; NaN where no mark is known.

    Calcification is a category, 6 where there is none: it is the share of readers who saw any.
    """
    seen = marks.assign(calcification=marks["calcification"] != NOT_CALCIFIED)
    means = seen.groupby("row")[list(CHARACTERISTICS)].mean()
    return means.reindex(range(n)).astype(np.float64)


def ask_known(
    config: ProbeConfig, nodules: NoduleSet, inputs: Inputs, found: Found, target: Target, marks: pd.DataFrame
) -> pd.DataFrame:
    """Run the primary test on each characteristic in the rating's place.

    Args:
        config: Configuration of the probe.
        nodules: Of the probe.
        inputs: Of the rows.
        found: The nodules in their images.
        target: Of the probe, whose folds and prior hold for the AUROC of calcification.
        marks: As `marks_of`.

    Returns:
        One line a row and characteristic: those of `RowAnswer`, and for calcification the AUROC for "most readers
        saw it", with interval; empty if nothing can be asked.
    """
    values = characteristics(marks, len(nodules.labels)).to_numpy()
    is_known = np.isfinite(values).all(1)
    if not is_known.any():
        return pd.DataFrame()
    question = Question.of(config, nodules, found, np.where(is_known, 0.0, np.nan))
    if question.fewest(inputs.features) < 2 * question.base.shape[1]:
        return pd.DataFrame()
    rows: dict[str, Parts] = {"features": inputs.features}
    rows |= dict(zip(("random",), inputs.twins, strict=False))
    rows |= {name: parts for name, parts in inputs.others.items() if name != "hu"}
    own = values[question.rows]
    lines = []
    for row, parts in rows.items():
        results = question.tests(parts, BASELINE_DRAWS, list(own.T))
        for name, result in zip(CHARACTERISTICS, results, strict=True):
            line = {"row": row, "characteristic": name, "n_nodules": len(own)}
            line |= question.answer(result).columns()
            if name == "calcification":
                line |= _auroc_of(values[:, 0] > 0.5, is_known, parts, target, config)
            lines.append(line)
    return pd.DataFrame(lines)


def _auroc_of(
    is_so: NDArray[np.bool_], is_known: NDArray[np.bool_], parts: Parts, target: Target, config: ProbeConfig
) -> dict[str, float]:
    """AUROC of a binary characteristic, cross-fitted in the same folds; nothing where a fold lacks a class."""
    labels = is_so.astype(np.int64)
    kept = [
        (features, [(train[is_known[train]], test[is_known[test]]) for train, test in as_pairs(folds)])
        for features, folds in parts
    ]
    try:
        scores = Target(labels, target.patient_ids, None, labels.astype(np.float64)).score(kept)
        tested = np.isfinite(scores)
        area = auroc_with_interval(
            labels[tested], scores[tested], target.patient_ids[tested], config.n_bootstrap, config.seed
        )
    except UnmeasurableError:
        return {}
    return area.named("auroc")


def known_metrics(known: pd.DataFrame) -> dict[str, float]:
    """Return the metrics of the features: `known/<characteristic>_<number>`."""
    found = {}
    for line in known[known["row"] == "features"].to_dict("records") if len(known) else ():
        for number in ("nested_z", "nested_p", "auroc", "auroc_ci_low", "auroc_ci_high"):
            found[f"known/{line['characteristic']}_{number}"] = line.get(number, np.nan)
        for end in ("", "_ci_low", "_ci_high"):
            found[f"known/{line['characteristic']}_partial_spearman{end}"] = line[f"partial_spearman{end}"]
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def known_text(known: pd.DataFrame) -> str:
    """Return the table as text: z, p and partial Spearman by characteristic and row."""
    lines = [f"{'knows, beyond size and HU':26} {'row':13} {'z':>6} {'p':>7}  partial Spearman [95%]   AUROC"]
    for line in known.to_dict("records"):
        low, high = (line[f"partial_spearman_ci_{end}"] for end in ("low", "high"))
        area = f"{line['auroc']:.3f}" if np.isfinite(line.get("auroc", np.nan)) else ""
        lines.append(
            f"{line['characteristic']:26} {line['row']:13} {line['nested_z']:6.2f} {line['nested_p']:7.4f}"
            f"  {line['partial_spearman']:.3f} [{low:.3f}, {high:.3f}]   {area}".rstrip()
        )
    return "\n".join(lines)


def other_reader(
    config: ProbeConfig, nodules: NoduleSet, folds: Parts, marks: pd.DataFrame
) -> dict[str, float]:
    """Score the characteristics that one reader saw against what the three others rated: a ceiling for an image.

    Of nodules with four readers; one is drawn, his marks are the features, and the others' mean rating is the target,
    their median above 3 the label.

    Returns:
        Metrics of the row `other_reader`, alone and with diameter; empty where there are too few such nodules.
    """
    rated = marks.groupby("row").filter(lambda own: len(own) == _READERS) if len(marks) else marks
    if rated.empty or not nodules.has_diameters:
        return {}
    generator = np.random.default_rng(config.seed)
    n = len(nodules.labels)
    features, rating, median = np.full((n, len(ORDINAL) + 2), np.nan), np.full(n, np.nan), np.zeros(n)
    for row, own in rated.groupby("row"):
        place = int(str(row))
        drawn = generator.integers(_READERS)
        one, others = own.iloc[drawn], np.delete(own["malignancy"].to_numpy(np.float64), drawn)
        seen = (one["internalStructure"] == SOFT_TISSUE, one["calcification"] == NOT_CALCIFIED)
        features[place] = [*(float(one[name]) for name in ORDINAL), *map(float, seen)]
        rating[place], median[place] = others.mean(), np.median(others)
    is_asked = np.isfinite(rating)
    kept = [
        (np.nan_to_num(features), [(t[is_asked[t]], s[is_asked[s]]) for t, s in as_pairs(own)])
        for _, own in folds
    ]
    labels = (median > 3).astype(np.int64)
    try:
        target = Target(labels, nodules.patient_ids, None, np.nan_to_num(rating))
        scores = {
            "other_reader": target.score(kept),
            "other_reader_and_diameter": target.score_with_size(kept, nodules.diameter_mm),
        }
        table = evaluate_nodules(
            labels,
            scores,
            nodules.diameter_mm,
            nodules.patient_ids,
            n_bootstrap=config.n_bootstrap,
            seed=config.seed,
        )
    except UnmeasurableError:
        return {}
    found = {name: value for name, value in headline(table).items() if "other_reader" in name}
    return found | {"probe/other_reader_n_nodules": float(np.isfinite(scores["other_reader"]).sum())}
