"""The named weighted sum: which terms a recipe asks for, and their values for one batch."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.config import ObjectiveConfig
from models.losses.dino import dino_loss, sinkhorn_probabilities, teacher_probabilities
from models.losses.gather import gather, mean_over_ranks, own_share
from models.losses.gram import gram_loss
from models.losses.ibot import HiddenPatches, draw_mask, hidden_patches, ibot_loss, upload
from models.losses.koleo import koleo_loss
from models.losses.mae import MaskedDecoder, mae_gain, mae_loss, mae_target
from models.losses.precision import wide
from models.losses.simclr import nt_xent_loss
from models.student_teacher import Network, Output, ProjectionHead, StudentTeacher


class Batch(NamedTuple):
    """What one forward pass needs beside the networks."""

    global_views: Tensor  # (2, B, 3, S, S) or (2, B, 1, D, S, S), normalized
    local_views: Tensor | None  # (V, B, 3, s, s) or (V, B, 1, d, s, s)
    teacher_temp: float
    rng: np.random.Generator  # draws masks; keyed by the step, so that a resumed run draws the same
    spacing_mm: Tensor | None = None  # (2, B, 3), of the global views along z, y and x
    local_spacing_mm: Tensor | None = None  # (V, B, 3)


class Seen(NamedTuple):
    """Tensors for monitoring, without gradient."""

    teacher_probs: Tensor | None  # (Vt, B, K)
    student_logits: Tensor | None  # (Vs, B, K)
    class_token: Tensor  # (Vt, B, D), the teacher's
    gain: Tensor | None  # used where there are no prototypes to compute it from


class Terms(NamedTuple):
    """One batch's loss by name; `total` is the weighted sum that is minimized."""

    total: Tensor
    named: dict[str, Tensor]
    seen: Seen
    center_means: dict[str, Tensor]
    """Means of teacher logits, by the name of the buffer that follows them."""


class Objective(nn.Module):
    """All that is minimized, with the state (centers) and the parameters (mask token, decoder) it needs.

    `forward` changes no state; `update_centers` does, once an optimizer update.
    """

    def __init__(self, config: ObjectiveConfig, network: Network, prototypes: int) -> None:
        """Build what the chosen terms need, for networks of this shape."""
        super().__init__()
        self.config = config
        backbone = network.backbone
        if config.kind == "dino" and config.center == "ema":
            self.register_buffer("center", torch.zeros(prototypes))
        if config.ibot_weight:
            self.register_buffer("patch_center", torch.zeros(prototypes))
            self.mask_token = nn.Parameter(torch.zeros(backbone.embed_dim))
        if config.kind == "mae":
            patches = math.prod(backbone.grid_of((backbone.image_depth_px, *(backbone.image_px,) * 2)))
            voxels = (backbone.patch_depth_px or len(backbone.mean)) * backbone.patch_px**2
            self.decoder = MaskedDecoder(backbone.embed_dim, patches, voxels)

    def forward(self, networks: StudentTeacher, batch: Batch) -> Terms:
        """Compute every term: the teacher sees the global views, the student every view."""
        match self.config.kind:
            case "dino":
                return self._dino(networks, batch)
            case "simclr":
                return self._simclr(networks, batch)
            case "mae":
                return self._mae(networks, batch)

    @torch.no_grad()
    def update_centers(self, means: dict[str, Tensor]) -> None:
        """Move each center toward the mean teacher logits of an update, over all processes."""
        for name, mean in means.items():
            self.get_buffer(name).lerp_(mean_over_ranks(mean), 1.0 - self.config.center_momentum)

    def _dino(self, networks: StudentTeacher, batch: Batch) -> Terms:
        config, views, spacing_mm = self.config, batch.global_views, batch.spacing_mm
        with torch.no_grad():
            teacher = networks.teacher(views, spacing_mm=spacing_mm)
            targets = self._targets(teacher.logits, batch.teacher_temp)
        hidden = self._hide(teacher, batch.rng, networks.student.backbone.grid_of(views.shape))
        if hidden is None:
            student = networks.student(views, spacing_mm=spacing_mm)
        else:
            student = networks.student(views, hidden.mask, self.mask_token, spacing_mm)
        logits = student.logits
        if batch.local_views is not None:
            local = networks.student(batch.local_views, spacing_mm=batch.local_spacing_mm)
            logits = torch.cat([logits, local.logits])
        named = {"dino": dino_loss(logits, targets, config.student_temp)}
        means = {"center": teacher.logits.flatten(0, 1).mean(0)} if config.center == "ema" else {}
        if hidden is not None:
            codes, means["patch_center"] = self._patch_codes(networks.teacher.head, teacher, hidden, batch)
            guesses = networks.student.head(hidden.choose(student.patch_tokens))
            named["ibot"] = ibot_loss(guesses, codes, hidden.divisor, config.student_temp)
        self._align_and_spread(named, networks, student, teacher, batch)
        seen = Seen(targets, logits.detach(), teacher.class_token, None)
        return Terms(self._weigh(named), named, seen, means)

    def _simclr(self, networks: StudentTeacher, batch: Batch) -> Terms:
        student = networks.student(batch.global_views, spacing_mm=batch.spacing_mm)
        with torch.no_grad():
            teacher = networks.teacher(batch.global_views, spacing_mm=batch.spacing_mm)
        logits = gather(student.logits, dim=1)
        named = {"simclr": nt_xent_loss(logits, self.config.simclr_temp)}
        self._align_and_spread(named, networks, student, teacher, batch)
        # ln(2B - 1) - loss is the InfoNCE bound on the information between the views (arXiv:1807.03748).
        gain = math.log(2 * logits.shape[1] - 1) - named["simclr"].detach()
        return Terms(self._weigh(named), named, Seen(None, None, teacher.class_token, gain), {})

    def _mae(self, networks: StudentTeacher, batch: Batch) -> Terms:
        backbone, images = networks.student.backbone, batch.global_views.flatten(0, 1)
        spacing_mm = None if batch.spacing_mm is None else batch.spacing_mm.flatten(0, 1)
        patches = self.decoder.positions.shape[1]
        shown = max(1, round(patches * (1 - self.config.mae_mask)))
        order = np.stack([batch.rng.permutation(patches) for _ in range(len(images))])
        keep = upload(order[:, :shown].copy(), images.device)
        hidden = torch.ones(len(images), patches, dtype=torch.bool, device=images.device).scatter(
            1, keep, False
        )
        tokens = backbone.encode_visible(images, keep, spacing_mm)
        kind = self.config.mae_target
        pixels = self.decoder(tokens.patch_tokens, keep, tokens.class_token if kind == "hu" else None)
        target = mae_target(images, backbone.patch_px, kind, backbone.patch_depth_px)
        loss = mae_loss(pixels, target, hidden)
        with torch.no_grad():
            class_token = networks.teacher.backbone(images, spacing_mm=spacing_mm).class_token
        gain = mae_gain(loss.detach(), target, hidden)
        seen = Seen(None, None, class_token.unflatten(0, batch.global_views.shape[:2]), gain)
        return Terms(loss, {"mae": loss}, seen, {})

    def _targets(self, logits: Tensor, teacher_temp: float) -> Tensor:
        if self.config.center == "ema":
            return teacher_probabilities(logits, self.get_buffer("center"), teacher_temp)
        everyone = gather(logits, dim=1)
        probs = torch.stack([sinkhorn_probabilities(view, teacher_temp) for view in everyone])
        return own_share(probs, logits.shape[1])

    def _hide(
        self, teacher: Output, rng: np.random.Generator, grid: tuple[int, int, int]
    ) -> HiddenPatches | None:
        if not self.config.ibot_weight:
            return None
        views, images, patches = teacher.patch_tokens.shape[:3]
        shape, kind = (views, images, patches), self.config.ibot_mask_shape
        mask = draw_mask(shape, self.config.ibot_mask, rng, kind, grid)
        return hidden_patches(mask, teacher.patch_tokens.device)

    @torch.no_grad()
    def _patch_codes(
        self, head: ProjectionHead, teacher: Output, hidden: HiddenPatches, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """Return the teacher's codes of hidden patches, (M, K), and the mean logits of all patches, (K,).

        Logits of every patch would fill gigabytes; their mean is the projection of a mean.
        """
        embedded = head.embed(teacher.patch_tokens)
        logits = head.project(hidden.choose(embedded))
        codes = teacher_probabilities(logits, self.get_buffer("patch_center"), batch.teacher_temp)
        return codes, head.project(wide(embedded).mean((0, 1, 2)))

    def _align_and_spread(
        self,
        named: dict[str, Tensor],
        networks: StudentTeacher,
        student: Output,
        teacher: Output,
        batch: Batch,
    ) -> None:
        config = self.config
        if config.gram_weight:
            target = teacher
            if networks.gram_teacher is not None:
                with torch.no_grad():
                    target = networks.gram_teacher(batch.global_views, spacing_mm=batch.spacing_mm)
            named["gram"] = gram_loss(self._places(student), self._places(target))
        if config.koleo_weight and config.koleo_on == "head_logits":
            named["koleo"] = koleo_loss(gather(student.logits, dim=1).flatten(0, 1))
        elif config.koleo_weight:
            tokens = gather(student.class_token, dim=1)
            named["koleo"] = torch.stack([koleo_loss(view) for view in tokens]).mean()

    def _places(self, output: Output) -> Tensor:
        if self.config.gram_registers:
            return torch.cat([output.register_tokens, output.patch_tokens], dim=2)
        return output.patch_tokens

    def _weigh(self, named: dict[str, Tensor]) -> Tensor:
        weights = {
            "gram": self.config.gram_weight,
            "koleo": self.config.koleo_weight,
            "ibot": self.config.ibot_weight,
        }
        return torch.stack([weights.get(name, 1.0) * term for name, term in named.items()]).sum()
