"""Stage e: the same update as a plain loop would do it, and the settings of a published figure.

The plain loop follows the arithmetic of the article's published code as `docs/glossary.md` calls it, the reference: one
forward pass per view, KoLeo on the logits of both views, Gram of all tokens but the class token, one small operation
per parameter for the moving average, and the loss read after every update. It is written here, as the peer.
"""

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.figures import Figure, found
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import Arm, emptied, peak_gb, seconds_each
from benchmarks.gpu.updates import ARMS, RATE, measured

PUBLISHED_RATE = 871.0
"""Samples a second of stable-pretraining on one H200: ViT-S/16, two views of 224 px, batch 256, bfloat16."""
PUBLISHED_LARGE_RATE = 481.0
_SHAPE_16 = (
    ("backbone.arch", "custom"),
    ("backbone.patch_px", "16"),
    ("backbone.registers", "0"),
    ("objective.gram_weight", "0"),
    ("objective.koleo_weight", "0"),
)
SMALL_16 = Arm(
    "ViT-S/16, batch 256, two views, no Gram or KoLeo",
    "vit_small",
    256,
    (*_SHAPE_16, ("backbone.embed_dim", "384"), ("backbone.depth", "12"), ("backbone.heads", "6")),
)
LARGE_16 = Arm(
    "ViT-L/16, batch 256, two views, no Gram or KoLeo, gradient checkpointing",
    "vit_large",
    256,
    (*_SHAPE_16, ("backbone.embed_dim", "1024"), ("backbone.depth", "24"), ("backbone.heads", "16")),
)


def measure(setting: Setting) -> Iterator[Figure]:
    """The plain loop at two sizes, then our loop on the published figure's settings."""
    for arm in (ARMS[1], ARMS[3]):
        emptied(setting.device)
        batch = 4 if setting.is_rehearsal else arm.batch
        try:
            step = plain_loop(arm.recipe, batch, setting)
            rate = batch / seconds_each(step, setting)
        except torch.cuda.OutOfMemoryError:
            yield Figure(f"plain loop, {arm.name}", None, "1/s", "out of memory")
            continue
        yield Figure(f"plain loop, {arm.name}", rate, "1/s", "bf16 autocast, not compiled")
        peak_gb(setting.device)
        if ours := found(setting.earlier, "c", RATE.format(arm.name)):
            yield Figure(f"ours over the plain loop, {arm.name}", ours / rate)
    for arm, published in ((SMALL_16, PUBLISHED_RATE), (LARGE_16, PUBLISHED_LARGE_RATE)):
        for figure in measured(arm, setting):
            yield figure
            if figure.name == RATE.format(arm.name) and figure.value:
                yield Figure(f"{arm.name}: over the published figure", figure.value / published)


def plain_loop(recipe: str, batch: int, setting: Setting) -> Callable[[], float]:
    """Build the peer and return its update, which returns the loss."""
    name = {"vit_small": "vit_small_patch14_reg4_dinov2", "vit_large": "vit_large_patch14_reg4_dinov2"}[
        recipe
    ]
    tiny: dict[str, Any] = {"depth": 1, "embed_dim": 32, "num_heads": 2} if setting.is_rehearsal else {}
    side = 28 if setting.is_rehearsal else 224
    torch.manual_seed(0)
    with setting.device:
        student, teacher = (
            _Plain(timm.create_model(name, img_size=side, init_values=None, num_classes=0, **tiny))
            for _ in range(2)
        )
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-4, weight_decay=0.04)
    center = torch.zeros(PROTOTYPES, device=setting.device)
    views = torch.randn(2, batch, 3, side, side, device=setting.device)

    def update() -> float:
        with torch.autocast(setting.device.type, dtype=torch.bfloat16):
            told = [student(view) for view in views]
            with torch.no_grad():
                known = [teacher(view) for view in views]
            loss = _loss(told, known, center)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.mul_(0.996).add_(fast, alpha=0.004)
            center.mul_(0.999).add_(torch.cat([one[0] for one in known]).float().mean(0), alpha=0.001)
        return float(loss)

    return update


PROTOTYPES = 8192


class _Plain(nn.Module):
    """A backbone and the article's head; returns logits and all tokens but the class token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, PROTOTYPES))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone.forward_features(view)  # type: ignore[operator]
        return self.head(tokens[:, 0]), tokens[:, 1:]


def _loss(told: list[tuple[Tensor, Tensor]], known: list[tuple[Tensor, Tensor]], center: Tensor) -> Tensor:
    terms = []
    for seen, other in ((0, 1), (1, 0)):
        target = torch.softmax((known[other][0].float() - center) / 0.04, dim=-1)
        terms.append(-(target * F.log_softmax(told[seen][0].float() / 0.1, dim=-1)).sum(-1).mean())
    logits = F.normalize(torch.cat([one[0] for one in told]).float(), dim=-1)
    distances = torch.cdist(logits, logits) + 10 * torch.eye(len(logits), device=logits.device)
    koleo = -torch.log(distances.min(dim=1).values + 1e-8).mean()
    gram = torch.stack([F.mse_loss(_gram(s[1]), _gram(t[1])) for s, t in zip(told, known, strict=True)])
    return torch.stack(terms).mean() + gram.mean() + 0.1 * koleo


def _gram(tokens: Tensor) -> Tensor:
    unit = F.normalize(tokens.float(), dim=-1)
    return unit @ unit.transpose(1, 2)
