"""Checks before a campaign starts: its arms with estimated hours and cost, the store, and the backbones it needs."""

import platform
import statistics
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.campaign.arms import Arm
from pipelines.campaign.records import find_parent
from pipelines.campaign.spec import CampaignError, CampaignSpec
from pipelines.cohort.tables import CohortError
from pipelines.cohort.union import open_cohorts
from pipelines.command.recorded import whole_configuration
from pipelines.tracking.arms import ArmRecord
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, search_runs
from pipelines.tracking.store import shown_store, tracking_uri
from transforms.refusal import number_of

SHARED_STORE = ("submitit", "skypilot")
"""Executors whose arms run on other machines; these must reach the same store."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")
_CHECK_S = 5.0
_SPEED = "perf/slices_per_s"
_AT_SPEED = 100
"""Updates after which a training's last reported speed is its speed: the first ones load, compile and warm up."""
_SETS_SPEED = (
    *(f"backbone.{key}" for key in ("arch", "depth", "embed_dim", "image_px", "grad_checkpointing")),
    *("objective.kind", "views.n_local", "nproc"),
    *("backbone.image_depth_px", "backbone.patch_depth_px"),
)
"""Keys of a pretraining that change its speed by a large factor."""


def plan_table(spec: CampaignSpec, arms: Sequence[Arm], configurations: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of all arms with steps, hours and cost; "N arms" is on its own line."""
    has_training = any("accumulation" in configuration for configuration in configurations)
    query = f"tags.`{Tag.ENTRY_POINT}` = 'pretrain' and attributes.status = 'FINISHED'"
    runs = search_runs(StoredRun, query) if has_training else []
    speeds = [
        training_speed(_as_seen_by(arm, spec), configuration, runs)
        for arm, configuration in zip(arms, configurations, strict=True)
    ]
    hours = [
        arm_hours(spec, arm, configuration, speed)
        for arm, configuration, (speed, _) in zip(arms, configurations, speeds, strict=True)
    ]
    source = "; ".join(dict.fromkeys(source for _, source in speeds))
    width = max([len(arm.name) for arm in arms], default=4)
    written = [
        f"campaign {spec.name}: {spec.question}",
        f"endpoint: {spec.endpoint.goal} {spec.endpoint.metric}",
        number_of(len(arms), "arm"),
    ]
    for arm, configuration, need in zip(arms, configurations, hours, strict=True):
        kept = {True: "  on record", False: "  not on record, added", None: ""}[arm.on_record]
        note = f"  ({arm.note})" if arm.note else ""
        written.append(
            f"  {arm.name:{width}}  {configuration.get('steps', '-')!s:>7} steps"
            f"  {_hours(need)}  {_cost(spec, need)}{kept}{note}"
        )
    if spec.proposer.kind != "none":
        written.append(f"  and up to {spec.proposer.max_arms} arms proposed by {spec.proposer.kind}")
    total = None if any(need is None for need in hours) else sum(need for need in hours if need is not None)
    written.append(f"total {_hours(total)}  {_cost(spec, total)} ({source})")
    written.append(f"budget: {budget_text(spec)}")
    return "\n".join(written)


def _as_seen_by(arm: Arm, spec: CampaignSpec) -> CampaignSpec:
    """Return the campaign with the arm's own recipe and speed, where it has them."""
    resources = replace(spec.resources, slices_per_s=arm.slices_per_s or spec.resources.slices_per_s)
    return replace(spec, recipe=str(arm.overrides.get("recipe", spec.recipe)), resources=resources)


def budget_text(spec: CampaignSpec) -> str:
    """Return the limits of a campaign as text."""
    budget = spec.budget
    limits = ((budget.hours, "h"), (budget.cost, spec.currency), (budget.arm_hours, "h per arm"))
    return ", ".join(f"{limit:g} {unit}" for limit, unit in limits if limit)


def _hours(hours: float | None) -> str:
    return "   ? h" if hours is None else f"{hours:7.3f} h"


def _cost(spec: CampaignSpec, hours: float | None) -> str:
    return f"? {spec.currency}" if hours is None else f"{hours * spec.price:.3f} {spec.currency}"


def training_speed(
    spec: CampaignSpec, asked: Mapping[str, Any], runs: Sequence[StoredRun]
) -> tuple[float, str]:
    """Return an arm's training slices per second and the source of this value; 0 when it is unknown.

    Finished runs of this recipe and this network, on the same kind of cohort, come first, then the value in the
    campaign's file. Other runs are not used: a ViT-S and a ViT-L differ too much in speed, and so do slices of 64 px
    and of 512 px, a CPU and a GPU, and a run too short to be at its speed.
    """
    if "accumulation" not in asked:
        return 0.0, "from resources.stage_hours of the file"
    recipe = Path(spec.recipe).stem
    kind = _kind_of(str(asked["cohort"]))
    timed = [
        run
        for run in runs
        if run.tags.get(Tag.RECIPE) == recipe
        and run.metrics.get(_SPEED, 0.0) > 0
        and int(run.params.get("steps", 0)) >= min(_AT_SPEED, asked["steps"])
        and Tag.DEVICE in run.tags  # Of older runs it is not known.
        and (run.tags[Tag.DEVICE] == "cpu") == (spec.resources.gpus == 0)
        and (run.tags.get(Tag.COHORT_KIND) == kind if kind else run.params.get("cohort") == asked["cohort"])
    ]
    wanted = {key: str(asked[key]) for key in _SETS_SPEED}
    flat = {f"backbone.{key}": "0" for key in ("image_depth_px", "patch_depth_px")}  # of runs from before 3D
    alike = [
        run.metrics[_SPEED] for run in timed if wanted.items() <= (flat | whole_configuration(run)).items()
    ]
    if alike:
        of = f"recipe {recipe} on {kind or asked['cohort']}"
        return statistics.median(alike), f"from the speed of {len(alike)} finished runs of {of}"
    if spec.resources.slices_per_s:
        return (
            spec.resources.slices_per_s,
            f"from {spec.resources.slices_per_s:g} slices/s given in the file",
        )
    return 0.0, "speed unknown: finish one run of the recipe, or set resources.slices_per_s"


@cache
def _kind_of(cohort: str) -> str:
    """Return what a cohort is made of; "" where it is not on this machine."""
    try:
        return open_cohorts(cohort).kind
    except CohortError:
        return ""


def arm_hours(
    spec: CampaignSpec, arm: Arm, configuration: Mapping[str, Any], slices_per_s: float
) -> float | None:
    """Estimate the hours of an arm; None when its speed is unknown."""
    later = len(arm.stages) - 1
    if "accumulation" not in configuration:
        return (later + 1) * spec.resources.stage_hours
    if not slices_per_s:
        return None
    slices = configuration["steps"] * configuration["batch_size"] * configuration["accumulation"]
    return float(slices / slices_per_s / 3600.0 + later * spec.resources.stage_hours)


def resolved_backbones(arms: Sequence[Arm]) -> list[Arm]:
    """Replace `campaign:NAME/ARM` in `backbone` and `backbone.weights` by the run of that campaign's arm.

    `{seed}` in ARM is the seed of the arm that names it.

    Raises:
        CampaignError: If that arm has not finished.
    """
    found: dict[str, dict[str, str]] = {}
    resolved = []
    for arm in arms:
        for key in ("backbone", "backbone.weights"):
            named = str(arm.overrides.get(key, "")).replace("{seed}", str(arm.seed))
            if not named.startswith("campaign:"):
                continue
            campaign, _, other = named.removeprefix("campaign:").partition("/")
            if campaign not in found:
                found[campaign] = _finished_backbones(campaign)
            if other not in found[campaign]:
                raise CampaignError(
                    f"arm {arm.name} takes the backbone of {campaign}/{other}, which has not finished;"
                    f" first run `mlflow run . -e campaign -P spec={campaign}`"
                )
            arm = replace(arm, overrides=arm.overrides | {key: f"runs:/{found[campaign][other]}/backbone"})
        resolved.append(arm)
    return resolved


def _finished_backbones(campaign: str) -> dict[str, str]:
    parent = find_parent(campaign)
    if parent is None:
        return {}
    query = f"tags.`{Tag.PARENT}` = '{parent.run_id}' and tags.`{Tag.BACKBONE}` = 'yes'"
    return {run.name: run.run_id for run in search_runs(ArmRecord, query)}


def refuse_arms_elsewhere(records: Sequence[ArmRecord], executor: str, now: float) -> None:
    """Refuse to continue while an arm may still run where this call cannot see it: it would be started twice.

    Raises:
        CampaignError: If another executor started it, or it runs on another machine.
    """
    for record in records:
        if not record.is_open or record.ending:
            continue
        own, host = record.tags.get(Tag.EXECUTOR, executor), record.tags.get(Tag.HOST, "")
        if own != executor:
            raise CampaignError(
                f"arm {record.name} was started by executor {own}, which alone can report whether it still runs; call"
                f" the campaign with executor={own} until it has ended"
            )
        if host not in ("", platform.node()) and record.is_alive(now):
            raise CampaignError(
                f"arm {record.name} runs on machine {host}; continue the campaign there, or here after it has ended"
            )


def check_store(executor: str, artifact_uri: str) -> None:
    """Check that arms on other machines can reach the store, before a machine is paid for.

    Raises:
        CampaignError: If they need a tracking server and there is none, it does not answer, or only this machine can
            reach it.
    """
    uri = tracking_uri()
    is_server = uri.startswith(("http://", "https://"))
    if executor in SHARED_STORE and not is_server:
        raise CampaignError(
            f"executor {executor} runs arms on other machines, which cannot write to a store that is a file here; set"
            " MLFLOW_TRACKING_URI to the http address of a tracking server"
        )
    if not is_server:
        return
    _ask_server(uri)
    if executor != "skypilot":
        return
    server = urlsplit(uri)
    if server.hostname in _LOOPBACK:
        raise CampaignError(
            f"the tracking server is at {server.hostname}, which on a rented machine is that machine itself; set"
            " MLFLOW_TRACKING_URI to an address that it reaches"
        )
    if uri != shown_store():
        raise CampaignError(
            "MLFLOW_TRACKING_URI holds a user or password, which would be shown in the job's description; give them as"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    is_here = "://" not in artifact_uri and not artifact_uri.startswith("mlflow-artifacts:")
    if is_here or artifact_uri.startswith("file:"):
        raise CampaignError(
            "the experiment keeps artifacts in a folder of this machine, which arms elsewhere cannot reach; start the"
            " server with --artifacts-destination and set MLFLOW_EXPERIMENT_NAME to a new experiment"
        )


def _ask_server(uri: str) -> None:
    server = urlsplit(uri)
    # urllib reads a user in an address as part of the host name.
    plain = server._replace(netloc=server.netloc.rpartition("@")[2]).geturl()
    try:
        with urllib.request.urlopen(f"{plain.rstrip('/')}/health", timeout=_CHECK_S):
            pass
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError) and error.code < 500:
            return  # It answers: a proxy that asks for a login, or a server without this page.
        reason = getattr(error, "reason", None) or error
        raise CampaignError(
            f"the tracking server at {server.hostname} does not answer ({reason}); start it, or correct"
            " MLFLOW_TRACKING_URI"
        ) from error
