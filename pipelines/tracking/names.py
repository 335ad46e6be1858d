"""Every name under which a run logs: tags here as constants, each with what it means.

A tag that is not listed cannot be written: add it here first. `docs/names.md` is made from this list.
"""

from __future__ import annotations

from enum import StrEnum


class Tag(StrEnum):
    """A tag of an MLflow run; its value is the name that stands in the store."""

    meaning: str

    def __new__(cls, name: str, meaning: str = "") -> Tag:
        """Keep what the tag means beside its name."""
        member = str.__new__(cls, name)
        member._value_, member.meaning = name, meaning
        return member

    # Every run
    ENTRY_POINT = "dinox.entry_point", "entry point that wrote the run"
    GIT_COMMIT = "dinox.git_commit", "commit of the code, with -dirty where files differed from it"
    RECIPE = "dinox.recipe", "name of the recipe"
    COHORT_SHA = "dinox.cohort_sha", "SHA-256 of the cohort: its volume ids and voxels"
    COHORT_KIND = "dinox.cohort_kind", "what the cohort is made of: real CT, phantom or synthetic slices"
    ERROR = "dinox.error", "why the run failed, as one sentence, or the kind of error that a bug raised"
    RUN_NAME = "mlflow.runName", "name of the run in MLflow's pages"
    PARENT = "mlflow.parentRunId", "run under which MLflow's pages show this one"

    # Pretraining
    STATUS = "dinox.status", "verdict of a pretraining; how a campaign's last call ended"
    ADVICE = "dinox.advice", "what to try next, given the verdict"
    RESUMES = "dinox.resumes", "run that this one continued; everything else is logged there"
    BACKBONE = "dinox.backbone", "yes: the run holds an exported backbone"
    LEAK = "dinox.leak", "why tested patients may have been trained on: no_holdout, allowed or unknown"

    # Probes, export and embeddings
    PROBED = "dinox.probed", "backbones that were probed, as they were named, with commas between"
    PROBED_RUN = "dinox.probed_run", "runs that made these backbones, with commas between"
    PROBED_RECIPE = "dinox.probed_recipe", "recipe of the pretraining that was probed"
    BACKBONE_SHA = "dinox.backbone_sha", "SHA-256 of the backbone's weights"
    SCALE = "dinox.scale", "out of distribution: mm per pixel that the pretraining never saw"
    MASKS = "dinox.masks", "where the masks of probe_dense come from"
    RULE = "dinox.rule", "rule that labeled the nodules"
    EXPORTED = "dinox.exported", "backbone that was exported"
    EMBEDDED_WITH = "dinox.embedded_with", "backbone that made the embeddings"

    # Campaigns, as registered
    CAMPAIGN = "dinox.campaign", "name of the campaign"
    QUESTION = "dinox.question", "question of the campaign"
    ENDPOINT = "dinox.endpoint", "goal and metric by which the arms are compared"
    CORRECTION = "dinox.correction", "correction of p for several comparisons"
    DESIGN = "dinox.design", "SHA-256 of all that is fixed before the first arm runs"
    REFUSED_PROPOSALS = "dinox.refused_proposals", "number of proposed arms that were refused"

    # Arms of campaigns
    ARM = "dinox.arm", "name of the arm"
    ARM_OF = "dinox.arm_of", "arm that this later stage belongs to"
    STAGE = "dinox.stage", "entry point of this later stage"
    STAGES = "dinox.stages", "runs of the later stages, with commas between"
    NUMBER = "dinox.number", "place of the arm in the order in which arms were added"
    SEED = "dinox.seed", "seed of the arm"
    OVERRIDES = "dinox.overrides", "keys that make the arm differ, as JSON"
    ENTRY_POINTS = "dinox.entry_points", "stages of the arm with their keys, as JSON"
    ON_RECORD = "dinox.on_record", "whether the article's record holds such an arm: true, false or empty"
    NOTE = "dinox.note", "note of the campaign file on the arm"
    HYPOTHESIS = "dinox.hypothesis", "why a proposer added the arm"
    ARM_STATUS = (
        "dinox.arm_status",
        "how the arm stands: finished, pruned, interrupted, refused, died, arm budget",
    )
    ARM_END = "dinox.arm_end", "how the newest attempt ended: finished, refused, interrupted or crashed"
    PRUNED = "dinox.pruned", "yes: the proposer gave the arm up"
    DONE = "dinox.done", "yes: this stage is done and is not run again"
    ATTEMPT = "dinox.attempt", "number of the newest attempt"
    ATTEMPT_STARTED = "dinox.attempt_started", "when it was submitted, seconds since 1970"
    BEGUN = "dinox.begun", "number of the newest attempt that reached its machine"
    BEGUN_AT = "dinox.begun_at", "when it did, seconds since 1970"
    ATTEMPTS_CLOSED = "dinox.attempts_closed", "number of attempts whose hours and cost are summed"
    HOURS_CLOSED = "dinox.hours_closed", "wall hours of these attempts"
    COST_CLOSED = "dinox.cost_closed", "cost of these attempts"
    PRICE_PER_HOUR = "dinox.price_per_hour", "price of the arm's machine per hour"
    CURRENCY = "dinox.currency", "currency of price and cost"
    LEASE_HOURS = "dinox.lease_hours", "hours after which the newest attempt ends itself"
    GPUS = "dinox.gpus", "GPUs of the arm's machine"
    EXECUTOR = "dinox.executor", "what started the newest attempt: local, submitit or skypilot"
    HOST = "dinox.host", "machine of a local attempt"
    JOB = "dinox.job", "the executor's handle of the newest attempt"
    PENDING = "dinox.pending", "yes: the newest attempt waits for its machine, at no cost"
