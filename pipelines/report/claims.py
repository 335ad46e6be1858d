"""Judges the claims of the article and the primary question by the runs that can test them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.stats import ttest_ind

from pipelines.report.facts import Evidence, matches
from pipelines.runtime.page import Table
from pipelines.tracking.names import Tag
from probes.statistics.estimate import holm

LEVEL = 0.05
OVER_RANDOM = "probe/over_random_r2"
_MOST, _FEWEST = 2 / 3, 1 / 3
Z, P = "probe/nested_z", "probe/nested_p"
DEFAULT_READING = {"features": "roi", "window": "full", "input": "crop", "head": "logistic"}
"""Of the rows that are corrected together and get a verdict; an option that a run did not record counts as such."""
GAIN = "probe/gain_over_diameter"
_AREAS = ("", "random_", "dictionary_", "random_words_", "image_diameter_", "diameter_")
_PRIMARY_HEAD = (
    "backbone",
    "ours, on",
    "nodules, patients",
    "z",
    "p, Holm's p",
    "partial Spearman",
    "partial R2",
    "partial R2 above random weights",
    "verdict",
    "AUROC of features",
    "random weights",
    "dictionary",
    "random words",
    "diameter in the image",
    "diameter (oracle)",
    "gain over diameter",
)

NOT_TESTABLE = "not testable here"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimSpec:
    """One sentence of the article and how to judge it; see the head of `mlflow_projects/article.yaml`."""

    text: str = ""
    kind: Literal["verdict", "higher", "within", "above", "learned"] = "verdict"
    metric: str = ""
    where: dict[str, Any] = field(default_factory=dict)
    than: dict[str, Any] = field(default_factory=dict)
    than_metric: str = ""
    value: float = 0.0
    expect: tuple[str, ...] = ()
    for_each: str = ""
    rests_on: tuple[str, ...] = ()


@dataclass(slots=True)
class Judgment:
    """The verdict on a claim, with its evidence.

    Attributes:
        of: The value of `for_each` that it is about; "" when it is about all.
        p: Raw two-sided p of a comparison over seeds; None without one.
    """

    claim: str
    of: str
    rests_on: str
    evidence: str = ""
    verdict: str = NOT_TESTABLE
    p: float | None = None
    is_right_way: bool = False


def judge_all(claims: Sequence[tuple[str, ClaimSpec]], evidence: Sequence[Evidence]) -> list[Judgment]:
    """Judge every claim, with Holm's correction over all comparisons of the page.

    Args:
        claims: (entry point, claim).
        evidence: All finished runs.
    """
    judged = [
        j
        for entry, claim in claims
        for j in _judge(claim, [e for e in evidence if e.run.entry_point == entry])
    ]
    compared = [judgment for judgment in judged if judgment.p is not None]
    adjusted = holm([judgment.p for judgment in compared if judgment.p is not None])
    for judgment, p in zip(compared, adjusted.tolist(), strict=True):
        judgment.evidence += f"; p = {judgment.p:.3g}, {p:.3g} after Holm"
        judgment.verdict = "supported" if p < LEVEL and judgment.is_right_way else "not supported"
    return judged


def claims_table(judged: Sequence[Judgment]) -> Table:
    """Return the judgments as a table."""
    return Table(
        ("claim", "for", "rests on", "evidence", "verdict"),
        [(j.claim, j.of, j.rests_on, j.evidence, j.verdict) for j in judged],
    )


def _judge(claim: ClaimSpec, evidence: Sequence[Evidence]) -> list[Judgment]:
    groups: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for one in evidence:
        if matches(one.facts, claim.where):
            groups[one.facts.get(claim.for_each, ""), one.cohort].append(one)
    evidence = [one for one in evidence if not one.is_leaky]
    judged = []
    for (of, cohort), found in sorted(groups.items()):
        new, own = Judgment(claim.text, of, cohort), [one for one in found if not one.is_leaky]
        judged.append(new)
        if claim.rests_on and cohort not in claim.rests_on:
            new.evidence = f"{len(found)} runs on {cohort}, which cannot test it"
            continue
        if not own:
            new.evidence = f"{len(found)} runs, whose backbones may have seen the test patients"
            continue
        match claim.kind:
            case "verdict":
                _by_verdict(claim, own, new)
            case "higher":
                than = [e for e in evidence if e.cohort == cohort and matches(e.facts, claim.than)]
                _by_comparison(claim, own, than, new)
            case "within":
                _by_interval(claim, own, new)
            case "above":
                _by_baseline(claim, own, new)
            case "learned":
                _by_question(own, new)
    return judged or [Judgment(claim.text, "", "-", "no finished run tests it")]


def _by_verdict(claim: ClaimSpec, own: Sequence[Evidence], new: Judgment) -> None:
    counts = Counter(one.facts["status"] for one in own)
    new.evidence = ", ".join(
        f"{count} {status or 'without verdict'}" for status, count in counts.most_common()
    )
    decided = sum(count for status, count in counts.items() if status not in ("", "too early"))
    if len({one.seed for one in own}) < 2 or not decided:
        new.evidence += "; a verdict on all runs needs 2 seeds"
        return
    share = sum(counts[status] for status in claim.expect) / decided
    # Between 1/3 and 2/3 the runs are mixed, which does not support a claim about all of them.
    new.verdict = "supported" if share >= _MOST else "not supported"
    if _FEWEST < share < _MOST:
        new.evidence += " (mixed)"


def _by_comparison(
    claim: ClaimSpec, own: Sequence[Evidence], than: Sequence[Evidence], new: Judgment
) -> None:
    ours, theirs = _by_seed(own, claim.metric), _by_seed(than, claim.metric)
    new.p = welch_p(ours, theirs)
    if new.p is None:
        new.evidence = f"{len(ours)} against {len(theirs)} seeds; a comparison over seeds needs 2 of each"
        return
    new.evidence = f"mean {np.mean(ours):.3g} of {len(ours)} against {np.mean(theirs):.3g} of {len(theirs)}"
    new.is_right_way = bool(np.mean(ours) > np.mean(theirs))


def welch_p(first: Sequence[float], other: Sequence[float]) -> float | None:
    """Return the two-sided p of Welch's test; None if it has fewer than two values of each."""
    if len(first) < 2 or len(other) < 2:
        return None
    p = float(ttest_ind(first, other, equal_var=False).pvalue)
    return 1.0 if np.isnan(p) else p


def _by_interval(claim: ClaimSpec, own: Sequence[Evidence], new: Judgment) -> None:
    known = [e.run.metrics for e in own if f"{claim.metric}_ci_low" in e.run.metrics]
    if not known:
        new.evidence = f"no run has {claim.metric} with its interval"
        return
    inside = [m[f"{claim.metric}_ci_low"] <= claim.value <= m[f"{claim.metric}_ci_high"] for m in known]
    new.evidence = "; ".join(with_interval(m, claim.metric) for m in known[:5])
    new.verdict = "supported" if np.mean(inside) >= _MOST else "not supported"


def _by_baseline(claim: ClaimSpec, own: Sequence[Evidence], new: Judgment) -> None:
    known = [e.run.metrics for e in own if claim.metric in e.run.metrics]
    pairs = [(m, baseline) for m in known if (baseline := _baseline(m, claim)) is not None]
    if not pairs:
        new.evidence = (
            f"no run has {' and '.join(name for name in (claim.metric, claim.than_metric) if name)}"
        )
        return
    above = [m.get(f"{claim.metric}_ci_low", m[claim.metric]) > baseline for m, baseline in pairs]
    first, baseline = pairs[0]
    new.evidence = f"above in {sum(above)} of {len(pairs)} runs, such as {with_interval(first, claim.metric)}"
    new.evidence += (
        f" against {with_interval(first, claim.than_metric) if claim.than_metric else f'{baseline:.3f}'}"
    )
    new.verdict = "supported" if np.mean(above) >= _MOST else "not supported"


def _by_question(own: Sequence[Evidence], new: Judgment) -> None:
    known = [m for m in (e.run.metrics for e in own) if {"probe/nested_p", OVER_RANDOM} <= set(m)]
    if not known:
        new.evidence = "no run asked the primary question"
        return
    learned = [m["probe/nested_p"] < LEVEL and m[f"{OVER_RANDOM}_ci_low"] > 0 for m in known]
    first = known[0]
    new.evidence = (
        f"in {sum(learned)} of {len(known)} runs, such as p = {first['probe/nested_p']:.3g},"
        f" partial R2 above random weights {with_interval(first, OVER_RANDOM)}"
    )
    new.verdict = "supported" if np.mean(learned) >= _MOST else "not supported"


def _baseline(metrics: Mapping[str, float], claim: ClaimSpec) -> float | None:
    """Return the value to exceed: the upper end of the baseline's interval, or its value without an interval."""
    if not claim.than_metric:
        return claim.value
    return metrics.get(f"{claim.than_metric}_ci_high", metrics.get(claim.than_metric))


def _by_seed(evidence: Sequence[Evidence], metric: str) -> list[float]:
    """Return one value per seed: runs of the same seed are not independent, and repeating a run would lower p."""
    values: dict[str, list[float]] = defaultdict(list)
    for one in evidence:
        if metric in one.run.metrics:
            values[one.seed].append(one.run.metrics[metric])
    return [float(np.mean(of_seed)) for of_seed in values.values()]


def with_interval(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric as text, with its interval if the run has one."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_ci_low", "_ci_high"))
    if value is None:
        return "-"
    text = f"{value:.4g}" if abs(value) >= 10 or low is None else f"{value:.3f}"
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def primary_table(evidence: Sequence[Evidence]) -> Table:
    """Return every probe with its baselines.

    Holm's correction is over one row a backbone, of one cohort and label rule: the newest of the default reading. All
    other rows have no verdict.
    """
    probes = [
        e for e in evidence if e.run.entry_point == "probe_malignancy" and {P, GAIN} & set(e.run.metrics)
    ]
    adjusted: dict[str, float] = {}
    for family in _families(probes):
        raw = [one.run.metrics[P] for one in family]
        adjusted |= dict(zip((one.run.run_id for one in family), holm(raw).tolist(), strict=True))
    if not probes:
        return Table(_PRIMARY_HEAD, [("no finished probe", *[""] * 7, NOT_TESTABLE, *[""] * 7)])
    rows = [_primary_row(one, adjusted.get(one.run.run_id)) for one in probes]
    same = Counter(row[:2] for row in rows)
    return Table(
        _PRIMARY_HEAD,
        [
            (f"{_run_name(one)}: {row[0]}", *row[1:]) if same[row[:2]] > 1 else row
            for one, row in zip(probes, rows, strict=True)
        ],
    )


def _run_name(one: Evidence) -> str:
    """Return what tells a run from another of the same backbone's recipe and reading."""
    return f"{one.run.tags.get(Tag.RUN_NAME, '')} [{one.run.run_id[:6]}]".lstrip()


def _families(probes: Sequence[Evidence]) -> list[list[Evidence]]:
    newest: dict[tuple[str, str], dict[str, Evidence]] = defaultdict(dict)
    for one in sorted(probes, key=lambda probe: probe.run.started):
        reading = {name: one.facts.get(f"probe.{name}", value) for name, value in DEFAULT_READING.items()}
        if P in one.run.metrics and not one.is_leaky and reading == DEFAULT_READING:
            family = newest[one.run.tags.get(Tag.COHORT_SHA, ""), one.facts.get("probe.rule", "")]
            # A run without a hash of its backbone stands for itself.
            family[one.run.tags.get(Tag.BACKBONE_SHA) or one.run.run_id] = one
    return [list(family.values()) for family in newest.values()]


def _primary_row(one: Evidence, holm_p: float | None) -> tuple[str, ...]:
    metrics, facts = one.run.metrics, one.facts
    source = facts.get("arm") or one.run.tags.get(Tag.PROBED_RECIPE) or one.run.tags.get(Tag.PROBED, "")
    settings = [facts.get(f"probe.{key}", "") for key in ("features", "window", "input", "rule", "target")]
    rated = f"{metrics.get('probe/n_nodules', 0):.0f}, {metrics.get('probe/n_patients', 0):.0f}"
    raw = metrics.get(P)
    both = "-" if raw is None else f"{raw:.3g}, {'-' if holm_p is None else f'{holm_p:.3g}'}"
    effects = ("probe/partial_spearman", "probe/partial_r2", OVER_RANDOM)
    return (
        f"{source} ({', '.join(text for text in settings if text)})",
        one.cohort,
        rated,
        f"{metrics[Z]:.2f}" if Z in metrics else "-",
        both,
        *(with_interval(metrics, name) for name in effects),
        _primary_verdict(one, holm_p),
        *(with_interval(metrics, f"probe/{prefix}auroc") for prefix in _AREAS),
        with_interval(metrics, GAIN),
    )


def _primary_verdict(one: Evidence, holm_p: float | None) -> str:
    if one.is_leaky or P not in one.run.metrics:
        return NOT_TESTABLE
    if holm_p is None:
        return "outside the family"
    is_learned = holm_p < LEVEL and one.run.metrics.get(f"{OVER_RANDOM}_ci_low", 0.0) > 0
    return "supported" if is_learned else "not supported"
