"""The overview of a cohort as a page that needs nothing else, and as a figure for MLflow."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from PIL import Image

from pipelines.cohort.folder import Cohort
from pipelines.ingest.overview import SCALE_BAR_MM, Glance, in_most, look_at_cohort
from pipelines.runtime.image_axes import image_axes
from pipelines.runtime.plot_style import STEP_DPI, new_figure, stroke
from transforms.refusal import number_of

_SHOWN_IN_FIGURE, _PER_LINE, _WIDTH_IN = 18, 6, 9.0
_GAP_PX = 4
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
    n_odd = sum(bool(glance.unusual) for glance in seen)
    n_patients = number_of(cohort.series["patient_id"].nunique(), "patient")
    n = f"{number_of(len(seen), 'series')} of {n_patients}, {number_of(len(cohort.nodules), 'nodule')}"
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Overview</title><style>{_STYLE}</style><body>",
        f"<h1>{n}</h1>",
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
    return "\n".join(parts), _figure(n, seen, most)


def _figure(n: str, seen: Sequence[Glance], most: dict[str, str]) -> Figure:
    """The histograms of all series, and below them the first series."""
    shown = seen[:_SHOWN_IN_FIGURE]
    tallest = max(max(one.axial.height, one.coronal.height) / _pair_width(one) for one in shown)
    sheet_in = -(-len(shown) // _PER_LINE) * (_WIDTH_IN / _PER_LINE * tallest + 0.2)
    kinds = {str(one.row["kind"]) for one in seen}
    bars = " or ".join(f"{mm} mm ({kind})" for kind, mm in SCALE_BAR_MM.items() if kind in kinds)
    few = f"first {len(shown)}, those with something unusual in front: " if len(shown) < len(seen) else ""
    title = "\n".join([n, *most.values(), f"{few}axial and coronal slice, lung window, bar {bars}"])
    figure = new_figure(_WIDTH_IN, 1.6 + sheet_in + 0.2 * (1 + title.count("\n")), title)
    parts = np.array(figure.subfigures(2, 1, height_ratios=[1.6, sheet_in]))
    _draw_histograms(parts[0], seen)
    _draw_sheet(parts[1], shown)
    return figure


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
    figure = new_figure(_WIDTH_IN, 1.7)
    _draw_histograms(figure, seen)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=STEP_DPI)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _draw_histograms(figure: FigureBase, seen: Sequence[Glance]) -> None:
    """Spacing, thickness, air and fat as histograms; manufacturers and kernels as the most frequent ones."""
    axes = figure.subplots(1, 6)
    numbers = {
        "between slices, mm": [glance.figures["step_mm"] for glance in seen],
        "slice thickness, mm": [glance.row["slice_thickness_mm"] for glance in seen],
        "air and fat, HU": [],
        "pixel, mm": [glance.figures["pixel_mm"] for glance in seen],
    }
    for axis, (title, values) in zip(axes, numbers.items(), strict=False):
        known = pd.Series(values, dtype=float).dropna()
        axis.set_title(title if len(known) or not values else f"{title}:\nnot stated")
        if len(known):
            axis.hist(known, bins=20, color=stroke(0).color)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    for number, name in enumerate(("air_hu", "fat_hu")):
        values = [glance.figures[name] for glance in seen]
        bins = np.arange(-1100, 20, 20)
        axes[2].hist(
            pd.Series(values, dtype=float).dropna(), bins, color=stroke(3 * number).color, label=name[:3]
        )
    axes[2].legend(handlelength=1)
    axes[0].set_ylabel("series")
    for axis, name in zip(axes[4:], ("manufacturer", "kernel"), strict=True):
        counts = pd.Series([str(glance.row[name]) or "not stated" for glance in seen]).value_counts()[:8][
            ::-1
        ]
        axis.barh([label[:12] for label in counts.index], counts, color=stroke(0).color)
        axis.set_title(f"series by {name}")
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _draw_sheet(figure: FigureBase, seen: Sequence[Glance]) -> None:
    """The first series, some a line: axial beside coronal, and what is unusual."""
    axes = image_axes(figure, -(-len(seen) // _PER_LINE), _PER_LINE)
    for axis, glance in zip(axes.flat, seen, strict=False):
        pair = Image.new(
            "L", (_pair_width(glance), max(glance.axial.height, glance.coronal.height)), color="white"
        )
        pair.paste(glance.axial, (0, 0))
        pair.paste(glance.coronal, (glance.axial.width + _GAP_PX, 0))
        axis.imshow(pair, cmap="gray", vmin=0, vmax=255, interpolation="none")
        is_odd = bool(glance.unusual)
        said = next(iter(glance.unusual.values()), str(glance.row["volume_id"])[-24:])[:44]
        axis.set_title(
            "\n".join(textwrap.wrap(said, 26)), fontsize=6, fontweight="bold" if is_odd else "normal"
        )


def _pair_width(glance: Glance) -> int:
    return glance.axial.width + glance.coronal.width + _GAP_PX
