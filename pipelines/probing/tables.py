"""Tables of probes as text."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd


def short_table(table: pd.DataFrame) -> str:
    """Return the rows overall and for 6-15 mm as text: AUROC and difference to diameter with intervals."""
    lines = [f"{'stratum':10} {'row':28} {'n':>5} {'mal.':>5}  {'AUROC [95%]':24} minus diameter [95%]"]
    for line in table.to_dict("records"):
        if ":" in str(line["stratum"]) or not np.isfinite(line.get("auroc", np.nan)):
            continue
        gap = ""
        if np.isfinite(line.get("minus_diameter", np.nan)):
            low, high, p = (line[f"minus_diameter_{end}"] for end in ("ci_low", "ci_high", "p"))
            gap = f"{line['minus_diameter']:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2g}"
        counts = f"{line['n_nodules']:>5} {line['n_positive']:>5}"
        area = _interval(line, "auroc")
        if line["row"] == "shuffled_labels":
            area = f"{line['auroc']:.3f} ({line['auroc_lowest']:.3f} to {line['auroc_highest']:.3f})"
        lines.append(f"{line['stratum']:10} {line['row']:28} {counts}  {area:24} {gap}".rstrip())
    return "\n".join(lines)


def short_retrieval_table(table: pd.DataFrame) -> str:
    """Return the table as text: top-1 with its interval over patients, and the other shares."""
    heads = ("network", "token", "top-1 [95% over patients]", "top-5", "hits", "not adjacent", "same series")
    lines = ["{:9} {:12} {:27} {:>6} {:>5}  {:12}  {:11}".format(*heads).rstrip()]
    for row in table.to_dict("records"):
        lines.append(
            f"{row['network']:9} {row['token']:12} {_interval(row, 'top1'):27} {row['top5']:6.3f} {row['ratio']:5.0f}"
            f"  {row['top1_not_adjacent']:12.3f}  {row['same_series_top1']:11.3f}"
        )
    return "\n".join(lines)


def _interval(row: Mapping[Hashable, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_ci_low']:.3f}, {row[f'{name}_ci_high']:.3f}]"
