"""The facts of each finished run: its configuration, that of its pretraining, and the kind of its cohort."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command.recorded import whole_configuration
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun

REAL, PHANTOM, SYNTHETIC, UNKNOWN = "real CT", "phantom", "synthetic slices", "unknown cohort"
_OPERATORS = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass(frozen=True)
class Evidence:
    """A finished run with its facts.

    Attributes:
        facts: `pretrain.<key>` and `probe.<key>` of the configurations, cohort, recipe, koleo, status,
            campaign, arm.
    """

    run: StoredRun
    facts: Mapping[str, str]

    @property
    def cohort(self) -> str:
        """Real CT, a phantom, synthetic slices, or unknown."""
        return self.facts["cohort"]

    @property
    def seed(self) -> str:
        """Seed of the pretraining; of the probe if that is unknown."""
        return self.facts.get("pretrain.seed", self.facts.get("probe.seed", ""))

    @property
    def is_leaky(self) -> bool:
        """Whether the backbone may have seen test patients of this run."""
        return self.run.entry_point != "pretrain" and bool(self.run.tags.get(Tag.LEAK))


def gather(runs: Sequence[StoredRun]) -> list[Evidence]:
    """Return the finished runs of a list with their facts; those of a probe include its pretraining.

    The wrapper run that `mlflow run` leaves when a run is resumed is left out: its metrics are in the resumed run.
    """
    by_id = {run.run_id: run for run in runs}
    kinds = cohort_kinds(runs)
    return [
        Evidence(run, _facts(run, by_id, kinds))
        for run in runs
        if run.status == "FINISHED" and Tag.RESUMES not in run.tags
    ]


def _facts(run: StoredRun, by_id: Mapping[str, StoredRun], kinds: Mapping[str, str]) -> dict[str, str]:
    # Cross-fitted backbones have the same recipe, so the first is enough.
    probed = run.tags.get(Tag.PROBED_RUN, "").split(",")[0]
    pretraining = run if run.entry_point == "pretrain" else by_id.get(probed)
    facts = {} if pretraining is None else _configuration(pretraining, "pretrain")
    if run is not pretraining:
        facts |= _configuration(run, "probe")
    facts["cohort"] = kinds.get(run.tags.get(Tag.COHORT_SHA, ""), UNKNOWN)
    facts["recipe"] = "" if pretraining is None else pretraining.tags.get(Tag.RECIPE, "")
    facts["status"] = run.tags.get(Tag.STATUS, "")
    facts["campaign"] = run.tags.get(Tag.CAMPAIGN, "")
    facts["arm"] = run.tags.get(Tag.ARM) or run.tags.get(Tag.ARM_OF, "")
    if "pretrain.objective.koleo_weight" in facts:
        weight = _number(facts["pretrain.objective.koleo_weight"])  # None: it was changed on resume.
        facts["koleo"] = {0.0: "none", None: "changed"}.get(weight, facts["pretrain.objective.koleo_on"])
    return facts


def _configuration(run: StoredRun, prefix: str) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in whole_configuration(run).items()}


def cohort_kinds(runs: Sequence[StoredRun]) -> dict[str, str]:
    """Return the kind of each cohort by its hash: from the tags of its runs, else from its folder."""
    with_kind = [run.tags for run in reversed(runs) if {Tag.COHORT_SHA, Tag.COHORT_KIND} <= run.tags.keys()]
    kinds = {tags[Tag.COHORT_SHA]: tags[Tag.COHORT_KIND] for tags in with_kind}
    for run in runs:
        sha = run.tags.get(Tag.COHORT_SHA, "")
        if sha and sha not in kinds:
            kinds[sha] = _kind_of_folder(Path(run.params.get("cohort", "")), sha)
    return kinds


def _kind_of_folder(folder: Path, sha256: str) -> str:
    from pipelines.cohort.folder import Cohort
    from pipelines.cohort.tables import CohortError

    try:
        cohort = Cohort.open(folder)
    except CohortError:
        return UNKNOWN
    return cohort.kind if cohort.sha256 == sha256 else UNKNOWN


def matches(facts: Mapping[str, str], where: Mapping[str, Any]) -> bool:
    """Return whether every fact matches: a value, one of a list, a pattern with *, or a comparison like ">= 5000"."""
    return all(
        key in facts
        and any(_is(facts[key], wanted) for wanted in (want if isinstance(want, list) else [want]))
        for key, want in where.items()
    )


def _is(fact: str, wanted: Any) -> bool:
    text = str(wanted)
    operator = next((sign for sign in _OPERATORS if text.startswith(f"{sign} ")), None)
    if operator is not None:
        number = _number(fact)
        return number is not None and _OPERATORS[operator](number, float(text[len(operator) :]))
    own, other = _number(fact), _number(text)
    if own is not None and other is not None:
        return own == other
    return fnmatch.fnmatchcase(fact, text)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
