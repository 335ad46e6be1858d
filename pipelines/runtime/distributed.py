"""Several processes and their devices: process group, shared values, choice of device and precision."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from transforms.refusal import Refusal

T = TypeVar("T")


class WorldError(Refusal):
    """The requested processes or devices are not available."""


def rank() -> int:
    """Return this process's rank under torchrun; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group of torchrun, if there is one, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    # Messages that are no tensors, such as a request to stop, must not wait for a GPU.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield
    finally:
        dist.destroy_process_group()


def from_rank_zero(value: T) -> T:
    """Return rank 0's value in every process."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def done_by_rank_zero(task: Callable[[], T]) -> T:
    """Run `task` in rank 0 alone and return its value in every process.

    Raises:
        Refusal: In every process, if rank 0 raises it, so that none waits for rank 0.
    """
    value, refusal = None, None
    if rank() == 0:
        try:
            value = task()
        except Refusal as error:
            refusal = error
    value, refusal = from_rank_zero((value, refusal))
    if refusal is not None:
        raise refusal
    return cast(T, value)


def agreed_stop(code: int | None) -> int | None:
    """Return the exit code if any process was asked to stop, so that all stop after the same step."""
    if not dist.is_initialized():
        return code
    asked = torch.tensor([code or 0])
    dist.all_reduce(asked, op=dist.ReduceOp.MAX)
    return int(asked) or None


def widest_over_ranks(span: list[float]) -> list[float]:
    """Return the smallest low and the largest high of [low, high] over all processes."""
    if not dist.is_initialized():
        return span
    ends = torch.tensor([-span[0], span[1]], dtype=torch.float64)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    return [-float(ends[0]), float(ends[1])]


def device_name(device: torch.device) -> str:
    """Return the name of a GPU's model, or the kind of another device: cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_device(name: str) -> torch.device:
    """Return the device of this process; `auto` takes a GPU where there is one.

    Raises:
        WorldError: If the device does not exist.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise WorldError(f"device '{name}' is unknown; give auto, cpu or cuda") from error
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    if device.type == "cuda" and device.index not in (None, local) and here > 1:
        raise WorldError(
            f"device '{name}' would be shared by all processes; give cuda, and each takes the one of its rank"
        )
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise WorldError(
                f"device '{name}' is not on this machine; give cpu, or auto to take what is available"
            )
        torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device, embed_dim: int) -> torch.dtype | None:
    """Return the autocast type, or None for float32.

    `auto` takes bfloat16 where there are matrix units for it: on a GPU since Ampere, and on a CPU for models of ViT-S
    size and above: below that the conversions cost more than they save.
    """
    if name == "fp32":
        return None
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        # Older GPUs emulate it, slower than float32.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if device.type == "cpu" and has_units and embed_dim >= 384 else None
