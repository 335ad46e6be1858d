"""The overview of a cohort as a page that needs nothing else, and as a figure for MLflow."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from pipelines.cohort.folder import Cohort
from pipelines.ingest.overview import SCALE_BAR_MM, Glance, in_most, look_at_cohort
from pipelines.runtime.image_axes import image_axes

_SHOWN_IN_FIGURE = 18
_STYLE = """
body { font: 14px/1.4 sans-serif; margin: 24px; color: #222; background: #fafafa }
.cards { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start }
.card { background: #fff; border: 1px solid #ccc; border-radius: 4px; padding: 8px; max-width: 400px }
.card.odd { border: 2px solid #c40 }
.card img { background: #000; margin-right: 4px; vertical-align: top }
.odd li { color: #b30 } ul { margin: 4px 0; padding-left: 18px }
.facts { color: #555; font-size: 12px } code { font-size: 12px }
table { border-collapse: collapse; background: #fff } td, th { border: 1px solid #ccc; padding: 3px 8px }
"""


def overview(cohort: Cohort) -> tuple[str, Figure]:
    """The page, in HTML, and the figure of a cohort; what is unusual comes first.

    Both hold what the cohort's tables hold of people, and no path.
    """
    seen = list(look_at_cohort(cohort))
    most = in_most(seen)
    seen = [replace(one, unusual={k: v for k, v in one.unusual.items() if k not in most}) for one in seen]
    seen.sort(key=lambda glance: -len(glance.unusual))  # else by volume_id
    lines = -(-min(len(seen), _SHOWN_IN_FIGURE) // 6)
    figure = Figure(figsize=(15, 2.6 + 2.2 * lines))
    histograms, sheet = np.array(figure.subfigures(2, 1, height_ratios=[2.6, 2.2 * lines])).ravel()
    _draw_histograms(histograms, seen)
    histograms.suptitle("; ".join(most.values()), fontsize=8, color="tab:red", y=0.99)
    _draw_sheet(sheet, seen[:_SHOWN_IN_FIGURE])
    n_odd = sum(bool(glance.unusual) for glance in seen)
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Overview</title><style>{_STYLE}</style><body>",
        f"<h1>{len(seen)} series of {cohort.series['patient_id'].nunique()} patients, {len(cohort.nodules)} nodules"
        "</h1>",
        f"<p>Those with something unusual come first: {n_odd}. Each: a slice through the middle of the lungs and a "
        "coronal one, lung window, at one scale; R and L are the patient's sides, the bar is "
        f"{SCALE_BAR_MM['series']} mm ({SCALE_BAR_MM['patch']} mm in patches around a nodule).</p>",
        f"<h2>All series</h2><img alt='histograms' src='{_histograms(seen)}'>",
        *_in_most(most),
        *_refused(cohort.refused),
        "<h2>Series</h2><div class='cards'>",
        *map(_card, seen),
        "</div></body></html>\n",
    ]
    return "\n".join(parts), figure


def _card(glance: Glance) -> str:
    row, unusual = glance.row, glance.unusual
    z, y, x = (int(n) for n in row["shape"])
    dz, dy, dx = (float(mm) for mm in row["spacing_mm"])
    thickness = row["slice_thickness_mm"]
    hu = ", ".join(
        f"{name} {glance.figures[f'{name}_hu']:.0f}"
        for name in ("air", "lung", "fat")
        if not np.isnan(glance.figures[f"{name}_hu"])
    )
    facts = [
        f"{z} x {y} x {x} voxels of {dz:.3g} x {dy:.3g} x {dx:.3g} mm",
        "" if pd.isna(thickness) else f"slices {thickness:g} mm thick",
        " ".join(filter(None, [str(row["manufacturer"]), str(row["kernel"])])),
        f"{hu} HU" if hu else "",
        "patch around a nodule" if row["kind"] == "patch" else "",
    ]
    notes = "".join(f"<li>{html.escape(one)}</li>" for one in unusual.values())
    name = html.escape(str(row["volume_id"]))
    return (
        f"<div class='card{' odd' if unusual else ''}'><img alt='axial' src='{_embedded(glance.axial)}'>"
        f"<img alt='coronal' src='{_embedded(glance.coronal)}'>{f'<ul>{notes}</ul>' if notes else ''}"
        f"<div class='facts'>{html.escape(' · '.join(filter(None, facts)))}<br>patient "
        f"{html.escape(str(row['patient_id']))}<br><code title='{name}'>{name[:46]}</code></div></div>"
    )


def _in_most(most: dict[str, str]) -> list[str]:
    lines = [f"<li>{html.escape(one)}</li>" for one in most.values()]
    title = "<p>Unlike a usual chest CT of an adult, and not repeated below:</p>"
    return [title, "<div class='odd'><ul>", *lines, "</ul></div>"] if lines else []


def _refused(refused: pd.DataFrame) -> list[str]:
    if refused.empty:
        return []
    by_reason = refused.groupby("reason")[["n_files", "n_rows"]].sum().sort_values("n_files", ascending=False)
    lines = [
        f"<tr><td>{n_files or ''}</td><td>{n_rows or ''}</td><td>{html.escape(str(reason))}</td></tr>"
        for reason, n_files, n_rows in by_reason.itertuples()
    ]
    return [
        "<h2>Refused</h2><table><tr><th>files</th><th>rows</th><th>reason</th></tr>",
        *lines,
        "</table>",
    ]


def _embedded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _histograms(seen: Sequence[Glance]) -> str:
    figure = Figure(figsize=(13, 3))
    _draw_histograms(figure, seen)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_histograms(figure: Figure, seen: Sequence[Glance]) -> None:
    """Spacing, thickness, air and fat as histograms; manufacturers and kernels as the most frequent ones."""
    axes = figure.subplots(1, 6)
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.15, top=0.83, wspace=0.6)
    numbers = {
        "between slices, mm": [glance.figures["step_mm"] for glance in seen],
        "slice thickness, mm": [glance.row["slice_thickness_mm"] for glance in seen],
        "air and fat, HU": [],
    }
    for axis, (title, values) in zip(axes, numbers.items(), strict=False):
        axis.set_title(title, fontsize=9)
        if values:
            axis.hist(pd.Series(values, dtype=float).dropna(), bins=20)
    for name, color in (("air_hu", "tab:blue"), ("fat_hu", "tab:orange")):
        values = [glance.figures[name] for glance in seen]
        bins = np.arange(-1100, 20, 20)
        axes[2].hist(pd.Series(values, dtype=float).dropna(), bins=bins, color=color, label=name[:3])
    axes[2].legend(fontsize=7)
    axes[3].hist([glance.figures["pixel_mm"] for glance in seen], bins=20)
    axes[3].set_title("pixel, mm", fontsize=9)
    for axis, name in zip(axes[4:], ("manufacturer", "kernel"), strict=True):
        counts = pd.Series([str(glance.row[name]) or "not stated" for glance in seen]).value_counts()[:8][
            ::-1
        ]
        axis.barh([label[:12] for label in counts.index], counts)
        axis.set_title(name, fontsize=9)
    for axis in axes:
        axis.tick_params(labelsize=7)


def _draw_sheet(figure: Figure, seen: Sequence[Glance]) -> None:
    """The first series, six a line: axial beside coronal, and what is unusual."""
    axes = image_axes(figure, -(-len(seen) // 6), 6)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.92, bottom=0.01, wspace=0.02)
    for axis, glance in zip(axes.flat, seen, strict=False):
        pair = Image.new(
            "L",
            (glance.axial.width + glance.coronal.width + 4, max(glance.axial.height, glance.coronal.height)),
        )
        pair.paste(glance.axial, (0, 0))
        pair.paste(glance.coronal, (glance.axial.width + 4, 0))
        axis.imshow(pair, cmap="gray", vmin=0, vmax=255)
        is_odd = bool(glance.unusual)
        said = next(iter(glance.unusual.values()), str(glance.row["volume_id"])[-30:])[:44]
        axis.set_title(said, fontsize=7, color="tab:red" if is_odd else "black")
