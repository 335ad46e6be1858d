"""Stage b: what the card can do at most, as a copy and as a product in bfloat16."""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import seconds_each

PRODUCT = "bf16 product of 8192 x 8192 x 8192"


def measure(setting: Setting) -> Iterator[Figure]:
    """Copy memory to memory, and multiply random matrices: zeros would be faster than any real data."""
    device = setting.device
    size = 2**16 if setting.is_rehearsal else 2**31
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / seconds_each(partial(target.copy_, source), setting)
    yield Figure("copy on the card", copied / 1e12, "TB/s", "bytes read and written")
    side = 64 if setting.is_rehearsal else 8192
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(side, side, generator=generator, device=device, dtype=torch.float32).bfloat16()
        for _ in range(2)
    )
    flops = 2 * side**3 / seconds_each(partial(torch.matmul, a, b), setting)
    yield Figure(PRODUCT, flops / 1e12, "TFLOP/s", "random data")
