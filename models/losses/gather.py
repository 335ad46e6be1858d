"""Batches that are spread over processes: seen whole by the terms that depend on the batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return (rank, number of processes); (0, 1) without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gather(values: Tensor, dim: int) -> Tensor:
    """Join the values of all processes along `dim`, in rank order, with gradient; unchanged in a single process."""
    if world()[1] == 1:
        return values
    shares: tuple[Tensor, ...] = _AllGather.apply(values)
    return torch.cat(shares, dim=dim)


class _AllGather(torch.autograd.Function):
    """The values of all processes; the backward pass sums the gradients of all for each."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, ...]:
        values = values.contiguous()
        shares = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(shares, values)
        return tuple(shares)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = torch.stack(gradients)
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average values over processes, without gradient; unchanged in a single process."""
    count = world()[1]
    if count == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / count


def own_share(values: Tensor, size: int) -> Tensor:
    """Return this process's part of values (V, B of all, ...) that `gather` joined along dimension 1."""
    rank = world()[0]
    return values[:, rank * size : (rank + 1) * size]
