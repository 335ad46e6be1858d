"""Does a second view of a held-out slice find the first among thousands?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.backbone import Backbone
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone, random_twin
from pipelines.cohort.folder import Cohort
from pipelines.cohort.kind import cohort_kind
from pipelines.ingest.default_cohort import ensure_cohort
from pipelines.probing.config import RetrievalConfig
from pipelines.probing.retrieval_figures import contact_sheet, trajectory
from pipelines.probing.view_tokens import (
    SliceSample,
    Tokens,
    encode_views,
    patients_to_test,
    sample_slices,
    training_views,
)
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from pipelines.tracking.store import client
from probes.retrieval import RetrievalResult, retrieval


def run_retrieval(config: RetrievalConfig, run: Run) -> None:
    """Measure retrieval of teacher, student and random weights, by class token and mean patch token."""
    ensure_cohort(Path(config.cohort))
    cohort = Cohort.open(Path(config.cohort))
    loaded = open_backbone(chosen_backbone(config.backbone))
    patients, leak = patients_to_test(loaded, cohort, config.leak)
    views, origin = training_views(loaded)
    sample = sample_slices(cohort, patients, views, config.slices)
    n_patients = len(np.unique(sample.patient_ids))
    print(f"backbone {loaded.source}, {origin}; {len(sample.rows)} slices of {n_patients} patients")
    _tag(run, loaded, cohort, leak)

    device = choose_device(config.device)
    tokens = encode_views(sample, networks_of(loaded, config.seed), device)
    found = {
        (network, token): retrieve(config, sample, pair)
        for network, by_token in tokens.items()
        for token, pair in by_token.items()
    }
    table = results_table(found)
    print(short_table(table))
    run.log_metrics(metrics_of(found) | {"retrieval/n_patients": float(n_patients)})
    run.log_table(table, "tables/retrieval.csv")
    run.log_figure(contact_sheet(sample, found["backbone", "class_token"]), "figures/contact_sheet.png")
    if config.checkpoints == "all":
        follow_checkpoints(config, loaded, sample, device, run)


def networks_of(loaded: LoadedBackbone, seed: int) -> dict[str, Backbone]:
    """Return the backbone, the student of its run where there is one, and random weights of the same architecture."""
    networks = {"backbone": loaded.backbone}
    if loaded.source.startswith("runs:/") and loaded.record.get("network") != "backbone_student":
        run_id = loaded.source.removeprefix("runs:/").partition("/")[0]
        networks["student"] = open_backbone(f"runs:/{run_id}/backbone_student").backbone
    return networks | {"random": random_twin(loaded, seed)}


def retrieve(config: RetrievalConfig, sample: SliceSample, pair: Any) -> RetrievalResult:
    """Rank the second views, pair[1], by the first, pair[0]."""
    return retrieval(
        pair[0],
        pair[1],
        sample.patient_ids,
        sample.series_ids,
        sample.slice_index,
        config.adjacent_slices,
        config.seed,
        choose_device(config.device),
    )


def results_table(found: dict[tuple[str, Any], RetrievalResult]) -> pd.DataFrame:
    """One line per network and token, each share with its interval."""
    lines = []
    for (network, token), one in found.items():
        line: dict[str, Any] = {"network": network, "token": token, "n": one.n, "chance": one.chance}
        shares = {
            "top1": one.top1,
            "top1_wilson": one.top1_wilson,
            "top5": one.top5,
            "top1_not_adjacent": one.top1_not_adjacent,
            "same_series_top1": one.same_series_top1,
        }
        for name, share in shares.items():
            line |= {name: share.value, f"{name}_ci_low": share.ci_low, f"{name}_ci_high": share.ci_high}
        lines.append(line | {"ratio": one.ratio})
    return pd.DataFrame(lines)


def short_table(table: pd.DataFrame) -> str:
    """Return the table as text: top-1 with its interval over patients, and the shares beside it."""
    heads = ("network", "token", "top-1 [95% over patients]", "top-5", "hits", "not adjacent", "same series")
    lines = ["{:9} {:12} {:27} {:>6} {:>5}  {:12}  {:11}".format(*heads).rstrip()]
    for row in table.to_dict("records"):
        top1 = f"{row['top1']:.3f} [{row['top1_ci_low']:.3f}, {row['top1_ci_high']:.3f}]"
        lines.append(
            f"{row['network']:9} {row['token']:12} {top1:27} {row['top5']:6.3f} {row['ratio']:5.0f}"
            f"  {row['top1_not_adjacent']:12.3f}  {row['same_series_top1']:11.3f}"
        )
    return "\n".join(lines)


def metrics_of(found: dict[tuple[str, Any], RetrievalResult]) -> dict[str, float]:
    """The numbers that runs are compared by; the class token of the backbone has no prefix."""
    metrics: dict[str, float] = {}
    for (network, token), one in found.items():
        prefix = "" if network == "backbone" else f"{network}_"
        prefix += "" if token == "class_token" else f"{token}_"
        shares = {"top1": one.top1, "top5": one.top5, "top1_not_adjacent": one.top1_not_adjacent}
        for name, share in (shares | {"same_series_top1": one.same_series_top1}).items():
            metrics |= {
                f"retrieval/{prefix}{name}": share.value,
                f"retrieval/{prefix}{name}_ci_low": share.ci_low,
                f"retrieval/{prefix}{name}_ci_high": share.ci_high,
            }
        metrics[f"retrieval/{prefix}ratio"] = one.ratio
    first = found["backbone", "class_token"]
    metrics |= {"retrieval/n": float(first.n), "retrieval/chance": first.chance}
    metrics |= {"retrieval/top1_wilson_low": first.top1_wilson.ci_low}
    metrics |= {"retrieval/top1_wilson_high": first.top1_wilson.ci_high}
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def follow_checkpoints(
    config: RetrievalConfig, loaded: LoadedBackbone, sample: SliceSample, device: torch.device, run: Run
) -> None:
    """Measure every backbone that the run kept, log each at its step, and draw the trajectory.

    Raises:
        ValueError: If the backbone is no run's, or its run kept none.
    """
    steps, results = [], []
    for step, backbone in kept_backbones(loaded):
        tokens: Tokens = encode_views(sample, {"backbone": backbone}, device)["backbone"]
        one = retrieve(config, sample, tokens["class_token"])
        run.log_metrics(
            {"retrieval/trajectory_top1": one.top1.value, "retrieval/trajectory_ratio": one.ratio}, step
        )
        steps.append(step)
        results.append(one)
    figure = trajectory(steps, results)
    run.log_figure(figure, "figures/trajectory.png")
    lines = results_table({(str(step), "class_token"): one for step, one in zip(steps, results, strict=True)})
    run.log_table(lines.rename(columns={"network": "step"}), "tables/trajectory.csv")


def kept_backbones(loaded: LoadedBackbone) -> list[tuple[int, Backbone]]:
    """Open every backbone that a run kept on its way, by step.

    Raises:
        ValueError: If there is none.
    """
    if not loaded.source.startswith("runs:/"):
        raise ValueError(f"checkpoints=all needs a run, runs:/<id>/backbone; '{loaded.source}' has no steps")
    run_id = loaded.source.removeprefix("runs:/").partition("/")[0]
    paths = [file.path for file in client().list_artifacts(run_id, "backbones") if file.is_dir]
    if not paths:
        raise ValueError(f"run '{run_id}' kept no backbone on its way; pretrain with -P keep_backbones=true")
    opened = [open_backbone(f"runs:/{run_id}/{path}") for path in paths]
    return sorted(((int(one.record["steps"]), one.backbone) for one in opened), key=lambda pair: pair[0])


def _tag(run: Run, loaded: LoadedBackbone, cohort: Cohort, leak: str) -> None:
    tags = {
        Tag.COHORT_SHA: cohort.sha256,
        Tag.COHORT_KIND: cohort_kind(cohort),
        Tag.PROBED: loaded.source,
        Tag.PROBED_RUN: loaded.run_id,
        Tag.BACKBONE_SHA: loaded.sha256,
    }
    if leak:
        tags[Tag.LEAK] = leak
        print(f"leak ({leak}): the backbone may have seen patients that are tested here")
    run.set_tags(tags)
