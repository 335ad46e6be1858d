"""The least time that one update can take on an H100: arithmetic from published peaks, nothing here is measured.

`python -m benchmarks.roofline` prints the tables of `docs/performance.md`. The real trainer makes one update of the
real size on tensors without memory (torch's FakeTensorMode), and every operation is counted: the products that it
makes, by the table of torch's FlopCounterMode, and the bytes of the tensors that it reads and writes, each once.

Three bounds follow. Products: nothing that makes them is faster. Merged: each product and attention takes its products
or its bytes, whichever is longer, and all else is free, as if it were merged into them. One by one: every operation
moves its own bytes, which is what kernels that are not merged (no `compile`) cannot beat.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from benchmarks.gpu.arithmetic import HOPPER_BF16_FLOPS, update_flops
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import Arm, shape_of
from benchmarks.gpu.updates import ARMS
from models.losses.objective import Batch
from pipelines.training.trainer import Trainer

FP32_FLOPS = 67e12
"""Of H100 SXM a second, by NVIDIA's data sheet: what runs in float32 takes no tensor cores, since TF32 stays off."""
BANDWIDTH = 3.35e12
"""Bytes of H100 SXM a second, by the same data sheet."""
BLOCKS, HEAD, LOSSES, STEP = "blocks", "head", "losses", "optimizer and moving average"
STEP_BYTES = 4 * (7 + 3 + 1)
"""Of each parameter: AdamW reads weight, gradient and two moments and writes three of them; the moving average reads
two and writes one; the norm of the gradient reads it."""

_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"
_WRITES_ALONE = (
    "aten::empty",
    "aten::zeros",
    "aten::ones",
    "aten::new_",
    "aten::fill",
    "aten::zero_",
    "aten::full",
)
_MOVES_NOTHING = ("aten::_unsafe_view", "aten::lift_fresh", "prim::")


class Part(NamedTuple):
    """What one part of an update takes."""

    flops: float = 0.0
    fp32_flops: float = 0.0
    """Of them in float32."""
    bytes: float = 0.0
    products_s: float = 0.0
    """Least seconds of its products."""
    merged_s: float = 0.0
    """Least seconds of those operations that make products, their bytes included."""
    one_by_one_s: float = 0.0
    """Least seconds of its operations, each for itself."""

    def plus(self, other: "Part") -> "Part":
        """Both, one after the other."""
        return Part(*(a + b for a, b in zip(self, other, strict=True)))


def one_operation(flops: float, is_fp32: bool, moved: float) -> Part:
    """The least time of one operation by the peaks."""
    products_s = flops / (FP32_FLOPS if is_fp32 else HOPPER_BF16_FLOPS)
    whole_s = max(products_s, moved / BANDWIDTH)
    return Part(flops, flops * is_fp32, moved, products_s, whole_s * (flops > 0), whole_s)


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by the part of the update that makes them, in both directions."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts: dict[str, Part] = defaultdict(Part)
        self.tracker = ModuleTracker()

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        if moved := bytes_moved(func, args, kwargs or {}, out):
            flops, is_fp32 = _products(func, args, kwargs or {}, out)
            self.parts[self._part()] = self.parts[self._part()].plus(one_operation(flops, is_fp32, moved))
        return out

    def _part(self) -> str:
        inside = {name.rpartition(".")[2] for name in self.tracker.parents}
        return BLOCKS if "backbone" in inside else HEAD if "head" in inside else LOSSES


def bytes_moved(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Bytes that an operation reads and writes; 0 of one that only looks at a tensor in another shape."""
    name, returns = func.name(), func._schema.returns
    is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
    if is_view or name.startswith(_MOVES_NOTHING):
        return 0
    read = [] if name.startswith(_WRITES_ALONE) else _tensors((args, kwargs))
    if name == "aten::copy_":
        read = read[1:]
    # Operations on lists return nothing; what they write is marked among their arguments.
    marked = [arg for arg, one in zip(args, func._schema.arguments, strict=False) if one.is_write]
    return sum(map(_bytes, read)) + sum(map(_bytes, _tensors(out if returns else marked)))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """What lies in memory; an expanded tensor is read from less than its shape says."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _products(func: Any, args: Any, kwargs: Any, out: Any) -> tuple[float, bool]:
    """Operations of an operation's products, and whether they are in float32."""
    is_fp32 = any(tensor.dtype == torch.float32 for tensor in _tensors(args)[:1])
    if func.name().startswith(_ATTENTION):
        # As model FLOPs are counted: what the backward pass makes again is left out.
        backward = "backward" in func.name()
        query, key, value = args[1:4] if backward else args[:3]
        return sdpa_flop_count(query.shape, key.shape, value.shape) * (2 if backward else 1), is_fp32  # type: ignore[no-untyped-call]
    known = flop_registry.get(func._overloadpacket)
    return (float(known(*args, **kwargs, out_val=out)), is_fp32) if known else (0.0, is_fp32)


class _Step(nn.Module):
    """An update up to its gradients as one module, so that all its tensors can be replaced."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.networks, self.objective = trainer.networks, trainer.objective

    def forward(self, batch: Batch) -> None:
        # Of a CPU, where torch's autocast and backward pass run without a GPU; the casts are those of a GPU.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total: Tensor = self.objective(self.networks, batch).total
        total.backward()  # type: ignore[no-untyped-call]


def trainer_of(arm: Arm) -> Trainer:
    """The trainer of an arm, on torch's "meta" device."""
    return arm.trainer(Setting(torch.device("meta"), is_rehearsal=False, deadline=0.0, folder=Path()))


def counted_update(trainer: Trainer) -> dict[str, Part]:
    """Count one update of a trainer whose networks may be on torch's "meta" device, in bf16 as on a GPU."""
    step, size_px = _Step(trainer), trainer.config.views.size_px
    counter = Counter()
    with FakeTensorMode():
        state = {name: _empty(tensor).requires_grad_(tensor.requires_grad) for name, tensor in _named(step)}
        views = torch.empty(2, trainer.config.batch_size, 3, size_px, size_px)
        batch = Batch(views, None, 0.04, np.random.default_rng(0))
        with counter.tracker, counter:
            functional_call(step, state, (batch,))
    learned = sum(one.numel() for group in trainer.optimizer.param_groups for one in group["params"])
    step_s = learned * STEP_BYTES / BANDWIDTH  # With nothing to be merged into.
    counter.parts[STEP] = Part(bytes=learned * STEP_BYTES, merged_s=step_s, one_by_one_s=step_s)
    return dict(counter.parts)


def _named(step: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from step.named_parameters()
    yield from step.named_buffers()


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def tables(arms: tuple[Arm, ...]) -> Iterator[str]:
    """Lines of two tables in Markdown: the parts of each update, and what a GPU could reach with it."""
    yield "| network | part | TFLOP | in fp32 | GB | FLOP a byte | ms: products | merged | one by one |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    reached = []
    for arm in arms:
        trainer = trainer_of(arm)
        parts = counted_update(trainer)
        for name in (BLOCKS, HEAD, LOSSES, STEP):
            yield _row(arm.name, name, parts[name])
        whole = reduce(Part.plus, parts.values())
        yield _row(arm.name, "**update**", whole)
        reached.append(_reached(arm.name, trainer, whole))
    yield ""
    yield "| network | samples a second at most: products | merged | one by one | MFU | merged | one by one |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from reached


def _row(network: str, part: str, one: Part) -> str:
    times = (f"{seconds * 1e3:.3g}" for seconds in one[3:])
    counts = (f"{one.flops / 1e12:.3g}", f"{one.fp32_flops / 1e12:.2g}", f"{one.bytes / 1e9:.3g}")
    return f"| {' | '.join((network, part, *counts, f'{one.flops / one.bytes:.0f}', *times))} |"


def _reached(network: str, trainer: Trainer, whole: Part) -> str:
    model = update_flops(shape_of(trainer.networks.student.backbone), trainer.config.head.prototypes)
    rates = [trainer.config.batch_size / seconds for seconds in whole[3:]]
    shares = (f"{rate * model / HOPPER_BF16_FLOPS:.0%}" for rate in rates)
    return f"| {' | '.join((network, *(f'{rate:.0f}' for rate in rates), *shares))} |"


if __name__ == "__main__":
    for line in tables(ARMS[:4]):
        print(line, flush=True)
