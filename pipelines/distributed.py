"""Several processes: relaunch under torchrun, join the process group, choose the device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def relaunch_if_asked(module: str) -> None:
    """With `--nproc N`, N > 1, on the command line: run `python -m module` under torchrun and exit with its code."""
    words = sys.argv[1:]
    if "RANK" in os.environ or "--nproc" not in words[:-1]:
        return
    nproc = words[words.index("--nproc") + 1]
    if not nproc.isdigit() or int(nproc) < 2:
        return
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", nproc]
    sys.exit(subprocess.call([*torchrun, "-m", module, *words]))


def rank() -> int:
    """Return this process's rank under torchrun; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun announces, if any, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
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


def choose_device(name: str) -> torch.device:
    """Return the device that a recipe names; `auto` takes a GPU where there is one.

    Raises:
        ValueError: If the named device is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device '{name}' is unknown; give auto, cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device '{name}' is not on this machine; give cpu, or auto to take what is there"
            )
        torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device, embed_dim: int) -> torch.dtype | None:
    """Return the autocast type, or None for float32.

    `auto` takes bfloat16 on a GPU, and on a CPU with bfloat16 matrix units for models of ViT-S size and above: below
    that the conversions cost more than they save.
    """
    if name == "fp32":
        return None
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if device.type == "cpu" and has_units and embed_dim >= 384 else None
