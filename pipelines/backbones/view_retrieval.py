"""View retrieval: encode two training-style views of many slices with frozen backbones; do they find each other?

A pretraining run and the probe of its backbone both use this code and log the same metric names. They differ in the
slices: a run takes `eval_slices` of its held-out patients, inner slices only if it trains on those; the probe takes
its own `slices`, from all. With their number `retrieval/n`, top-1 falls and `retrieval/ratio`, the hits, grows.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.cohort.drawn import draw_batch
from pipelines.cohort.slices import SliceIndex
from pipelines.runtime.progress import progress
from probes.retrieval import RetrievalResult, retrieval
from transforms.views.batch import Views
from transforms.views.config import ViewConfig
from transforms.views.cubes import longest_cube_mm

NetworkName = str
"""`backbone` (the teacher of a run), `student`, or `random` for random weights of the same architecture."""
TokenName = Literal["class_token", "mean_patch"]
Tokens = dict[TokenName, NDArray[np.float32]]
Found = dict[tuple[NetworkName, TokenName], RetrievalResult]

_STEP_MM = 0.1
"""In which places of cubes are counted."""
_VIEW_SEED = 2**31 - 1
"""Fixed, so that the views of an evaluation are the same at every step and in every run."""


@dataclass(frozen=True)
class SliceSample:
    """Some slices of some patients, and the configuration of their views.

    Attributes:
        index: All slices of the patients.
        rows: Chosen slices, (N,).
        views: Two global views; local ones are not drawn.
    """

    index: SliceIndex
    rows: NDArray[np.int64]
    views: ViewConfig

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Patient of each slice, (N,)."""
        return np.array(self.index.patient_ids, dtype=np.str_)[self.index.volume[self.rows]]

    @property
    def series_ids(self) -> NDArray[np.str_]:
        """Volume of each slice, (N,)."""
        return np.array(self.index.volume_ids, dtype=np.str_)[self.index.volume[self.rows]]

    @property
    def slice_index(self) -> NDArray[np.int32]:
        """Index of each slice in its volume, (N,)."""
        return np.asarray(self.index.z[self.rows], dtype=np.int32)


def sample_slices(index: SliceIndex, views: ViewConfig, at_most: int) -> SliceSample:
    """Choose at most `at_most` slices, evenly over the volumes of an index; none if it is empty."""
    count = min(at_most, len(index))
    rows = np.linspace(0, len(index) - 1, count) if count else np.zeros(0)
    views = dataclasses.replace(views, n_local=0, local_depth_px=0, local_depth_mm=None, neighbor_slices=0)
    return SliceSample(index, rows.astype(np.int64), views)


def render_sample(sample: SliceSample, rows: NDArray[np.int64], device: torch.device) -> Views:
    """Render the two views of some slices: the same views at every call."""
    return draw_batch(sample.index, rows, sample.views, _VIEW_SEED, 0).render(device, sample.views)


def render_rows(sample: SliceSample, rows: NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Return the two views of some slices alone, (2, B, 3, S, S) or (2, B, 1, D, S, S)."""
    return render_sample(sample, rows, device).global_views


def directions_of(sample: SliceSample, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Directions in the patient (RAS) of the axes (z, y, x) of the two views that `render_sample` gives, (2, B, 3, 3).

    Views are mirrored at random, and the x axis with them: where left is cannot be seen in the view itself.
    """
    is_flipped = draw_batch(sample.index, rows, sample.views, _VIEW_SEED, 0).is_flipped[:2]
    directions = np.tile(sample.index.directions_ras(rows), (2, 1, 1, 1))
    directions[..., 2, :] *= np.where(is_flipped, -1.0, 1.0)[..., None]
    return directions


@torch.no_grad()
def encode_views(
    sample: SliceSample, backbones: Mapping[NetworkName, Backbone], device: torch.device, batch_size: int = 64
) -> dict[NetworkName, Tokens]:
    """Encode both views of every slice with every backbone, in evaluation mode; each view is rendered once.

    Returns:
        By backbone and token: (2, N, D). Apart from these, memory holds one batch.
    """
    parts: dict[NetworkName, dict[TokenName, list[torch.Tensor]]] = {
        name: {"class_token": [], "mean_patch": []} for name in backbones
    }
    was_training = {name: backbone.training for name, backbone in backbones.items()}
    networks = {name: backbone.to(device).eval() for name, backbone in backbones.items()}
    starts = range(0, len(sample.rows), batch_size)
    for start in progress(starts, desc="views", unit="batch", leave=False):
        rendered = render_sample(sample, sample.rows[start : start + batch_size], device)
        views, spacing_mm = rendered.global_views, rendered.spacing_mm.flatten(0, 1)
        for name, network in networks.items():
            tokens = network(views.flatten(0, 1), spacing_mm=spacing_mm)
            both = {"class_token": tokens.class_token, "mean_patch": tokens.patch_tokens.mean(dim=1)}
            for token, lists in parts[name].items():
                lists.append(both[token].unflatten(0, views.shape[:2]).float().cpu())
    for name, network in networks.items():
        network.train(was_training[name])
    return {
        name: {token: torch.cat(lists, dim=1).numpy() for token, lists in found.items()}
        for name, found in parts.items()
    }


def retrieve(
    sample: SliceSample,
    views: NDArray[np.float32],
    adjacent_slices: int = 2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> RetrievalResult:
    """Rank the second views by the first, (2, N, D).

    Slices are adjacent at a distance of `adjacent_slices` or less, cubes where their middles are less than the longest
    cube apart along z.
    """
    place = sample.slice_index
    if sample.views.is_3d:
        place = np.rint(place * sample.index.slice_mm[sample.index.volume[sample.rows]] / _STEP_MM)
        adjacent_slices = int(np.ceil(longest_cube_mm(sample.views) / _STEP_MM)) - 1
    places = (sample.patient_ids, sample.series_ids, place)
    return retrieval(views[0], views[1], *places, adjacent_slices, seed, device)


def retrieval_metrics(found: Found) -> dict[str, float]:
    """Return metrics named `retrieval/[<network>_][mean_patch_]<share>`; the backbone's class token has no prefix.

    Values that are not finite, such as an interval over a single patient, are left out.
    """
    metrics: dict[str, float] = {}
    for (network, token), one in found.items():
        prefix = "" if network == "backbone" else f"{network}_"
        prefix += "" if token == "class_token" else f"{token}_"
        shares = {"top1": one.top1, "top5": one.top5, "top1_not_adjacent": one.top1_not_adjacent}
        for name, share in (shares | {"same_series_top1": one.same_series_top1}).items():
            metrics |= share.named(f"retrieval/{prefix}{name}")
        metrics[f"retrieval/{prefix}ratio"] = one.ratio
        if not prefix:
            metrics |= {
                "retrieval/n": float(one.n),
                "retrieval/chance": one.chance,
                "retrieval/top1_wilson_low": one.top1_wilson.ci_low,
                "retrieval/top1_wilson_high": one.top1_wilson.ci_high,
            }
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
