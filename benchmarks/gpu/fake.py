"""Forward passes on a GPU that is not there: shapes, types and devices are followed, nothing is computed.

torch's FakeTensorMode finds a tensor that was left on the CPU, or a type that two operands do not share. Networks are
built outside and stand in with empty tensors; autocast to bfloat16 and the backward pass are not rehearsed by it.
"""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.networks import ARMS as NETWORKS
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.updates import ARMS
from models.losses.objective import Batch
from pipelines.training.trainer import Trainer


def measure(setting: Setting) -> Iterator[Figure]:
    """One forward pass of every objective's networks and terms on "cuda"."""
    for arm in (ARMS[0], ARMS[2], NETWORKS[0], NETWORKS[2]):
        trainer = arm.trainer(setting)
        loss = forward_on_cuda(trainer)
        yield Figure(f"forward pass on a fake GPU, {arm.name}", float(loss.ndim == 0), "", str(loss.device))


def forward_on_cuda(trainer: Trainer) -> Tensor:
    """Return the fake loss of one batch.

    Raises:
        RuntimeError: If two tensors are on different devices or of shapes that do not fit.
    """
    step = _Step(trainer)
    views, batch = trainer.config.views, trainer.config.batch_size
    # FakeTensorMode knows no pinned memory.
    with FakeTensorMode(), patch.object(Tensor, "pin_memory", lambda tensor: tensor):
        state = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            for name, tensor in (*step.named_parameters(), *step.named_buffers())
        }

        def empty(count: int, side: int, depth: int) -> Tensor:
            shape = (1, depth, side, side) if views.is_3d else (3, side, side)
            return torch.empty(count, batch, *shape, device="cuda")

        local = empty(views.n_local, views.local_size_px, views.local_depth_px) if views.n_local else None
        given = Batch(empty(2, views.size_px, views.depth_px), local, 0.04, np.random.default_rng(0))
        loss: Tensor = functional_call(step, state, (given,))
    return loss


class _Step(nn.Module):
    """The networks and the objective as one module, so that all their tensors can be replaced."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.networks, self.objective = trainer.networks, trainer.objective

    def forward(self, batch: Batch) -> Tensor:
        total: Tensor = self.objective(self.networks, batch).total
        return total
