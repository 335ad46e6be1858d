"""The least time of an update, by arithmetic: operations as torch counts them, bytes of tensors of known size."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.arithmetic import forward_flops, update_flops
from benchmarks.gpu.timing import shape_of
from benchmarks.gpu.updates import ARMS
from benchmarks.roofline import (
    BLOCKS,
    HEAD,
    LOSSES,
    STEP,
    STEP_BYTES,
    Part,
    bytes_moved,
    counted_update,
    one_operation,
    trainer_of,
)

SMALL = ARMS[1]


@pytest.fixture(scope="module")
def parts() -> dict[str, Part]:
    """One update of ViT-S/14 at batch 256."""
    return counted_update(trainer_of(SMALL))


def test_the_operations_of_an_update_are_those_that_torch_counts(parts: dict[str, Part]) -> None:
    trainer = trainer_of(SMALL)
    for network in (trainer.networks.student, trainer.networks.teacher):
        network.backbone.attend_plainly()  # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as witness:
        counted_update(trainer)
    assert sum(part.flops for part in parts.values()) == witness.get_total_flops()


def test_each_part_makes_the_operations_of_its_formula(parts: dict[str, Part]) -> None:
    shape, batch, views = shape_of(trainer_of(SMALL).networks.student.backbone), 256, 2
    embedding = 2 * shape.patches * shape.patch_inputs * shape.width
    # No gradient of the pixels is needed: one product less than three forward passes.
    assert parts[BLOCKS].flops == batch * views * (4 * forward_flops(shape) - embedding)
    assert parts[HEAD].flops == batch * views * 4 * 2 * 384 * (384 + 8192)
    assert parts[HEAD].fp32_flops == batch * views * 4 * 2 * 384 * 8192
    gram = batch * views * (1 + 1 + 2) * 2 * 256**2 * 384
    nearest = 2 * (batch * views) ** 2 * 8192
    assert parts[LOSSES].flops == parts[LOSSES].fp32_flops == gram + nearest
    # What MFU counts: the same but for that product of the pixels, and without the losses.
    assert (
        batch * update_flops(shape, 8192)
        == parts[BLOCKS].flops + parts[HEAD].flops + batch * views * embedding
    )


def test_bounds_follow_each_other(parts: dict[str, Part]) -> None:
    for name, part in parts.items():
        assert 0 <= part.products_s <= part.merged_s <= part.one_by_one_s, name
    assert (
        parts[STEP].bytes == (21_620_736 + 384 * 385 + 8192 * 385) * STEP_BYTES
    )  # The published parameters.


class Moved(TorchDispatchMode):
    """Bytes that the operations of a block move."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes += bytes_moved(func, args, kwargs or {}, out)
        return out


ONE, OTHER = torch.ones(3, 4), torch.ones(3, 4)
MOVES = {
    "sum": (lambda: ONE + OTHER, 3 * 48),
    "sum with one row, read once": (lambda: ONE + OTHER[:1].expand(3, 4), 3 * 48),
    "in place": (lambda: ONE.add_(OTHER), 3 * 48),
    "half precision": (lambda: ONE.bfloat16(), 48 + 24),
    "copy reads the source alone": (lambda: ONE.copy_(OTHER), 2 * 48),
    "views": (lambda: ONE.view(4, 3).transpose(0, 1)[1:].unsqueeze(0), 0),
    "zeros are written": (lambda: torch.zeros_like(ONE), 48),
    "product": (lambda: ONE @ OTHER.T, 2 * 48 + 36),
}


@pytest.mark.parametrize("move", MOVES)
def test_bytes_are_those_of_what_is_read_and_written(move: str) -> None:
    task, expected = MOVES[move]
    with Moved() as seen:
        task()
    assert seen.bytes == expected


def test_the_optimizer_and_the_moving_average_move_44_bytes_of_each_parameter() -> None:
    with FakeTensorMode():
        student, teacher = (torch.nn.Linear(64, 64, device="cuda") for _ in range(2))
        optimizer = torch.optim.AdamW(student.parameters(), fused=True)
        for parameter in student.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()  # Makes the moments.
        gradients: list[Tensor] = [one.grad for one in student.parameters() if one.grad is not None]
        with Moved() as seen, torch.no_grad():
            torch._foreach_norm(gradients)
            optimizer.step()
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.004)
    # The schema marks gradients as written too, for a scaler that is not used; counters of steps and norms are small.
    assert seen.bytes == pytest.approx((STEP_BYTES + 4) * (64 * 64 + 64), rel=0.002)


def test_an_operation_takes_its_products_or_its_bytes() -> None:
    heavy = one_operation(989e12, is_fp32=False, moved=1.0)
    assert heavy == Part(989e12, 0.0, 1.0, 1.0, 1.0, 1.0)
    assert one_operation(67e12, is_fp32=True, moved=1.0).products_s == 1.0
    assert one_operation(1.0, is_fp32=False, moved=3.35e12)[4:] == (1.0, 1.0)
    assert one_operation(0.0, is_fp32=False, moved=3.35e12)[3:] == (0.0, 0.0, 1.0)
