"""Writes `docs/names.md` from the list of names: `python -m pipelines.tracking.names_page`."""

from itertools import groupby

from pipelines.runtime.atomic import write_text
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import IMAGES, LISTED, Tag
from pipelines.tracking.old_names import KEYS, METRICS, VALUES

PAGE = PROJECT_ROOT / "docs" / "names.md"


def names_page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# What a run logs",
        "",
        "Made by `python -m pipelines.tracking.names_page` from `pipelines/tracking/names.py`; a test compares them.",
        "Braces hold alternatives: `top1{,_ci_low,_ci_high}` is `top1`, `top1_ci_low` and `top1_ci_high`, a value and",
        "its 95% interval. The step of a metric counts optimizer updates.",
        "",
        "## Parameters",
        "",
        "Those keys of the configuration in which studies differ, and those that were given; `--help` of the entry",
        "point explains them. The whole configuration is the artifact `config.yaml`.",
        "",
        "## Metrics",
    ]
    for group, metrics in groupby(LISTED, key=lambda metric: metric.pattern.partition("/")[0]):
        lines += ["", f"### {group}", "", "| metric | unit | meaning |", "| --- | --- | --- |"]
        lines += [f"| `{one.pattern}` | {one.unit} | {one.meaning} |" for one in metrics]
    lines += [
        "",
        "## Figures of a pretraining, one per step",
        "",
        "`figures/KEY_stepNNNNNN.png`, and all of them in `gallery.html`.",
        "",
        "| key | what it shows |",
        "| --- | --- |",
    ]
    lines += [f"| `{key}` | {meaning} |" for key, meaning in IMAGES.items()]
    lines += ["", "## Tags", "", "| tag | meaning |", "| --- | --- |"]
    lines += [f"| `{tag}` | {tag.meaning} |" for tag in Tag]
    lines += [
        "",
        "## Older names",
        "",
        "They are read as the current names, in the store, in recipes and on the command line.",
        "",
        "| older | current |",
        "| --- | --- |",
        *(f"| metrics `{old}...` | `{new}...` |" for old, new in METRICS.items()),
        *(f"| option `{old}` | `{new}` |" for old, new in KEYS.items()),
        *(f"| `{key}={old}` | `{key}={new}` |" for key, of in VALUES.items() for old, new in of.items()),
        "| `goal: maximise`, `goal: minimise` | `goal: maximize`, `goal: minimize` |",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_text(PAGE, names_page())
