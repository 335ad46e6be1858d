"""The projection head, the student, its teacher, and the only method that updates the teacher."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.config import HeadConfig, Pool
from models.losses.precision import wide


class ProjectionHead(nn.Module):
    """Linear(D, D), GELU, Linear(D, K), with biases: the article's head.

    The last layer runs in float32 under autocast too, because a softmax at temperature 0.04 turns the rounding of
    half precision into other targets.
    """

    def __init__(self, embed_dim: int, config: HeadConfig) -> None:
        """Build the two layers."""
        super().__init__()
        self.hidden = nn.Linear(embed_dim, embed_dim)
        self.act = nn.GELU()
        self.last = nn.Linear(embed_dim, config.prototypes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to float32 logits (..., K)."""
        return self.project(self.embed(tokens))

    def embed(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., D) to the input of the last layer, (..., D)."""
        embedded: Tensor = self.act(self.hidden(tokens))
        return embedded

    def project(self, embedded: Tensor) -> Tensor:
        """Map (..., D) from `embed` to float32 logits (..., K); the layer is linear, so means stay means."""
        with torch.autocast(embedded.device.type, enabled=False):
            logits: Tensor = self.last(wide(embedded))
        return logits


class Output(NamedTuple):
    """Output of a network for views: each tensor begins with (V, B)."""

    class_token: Tensor  # (V, B, D), or what is pooled in its place
    patch_tokens: Tensor  # (V, B, N, D)
    register_tokens: Tensor  # (V, B, R, D)
    logits: Tensor  # (V, B, K), float32


class Network(nn.Module):
    """A backbone with its projection head."""

    def __init__(self, backbone: Backbone, head: ProjectionHead, pool: Pool = "class_token") -> None:
        """Join the two by what the head gets."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pool = pool

    def forward(
        self,
        views: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        spacing_mm: Tensor | None = None,
    ) -> Output:
        """Encode views (V, B, ...) of triplets or cubes in one pass.

        `mask` (V, B, N) hides patches from it; `spacing_mm` (V, B, 3) is for backbones that take it.
        """
        count, batch = views.shape[:2]
        flat, told = (None if one is None else one.flatten(0, 1) for one in (mask, spacing_mm))
        tokens = self.backbone(views.flatten(0, 1), flat, mask_token, told)
        pooled = tokens.class_token
        if self.pool == "roi":
            pooled = central_mean(tokens.patch_tokens, self.backbone.grid_of(views.shape))
        return Output(
            pooled.unflatten(0, (count, batch)),
            tokens.patch_tokens.unflatten(0, (count, batch)),
            tokens.register_tokens.unflatten(0, (count, batch)),
            self.head(pooled).unflatten(0, (count, batch)),
        )


def central_mean(patch_tokens: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Average patches (B, N, D) by a Gaussian around the middle of their grid, SD an eighth of each side: (B, D)."""

    def along(side: int) -> Tensor:
        from_middle = (torch.arange(side, device=patch_tokens.device) - (side - 1) / 2) / (side / 8)
        return torch.softmax(-0.5 * from_middle.square(), dim=0)

    layers, rows, columns = (along(side) for side in grid)
    weights = (layers[:, None, None] * (rows[:, None] * columns)).flatten()
    return torch.einsum("n,bnd->bd", weights.to(patch_tokens.dtype), patch_tokens)


class StudentTeacher(nn.Module):
    """Two networks of one shape: the student learns by gradient, the teacher follows as its moving average."""

    def __init__(self, student: Network, frozen_gram_teacher: bool = False) -> None:
        """Start the teacher as a copy of the student that no gradient reaches.

        Args:
            student: The network that learns.
            frozen_gram_teacher: Keep a third network for the Gram term, an earlier teacher that `refresh_gram_teacher`
                replaces now and then, as DINOv3 does.
        """
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.gram_teacher = copy.deepcopy(self.teacher) if frozen_gram_teacher else None

    def train(self, mode: bool = True) -> "StudentTeacher":
        """Set the student's mode; the teachers stay in evaluation."""
        super().train(mode)
        self.teacher.eval()
        if self.gram_teacher is not None:
            self.gram_teacher.eval()
        return self

    def refresh_gram_teacher(self) -> None:
        """Make the frozen Gram teacher a copy of the current teacher."""
        if self.gram_teacher is not None:
            self.gram_teacher.load_state_dict(self.teacher.state_dict())

    @torch.no_grad()
    def update_teacher(self, ema_momentum: float) -> None:
        """Move every teacher tensor to momentum * teacher + (1 - momentum) * student."""
        follower: list[Tensor] = list(self.teacher.parameters())
        leader: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(follower, leader, 1.0 - ema_momentum)
