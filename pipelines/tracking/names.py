"""Every name under which a run logs: metrics and images by pattern, tags as constants, each with what it means.

A name that is not listed cannot be logged: `Run` refuses it, and a test searches the code for it. `docs/names.md` is
made from this list by `python -m pipelines.tracking.names_page`. Parameters have the keys that `--help` of
the entry point explains; `pipelines.tracking.parameters` says which.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from enum import StrEnum

from pipelines.tracking.probe_names import AUROC, CI, COUNT, NATS, PROBES, SHARE, Metric


class UnlistedNameError(RuntimeError):
    """Our own code logs a name that is not in this list: a bug."""


_TRAINING = (
    Metric("data/train_patients", COUNT, "patients that are trained on"),
    Metric("data/held_out_patients", COUNT, "patients held out for retrieval and probes"),
    Metric("data/train_slices", COUNT, "slices of these patients, sampled in training"),
    Metric(
        "data/small_volumes",
        COUNT,
        "volumes of these patients that hold no cube, left out where views are cubes",
    ),
    Metric("data/same_voxels", COUNT, "volumes that the cohorts hold under several patients: a leak"),
    Metric("loss/total", "nats for DINO", "weighted sum of the terms, which is minimized"),
    Metric(
        "loss/{dino,ibot}", NATS, "cross-entropy of student and teacher over views, and over hidden patches"
    ),
    Metric("loss/simclr", NATS, "cross-entropy of finding the other view of a slice in the batch (NT-Xent)"),
    Metric(
        "loss/mae",
        "variance of a patch",
        "squared error of hidden patches, each normalized (or, with target `hu`, of gray)",
    ),
    Metric(
        "loss/gram", "squared cosine", "difference of the Gram matrices of patch tokens, student and teacher"
    ),
    Metric("loss/koleo", NATS, "negative log distance to the nearest neighbor in the batch"),
    Metric("teacher/entropy", NATS, "mean entropy of the teacher's code of one view"),
    Metric(
        "teacher/gain",
        NATS,
        "information gain between two views, G; for MAE the explained share of variance",
    ),
    Metric("teacher/prototypes_used", COUNT, "exp of the entropy of the mean code: prototypes in use"),
    Metric("teacher/effective_rank", COUNT, "effective rank of the teacher's class tokens (RankMe)"),
    Metric("teacher/cosine", "-1 .. 1", "mean cosine of the class tokens of two slices"),
    Metric(
        "teacher/center_norm", "logits", "norm of the center that is subtracted from the teacher's logits"
    ),
    Metric("teacher/verdict", "0, 1, 2, 3", "too early, wall, collapsed, learning"),
    Metric("student/entropy", NATS, "mean entropy of the student's code of one view"),
    Metric("optim/lr", "none", "learning rate"),
    Metric("optim/weight_decay", "none", "weight decay"),
    Metric("optim/grad_norm", "none", "norm of the gradient before it is clipped"),
    Metric(
        "system/{cpu_utilization,system_memory_usage}_percentage",
        "percent",
        "of the machine: processors, memory",
    ),
    Metric("system/system_memory_usage_megabytes", "MB", "memory in use on the machine"),
    Metric(
        "system/gpu_{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}_{memory_usage,utilization,power_usage}_percentage",
        "percent",
        "of each GPU, where nvidia-ml-py is installed: memory, share of the time at work, power of what is allowed",
    ),
    Metric("system/gpu_{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}_memory_usage_megabytes", "MB", "of each GPU"),
    Metric("system/gpu_{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}_power_usage_watts", "W", "of each GPU"),
    Metric("perf/slices_per_s", "1/s", "slices trained on per second, since the last report"),
    Metric("perf/data_wait", SHARE, "share of the time that training waited for data"),
    Metric("views/outside_body", SHARE, "share of views that show hardly any body"),
)
_RETRIEVAL = (
    Metric(
        "retrieval/{,student_,random_}{,mean_patch_}top1" + CI, SHARE, "slices whose other view is nearest"
    ),
    Metric(
        "retrieval/{,student_,random_}{,mean_patch_}top5" + CI,
        SHARE,
        "slices whose other view is among five",
    ),
    Metric(
        "retrieval/{,student_,random_}{,mean_patch_}ratio", COUNT, "hits: top-1 over chance; grows with n"
    ),
    Metric(
        "retrieval/{,student_,random_}{,mean_patch_}top1_not_adjacent" + CI,
        SHARE,
        "top-1 without the overlapping slices of the same series",
    ),
    Metric(
        "retrieval/{,student_,random_}{,mean_patch_}same_series_top1" + CI,
        SHARE,
        "slices whose nearest view is of their own series",
    ),
    Metric("retrieval/top1_wilson{_low,_high}", SHARE, "95% interval of top-1 if slices were independent"),
    Metric("retrieval/chance", SHARE, "top-1 of guessing, 1 / n"),
    Metric("retrieval/n", COUNT, "slices among which is searched"),
    Metric("retrieval/n_patients", COUNT, "patients of these slices"),
    Metric(
        "retrieval/trajectory_{top1,ratio}",
        "as top1, ratio",
        "the same of each backbone kept during training, by step",
    ),
)
_REPRESENTATION = (
    Metric("representation/{,random_}n_features", COUNT, "length of a feature vector"),
    Metric("representation/{,random_}active_dims", COUNT, "dimensions with a standard deviation above 0.01"),
    Metric(
        "representation/{,random_}{,centered_}cosine",
        "-1 .. 1",
        "mean cosine of two nodules; without the mean",
    ),
    Metric(
        "representation/{,random_}{,centered_}effective_rank",
        COUNT,
        "effective rank (RankMe); without the mean",
    ),
    Metric("representation/{,random_}uniformity", "log", "log mean exp(-2 squared distance); -4 is uniform"),
    Metric(
        "representation/{,random_}class_separation", "cosine", "mean within a class, minus across classes"
    ),
    Metric(
        "representation/{,random_}alignment" + CI, "0 .. 4", "mean squared distance of two views of a slice"
    ),
    Metric(
        "representation/{,random_}knn_auroc" + CI,
        AUROC,
        "score: malignant share of the 20 nearest nodules of other patients",
    ),
    Metric(
        "representation/{,random_}{manufacturer,kernel}_accuracy" + CI,
        "balanced, 0 .. 1",
        "how well a linear probe reads the manufacturer, the kernel",
    ),
    Metric(
        "representation/{,random_}moved_by_{window,one_slice}" + CI,
        "none",
        "squared distance to the same nodule under another window, one slice further, over that of two nodules",
    ),
    Metric("representation/n_nodules", COUNT, "nodules that were encoded"),
    Metric(
        "representation/{,random_}moved_by_{kernel,next_slice}" + CI,
        "none",
        "squared distance to the same place of lung in another reconstruction of the acquisition, in the next slice, "
        "over that of two patients; logged from 5 patients on",
    ),
    Metric("representation/n_kernel_patients", COUNT, "tested patients with an acquisition of two kernels"),
)
_COHORTS = (
    Metric("prepare/{volumes,patients,nodules}", COUNT, "of the cohort, after this run"),
    Metric("prepare/new_volumes", COUNT, "volumes that this run wrote"),
    Metric("prepare/files_of_no_image", COUNT, "of the refused files, those of no format that holds images"),
    Metric("prepare/witness_equal", COUNT, "volumes in which every voxel is what the witness reads"),
    Metric(
        "prepare/witness_worst_hu", "HU", "largest difference from the witness; above 0 for lossy data alone"
    ),
    Metric(
        "prepare/same_voxels",
        COUNT,
        "volumes that are in the cohort under several patients: a leak across folds",
    ),
    Metric("prepare/columns_left_out", COUNT, "columns of the table of nodules that were not kept"),
    Metric(
        "prepare/{refused_files,refused_rows}", COUNT, "files, and rows of annotations, that were refused"
    ),
    Metric("nodules/{scans,patients,volumes,annotations,nodules}", COUNT, "of the cohort"),
    Metric("nodules/flagged", COUNT, "nodules with a problem noted in the column flag"),
    Metric(
        "nodules/nodules_of_{1,2,3,4,more}_readers",
        COUNT,
        "nodules by the number of readers who marked them",
    ),
    Metric(
        "nodules/{diameter,diameter_where_imaged,volume,characteristics,image_diameter,pixels,pixels_without_repeats}"
        "_auroc" + CI + "{,_6_15mm,_3_6mm,_6_10mm,_10_15mm,_15_40mm}",
        AUROC,
        "of a baseline that needs no network, on all nodules and by diameter",
    ),
    Metric(
        "download/{n_series,n_patients,n_missing}",
        COUNT,
        "series chosen, their patients, series not here yet",
    ),
    Metric("download/size_gb", "GB", "size of all chosen series"),
    Metric("export/slices", COUNT, "slices written as PNG"),
    Metric("embed/{volumes,slices,refused_files}", COUNT, "that were embedded; files that were refused"),
)
_AUDIT = (
    Metric("audit/auroc" + CI, AUROC, "of the features of the encoder whose number is the step"),
    Metric("audit/gain_over_diameter", "AUROC", "its features with the readers' diameter, minus it alone"),
    Metric(
        "audit/{nested_z,nested_p}", "standard deviations; p", "its primary test, beyond size and attenuation"
    ),
    Metric("audit/over_random_r2" + CI, "share of variance", "its partial R2 minus that of its random twins"),
)
_CAMPAIGNS = (
    Metric("campaign/hours", "h", "age of the attempt whose number is the step"),
    Metric(
        "campaign/closed_hours",
        "h",
        "of the campaign's own run: wall hours of the arm whose number is the step",
    ),
    Metric("campaign/closed_cost", "currency of the campaign", "likewise: cost of these hours"),
    Metric("campaign/closed_attempts", COUNT, "likewise: attempts in these hours"),
)

LISTED = (*_TRAINING, *_RETRIEVAL, *PROBES, *_REPRESENTATION, *_COHORTS, *_AUDIT, *_CAMPAIGNS)
METRICS: dict[str, Metric] = {name: metric for metric in LISTED for name in metric.names}
"""Every metric by its whole name."""

IMAGES: dict[str, str] = {
    "views": "slices beside the two views that the network sees of them",
    "tokens/attention": "attention of the class token of the teacher, head by head",
    "tokens/pca": "first three principal components of the patch tokens",
    "tokens/gram": "cosine of all patches with some patches",
    "tokens/class_map": "first two principal components of the class tokens, by patient",
}
"""Images of a pretraining by key, one per step."""


def refuse_unlisted(names: Iterable[str], listed: Container[str]) -> None:
    """Refuse to log names that are not in the list.

    Raises:
        UnlistedNameError: With the names that are not listed.
    """
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise UnlistedNameError(
            f"{', '.join(unknown)}: not in pipelines/tracking/names.py; list it there first"
        )


class Tag(StrEnum):
    """A tag of an MLflow run; its value is the name in the store."""

    meaning: str

    def __new__(cls, name: str, meaning: str = "") -> Tag:
        """Keep the meaning of the tag beside its name."""
        member = str.__new__(cls, name)
        member._value_, member.meaning = name, meaning
        return member

    # Every run
    ENTRY_POINT = "dinox.entry_point", "entry point that wrote the run"
    GIT_COMMIT = "dinox.git_commit", "commit of the code, with -dirty if files differed from it"
    RECIPE = "dinox.recipe", "name of the recipe"
    COHORT_SHA = "dinox.cohort_sha", "SHA-256 of the cohort: its volume ids and voxels"
    TEST_COHORT_SHA = "dinox.test_cohort_sha", "SHA-256 of a probe's test cohort, on which nothing was fitted"
    COHORT_KIND = "dinox.cohort_kind", "what the cohort is made of: real CT, phantom or synthetic slices"
    DEVICE = "dinox.device", "what a training ran on, in the end: cpu, or the GPU's name"
    ERROR = "dinox.error", "why the run failed, as one sentence, or the kind of error that a bug raised"
    RUN_NAME = "mlflow.runName", "name of the run in MLflow's pages"
    DESCRIPTION = (
        "mlflow.note.content",
        "description in MLflow's pages: how the run ended, its figures, what to do next",
    )
    PARENT = "mlflow.parentRunId", "run under which MLflow's pages show this one"

    # Pretraining
    STATUS = "dinox.status", "verdict of a pretraining; how a campaign's last call ended"
    ADVICE = "dinox.advice", "what to try next, given the verdict"
    RESUMES = "dinox.resumes", "run that this one continued; everything else is logged there"
    CHANGES = "dinox.changes", "settings that a resumed run changed: step, key, before and after, as JSON"
    BACKBONE = "dinox.backbone", "yes: the run holds an exported backbone"
    LEAK = (
        "dinox.leak",
        "why figures may be too good: no_holdout, allowed or unknown patients; features that hold the rating",
    )

    # Probes, export and embeddings
    PROBED = "dinox.probed", "backbones that were probed, as they were named, with commas between"
    PROBED_VOLUMES = "dinox.probed_volumes", "3D backbones that were probed beside those, with commas between"
    PROBED_RUN = "dinox.probed_run", "runs that made these backbones, with commas between"
    PROBED_RECIPE = "dinox.probed_recipe", "recipe of the pretraining that was probed"
    BACKBONE_SHA = "dinox.backbone_sha", "SHA-256 of the backbone's weights"
    OPENED = "dinox.opened", "how a network that others made was read: names, sizes, gray values"
    SCALE = "dinox.scale", "out of distribution: mm per pixel that the pretraining never saw"
    NODULES = "dinox.nodules", "changed: the table of nodules is not the one that the pretraining drew by"
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
    NUMBER = "dinox.number", "number of the arm in the order in which arms were added"
    SEED = "dinox.seed", "seed of the arm"
    OVERRIDES = "dinox.overrides", "keys that make the arm differ, as JSON"
    ENTRY_POINTS = "dinox.entry_points", "stages of the arm with their keys, as JSON"
    ON_RECORD = "dinox.on_record", "whether the article's record holds such an arm: true, false or empty"
    NOTE = "dinox.note", "note of the campaign file on the arm"
    HYPOTHESIS = "dinox.hypothesis", "why a proposer added the arm"
    ARM_STATUS = (
        "dinox.arm_status",
        "state of the arm: finished, pruned, interrupted, refused, died, arm budget",
    )
    ARM_END = "dinox.arm_end", "how the newest attempt ended: finished, refused, interrupted or crashed"
    PRUNED = "dinox.pruned", "yes: the proposer stopped the arm"
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


TAGS = frozenset(Tag)
