"""The primary question, row by row: are features and diameter together better than diameter alone?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pipelines.report.claims import LEVEL, with_interval
from pipelines.report.facts import Evidence
from pipelines.report.page import Table
from pipelines.tracking.names import Tag
from probes.statistics.estimate import holm

GAIN = "probe/gain_over_diameter"
_HEAD = (
    "backbone",
    "ours, on",
    "nodules, patients",
    "features",
    "diameter",
    "pixels",
    "random weights",
    "features + diameter",
    "gain over diameter",
    "p, Holm's p",
    "verdict",
    "gain at 6-15 mm",
)


def primary_table(evidence: Sequence[Evidence]) -> Table:
    """Return every probe with its baselines; Holm's correction is over the probes of one cohort and label rule."""
    probes = [e for e in evidence if e.run.entry_point == "probe_malignancy" and GAIN in e.run.metrics]
    families: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for one in probes:
        families[one.run.tags.get(Tag.COHORT_SHA, ""), one.facts.get("probe.rule", "")].append(one)
    adjusted: dict[str, float] = {}
    for family in families.values():
        raw = [one.run.metrics.get(f"{GAIN}_p", 1.0) for one in family]
        adjusted |= dict(zip((one.run.run_id for one in family), holm(raw).tolist(), strict=True))
    if not probes:
        return Table(_HEAD, [("no finished probe", *[""] * 9, "not testable here", "")])
    return Table(_HEAD, [_row(one, adjusted[one.run.run_id]) for one in probes])


def _row(one: Evidence, holm_p: float) -> tuple[str, ...]:
    metrics, facts = one.run.metrics, one.facts
    source = facts.get("arm") or one.run.tags.get(Tag.PROBED_RECIPE) or one.run.tags.get(Tag.PROBED, "")
    settings = [facts.get(f"probe.{key}", "") for key in ("features", "window", "input", "rule")]
    rated = f"{metrics.get('probe/n_nodules', 0):.0f}, {metrics.get('probe/n_patients', 0):.0f}"
    raw = metrics.get(f"{GAIN}_p")
    return (
        f"{source} ({', '.join(text for text in settings if text)})",
        one.cohort,
        rated,
        *(
            with_interval(metrics, f"probe/{prefix}auroc")
            for prefix in ("", "diameter_", "pixels_", "random_", "with_diameter_")
        ),
        with_interval(metrics, GAIN),
        "-" if raw is None else f"{raw:.3g}, {holm_p:.3g}",
        _verdict(one, holm_p),
        _stratum(metrics),
    )


def _verdict(one: Evidence, holm_p: float) -> str:
    if one.is_leaky:
        return "not testable here"
    is_above = one.run.metrics.get(f"{GAIN}_ci_low", 0.0) > 0 and holm_p < LEVEL
    return "supported" if is_above else "not supported"


def _stratum(metrics: dict[str, float]) -> str:
    low, high = (metrics.get(f"{GAIN}_ci_{end}_6_15mm") for end in ("low", "high"))
    value = metrics.get(f"{GAIN}_6_15mm")
    return "-" if value is None or low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
