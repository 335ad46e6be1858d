"""Tables of probes as text."""

import numpy as np
import pandas as pd


def short_table(table: pd.DataFrame) -> str:
    """Return the rows overall and inside 6-15 mm as text, each AUROC with its interval and its gap to diameter."""
    lines = [f"{'stratum':10} {'row':24} {'n':>5} {'mal.':>5}  {'AUROC [95%]':24} minus diameter [95%]"]
    for line in table.to_dict("records"):
        if ":" in str(line["stratum"]) or not np.isfinite(line.get("auroc", np.nan)):
            continue
        area = f"{line['auroc']:.3f} [{line['auroc_ci_low']:.3f}, {line['auroc_ci_high']:.3f}]"
        gap = ""
        if np.isfinite(line.get("minus_diameter", np.nan)):
            low, high, p = (line[f"minus_diameter_{end}"] for end in ("ci_low", "ci_high", "p"))
            gap = f"{line['minus_diameter']:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.2g}"
        counts = f"{line['n_nodules']:>5} {line['n_positive']:>5}"
        lines.append(f"{line['stratum']:10} {line['row']:24} {counts}  {area:24} {gap}".rstrip())
    return "\n".join(lines)
