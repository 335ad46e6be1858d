"""The training loop: one step counter, named loss terms, and the complete state that a resumed run needs."""

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.losses.gather import mean_over_ranks, world
from models.losses.objective import Batch, Objective, Terms
from models.student_teacher import Network, ProjectionHead, StudentTeacher
from pipelines.cohort.drawn import DrawnBatch
from pipelines.runtime.distributed import choose_precision, widest_over_ranks
from pipelines.training.checkpoint import (
    Checkpoint,
    below,
    optimizer_tensors,
    refuse_other_state,
    restore_module,
    restore_optimizer,
)
from pipelines.training.config import PretrainConfig
from pipelines.training.schedule import Moment, build_optimizer, moment, set_groups
from pipelines.training.watch import Verdict, Watcher
from transforms.refusal import Refusal
from transforms.views.batch import Views
from transforms.views.resample import upload

_DROP_PATH = 1


class NonFiniteLossError(Refusal):
    """A term of the loss is NaN or infinite."""


class Trainer:
    """Student, teacher, objective and optimizer of one run, and the only code that updates them."""

    def __init__(self, config: PretrainConfig, device: torch.device, backbone: Backbone) -> None:
        """Build everything around a backbone at step 0."""
        self.config, self.device, self.step = config, device, 0
        network = Network(backbone, ProjectionHead(backbone.embed_dim, config.head), config.objective.pool)
        if config.backbone.init == "xavier":
            nn.init.xavier_uniform_(network.head.hidden.weight)
            nn.init.xavier_uniform_(network.head.last.weight)
        self.networks = StudentTeacher(network, config.gram_refresh_steps > 0).to(device)
        self.objective = Objective(config.objective, self.networks.student, config.head.prototypes).to(device)
        self.optimizer = build_optimizer([self.networks.student, self.objective], config.optim)
        self.frozen_first = [one for one in backbone.parameters() if one.requires_grad]
        self.watcher = Watcher(config.watch, config.head.prototypes, config.objective.student_temp)
        self.autocast_dtype = choose_precision(config.precision, device, backbone.embed_dim)
        if self.autocast_dtype is not None and device.type == "cpu":
            # Only the student needs gradients.
            self.networks.student.backbone.attend_plainly()
        if device.type == "cuda":
            # Matrix products are full float32 by torch's default, convolutions (the patches) are not.
            torch.backends.cudnn.allow_tf32 = self.autocast_dtype is not None
        if config.compile:
            # Local cubes are compiled for themselves: torch fails on resampled positions of an open size in 3D.
            is_dynamic = False if config.views.is_3d else None
            self.networks.student.compile(dynamic=is_dynamic)
            self.networks.teacher.compile(dynamic=is_dynamic)
        self.sums: dict[str, Tensor] = {}
        self.summed = 0
        self.scale_mm, self.slice_mm = [np.inf, 0.0], [np.inf, 0.0]
        self.waited_s = 0.0
        self.clock = time.perf_counter()

    def update(self, batches: Iterator[DrawnBatch | Views]) -> None:
        """Make one optimizer update from the next `accumulation` micro-batches."""
        now = moment(self.config.optim, self.step, self.config.steps)
        set_groups(self.optimizer, now)
        self.networks.train()
        if self.config.optim.frozen_steps:  # Without a gradient, AdamW neither moves nor decays a weight.
            for parameter in self.frozen_first:
                parameter.requires_grad_(self.step >= self.config.optim.frozen_steps)
        if self.networks.gram_teacher is not None and self.step % self.config.gram_refresh_steps == 0:
            self.networks.refresh_gram_teacher()

        # Forward and backward: the teacher sees the global views, the student every view.
        self.optimizer.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        for part in range(self.config.accumulation):
            views = self._next_views(batches)
            terms = self._forward(views, now, part)
            (terms.total / self.config.accumulation).backward()  # type: ignore[no-untyped-call]
            for name, mean in terms.center_means.items():
                means[name] = means.get(name, torch.zeros_like(mean)) + mean / self.config.accumulation
            self._note(terms, views)

        # The student is updated by its gradient, then the teacher and the centers follow.
        self._note_sums({"optim/grad_norm": self._settle_gradients()})
        self.optimizer.step()
        self.networks.update_teacher(now.ema_momentum)
        self.objective.update_centers(means)
        self.step += 1
        self.summed += 1

    def _forward(self, views: Views, now: Moment, part: int) -> Terms:
        rng = np.random.default_rng([self.config.seed, self.step, part, world()[0]])
        dtype = self.networks.student.head.last.weight.dtype
        local = views.local_views.to(self.device, dtype) if views.local_views is not None else None
        batch = Batch(views.global_views.to(self.device, dtype), local, now.teacher_temp, rng)
        if self.networks.student.backbone.takes_spacing:
            spacing_mm = upload(views.spacing_mm.numpy(), self.device).to(dtype)
            n_global = len(views.global_views)
            batch = batch._replace(spacing_mm=spacing_mm[:n_global], local_spacing_mm=spacing_mm[n_global:])
        enabled = self.autocast_dtype is not None
        if self.config.backbone.drop_path:  # torch's own draws, keyed as the masks are, from another stream.
            key = [self.config.seed, self.step, part, world()[0], _DROP_PATH]
            torch.manual_seed(int(np.random.default_rng(key).integers(2**63)))
        with torch.autocast(self.device.type, dtype=self.autocast_dtype or torch.bfloat16, enabled=enabled):
            terms: Terms = self.objective(self.networks, batch)
        return terms

    def _next_views(self, batches: Iterator[DrawnBatch | Views]) -> Views:
        start = time.perf_counter()
        batch = next(batches)
        self.waited_s += time.perf_counter() - start
        if isinstance(batch, Views):
            return batch
        return batch.render(self.device, self.config.views)

    def _settle_gradients(self) -> Tensor:
        parameters = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if world()[1] > 1:
            flat = mean_over_ranks(torch.cat([g.flatten() for g in gradients]))
            parts = torch.split(flat, [g.numel() for g in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        if self.config.optim.clip_norm:
            return nn.utils.clip_grad_norm_(parameters, self.config.optim.clip_norm)
        return nn.utils.get_total_norm(gradients)

    def _note(self, terms: Terms, views: Views) -> None:
        share = 1.0 / self.config.accumulation
        named = {"total": terms.total, **terms.named}
        self._note_sums({f"loss/{name}": term.detach() * share for name, term in named.items()})
        self._note_sums({"views/outside_body": views.outside_body.float().mean() * share})
        n_global = len(views.global_views)
        self.scale_mm = _widened(self.scale_mm, views.mm_per_pixel[:n_global])
        self.slice_mm = _widened(self.slice_mm, views.spacing_mm[:n_global, :, 0])
        self.watcher.observe(terms.seen)

    def _note_sums(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=value.device)) + value.float()

    def report(self) -> tuple[dict[str, float], Verdict]:
        """Return the means since the last report, the watcher's metrics and its verdict; then resets the means.

        Raises:
            NonFiniteLossError: If a term of the loss was not finite; no later checkpoint is written.
        """
        metrics = {name: float(mean_over_ranks(value)) / self.summed for name, value in self.sums.items()}
        self.check_finite(metrics)
        watched, verdict = self.watcher.report(self.step)
        now = moment(self.config.optim, self.step - 1, self.config.steps)
        elapsed = max(time.perf_counter() - self.clock, 1e-9)
        slices = self.summed * self.config.accumulation * self.config.batch_size
        metrics |= watched | {
            "optim/lr": now.lr,
            "optim/weight_decay": now.weight_decay,
            "perf/slices_per_s": slices / elapsed,
            "perf/data_wait": self.waited_s / elapsed,
        }
        if "center" in dict(self.objective.named_buffers()):
            metrics["teacher/center_norm"] = float(self.objective.get_buffer("center").norm())
        self.scale_mm, self.slice_mm = widest_over_ranks(self.scale_mm), widest_over_ranks(self.slice_mm)
        self.sums, self.summed, self.waited_s, self.clock = {}, 0, 0.0, time.perf_counter()
        return metrics, verdict

    def check_finite(self, metrics: dict[str, float]) -> None:
        """Raise NonFiniteLossError with the names of the terms that are not finite."""
        bad = [name for name, value in metrics.items() if not np.isfinite(value)]
        if bad:
            raise NonFiniteLossError(
                f"{', '.join(bad)} was not finite by step {self.step}; lower optim.lr or set optim.clip_norm"
            )

    def check_sums(self) -> None:
        """Raise NonFiniteLossError if a term since the last report was not finite, before such weights are used.

        Every process must call it, and all of them raise it.
        """
        self.check_finite({name: float(mean_over_ranks(value)) for name, value in self.sums.items()})

    def state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Return everything that a resumed run needs, as tensors and as plain facts; every process must call it."""
        self.check_sums()
        # Every process will resume from this one state. Sums are only used as means over processes, here and in the
        # watcher, so the means are saved: the mean of equal means is that mean. This run continues with the saved
        # values too; otherwise its later reports would differ from those of a resumed run in the last bits.
        self.sums = {name: mean_over_ranks(value) for name, value in self.sums.items()}
        watch_tensors, watch_facts = self.watcher.state()
        parts = {
            "networks": self.networks.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "watch": watch_tensors,
            "sums": self.sums,
            "rng": {"torch": torch.get_rng_state()},
        }
        tensors = {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}
        spans = {"scale_mm": widest_over_ranks(self.scale_mm), "slice_mm": widest_over_ranks(self.slice_mm)}
        return tensors, {"watch": watch_facts, "summed": self.summed} | spans

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the step of a checkpoint.

        Raises:
            CheckpointError: If it is of another architecture.
        """
        refuse_other_state(checkpoint)
        tensors, facts = checkpoint.tensors, checkpoint.facts
        restore_module(self.networks, below("networks", tensors), "network")
        restore_module(self.objective, below("objective", tensors), "objective")
        restore_optimizer(self.optimizer, below("optimizer", tensors))
        on_device = {name: t.to(self.device) for name, t in below("watch", tensors).items()}
        self.watcher.restore(on_device, facts["watch"])
        self.sums = below("sums", tensors)
        self.summed, self.scale_mm = facts["summed"], list(facts["scale_mm"])
        self.slice_mm = list(facts.get("slice_mm", self.slice_mm))  # Checkpoints from before 3D lack it.
        torch.set_rng_state(tensors["rng/torch"])
        self.step = checkpoint.step


def _widened(span: list[float], values: Tensor) -> list[float]:
    return [min(span[0], float(values.min())), max(span[1], float(values.max()))]
