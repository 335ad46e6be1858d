"""Body of `report`: finished runs beside each other, and beside the article, table by table and claim by claim."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pipelines.report import ReportConfig
from pipelines.report.claims import NOT_TESTABLE, claims_table, judge_all, primary_table
from pipelines.report.facts import REAL, Evidence, gather, matches
from pipelines.report.pairs import Items, compare_all, pairs_table
from pipelines.report.records import read_records, write_records
from pipelines.report.study import name_of, study
from pipelines.report.tables import (
    NOT_MEASURED,
    Article,
    article_table,
    campaign_table,
    cost_table,
    ledger_table,
    load_article,
)
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.page import Block, Heading, Sentence, Table, markdown, page_html
from pipelines.tracking.arms import NAME, ArmRecord, ledger, read_arms
from pipelines.tracking.changes import changes_of, changes_said
from pipelines.tracking.items import items_of
from pipelines.tracking.names import Tag
from pipelines.tracking.old_names import current_metric
from pipelines.tracking.reading import StoredRun, read_run, search_runs
from pipelines.tracking.run import Run
from pipelines.tracking.store import NotInStoreError
from transforms.refusal import Refusal, number_of

SUSPICION = (
    "LIDC-IDRI ratings are how suspicious four radiologists found a nodule, not whether it was cancer. An AUROC here"
    " measures how well readers' suspicion is predicted; nothing on this page is evidence about cancer."
)
NO_PATIENTS = (
    "Figures on a phantom or on synthetic slices show that the code works; they do not apply to patients."
)


EARLIER = (
    "Figures from before runs were kept as records are in `docs/earlier_results.md`, and the pretrainings that were"
    " tried on nodules in `docs/nodule_arms.md`."
)


class ReportError(Refusal):
    """There is no run to report."""


def run_report(config: ReportConfig, run: Run) -> None:
    """Write the page as Markdown and HTML.

    Raises:
        ReportError: If there is no run to report.
    """
    if config.records:
        read = read_records([Path(part.strip()) for part in config.records.split(",") if part.strip()])
        runs, arms, items = read.runs, read.arms, read.items
    else:
        runs, arms = chosen_runs(config)
        items = items_of
    if config.keep:
        write_records(runs, Path(config.keep))
    options = f" -P records={config.records}" if config.records else ""
    options += " -P article=all" if config.article == "all" else ""
    blocks = page(runs, arms, datetime.now(UTC), config.article == "all", items, options)
    text = markdown(blocks)
    run.log_text(text, "report.md")
    run.log_text(page_html(blocks), "report.html")
    if config.out:
        make_folder(Path(config.out).parent)
        write_atomically(Path(config.out), lambda file: file.write(text.encode()))
    print(text)


def chosen_runs(config: ReportConfig) -> tuple[list[StoredRun], list[ArmRecord]]:
    """Return the runs to report and the arms of campaigns among them.

    Raises:
        ReportError: If there is no run.
    """
    if config.runs and config.campaign:
        raise ReportError("report takes runs or a campaign, not both")
    if config.campaign and not NAME.fullmatch(config.campaign):
        raise ReportError(
            f"campaign {config.campaign!r} is not a valid name; use letters, digits and _.=- only"
        )
    if config.runs:
        ids = [name.strip() for name in config.runs.split(",") if name.strip()]
        return _with_probed([read_run(StoredRun, run_id) for run_id in ids]), []
    query = (
        f"tags.`{Tag.CAMPAIGN}` = '{config.campaign}'"
        if config.campaign
        else f"tags.`{Tag.ENTRY_POINT}` != ''"
    )
    runs = search_runs(StoredRun, query)
    arms = [arm for arm in read_arms() if config.campaign in ("", arm.tags[Tag.CAMPAIGN])]
    if not runs:
        what = f"campaign {config.campaign} has no run" if config.campaign else "there is no run"
        raise ReportError(f"{what} in the store; run something first, such as `mlflow run . -e campaign`")
    return _with_probed(runs) if config.campaign else runs, arms


def _with_probed(runs: list[StoredRun]) -> list[StoredRun]:
    """Add the pretrainings of probes, whose configuration is needed to match a probe with a row."""
    there = {run.run_id for run in runs}
    probed = {run.tags.get(Tag.PROBED_RUN, "").split(",")[0] for run in runs} - {"", *there}
    return runs + [found for run_id in sorted(probed) if (found := _if_there(run_id)) is not None]


def _if_there(run_id: str) -> StoredRun | None:
    try:
        return read_run(StoredRun, run_id)
    except NotInStoreError:  # The pretraining of this backbone is in another store.
        return None


def page(
    runs: Sequence[StoredRun],
    arms: Sequence[ArmRecord],
    now: datetime,
    is_whole: bool = True,
    items: Items = items_of,
    options: str = "",
) -> list[Block]:
    """Return the report: runs beside each other, the primary question, the article, campaigns and their cost.

    Args:
        runs: Those to report.
        arms: Of campaigns among them.
        now: When it is made.
        is_whole: Whether tables and claims of the article are shown that no run answers.
        items: Where the nodules and slices of a run are.
        options: Options of the command that say where the runs are.
    """
    article, evidence = load_article(), gather(runs)
    has_area = is_whole or any("auroc" in name for one in evidence for name in one.run.metrics)
    note = [Sentence(SUSPICION, is_note=True)] if has_area else []
    blocks: list[Block] = [
        Heading(1, "Results"),
        Sentence(
            f"Generated {now:%Y-%m-%d %H:%M} UTC by `mlflow run . -e report{options}` from"
            f" {number_of(len(evidence), 'finished run')}."
        ),
        *note,
        Sentence(NO_PATIENTS, is_note=True),
    ]
    if not is_whole:
        blocks += study(evidence)
    if is_whole or any(one.run.entry_point == "probe_malignancy" for one in evidence):
        blocks += _primary(evidence)
    blocks += _of_article(article, evidence, arms, is_whole)
    blocks += _paired(article, evidence, is_whole, items)
    blocks += _campaigns(runs, arms)
    if is_whole:
        basis = _basis(article, evidence)
        blocks += [Heading(2, "Cohorts and runs behind these figures"), *basis, Sentence(EARLIER)]
    changed = [(one, changes_of(one.run.tags)) for one in evidence]
    told = [
        Sentence(f"{name_of(one)} changed on resume: {changes_said(own)}.") for one, own in changed if own
    ]
    return [*blocks, Heading(2, "Runs"), _runs_table(evidence), *told, *note]


def _primary(evidence: Sequence[Evidence]) -> list[Block]:
    return [
        Heading(2, "Primary question: do features know the rating beyond size and attenuation?"),
        Sentence(
            "Base, statistic and claim were fixed before the first run (`docs/decisions/0005-the-primary-question.md`)."
            ' "Supported" means learned: p below 0.05 after Holm\'s correction, and partial R2 above that of random'
            " weights, its interval above 0. The correction is over the newest probe of each backbone, on one cohort"
            " under one label rule, that reads inside the nodule (features=roi, window=full, crops, a linear head);"
            " other readings have no verdict. p is one-sided."
        ),
        Sentence(
            "The AUROCs and the gain over diameter are descriptive: the readers' diameter is an oracle, and useless"
            " features lower the gain."
        ),
        primary_table(evidence),
    ]


def _of_article(
    article: Article, evidence: Sequence[Evidence], arms: Sequence[ArmRecord], is_whole: bool
) -> list[Block]:
    """Return claims, tables and cost of the article; without `is_whole` what these runs answer or measure."""
    judged = judge_all([(t.entry_point, claim) for t in article.tables for claim in t.claims], evidence)
    shown = [one for one in judged if is_whole or one.verdict != NOT_TESTABLE]
    blocks: list[Block] = [Heading(2, "Claims of the article"), claims_table(shown)] if shown else []
    if is_whole:
        blocks.append(
            Sentence("A claim that no run of the article's size tests may be asked at small size, below.")
        )
    tables = [(table, article_table(table, evidence)) for table in article.tables]
    measured = [
        (table, Table(made.head, [row for row in made.rows if is_whole or row[2] != NOT_MEASURED]))
        for table, made in tables
    ]
    if any(made.rows for _, made in measured):
        blocks += [
            Heading(2, "Tables of the article"),
            Sentence(
                "A single run is shown with its 95% interval, several runs with mean (lowest .. highest). Ours are on"
                " a kind of cohort, by a recipe (`mlflow_projects/recipes`); real_small is far smaller."
            ),
        ]
    for table, made in measured:
        blocks += [Heading(3, table.title), made] if made.rows else []
    rows = ledger(arms, time.time())
    if is_whole:
        blocks += [Heading(3, "Cost"), cost_table(article, rows)]
    if is_whole or len(rows):
        blocks += [Heading(2, "Ledger"), ledger_table(rows)]
    return blocks


def _paired(article: Article, evidence: Sequence[Evidence], is_whole: bool, items: Items) -> list[Block]:
    """Return the comparisons within seeds; without `is_whole` only where one of them can be made."""
    blocks: list[Block] = []
    for endpoint, made in compare_all(article.pairs, evidence, items).items():
        if is_whole or any(len(one.draws) for one in made):
            blocks += [Heading(3, endpoint[0].upper() + endpoint[1:]), pairs_table(made)]
    if not blocks:
        return []
    said = (
        "Arms of campaign `real_small`, two at a time on the same held-out slices or nodules and within a seed; the"
        " rule was fixed before the first arm ran (`docs/decisions/0009-the-study-on-real-crops.md`). Supported: the"
        " expected sign in 3 of 3 seeds, and an interval over patients that excludes 0 after Holm's correction over"
        " all lines of a table. Not supported: the opposite. These are tiny networks on crops around nodules."
    )
    return [Heading(2, "Claims of the article at small size, on real nodules"), Sentence(said), *blocks]


def _campaigns(runs: Sequence[StoredRun], arms: Sequence[ArmRecord]) -> list[Block]:
    parents = [run for run in runs if run.entry_point == "campaign" and Tag.DESIGN in run.tags]
    blocks: list[Block] = [Heading(2, "Campaigns")] if parents else []
    for parent in parents:
        name, endpoint = parent.tags[Tag.CAMPAIGN], current_metric(parent.tags[Tag.ENDPOINT].split()[-1])
        there = (arm for arm in arms if arm.tags[Tag.CAMPAIGN] == name and not arm.is_deleted)
        own = sorted(there, key=lambda arm: arm.number)
        blocks += [
            Heading(3, name),
            Sentence(parent.tags[Tag.QUESTION]),
            Sentence(
                f"Registered endpoint: {parent.tags[Tag.ENDPOINT]}."
                f" Command: `mlflow run . -e campaign -P spec={name}`; {parent.tags.get(Tag.STATUS, 'running')}."
            ),
            campaign_table(own, endpoint, parent.tags.get(Tag.CORRECTION, "holm")),
        ]
    return blocks


def _basis(article: Article, evidence: Sequence[Evidence]) -> list[Block]:
    counts = Counter((e.cohort, e.run.entry_point) for e in evidence if e.run.tags.get(Tag.COHORT_SHA))
    rows = [(cohort, entry_point, str(count)) for (cohort, entry_point), count in sorted(counts.items())]
    on_patients = [one for one in evidence if one.cohort == REAL]
    unmeasured = [
        table.title
        for table in article.tables
        if not any(
            one.run.entry_point == table.entry_point and matches(one.facts, row.where)
            for one in on_patients
            for row in table.rows
        )
    ]
    return [
        Table(("cohort", "entry point", "finished runs"), rows),
        Sentence(f"Not measured on real CT: {'; '.join(unmeasured) or 'nothing'}.", is_note=True),
    ]


def _runs_table(evidence: Sequence[Evidence]) -> Table:
    rows = [
        (
            one.run.run_id[:12],
            one.run.entry_point,
            "/".join(part for part in (one.facts["campaign"], one.facts["arm"]) if part)
            or one.run.tags.get(Tag.RECIPE, ""),
            one.cohort,
            one.seed,
            one.run.tags.get(Tag.LEAK, ""),
            one.run.tags.get(Tag.GIT_COMMIT, "")[:18],
            f"{datetime.fromtimestamp(one.run.started, UTC):%Y-%m-%d %H:%M}",
        )
        for one in evidence
        if one.run.tags.get(Tag.COHORT_SHA)
    ]
    return Table(
        ("run", "entry point", "arm or recipe", "cohort", "seed", "leak", "commit", "started, UTC"), rows
    )
