"""The article's tables from `mlflow_projects/article.yaml`, our runs beside them, and the tables of campaigns."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipelines.command.config import load_recipe, read_yaml
from pipelines.report.claims import ClaimSpec, welch_p, with_interval
from pipelines.report.facts import Evidence, matches
from pipelines.report.pairs import PairSpec
from pipelines.runtime.page import Table
from pipelines.runtime.paths import RESOURCES
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag
from probes.statistics.estimate import holm

ARTICLE = RESOURCES / "mlflow_projects" / "article.yaml"
NOT_MEASURED = "not measured"
_SEED = re.compile(r"-?seed=\d+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpec:
    """One row of the article, and the facts of the runs that belong to it."""

    label: str = ""
    article: str = ""
    where: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableSpec:
    """One table of the article."""

    id: str = ""
    title: str = ""
    entry_point: str = ""
    metrics: tuple[str, ...] = ()
    split_by: str = ""
    rows: tuple[RowSpec, ...] = ()
    claims: tuple[ClaimSpec, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class CostSpec:
    """One row of the article's cost table."""

    set: str = ""
    campaign: str = ""
    arms: int = 0
    gpu_hours: float = 0.0
    usd: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Article:
    """The figures of the article that runs can reproduce."""

    tables: tuple[TableSpec, ...] = ()
    cost: tuple[CostSpec, ...] = ()
    pairs: tuple[PairSpec, ...] = ()


def load_article() -> Article:
    """Read the article's tables.

    Raises:
        RecipeError: If the file holds an unknown key or a wrong type.
    """
    return load_recipe(Article, read_yaml(ARTICLE))


def article_table(table: TableSpec, evidence: Sequence[Evidence]) -> Table:
    """Return our runs beside the article's rows, one line per kind of cohort and recipe (and value of `split_by`)."""
    own = [one for one in evidence if one.run.entry_point == table.entry_point]
    lines: list[tuple[str, ...]] = []
    for row in table.rows:
        groups: dict[str, list[Evidence]] = defaultdict(list)
        for one in own:
            if matches(one.facts, row.where):
                groups[_where(one, table.split_by)].append(one)
        if not groups:
            lines.append((row.label, row.article, NOT_MEASURED, *[""] * (len(table.metrics) + 2)))
        for where, group in sorted(groups.items()):
            counts = f"{len(group)}, {len({one.seed for one in group})}"
            cells = [over_runs(group, metric) for metric in table.metrics]
            lines.append((row.label, row.article, where, *cells, _verdicts(group), counts))
    return Table(("", "article", "ours, on", *table.metrics, "verdicts", "runs, seeds"), lines)


def _where(one: Evidence, split_by: str) -> str:
    split = f"KoLeo {one.facts.get('koleo', '')}" if split_by == "koleo" else one.facts.get(split_by, "")
    return ", ".join(filter(None, (one.cohort, one.facts["recipe"], split)))


def over_runs(group: Sequence[Evidence], metric: str) -> str:
    """Return a metric over runs as text: the interval of a single run, mean and range of several."""
    known = [one.run.metrics for one in group if metric in one.run.metrics]
    if not known:
        return "-"
    if len(known) == 1:
        return with_interval(known[0], metric)
    values = [metrics[metric] for metrics in known]
    return f"{np.mean(values):.3g} ({min(values):.3g} .. {max(values):.3g})"


def _verdicts(group: Sequence[Evidence]) -> str:
    counts = Counter(one.facts["status"] for one in group if one.facts["status"])
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())


def cost_table(article: Article, ledger: pd.DataFrame) -> Table:
    """Return our ledger beside the article's cost, set by set; the last line is the sum."""
    rows = {row["campaign"]: row for row in ledger.to_dict("records")}
    lines = []
    for one in article.cost:
        ours = rows.get(one.campaign)
        measured = (
            ("not run", "", "")
            if ours is None
            else (str(ours["arms"]), f"{ours['gpu_hours']:.2f}", f"{ours['cost']:.2f} {ours['currency']}")
        )
        lines.append((one.set, str(one.arms), f"{one.gpu_hours:g}", f"{one.usd:.2f}", *measured))
    arms, hours, usd = (sum(getattr(c, name) for c in article.cost) for name in ("arms", "gpu_hours", "usd"))
    own = [rows[one.campaign] for one in article.cost if one.campaign in rows]
    ours_total = (
        str(sum(r["arms"] for r in own)),
        f"{sum(r['gpu_hours'] for r in own):.2f}",
        f"{sum(r['cost'] for r in own):.2f}",
    )
    lines.append(("total", str(arms), f"{hours:g}", f"{usd:.2f}", *ours_total))
    return Table(("set", "article: arms", "GPU-hours", "$", "ours: arms", "GPU-hours", "cost"), lines)


def campaign_table(arms: Sequence[ArmRecord], metric: str, correction: str) -> Table:
    """One line per arm over its seeds, compared with the first arm (Welch over seeds, corrected as registered)."""
    groups: dict[str, list[float]] = defaultdict(list)
    states: dict[str, Counter[str]] = defaultdict(Counter)
    for arm in arms:
        name = _SEED.sub("", arm.name)
        states[name][arm.tags.get(Tag.STATUS) or arm.tags.get(Tag.ARM_STATUS) or arm.status.lower()] += 1
        if arm.status == "FINISHED" and metric in arm.metrics:
            groups[name].append(arm.metrics[metric])
    names = list(states)
    raw = {name: welch_p(groups[names[0]], groups[name]) for name in names[1:]}
    tested = {name: p for name, p in raw.items() if p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())).tolist(), strict=True))
    shown = adjusted if correction == "holm" else tested
    lines = []
    for name in names:
        values = groups[name]
        cell = "-" if not values else f"{np.mean(values):.4g} ({min(values):.4g} .. {max(values):.4g})"
        verdicts = ", ".join(f"{count} {state}" for state, count in states[name].items())
        lines.append((name, verdicts, str(len(values)), cell, f"{shown[name]:.3g}" if name in shown else "-"))
    return Table(("arm", "verdicts", "seeds", metric, f"p against {names[0]}" if names else "p"), lines)


def ledger_table(ledger: pd.DataFrame) -> Table:
    """Return the rows of a ledger with a total for each currency."""
    totals = ledger.groupby("currency", as_index=False).sum(numeric_only=True).assign(campaign="total")
    cells = [
        (
            row["campaign"],
            str(row["arms"]),
            str(row["finished"]),
            str(row["deleted"]),
            f"{row['hours']:.3f}",
            f"{row['gpu_hours']:.3f}",
            f"{row['cost']:.4f} {row['currency']}",
        )
        for row in [*ledger.to_dict("records"), *totals.to_dict("records")]
    ]
    return Table(("campaign", "arms started", "arms done", "deleted", "hours", "GPU-hours", "cost"), cells)
