"""The page of an audit: what a reviewer needs to see beside a claim, and nothing that names a patient."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.audit.measures import Audited
from pipelines.runtime.page import Block, Heading, Picture, Sentence, Table
from pipelines.runtime.plot_style import REFERENCE, new_figure, stroke
from pipelines.tracking.names import Tag
from transforms.refusal import number_of

STRATA = {"all": "all", "6-15 mm": "6-15 mm", "size: matched 1:2": "size-matched 1:2"}
"""Strata of the probe's table, and their names on the page."""
_ROWS = {
    "features": "features",
    "random_weights": "random weights",
    "diameter": "diameter (readers', an oracle)",
    "pixels": "pixels",
    "hu": "HU statistics",
    "dictionary": "dictionary of patches",
    "random_words": "whitened random words",
    "image_diameter": "diameter in the image",
    "features_and_diameter": "features with diameter",
    "random_weights_and_diameter": "random weights with diameter",
    "pixels_and_diameter": "pixels with diameter",
    "hu_and_diameter": "HU statistics with diameter",
    "dictionary_and_diameter": "dictionary with diameter",
    "random_words_and_diameter": "random words with diameter",
    "shuffled_labels": "features, labels shuffled",
}
_MOST_SHOWN = 30
"""Letters of a name in a figure."""
_MEANING = {
    "consensus": "Labels are readers' suspicion (median rating above 3), not cancer.",
    "given": "Labels are those of the table of nodules.",
}


def page(
    audited: Sequence[Audited],
    compared: pd.DataFrame,
    scanners: Mapping[str, pd.DataFrame],
    kernels: Mapping[str, str],
    facts: str,
) -> list[Block]:
    """Return the blocks of the page.

    Args:
        audited: The encoders.
        compared: As `measures.pairs` returns it.
        scanners: By letter, as `measures.read_from` returns it.
        kernels: By letter, as `measures.kernel_distance` returns it.
        facts: Of the cohort and the folds, in one paragraph.
    """
    rule = audited[0].config.rule
    return [
        Heading(1, "Audit of encoders"),
        Sentence(facts),
        Sentence(
            f"{_MEANING.get(rule, f'Labels follow the rule {rule}.')} Intervals are 95%, over patients, conditional on"
            " training. Every row is scored out of fold on patients that it was not fitted on.",
            is_note=True,
        ),
        Heading(2, "In one look"),
        _encoders(audited),
        _summary(audited),
        *_not_the_same(audited),
        Picture("AUROC of every encoder beside the baselines", forest(audited)),
        Heading(2, "Beyond size and attenuation"),
        Sentence(
            "Do the features predict the rating beyond diameter, size in the image and HU in the nodule (z, one-sided p"
            " by sign flips)? Learned takes both: p below 0.05, and partial R2 above random twins of the architecture."
        ),
        _question(audited),
        Heading(2, "Every row"),
        *[block for stratum in STRATA for block in _stratum(audited, stratum)],
        Heading(2, "Differences, paired over patients"),
        Sentence("AUROC of the first minus that of the second; p adjusted by Holm over all lines."),
        _pairs(compared),
        Heading(2, "What else can be read from the features"),
        Sentence(
            "Balanced accuracy of a linear probe out of fold; chance is 1 over the number of classes. Much above random"
            " weights, the encoder keeps what should not matter."
        ),
        _scanners(scanners),
        Heading(2, "Another kernel"),
        Table(
            ["", "squared distance of one place of lung under two kernels"], list(map(list, kernels.items()))
        ),
        Heading(2, "Few nodules to fit on"),
        *_shots(audited),
    ]


def _not_the_same(audited: Sequence[Audited]) -> list[Block]:
    """Say so where encoders are tested on different nodules."""
    counts = {one.letter: int(one.row().get("n_nodules", 0)) for one in audited}
    if len(set(counts.values())) == 1:
        return []
    said = ", ".join(f"{letter} on {count}" for letter, count in counts.items())
    return [
        Sentence(
            f"Encoders are tested on different nodules, those that each may be tested on ({said}): compare them by the"
            " differences below, on the nodules that two share. Baselines of the figure are on the most nodules.",
            is_note=True,
        )
    ]


def _encoders(audited: Sequence[Audited]) -> Table:
    lines = []
    for one in audited:
        n_tested = int(one.row().get("n_nodules", 0))
        leak, scale = one.tags.get(Tag.LEAK, ""), one.tags.get(Tag.SCALE, "")
        notes = [f"leak: {leak}" if leak else "", f"scale: {scale}" if scale else "", one.note]
        said = "; ".join(filter(None, notes)) or "none"
        vectors = np.asarray(one.probed.inputs.features[0][0])
        twins = len(one.probed.inputs.twins)
        lines.append(
            [one.letter, one.name, one.reads, str(vectors.shape[1]), str(twins), str(n_tested), said]
        )
    return Table(["", "encoder", "reads", "numbers", "random twins", "tested", "leak, scale, notes"], lines)


def _summary(audited: Sequence[Audited]) -> Table:
    lines = []
    for one in audited:
        joined = one.row("features_and_diameter")
        cells = [_area(one.row("features", stratum)) for stratum in STRATA]
        lines.append([one.letter, *cells, _area(one.row("diameter")), _area(joined), _gap(joined)])
    head = ["", *(f"AUROC, {name}" for name in STRATA.values())]
    head += ["diameter alone, same nodules", "with diameter", "minus diameter alone"]
    return Table(head, lines)


def _question(audited: Sequence[Audited]) -> Table:
    lines = []
    for one in audited:
        answer = one.probed.answer
        if answer is None:
            lines.append([one.letter, "", "", "too few nodules", "", "", ""])
            continue
        for name, row in answer.rows.items():
            over = answer.over_random_r2 if name == "features" else None
            claim = "" if over is None else "learned" if answer.is_learned else "not shown to be learned"
            if name == "features" and over is None:
                claim = "no random twin: not known"
            shown = [one.letter, _ROWS.get(name, "random weights"), f"{row.z:.2f}", f"{row.p:.4f}"]
            lines.append([*shown, str(row.spearman), "" if over is None else str(over), claim])
    head = ["", "row", "z", "p", "partial Spearman", "partial R2 above random twins", "claim"]
    return Table(head, lines)


def _stratum(audited: Sequence[Audited], stratum: str) -> list[Block]:
    """Rows by encoder; a baseline may differ a little between encoders that test other patients."""
    names = [name for name in _ROWS if any(one.row(name, stratum) for one in audited)]
    lines = [[_ROWS[name], *(_area(one.row(name, stratum)) for one in audited)] for name in names]
    counts = [one.row("features", stratum) for one in audited]
    tested = [f"{int(row['n_nodules'])}, {int(row['n_positive'])}" if row else "" for row in counts]
    lines.insert(0, ["nodules, malignant", *tested])
    return [Heading(3, STRATA[stratum]), Table(["AUROC", *(one.letter for one in audited)], lines)]


def _pairs(compared: pd.DataFrame) -> Table:
    lines = [
        [
            f"{line['first']} - {_ROWS.get(line['second'], line['second'])}",
            f"{line['difference']:+.3f} [{line['difference_ci_low']:+.3f}, {line['difference_ci_high']:+.3f}]",
            f"{line['p']:.3g}",
            f"{line['p_holm']:.3g}",
            str(line["n_nodules"]),
        ]
        for line in compared.to_dict("records")
    ]
    return Table(["", "difference in AUROC", "p", "p (Holm)", "nodules"], lines)


def _scanners(scanners: Mapping[str, pd.DataFrame]) -> Table:
    lines = []
    for letter, table in scanners.items():
        for line in table.to_dict("records"):
            if not np.isfinite(line.get("accuracy", np.nan)):
                lines.append([letter, str(line["what"]), f"not measured: {line['reason']}", "", ""])
                continue
            random = _estimate(line, "random") if np.isfinite(line.get("random", np.nan)) else ""
            chance = f"{1 / line['classes']:.3f}"
            lines.append([letter, str(line["what"]), _estimate(line, "accuracy"), random, chance])
    return Table(["", "what", "balanced accuracy", "random weights", "chance"], lines)


def _shots(audited: Sequence[Audited]) -> list[Block]:
    drawn = [one for one in audited if len(one.shots)]
    if not drawn:
        return [Sentence("Not measured: no number of nodules that leaves as many to test on.")]
    lines = []
    for one in drawn:
        for number, own in one.shots.groupby("n_nodules"):
            low, middle, high = own["auroc"].min(), own["auroc"].mean(), own["auroc"].max()
            lines.append([one.letter, str(number), f"{middle:.3f}", f"{low:.3f} to {high:.3f}"])
    return [
        Sentence(
            "Fitted on a few nodules, drawn 20 times, and tested on all patients that are not among them."
        ),
        Table(["", "nodules", "AUROC, mean", "lowest to highest"], lines),
    ]


def forest(audited: Sequence[Audited]) -> Figure:
    """Draw AUROC with interval, overall and inside 6-15 mm: every encoder, and the baselines.

    Baselines are of the encoder that is tested on most nodules.
    """
    widest = max(audited, key=lambda one: one.row().get("n_nodules", 0))
    names = [name for name in ("diameter", "pixels", "hu", "dictionary", "random_words") if widest.row(name)]
    lines = [
        (f"{one.letter}: {_shown(one.name)}\n(n = {one.row().get('n_nodules', 0):.0f})", one, "features")
        for one in audited
    ]
    lines += [
        (f"{one.letter}, random weights", one, "random_weights") for one in audited if one.probed.inputs.twins
    ]
    lines += [(_ROWS[name], widest, name) for name in names]
    first = widest.row()
    n = f"{number_of(int(first['n_nodules']), 'nodule')} ({first['n_positive']:.0f} malignant)"
    title = f"Encoders, and baselines on {n} of {number_of(int(first['n_patients']), 'patient')}"
    figure = new_figure(7.0, 1.2 + 0.3 * len(lines), title)
    axis = figure.subplots()
    for number, (shift, stratum) in enumerate(((-0.12, "all"), (0.12, "6-15 mm"))):
        found = [(place, one.row(name, stratum)) for place, (_, one, name) in enumerate(lines)]
        found = [(place, row) for place, row in found if np.isfinite(row.get("auroc", np.nan))]
        value = np.array([row["auroc"] for _, row in found])
        ends = np.array([[row[f"auroc_ci_{end}"] for _, row in found] for end in ("low", "high")])
        place = np.array([place + shift for place, _ in found])
        errors = np.abs(ends - value) if len(found) else None
        own = stroke(number)
        style: dict[str, Any] = {"color": own.color, "marker": own.marker, "linestyle": "none"}
        axis.errorbar(value, place, xerr=errors, capsize=2, label=stratum, **style)
    axis.set_yticks(range(len(lines)), [label for label, _, _ in lines])
    axis.invert_yaxis()
    axis.axvline(0.5, **REFERENCE)
    axis.set(xlabel="AUROC, 95% interval over patients")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _shown(name: str) -> str:
    """Return a name without its options, the id of a run as short as in its name, and of what is long the end."""
    return re.sub(r"runs:/([0-9a-f]{4})[0-9a-f]{28}", r"runs:/\1", name.partition("+")[0])[-_MOST_SHOWN:]


def _area(row: Mapping[str, float]) -> str:
    if not np.isfinite(row.get("auroc", np.nan)):
        return ""
    if "auroc_lowest" in row and np.isfinite(row["auroc_lowest"]):
        return f"{row['auroc']:.3f} ({row['auroc_lowest']:.3f} to {row['auroc_highest']:.3f})"
    return _estimate(row, "auroc")


def _gap(row: Mapping[str, float]) -> str:
    if not np.isfinite(row.get("minus_diameter", np.nan)):
        return ""
    low, high = row["minus_diameter_ci_low"], row["minus_diameter_ci_high"]
    return f"{row['minus_diameter']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _estimate(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_ci_low']:.3f}, {row[f'{name}_ci_high']:.3f}]"
