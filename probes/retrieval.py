"""View retrieval: does a second view of a slice lie nearest to the first, among all other slices?"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from probes.statistics.bootstrap import mean_with_interval
from probes.statistics.checks import Floats, Ints, TooFewError, UnmeasurableError, finite_features
from probes.statistics.estimate import Estimate, wilson_interval

_CHUNK = 1024  # queries at a time: memory grows with N, never with N squared


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalResult:
    """Retrieval in one direction: each query against all keys.

    Attributes:
        n: Number of queries and of keys.
        chance: Top-1 of guessing, 1 / n.
        top1: Share of queries whose own key is nearest; interval over patients.
        top1_wilson: The same share with the interval for independent queries, which neighboring slices are not.
        top5: Share of queries whose own key is among the nearest five; interval over patients.
        ratio: top1 / chance, that is, the number of hits; it grows with n.
        top1_not_adjacent: As top1, with overlapping slices of the same series taken out of the keys.
        same_series_top1: Share of queries whose nearest key is of their own series, whichever slice.
        rank: Place of each query's own key, 0 for a hit, (n,).
        nearest: Row of each query's nearest key, (n,).
    """

    n: int
    chance: float
    top1: Estimate
    top1_wilson: Estimate
    top5: Estimate
    ratio: float
    top1_not_adjacent: Estimate
    same_series_top1: Estimate
    rank: Ints
    nearest: Ints


def retrieval(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    patient_ids: npt.ArrayLike,
    series_ids: npt.ArrayLike,
    slice_index: npt.ArrayLike,
    adjacent_slices: int = 2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> RetrievalResult:
    """Rank all keys by cosine for each query, in one direction: views `query` against views `key`.

    A tie with another key counts as a miss, so that a collapsed network scores 0 and not 1. Intervals over patients
    keep the keys and draw the queries; with a single patient their bounds are NaN.

    Args:
        query: First view of each slice, (N, D); normalized here.
        key: Second view of the same slices in the same order, (N, D).
        patient_ids: Patient of each slice, (N,).
        series_ids: Series of each slice, (N,).
        slice_index: Place of each slice in its series, (N,).
        adjacent_slices: Slices of one series this far apart or less are adjacent; 2 is where triplets overlap.
        seed: Of the bootstrap.
        device: Where to multiply.

    Raises:
        UnmeasurableError: If there are fewer than two slices, or features are not finite or all zero.
        ValueError: If the arrays do not match.
    """
    queries, keys = _unit(query), _unit(key)
    n = len(queries)
    patients, series, place = np.asarray(patient_ids), np.asarray(series_ids), np.asarray(slice_index)
    if n < 2:
        raise TooFewError(f"retrieval needs at least 2 slices, got {n}")
    if keys.shape != queries.shape or not n == len(patients) == len(series) == len(place):
        raise ValueError(
            f"retrieval needs two views, a patient, a series and a place of each slice, got views of shapes "
            f"{tuple(queries.shape)} and {tuple(keys.shape)}, {len(patients)} patients, {len(series)} series and "
            f"{len(place)} places"
        )
    ranks, ranks_apart, found = _rank(queries, keys, series, place, adjacent_slices, torch.device(device))
    n_hits = int((ranks == 0).sum())
    return RetrievalResult(
        n=n,
        chance=1 / n,
        top1=_share(ranks == 0, patients, seed),
        top1_wilson=wilson_interval(n_hits, n),
        top5=_share(ranks < 5, patients, seed),
        ratio=float(n_hits),
        top1_not_adjacent=_share(ranks_apart == 0, patients, seed),
        same_series_top1=_share(series[found] == series, patients, seed),
        rank=ranks,
        nearest=found,
    )


def _rank(
    queries: Tensor,
    keys: Tensor,
    series: npt.NDArray[np.generic],
    place: npt.NDArray[np.generic],
    adjacent_slices: int,
    device: torch.device,
) -> tuple[Ints, Ints, Ints]:
    """Rank of each query's own key, the same without adjacent keys, and the row of the nearest key: (N,) each."""
    n = len(queries)
    series_code = torch.from_numpy(np.unique(series, return_inverse=True)[1]).to(device)
    slices = torch.from_numpy(place.astype(np.int64)).to(device)
    keys = keys.to(device)
    rank, rank_apart, nearest = (torch.empty(n, dtype=torch.int64) for _ in range(3))
    for first in range(0, n, _CHUNK):
        rows = torch.arange(first, min(first + _CHUNK, n), device=device)
        cosine = queries[first : first + _CHUNK].to(device) @ keys.T
        own = cosine.gather(1, rows[:, None])
        cosine.scatter_(1, rows[:, None], -torch.inf)
        best = torch.where(cosine.amax(dim=1) >= own[:, 0], cosine.argmax(dim=1), rows)
        rank[first : first + _CHUNK] = (cosine >= own).sum(dim=1).cpu()
        nearest[first : first + _CHUNK] = best.cpu()
        is_same_series = series_code[rows][:, None] == series_code
        cosine[is_same_series & ((slices[rows][:, None] - slices).abs() <= adjacent_slices)] = -torch.inf
        rank_apart[first : first + _CHUNK] = (cosine >= own).sum(dim=1).cpu()
    return rank.numpy(), rank_apart.numpy(), nearest.numpy()


def _unit(features: npt.ArrayLike) -> Tensor:
    rows: Floats = finite_features(features)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    if (norm == 0).any():
        raise UnmeasurableError(
            f"{int((norm == 0).sum())} of {len(rows)} features are all zero and have no direction"
        )
    return torch.from_numpy((rows / norm).astype(np.float32))


def _share(hit: npt.NDArray[np.bool_], patients: npt.NDArray[np.generic], seed: int) -> Estimate:
    if np.unique(patients).size == 1:
        return Estimate(float(hit.mean()), float("nan"), float("nan"))
    return mean_with_interval(hit, patients, seed=seed)
