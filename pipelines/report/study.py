"""Runs beside each other: the keys in which they differ, their headline figures, and their curves in one figure."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.facts import Evidence
from pipelines.runtime.page import Block, Heading, Picture, Sentence, Table
from pipelines.runtime.plot_style import REFERENCE, band, new_figure, stroke
from pipelines.tracking.description import HEADLINE, figure_of, last_parts
from pipelines.tracking.names import Tag
from pipelines.tracking.parameters import MACHINE
from pipelines.tracking.reading import history
from transforms.refusal import number_of

_MOST_KEYS, _MOST_CURVES = 8, 8
_DERIVED = {"status", "koleo", "campaign", "arm"}
_PANELS = (
    ("loss/total", "loss"),
    ("teacher/gain", "information gain G, nats"),
    ("retrieval/top1", "retrieval top-1, 95% interval"),
)


def study(evidence: Sequence[Evidence]) -> list[Block]:
    """Return a section for each entry point: a table of its runs, and for pretrainings their curves."""
    blocks: list[Block] = []
    for entry_point in dict.fromkeys(one.run.entry_point for one in evidence):
        own = [one for one in evidence if one.run.entry_point == entry_point and one.run.metrics]
        if not own or entry_point in ("campaign", "report"):
            continue
        keys = differing(own)
        blocks += [Heading(2, f"Runs of {entry_point}"), Sentence(_said(own, keys))]
        names = [name for name in HEADLINE if any(name in one.run.metrics for one in own)]
        head = ("run", *(_short(key, entry_point) for key in keys), *(HEADLINE[name] for name in names))
        rows = [
            (
                name_of(one),
                *(_value(one, key) for key in keys),
                *(figure_of(one.run.metrics, n) for n in names),
            )
            for one in own
        ]
        blocks.append(Table(head, rows))
        if entry_point == "pretrain" and (figure := curves(own[:_MOST_CURVES])):
            blocks.append(Picture("Curves of the pretrainings", figure))
    return blocks


def differing(own: Sequence[Evidence]) -> list[str]:
    """Return the facts in which runs differ, without what belongs to a machine or follows from others."""
    keys = dict.fromkeys(key for one in own for key in one.facts)
    return [
        key
        for key in keys
        if key not in _DERIVED
        and key.partition(".")[2] not in MACHINE
        and len({one.facts.get(key, "") for one in own}) > 1
    ]


def _said(own: Sequence[Evidence], keys: Sequence[str]) -> str:
    if len(own) == 1:
        return "One run."
    if not keys:
        return f"{len(own)} runs of one configuration."
    more = f", and {len(keys) - _MOST_KEYS} more" if len(keys) > _MOST_KEYS else ""
    return f"{len(own)} runs, which differ in {', '.join(f'`{key}`' for key in keys[:_MOST_KEYS])}{more}."


def name_of(one: Evidence) -> str:
    """Return the name of a run, or what there is of its id."""
    return one.run.tags.get(Tag.RUN_NAME) or one.run.run_id[:12]


def _short(key: str, entry_point: str) -> str:
    return key.removeprefix("pretrain." if entry_point == "pretrain" else "probe.")


def _value(one: Evidence, key: str) -> str:
    value = one.facts.get(key, "")
    return last_parts(value) if key.endswith((".backbone", ".cohort")) else value


def curves(own: Sequence[Evidence]) -> Figure | None:
    """Draw loss, gain and retrieval of pretrainings over their updates, a run a line; None where none was logged."""
    figure = new_figure(10.5, 3.8, number_of(len(own), "pretraining"))
    axes = figure.subplots(1, len(_PANELS))
    is_drawn = False
    for number, one in enumerate(own):
        style = stroke(number)
        for axis, (metric, _) in zip(axes, _PANELS, strict=True):
            if points := history(one.run.run_id, metric):
                steps, values = zip(*points, strict=True)
                marked = {"marker": style.marker, "markevery": max(len(steps) // 8, 1)}
                axis.plot(steps, values, **style.line, **marked, label=name_of(one))
                _shade(axis, one.run.run_id, metric, style.color)
                is_drawn = True
    for axis, (_, label) in zip(axes, _PANELS, strict=True):
        axis.set(xlabel="step (optimizer updates)", title=label)
        axis.grid(alpha=0.3)
    for one in own[:1]:  # Slices and views are the same for runs of one recipe and cohort.
        if (chance := one.run.metrics.get("retrieval/random_top1")) is not None:
            axes[-1].axhline(chance, **REFERENCE, label="random weights")
    if is_drawn:
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure if is_drawn else None


def _shade(axis: Axes, run_id: str, metric: str, color: str) -> None:
    low, high = (dict(history(run_id, f"{metric}_ci_{end}")) for end in ("low", "high"))
    steps = sorted(low.keys() & high.keys())
    if steps:
        band(axis, steps, [low[s] for s in steps], [high[s] for s in steps], color)
