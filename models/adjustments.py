"""What is set in a ViT of timm after it is built: first weights, the epsilon of its norms, stochastic depth."""

from timm.layers.drop import DropPath
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.timm_arguments import BackboneError


def init_xavier(vit: VisionTransformer | Eva) -> None:
    """Draw linear layers Xavier-uniform and positions from N(0, 0.1)."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for positions in (vit.pos_embed, getattr(vit.patch_embed, "z_pos_embed", None)):
        if positions is not None:
            nn.init.normal_(positions, std=0.1)


def set_norm_eps(backbone: nn.Module, eps: float | None) -> None:
    """Set the epsilon of all LayerNorms, in which publications of one architecture differ; None leaves timm's."""
    for module in backbone.modules():
        if eps is not None and isinstance(module, nn.LayerNorm):
            module.eps = eps


def set_drop_path(vit: nn.Module, rate: float) -> None:
    """Skip both branches of a block for a sample, in training alone, with a probability that rises from 0 to `rate`.

    Raises:
        BackboneError: If its blocks have no such branches.
    """
    blocks = list(getattr(vit, "blocks", ()))
    if not blocks or not all(hasattr(block, "drop_path1") for block in blocks):
        raise BackboneError(
            "backbone.drop_path needs blocks of attention and MLP, which this network has not"
        )
    for number, block in enumerate(blocks):
        for branch in ("drop_path1", "drop_path2"):
            setattr(block, branch, DropPath(rate * number / max(len(blocks) - 1, 1)))
