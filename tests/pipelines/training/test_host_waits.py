"""Between two reports the host never waits for the device: no update reads a value of it, for any objective.

The device is torch's "meta": it has shapes and types but no values, so nothing can be read from it. The whole update
runs: views rendered, both networks, backward pass, optimizer, moving average, sums. Unlike tests marked `gpu` it runs
everywhere; what it cannot show is autocast, and the fused AdamW, which is stepped on fake CUDA tensors instead.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.backbone import build_backbone
from pipelines.cohort.drawn import DrawnBatch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.command.config import load_recipe
from pipelines.training.config import OptimConfig, PretrainConfig
from pipelines.training.loader import BatchPlan, MicroBatches
from pipelines.training.schedule import build_optimizer, moment, set_groups
from pipelines.training.trainer import Trainer

DEVICE = torch.device("meta")
TINY = {
    "steps": 6,
    "batch_size": 4,
    "precision": "fp32",
    "backbone": {"arch": "custom", "depth": 2, "embed_dim": 32, "heads": 2, "patch_px": 14, "image_px": 28},
    "head": {"prototypes": 32},
    "objective": {"gram_weight": 0.0, "koleo_weight": 0.0},
    "views": {"size_px": 28},
    "optim": {"warmup_steps": 0},
}
BOTH = {"objective.gram_weight": 1.0, "objective.koleo_weight": 0.1}
CUBES = {
    "views": {"size_px": 16, "depth_px": 16, "extent": "mm", "fov_mm": [12.0, 24.0], "n_local": 1}
    | {"local_size_px": 8, "local_depth_px": 8, "local_fov_mm": [6.0, 12.0]},
    "backbone": {"patch_px": 8, "image_px": 16, "image_depth_px": 16, "spacing": "tokens"},
}
ARMS: dict[str, dict[str, Any]] = {
    "dino": {},
    "dino, gram": {"objective.gram_weight": 1.0},
    "dino, koleo on logits": {"objective.koleo_weight": 0.1, "objective.koleo_on": "head_logits"},
    "dino, koleo on class token": {"objective.koleo_weight": 0.1, "objective.koleo_on": "class_token"},
    "sinkhorn, clipped, jittered, drop path, checkpointed, two parts": BOTH
    | {"objective.center": "sinkhorn", "optim.clip_norm": 1.0, "accumulation": 2, "backbone.drop_path": 0.1}
    | {"backbone.grad_checkpointing": True}
    | {"views.color_jitter": [0.2, 0.2], "views.gaussian_blur": [0.1, 2.0]},
    "ibot in blocks, local views, frozen gram": BOTH
    | {"objective.ibot_weight": 1.0, "objective.ibot_mask_shape": "blocks", "gram_refresh_steps": 1}
    | {"views.n_local": 2, "views.local_size_px": 14},
    "simclr, gram": {"objective.kind": "simclr", "objective.gram_weight": 1.0},
    "mae": {"objective.kind": "mae"},
    "mae in HU": {"objective.kind": "mae", "objective.mae_target": "hu", "views.window.policy": "full"},
    "cubes that are told their mm": BOTH | CUBES,
}
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class WaitError(AssertionError):
    """The host would wait for the device here."""


class NoWaits(TorchDispatchMode):
    """Refuses every operation for which the host waits for the device.

    Reading a value, an output whose shape depends on values, an index that is a mask or lies on the host, and copies:
    to the host, or to the device unless from pinned memory and without waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []  # Kept, so that no later tensor takes their memory.
        self.operations = 0

    def pin(self, host: Tensor) -> Tensor:
        """Stand in for `Tensor.pin_memory`, which needs an accelerator."""
        self.pinned.append(host)
        return host

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name, on_device = func.name(), [tensor for tensor in tensors if tensor.is_meta]
        self.operations += bool(on_device)
        if name in ("aten::_to_copy", "aten::copy_"):
            is_new = name == "aten::_to_copy"
            source, target = (
                (args[0], kwargs.get("device", args[0].device)) if is_new else (args[1], args[0].device)
            )
            dtype = kwargs.get("dtype") or (source.dtype if is_new else args[0].dtype)
            waits = not (kwargs.get("non_blocking") or (not is_new and args[2:] == (True,)))
            if source.device.type != target.type and (
                source.is_meta or waits or not self._is_pinned(source, dtype)
            ):
                raise WaitError(
                    f"{name} from {source.device} to {target}, {source.dtype}, {tuple(source.shape)}"
                )
        elif name.startswith(("aten::index.", "aten::index_put")):
            chosen = [one for one in tree_leaves(args[1]) if isinstance(one, Tensor)]
            if on_device and any(one.dtype in (torch.bool, torch.uint8) or not one.is_meta for one in chosen):
                raise WaitError(name)
        elif on_device and READS & set(func.tags):
            raise WaitError(name)
        return func(*args, **kwargs)

    def _is_pinned(self, source: Tensor, dtype: torch.dtype) -> bool:
        """Whether the copy reads pinned memory; what changes its type on the way goes through other memory."""
        at = source.untyped_storage().data_ptr()
        return source.dtype == dtype and any(one.untyped_storage().data_ptr() == at for one in self.pinned)


class NoConstants(TorchFunctionMode):
    """Refuses numbers that are made on the host and copied: dispatch does not see these on a device without memory."""

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor) and made.is_meta:
            raise WaitError(f"{func.__name__} of {args[-1]}")
        return made


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> NoWaits:
    """The mode, with what torch lacks for "meta" put in its place."""
    mode, autocast = NoWaits(), torch.autocast

    def none_on_meta(device: str, **settings: Any) -> Any:
        return nullcontext() if device == "meta" else autocast(device, **settings)

    monkeypatch.setattr(torch, "autocast", none_on_meta)
    monkeypatch.setattr(Tensor, "pin_memory", lambda host: mode.pin(host))
    return mode


def trainer_of(overrides: dict[str, Any]) -> Trainer:
    flat = [
        (f"{key}.{name}", inner)
        for key, own in overrides.items()
        if isinstance(own, dict)
        for name, inner in own.items()
    ]
    flat += [(key, own) for key, own in overrides.items() if not isinstance(own, dict)]
    config = load_recipe(PretrainConfig, TINY, [(key, str(value).lower()) for key, value in flat])
    return Trainer(config, DEVICE, build_backbone(config.backbone))


def batches_for(trainer: Trainer, cohort: Cohort) -> Iterator[DrawnBatch]:
    """Raw voxels as the loader gives them to a run on a device: pinned."""
    config = trainer.config
    index = SliceIndex(cohort, set(cohort.series["patient_id"]), views=config.views)
    plan = BatchPlan(len(index), config.batch_size, config.accumulation, config.seed)
    data = MicroBatches(index, plan, config.views, config.seed, render=False)
    for micro in range(config.steps * config.accumulation):
        batch = data[micro]
        assert isinstance(batch, DrawnBatch)
        yield batch._replace(voxels=batch.voxels.pin_memory())


@pytest.mark.parametrize("arm", ARMS)
def test_an_update_reads_nothing_of_the_device(arm: str, small_cohort: Cohort, watched: NoWaits) -> None:
    trainer = trainer_of(ARMS[arm])
    batches = batches_for(trainer, small_cohort)
    with watched, NoConstants():
        for _ in range(2):
            trainer.update(batches)
    assert trainer.step == 2
    assert watched.operations > 500, "the modes saw the update"
    assert all(one.grad is not None for one in trainer.networks.student.backbone.parameters())
    with watched, pytest.raises(WaitError, match="_local_scalar_dense"):
        trainer.report()  # What logs does read: the refusal is awake.


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda one: one.sum().item(),
    "float": lambda one: float(one.sum()),
    "if": lambda one: 1 if one.isfinite().all() else 0,
    "copy to the host": lambda one: one.detach().cpu(),
    "list": lambda one: one.detach().tolist(),
    "nonzero": lambda one: one.nonzero(),
    "mask": lambda one: one[one > 0],
    "written by mask": lambda one: one.detach().clone().__setitem__(one > 0, 0.0),
    "index of the host": lambda one: one[torch.arange(1)],
    "repeat by count": lambda one: torch.repeat_interleave(one.flatten().long()),
    "equal": lambda one: torch.equal(one, one),
    "upload that waits": lambda one: torch.ones(2).pin_memory().to(one.device),
    "upload that is not pinned": lambda one: torch.ones(2).to(one.device, non_blocking=True),
    "upload that changes its type": lambda one: (
        torch.ones(2).pin_memory().to(one.device, torch.float64, non_blocking=True)
    ),
    "written from the host": lambda one: torch.empty_like(one).copy_(torch.ones(one.shape)),
    "constant": lambda one: torch.tensor([0.5], device=one.device),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_wait_is_found_in_the_forward_pass(
    plant: str, small_cohort: Cohort, watched: NoWaits
) -> None:
    trainer = trainer_of(ARMS["dino"])
    trainer.objective.register_forward_hook(
        lambda _, __, terms: (PLANTED[plant](terms.seen.class_token), None)[1]
    )
    with watched, NoConstants(), pytest.raises(WaitError):
        trainer.update(batches_for(trainer, small_cohort))


def test_a_planted_wait_is_found_in_the_backward_pass(small_cohort: Cohort, watched: NoWaits) -> None:
    trainer = trainer_of(ARMS["dino"])
    trainer.networks.student.head.last.weight.register_hook(
        lambda gradient: gradient / gradient.norm().item()
    )
    with watched, pytest.raises(WaitError, match="_local_scalar_dense"):
        trainer.update(batches_for(trainer, small_cohort))


def test_adamw_is_fused_on_a_gpu_and_reads_nothing_of_it() -> None:
    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Names():  # A value that is read has none here, and raises.
        layer = torch.nn.Linear(4, 4, device="cuda")
        config = OptimConfig()
        optimizer = build_optimizer([layer], config)
        for step in range(2):
            set_groups(optimizer, moment(config, step, 2))
            for parameter in layer.parameters():
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
    assert seen.count("aten::_fused_adamw_") == 4, "two groups, twice"
