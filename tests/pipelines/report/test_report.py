"""The report: which runs answer which claim, and what is said where none can."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.report.claims import ClaimSpec, Judgment, judge_all, primary_table
from pipelines.report.facts import Evidence, gather, matches
from pipelines.report.run import SUSPICION, ReportConfig, ReportError, chosen_runs, page, run_report
from pipelines.report.tables import article_table, load_article
from pipelines.runtime.page import Heading, Sentence, Table, markdown, page_html
from pipelines.tracking.reading import StoredRun
from pipelines.tracking.run import Run
from pipelines.tracking.store import NotInStoreError


def pretrained(seed: int, status: str, kind: str = "real CT", **more: Any) -> StoredRun:
    params = {"seed": str(seed), "objective.kind": "dino", "objective.center": "ema"}
    params |= {"objective.koleo_weight": "0.1", "objective.koleo_on": "head_logits"}
    params |= {"optim.teacher_temp": "0.04"}
    params |= {f"{key}": str(value) for key, value in more.pop("params", {}).items()}
    tags = {"dinox.entry_point": "pretrain", "dinox.status": status, "dinox.cohort_sha": kind}
    tags |= {"dinox.cohort_kind": kind} | more.pop("tags", {})
    return StoredRun(f"run-{seed}-{id(params)}", "FINISHED", tags, more.pop("metrics", {}), params)


def judged(claim: ClaimSpec, runs: Sequence[StoredRun]) -> list[Judgment]:
    return judge_all([("pretrain", claim)], gather(runs))


WALL_CLAIMS = next(table for table in load_article().tables if table.id == "center_momentum").claims


def wall_cell(momentum: float, weight: float, on: str, verdicts: Sequence[str]) -> list[StoredRun]:
    params = {
        "objective.center_momentum": momentum,
        "objective.koleo_weight": weight,
        "objective.koleo_on": on,
    }
    return [
        pretrained(seed, verdict, "synthetic slices", params=params) for seed, verdict in enumerate(verdicts)
    ]


def test_center_momentum_is_judged_for_each_koleo_tensor() -> None:
    runs = wall_cell(0.9, 0.0, "head_logits", ["wall"] * 3)
    runs += wall_cell(0.999, 0.0, "head_logits", ["collapsed"] * 3)
    runs += wall_cell(0.9, 0.1, "head_logits", ["wall"] * 3)
    runs += wall_cell(0.999, 0.1, "head_logits", ["learning"] * 3)
    runs += wall_cell(0.9, 0.1, "class_token", ["learning"] * 3)
    runs += wall_cell(0.999, 0.1, "class_token", ["collapsed", "learning", "collapsed"])
    below, at = ({one.of: one.verdict for one in judged(claim, runs)} for claim in WALL_CLAIMS)
    assert below == {"none": "supported", "head_logits": "supported", "class_token": "not supported"}
    assert at == {"none": "not supported", "head_logits": "supported", "class_token": "not supported"}
    assert {one.rests_on for one in judged(WALL_CLAIMS[0], runs)} == {"synthetic slices"}


def test_a_wall_that_a_blunt_teacher_made_says_nothing_of_center_momentum() -> None:
    blunt = {"objective.center_momentum": 0.9, "optim.teacher_temp": 0.1}
    runs = [pretrained(seed, "wall", params=blunt) for seed in range(3)]
    assert {one.verdict for one in judged(WALL_CLAIMS[0], runs)} == {"not testable here"}


def test_rows_of_scaling_hold_neither_other_lengths_nor_the_arms_of_other_campaigns() -> None:
    def trained(arch: str, steps: int, campaign: str = "", **more: Any) -> StoredRun:
        params = {"backbone.arch": arch, "steps": steps, "objective.center_momentum": 0.999} | more
        return pretrained(0, "learning", params=params, tags={"dinox.campaign": campaign})

    tables = {table.id: table for table in load_article().tables}
    large = gather([trained("vit_large", steps) for steps in (2000, 20_000, 100_000)])
    (row,) = [line for line in article_table(tables["vit_l"], large).rows if line[0] == "KoLeo 0.1"]
    assert row[-1] == "1, 1"
    own, other = trained("vit_small", 20_000), trained("vit_small", 20_000, "recipe")
    (row,) = [r for r in article_table(tables["vit_s"], gather([own, other])).rows if r[0] == "20K"]
    assert row[-1] == "1, 1"


def test_no_difference_is_not_called_a_cost_of_nothing() -> None:
    claim = next(table for table in load_article().tables if table.id == "hu_scale").claims[0]
    assert (claim.where["pretrain.views.window.hu_scale"], claim.than["pretrain.views.window.hu_scale"]) == (
        1.0,
        0.1,
    )


@pytest.mark.parametrize(
    ("verdicts", "answer"),
    [
        (["wall"], "not testable here"),
        (["wall", "too early"], "supported"),
        (["too early", "too early"], "not testable here"),
        (["wall", "wall", "learning"], "supported"),
        (["wall", "learning"], "not supported"),
        (["learning"] * 3, "not supported"),
    ],
)
def test_a_verdict_needs_two_seeds_and_two_thirds(verdicts: list[str], answer: str) -> None:
    claim = ClaimSpec(text="stuck", kind="verdict", expect=("wall",))
    (found,) = judged(claim, [pretrained(seed, verdict) for seed, verdict in enumerate(verdicts)])
    assert found.verdict == answer


def arms_of(arm: str, values: Sequence[float], kind: str = "real CT") -> list[StoredRun]:
    return [
        pretrained(seed, "learning", kind, tags={"dinox.arm": arm}, metrics={"retrieval/top1": value})
        for seed, value in enumerate(values)
    ]


HIGHER = ClaimSpec(
    text="a above b", kind="higher", metric="retrieval/top1", where={"arm": "a*"}, than={"arm": "b*"}
)


def test_the_article_s_three_seeds_do_not_tell_spatial_from_jitter() -> None:
    runs = arms_of("a", [24, 26, 99]) + arms_of("b", [21, 46, 8])
    (found,) = judged(HIGHER, runs)
    assert found.verdict == "not supported"
    assert "p = 0.43" in found.evidence


def test_a_clear_difference_in_the_right_direction_supports_a_claim() -> None:
    high, low = [0.50, 0.52, 0.51], [0.30, 0.31, 0.29]
    assert judged(HIGHER, arms_of("a1", high) + arms_of("b1", low))[0].verdict == "supported"
    assert judged(HIGHER, arms_of("a1", low) + arms_of("b1", high))[0].verdict == "not supported"
    assert judged(HIGHER, arms_of("a1", high[:1]) + arms_of("b1", low))[0].verdict == "not testable here"
    assert judged(HIGHER, [])[0].verdict == "not testable here"


def test_holm_takes_every_comparison_of_the_page_into_account() -> None:
    runs = arms_of("a", [1.0, 1.3, 1.15]) + arms_of("b", [0.7, 0.9, 0.8])
    assert judged(HIGHER, runs)[0].verdict == "supported"
    many = judge_all([("pretrain", HIGHER)] * 20, gather(runs))
    assert {one.verdict for one in many} == {"not supported"}


def test_a_run_that_is_repeated_with_its_seed_is_no_further_draw() -> None:
    high, low = [0.50, 0.62], [0.35, 0.45]
    once = arms_of("a", high) + arms_of("b", low)
    again = [*once, *arms_of("a", high), *arms_of("a", high), *arms_of("b", low), *arms_of("b", low)]
    (first,), (second,) = judged(HIGHER, once), judged(HIGHER, again)
    assert first.verdict == second.verdict == "not supported"
    assert first.p == pytest.approx(second.p, rel=1e-9)
    # Twice the same seed does not make a comparison over seeds.
    (same,) = judged(HIGHER, arms_of("a", high[:1]) + arms_of("a", high[:1]) + arms_of("b", low))
    assert same.verdict == "not testable here"


def test_backbones_that_saw_the_tested_patients_support_no_claim() -> None:
    claim = ClaimSpec(text="x", kind="above", metric="probe/auroc", than_metric="probe/diameter_auroc")
    metrics = {"probe/auroc": 0.99, "probe/auroc_ci_low": 0.98, "probe/diameter_auroc": 0.9}
    tags = {"dinox.entry_point": "probe_malignancy", "dinox.cohort_sha": "s", "dinox.cohort_kind": "real CT"}
    for leak, verdict in (("", "supported"), ("no_holdout", "not testable here")):
        run = StoredRun("p", "FINISHED", tags | {"dinox.leak": leak}, metrics, {})
        (found,) = judge_all([("probe_malignancy", claim)], gather([run]))
        assert found.verdict == verdict


def test_the_wrapper_of_a_resumed_run_is_no_evidence() -> None:
    resumed = pretrained(0, "learning")
    wrapper = StoredRun("w", "FINISHED", {"dinox.entry_point": "pretrain", "dinox.resumes": "run"}, {}, {})
    assert [one.run.run_id for one in gather([resumed, wrapper])] == [resumed.run_id]


def test_a_phantom_cannot_answer_for_patients() -> None:
    claim = ClaimSpec(text="x", kind="verdict", expect=("wall",), rests_on=("real CT",))
    (found,) = judged(claim, [pretrained(seed, "wall", "phantom") for seed in range(3)])
    assert found.verdict == "not testable here"
    assert "which cannot test it" in found.evidence


def test_a_value_is_supported_when_our_interval_holds_it() -> None:
    claim = ClaimSpec(text="0.687", kind="within", value=0.687, metric="probe/auroc")
    inside = {"probe/auroc": 0.7, "probe/auroc_ci_low": 0.66, "probe/auroc_ci_high": 0.74}
    above = {"probe/auroc": 0.8, "probe/auroc_ci_low": 0.75, "probe/auroc_ci_high": 0.85}
    assert judged(claim, [pretrained(0, "", metrics=inside)])[0].verdict == "supported"
    assert judged(claim, [pretrained(0, "", metrics=above)])[0].verdict == "not supported"
    assert (
        judged(claim, [pretrained(0, "", metrics={"probe/auroc": 0.687})])[0].verdict == "not testable here"
    )


def test_as_many_active_dimensions_as_random_weights_support_nothing() -> None:
    claim = ClaimSpec(text="x", kind="above", metric="r/dims", than_metric="r/random_dims")
    same = {"r/dims": 384.0, "r/random_dims": 384.0}
    assert judged(claim, [pretrained(0, "", metrics=same)])[0].verdict == "not supported"


def test_a_floor_is_passed_where_the_intervals_lie_apart() -> None:
    claim = ClaimSpec(text="x", kind="above", metric="top1", than_metric="random_top1")
    near = {"top1": 0.09, "top1_ci_low": 0.06, "random_top1": 0.05, "random_top1_ci_high": 0.07}
    far = near | {"top1": 0.12, "top1_ci_low": 0.08}
    assert judged(claim, [pretrained(0, "", metrics=near)])[0].verdict == "not supported"
    assert judged(claim, [pretrained(0, "", metrics=far)])[0].verdict == "supported"


def test_a_gain_is_one_when_its_interval_lies_above_nothing() -> None:
    claim = ClaimSpec(text="x", kind="above", metric="gain")
    clear, unclear = {"gain": 0.03, "gain_ci_low": 0.01}, {"gain": 0.03, "gain_ci_low": -0.01}
    assert judged(claim, [pretrained(0, "", metrics=clear)])[0].verdict == "supported"
    assert judged(claim, [pretrained(0, "", metrics=unclear)])[0].verdict == "not supported"


@pytest.mark.parametrize(
    ("want", "is_so"),
    [
        (0.9, True),
        ("0.90", True),
        ("< 0.999", True),
        (">= 0.9", True),
        ("> 0.9", False),
        ([0.5, 0.9], True),
        ("0.9*", True),
    ],
)
def test_facts_are_compared_as_numbers_patterns_and_lists(want: Any, is_so: bool) -> None:
    assert matches({"x": "0.9"}, {"x": want}) is is_so
    assert not matches({}, {"x": want})


def probe(
    number: int, above: float, p: float, params: dict[str, str] | None = None, **tags: str
) -> StoredRun:
    metrics = {
        "probe/nested_z": 2.0,
        "probe/nested_p": p,
        "probe/over_random_r2": above,
        "probe/over_random_r2_ci_low": above - 0.01,
        "probe/over_random_r2_ci_high": above + 0.01,
    }
    own = {"dinox.entry_point": "probe_malignancy", "dinox.cohort_sha": "s", "dinox.cohort_kind": "real CT"}
    reading = {"rule": "consensus", "features": "roi", "window": "full"} | (params or {})
    return StoredRun(f"p{number}", "FINISHED", own | tags, metrics, reading, started=float(number))


def verdicts_of(runs: Sequence[StoredRun]) -> list[str]:
    table = primary_table(gather(runs))
    return [row[table.head.index("verdict")] for row in table.rows]


def test_the_primary_question_is_corrected_over_the_probes_of_one_cohort() -> None:
    assert verdicts_of([probe(0, 0.02, 0.02)]) == ["supported"]
    assert verdicts_of([probe(0, 0.02, 0.02), probe(1, 0.0, 0.5), probe(2, 0.0, 0.9)])[0] == "not supported"
    apart = probe(1, 0.0, 0.5, **{"dinox.cohort_sha": "other"})
    assert verdicts_of([probe(0, 0.02, 0.02), apart])[0] == "supported"
    assert verdicts_of([probe(0, 0.02, 0.02, **{"dinox.leak": "unknown"})]) == ["not testable here"]
    assert verdicts_of([probe(0, -0.02, 0.001)]) == ["not supported"]
    assert verdicts_of([probe(0, 0.005, 0.001)]) == ["not supported"]  # not above random weights
    assert verdicts_of([]) == ["not testable here"]


def test_arms_of_one_recipe_are_told_apart_by_their_runs() -> None:
    arms = [
        probe(n, 0.02, 0.02, **{"dinox.probed_recipe": "demo", "mlflow.runName": f"arm {n}"}) for n in (0, 1)
    ]
    other = probe(2, 0.02, 0.02, **{"dinox.probed_recipe": "else", "mlflow.runName": "arm 2"})
    named = [row[0] for row in primary_table(gather([*arms, other])).rows]
    assert named == [
        "arm 0 [p0]: demo (roi, full, consensus)",
        "arm 1 [p1]: demo (roi, full, consensus)",
        "else (roi, full, consensus)",
    ]


def test_only_the_newest_default_reading_of_a_backbone_is_in_the_family() -> None:
    first, again = (probe(number, 0.02, 0.02, **{"dinox.backbone_sha": "b"}) for number in (0, 1))
    assert verdicts_of([first, again]) == ["outside the family", "supported"]
    others = [probe(number, 0.02, 0.9, {"features": "class_token"}) for number in (2, 3)]
    assert verdicts_of([again, *others]) == ["supported", "outside the family", "outside the family"]
    by_label = probe(4, 0.02, 0.03, {"rule": "article"})
    assert verdicts_of([again, by_label]) == ["supported", "supported"]  # another rule, another family
    older = StoredRun("old", "FINISHED", first.tags, {"probe/gain_over_diameter": 0.1}, first.params)
    assert verdicts_of([again, older]) == ["supported", "not testable here"]


def test_the_claim_of_learning_reads_p_and_the_gap_to_random_weights() -> None:
    claim = ClaimSpec(text="learned", kind="learned")
    for runs, verdict in (
        ([probe(0, 0.02, 0.02)], "supported"),
        ([probe(0, 0.02, 0.06)], "not supported"),
        ([probe(0, 0.0, 0.02)], "not supported"),
        ([probe(0, 0.02, 0.02), probe(1, 0.0, 0.02)], "not supported"),
    ):
        (found,) = judge_all([("probe_malignancy", claim)], gather(runs))
        assert found.verdict == verdict
        assert f"of {len(runs)} runs, such as p = 0.0" in found.evidence


def test_a_probe_knows_the_pretraining_that_it_probes() -> None:
    training = pretrained(5, "learning", params={"backbone.arch": "vit_small"})
    probed = probe(0, 0.0, 1.0, **{"dinox.probed_run": training.run_id})
    facts = {one.run.run_id: one.facts for one in gather([training, probed])}["p0"]
    assert facts["pretrain.backbone.arch"] == "vit_small"
    assert facts["probe.rule"] == "consensus"


def test_unfinished_runs_are_no_evidence() -> None:
    run = pretrained(0, "wall")
    assert gather([StoredRun(run.run_id, "KILLED", run.tags, run.metrics, run.params)]) == []


def test_a_campaign_of_probes_alone_says_what_it_probed(own_store: Path) -> None:
    store = Run.start("report").store
    training, probing = (store.create_run("0").info.run_id for _ in range(2))
    Run(store, training).set_tags({"dinox.entry_point": "pretrain", "dinox.campaign": "scaling"})
    Run(store, training).log_params({"backbone.arch": "vit_small"})
    tags = {"dinox.entry_point": "probe_malignancy", "dinox.campaign": "clinical"}
    Run(store, probing).set_tags(tags | {"dinox.probed_run": training})
    for run_id in (training, probing):
        store.set_terminated(run_id)
    runs, _ = chosen_runs(ReportConfig(campaign="clinical"))
    facts = {one.run.run_id: one.facts for one in gather(runs)}
    assert facts[probing]["pretrain.backbone.arch"] == "vit_small"


class Tags(HTMLParser):
    """Counts open elements, so that a page which does not close them is noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_escapes_what_others_wrote_and_closes_what_it_opens() -> None:
    blocks = [
        Heading(1, "<script>"),
        Sentence("a & b `code`", is_note=True),
        Table(("x",), [("<b>|",), ("supported",)]),
    ]
    text = page_html(blocks)
    assert "<script>" not in text
    assert "<code>code</code>" in text
    assert '<td class="supported">supported</td>' in text.replace("class=supported", 'class="supported"')
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    assert "| &lt;b>\\| |" in markdown(blocks)


def test_every_page_says_that_ratings_are_suspicion_and_puts_the_primary_question_first(
    own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.start("report")
    run_report(ReportConfig(out=str(own_store / "docs" / "results.md"), article="all"), run)
    text = (own_store / "docs" / "results.md").read_text()
    assert text.count(SUSPICION) == 2
    assert text.index("Primary question") < text.index("Claims of the article") < text.index("Ledger")
    assert "not testable here" in text
    assert {item.path for item in run.store.list_artifacts(run.run_id)} == {"report.md", "report.html"}
    assert text in capsys.readouterr().out


def test_a_report_of_nothing_or_of_a_wrong_run_is_refused(own_store: Path) -> None:
    run = Run.start("report")
    with pytest.raises(ReportError, match="campaign none has no run"):
        run_report(ReportConfig(campaign="none"), run)
    with pytest.raises(ReportError, match="is not a valid name; use letters"):
        run_report(ReportConfig(campaign="o'neill"), run)
    with pytest.raises(ReportError, match="not both"):
        run_report(ReportConfig(campaign="none", runs="x"), run)
    with pytest.raises(NotInStoreError, match="run 'nowhere' is not in the store"):
        run_report(ReportConfig(runs="nowhere"), run)


def test_the_article_s_tables_load_and_every_claim_can_be_asked() -> None:
    article = load_article()
    assert (sum(row.arms for row in article.cost), sum(row.gpu_hours for row in article.cost)) == (64, 105)
    assert sum(row.usd for row in article.cost) == pytest.approx(35.60)
    blocks = page([], [], datetime(2026, 1, 2, tzinfo=UTC))
    claims = next(block for block in blocks if isinstance(block, Table) and block.head[0] == "claim")
    assert len(claims.rows) >= 12
    assert {row[-1] for row in claims.rows} == {"not testable here"}
    assert isinstance(Evidence(pretrained(0, ""), {"cohort": "x"}).cohort, str)
