"""Curves of a training run from its logged metrics: loss, entropies with ln K and the verdict, retrieval."""

import math
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipelines.runtime.plot_style import REFERENCE, band, new_figure, stroke
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig
from pipelines.training.watch import VERDICT_NUMBER

Points = Sequence[tuple[int, float]]

_TERMS = ("total", "dino", "simclr", "mae", "gram", "koleo", "ibot")
_STEP = "step (optimizer updates)"
_ZONES = {
    "wall": ("#BBBBBB", "//", "verdict: entropy wall"),
    "collapsed": ("#888888", "xx", "verdict: collapsed"),
    "learning": ("#A8CFA8", "", "verdict: learning"),
}
"""Shading of the steps with a verdict: fill, hatching, legend."""


def curves(run: Run, config: PretrainConfig) -> Iterator[tuple[Figure, str]]:
    """Draw the run's loss, entropy and retrieval curves from its logged metrics, each with the name of its file."""
    log_k = math.log(config.head.prototypes)
    verdict = run.history("teacher/verdict")
    terms = {name: points for name in _TERMS if (points := run.history(f"loss/{name}"))}
    if terms:
        yield loss_figure(terms, verdict, log_k), "loss"
    entropies = {name: run.history(f"{name}/entropy") for name in ("teacher", "student")}
    gain = run.history("teacher/gain")
    if gain:
        threshold = config.watch.learning_gain
        yield entropy_figure(entropies, gain, verdict, log_k, threshold), "entropy"
    names = ("top1", "top1_ci_low", "top1_ci_high", "student_top1", "random_top1", "n")
    found = {name: run.history(f"retrieval/{name}") for name in names}
    if found["top1"]:
        yield retrieval_figure(found), "retrieval"


def loss_figure(terms: Mapping[str, Points], verdict: Points, log_k: float) -> Figure:
    """Draw the weighted sum and its terms; where one is DINO's, with ln K, the loss of a uniform teacher."""
    figure = new_figure(6.2, 4.0, "Loss and its terms")
    axis = figure.subplots()
    for number, (name, points) in enumerate(terms.items()):
        _line(axis, points, number, "weighted sum" if name == "total" else name)
    has_codes = bool({"dino", "ibot"} & terms.keys())
    if has_codes:
        axis.axhline(log_k, **REFERENCE, label=f"ln K = {log_k:.2f}, entropy wall")
    zones = _shade(axis, verdict)
    axis.set(xlabel=_STEP, ylabel="loss, nats" if has_codes else "loss")
    _legend(figure, [axis], zones)
    return figure


def entropy_figure(
    entropies: Mapping[str, Points], gain: Points, verdict: Points, log_k: float, learning_gain: float
) -> Figure:
    """Draw the entropies of the codes below ln K, and the information gain with the threshold of the verdict."""
    has_codes = any(entropies.values())
    figure = new_figure(
        6.2, 5.2 if has_codes else 3.4, "Entropy of codes and information gain between two views, G"
    )
    axes = figure.subplots(1 + has_codes, 1, sharex=True, squeeze=False)[:, 0].tolist()
    if has_codes:
        for number, (name, points) in enumerate(entropies.items()):
            _line(axes[0], points, number, f"{name}, mean entropy of a view's code")
        axes[0].axhline(log_k, **REFERENCE, label=f"ln K = {log_k:.2f}: uniform codes, entropy wall")
        axes[0].set(ylim=(-0.02 * log_k, 1.08 * log_k), ylabel="entropy, nats")
    _line(axes[-1], gain, 2, "information gain G")
    axes[-1].axhline(0, color="black", linewidth=0.6)
    axes[-1].axhline(learning_gain, **REFERENCE, label=f"G above {learning_gain:g}: learning")
    zones = [_shade(axis, verdict) for axis in axes][-1]
    axes[-1].set(xlabel=_STEP, ylabel="G, nats" if has_codes else "G, share of variance")
    _legend(figure, axes, zones)
    return figure


def retrieval_figure(found: Mapping[str, Points]) -> Figure:
    """Draw top-1 of the teacher with its interval, the student's, random weights and chance; keys as in `curves`."""
    n = int(found["n"][-1][1]) if found["n"] else 0
    figure = new_figure(5.6, 3.9, f"View retrieval among {n} held-out slices" if n else "View retrieval")
    axis, low = figure.subplots(), dict(found["top1_ci_low"])
    _line(axis, found["top1"], 0, "teacher, top-1")
    high = {step: value for step, value in found["top1_ci_high"] if step in low}
    if high:
        lows, text = [low[step] for step in high], "95% interval over patients (teacher)"
        band(axis, list(high), lows, list(high.values()), stroke(0).color, text)
    if found["student_top1"]:
        _line(axis, found["student_top1"], 1, "student, top-1")
    if found["random_top1"]:
        value = found["random_top1"][-1][1]
        line = stroke(2).line | {"linewidth": 1.0}
        axis.axhline(value, **line, label=f"random weights, {value:.3g}")
    if n:
        axis.axhline(1 / n, **REFERENCE, label=f"chance, 1 / {n}")
    highest = max(value for points in (found["top1"], found["top1_ci_high"]) for _, value in points)
    axis.set(ylim=(0, 1.15 * max(highest, 1e-3)), xlabel=_STEP, ylabel="top-1, share of slices")
    axis.grid()
    _legend(figure, [axis], [])
    return figure


def _line(axis: Axes, points: Points, number: int, label: str) -> None:
    if points:
        own, every = stroke(number), max(len(points) // 12, 1)
        style = own.line | {"marker": own.marker, "markevery": every, "markersize": 3}
        axis.plot(*zip(*points, strict=True), **style, label=label)


def _shade(axis: Axes, verdict: Points) -> list[Patch]:
    """Shade the steps of each verdict from the report that gave it to the next one; return their legend."""
    names, shaded = {number: name for name, number in VERDICT_NUMBER.items()}, {}
    ends = [step for step, _ in verdict[1:]]
    for (start, number), end in zip(verdict, ends, strict=False):
        name = names[number]
        if name in _ZONES:
            color, hatch, label = _ZONES[name]
            axis.axvspan(
                start, end, facecolor=color, alpha=0.35, hatch=hatch, edgecolor="#777777", linewidth=0
            )
            shaded[name] = Patch(facecolor=color, alpha=0.35, hatch=hatch, edgecolor="#777777", label=label)
    return [shaded[name] for name in _ZONES if name in shaded]


def _legend(figure: Figure, axes: Sequence[Axes], zones: Sequence[Patch]) -> None:
    lines = [line for axis in axes for line in axis.get_legend_handles_labels()[0]]
    figure.legend(handles=[*lines, *zones], loc="outside lower center", ncols=2)
