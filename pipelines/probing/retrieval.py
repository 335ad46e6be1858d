"""Does a second view of a held-out slice find the first among thousands?"""

from typing import Any

import numpy as np
import pandas as pd

from models.backbone import Backbone
from pipelines.backbones.folder import LoadedBackbone, open_backbone, random_twin
from pipelines.backbones.view_retrieval import (
    Found,
    NetworkName,
    SliceSample,
    encode_views,
    retrieval_metrics,
    retrieve,
)
from pipelines.probing.config import RetrievalConfig
from pipelines.probing.figures import contact_sheet, trajectory
from pipelines.probing.folds import slices_of
from pipelines.probing.readers import ProbeError, reader_of
from pipelines.probing.setup import open_both, short_retrieval_table, tag_probe
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.items import RANKS
from pipelines.tracking.reading import artifacts
from pipelines.tracking.run import Run
from probes.retrieval import RetrievalResult
from transforms.refusal import number_of


def run_retrieval(config: RetrievalConfig, run: Run) -> None:
    """Measure retrieval of teacher, student and random weights, by class token and mean patch token."""
    cohort, loaded = open_both(config)
    reader = reader_of(loaded, cohort, cohort.series["patient_id"].to_numpy(dtype=np.str_), config.leak)
    sample, origin = slices_of(loaded, cohort, reader.tested, config.slices, config.views)
    n_patients = len(np.unique(sample.patient_ids))
    asked = f"{number_of(len(sample.rows), 'slice')} of {number_of(n_patients, 'patient')}"
    print(f"backbone {loaded.source}, {origin}; {asked}")
    tag_probe(run, cohort, loaded, reader.leak)
    found = found_by(config, sample, networks_of(loaded, config.seed))
    table = results_table(found)
    print(short_retrieval_table(table))
    run.log_metrics(retrieval_metrics(found) | {"retrieval/n_patients": float(n_patients)})
    run.log_table(table, "tables/retrieval.csv")
    run.log_table(ranks_table(sample, found), RANKS)
    run.log_figure(contact_sheet(sample, found["backbone", "class_token"]), "figures/contact_sheet.png")
    if config.checkpoints == "all":
        follow_checkpoints(config, loaded, sample, run)


def networks_of(loaded: LoadedBackbone, seed: int) -> dict[NetworkName, Backbone]:
    """Return the backbone, the student of its run where there is one, and random weights of the same architecture."""
    networks = {"backbone": loaded.backbone}
    if loaded.named_run and loaded.record.get("network") != "backbone_student":
        networks["student"] = open_backbone(f"runs:/{loaded.named_run}/backbone_student").backbone
    return networks | {"random": random_twin(loaded, seed)}


def found_by(config: RetrievalConfig, sample: SliceSample, networks: dict[NetworkName, Backbone]) -> Found:
    """Encode the slices with every network, and retrieve with each kind of token."""
    device = choose_device(config.device)
    return {
        (network, token): retrieve(sample, pair, config.adjacent_slices, config.seed, device)
        for network, by_token in encode_views(sample, networks, device).items()
        for token, pair in by_token.items()
    }


def ranks_table(sample: SliceSample, found: Found) -> pd.DataFrame:
    """Return one line per slice: the rank of its second view with the backbone and with random weights, 0 for a hit."""
    return pd.DataFrame(
        {
            "volume_id": sample.series_ids,
            "slice_index": sample.slice_index,
            "patient_id": sample.patient_ids,
            "rank": found["backbone", "class_token"].rank,
            "random_rank": found["random", "class_token"].rank,
        }
    )


def results_table(found: Found) -> pd.DataFrame:
    """Return a table with one line per network and token, each share with its interval."""
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
            line |= share.named(name)
        lines.append(line | {"ratio": one.ratio})
    return pd.DataFrame(lines)


def follow_checkpoints(
    config: RetrievalConfig, loaded: LoadedBackbone, sample: SliceSample, run: Run
) -> None:
    """Measure every backbone that the run kept, log each at its step, and draw the trajectory.

    Raises:
        ProbeError: If the backbone does not come from a run, or its run kept none.
    """
    by_step: dict[int, RetrievalResult] = {}
    for step, backbone in kept_backbones(loaded):
        one = found_by(config, sample, {"backbone": backbone})["backbone", "class_token"]
        run.log_metrics(
            {"retrieval/trajectory_top1": one.top1.value, "retrieval/trajectory_ratio": one.ratio}, step
        )
        by_step[step] = one
    run.log_figure(trajectory(list(by_step), list(by_step.values())), "figures/trajectory.png")
    lines = results_table({(str(step), "class_token"): one for step, one in by_step.items()})
    run.log_table(lines.rename(columns={"network": "step"}), "tables/trajectory.csv")


def kept_backbones(loaded: LoadedBackbone) -> list[tuple[int, Backbone]]:
    """Open every backbone that a run kept during training, by step.

    Raises:
        ProbeError: If there is none.
    """
    run_id = loaded.named_run
    if not run_id:
        raise ProbeError(f"checkpoints=all needs a run, runs:/<id>/backbone; '{loaded.source}' has no steps")
    paths = artifacts(run_id, "backbones")
    if not paths:
        raise ProbeError(
            f"run '{run_id}' kept no backbones during training; pretrain with -P keep_backbones=true"
        )
    opened = [open_backbone(f"runs:/{run_id}/{path}") for path in paths]
    return sorted(((int(one.record["steps"]), one.backbone) for one in opened), key=lambda pair: pair[0])
