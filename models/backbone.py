"""Vision transformers, and ConvNeXt for probes, through timm: class token and patch tokens of a batch of views."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_keep_indices_nlc
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models.adjustments import init_xavier, set_drop_path, set_norm_eps
from models.config import BackboneConfig
from models.stem import WhitenedStem
from models.timm_arguments import (
    BackboneError as BackboneError,
    input_arguments,
    refuse_leads,
    refuse_other_arguments,
)
from models.volume import CubeEmbed, extend, place_layers

# The article's backbones are timm's DINOv2 shapes with four registers and without LayerScale.
_ARTICLE = {"vit_small": "vit_small_patch14_reg4_dinov2", "vit_large": "vit_large_patch14_reg4_dinov2"}

_ATTENTIONS = (Attention, AttentionRope, EvaAttention)
ViT = VisionTransformer | Eva
"""timm's ViTs with learned positions, and those of DINOv3, EVA and others whose attention turns with the position."""

_NEITHER = "timm model '{}' is no vision transformer with a class token, nor a ConvNeXt; name one that is"


class Tokens(NamedTuple):
    """Output of a backbone for a batch, after the final norm."""

    class_token: Tensor  # (B, D)
    patch_tokens: Tensor  # (B, N, D), layers of patches first, then rows
    register_tokens: Tensor  # (B, R, D): scratch space of the network, not places in the image


class Backbone(nn.Module):
    """A timm vision transformer that returns its class token and its patch tokens, never its registers.

    Attributes:
        patch_px, image_px: In the plane.
        patch_depth_px, image_depth_px: Along z, of a network that reads cubes (B, 1, D, S, S); 0 of one that reads
            triplets (B, 3, S, S).
        takes_spacing: Whether it must be told the mm per voxel of what it reads.
        mean, std: Normalization of gray values in [0, 1], per channel. timm's for the name, ImageNet's without one,
            their means for cubes; code that trains or opens weights with other values sets them.
    """

    def __init__(self, vit: ViT) -> None:
        """Wrap a timm model; its classifier, if any, is dropped."""
        super().__init__()
        self._wrap(vit, vit.embed_dim, vit.patch_embed.patch_size[0], vit.patch_embed.img_size[0])

    def _wrap(self, vit: Any, embed_dim: int, patch_px: int, image_px: int) -> None:
        vit.reset_classifier(0)
        self.vit = vit
        self.embed_dim, self.patch_px, self.image_px = int(embed_dim), int(patch_px), int(image_px)
        stated: dict[str, Any] = getattr(vit, "pretrained_cfg", None) or {}
        self.mean: tuple[float, ...] = tuple(stated.get("mean", IMAGENET_DEFAULT_MEAN))
        self.std: tuple[float, ...] = tuple(stated.get("std", IMAGENET_DEFAULT_STD))
        self.image_depth_px = self.patch_depth_px = 0
        cubes = getattr(vit, "patch_embed", None)
        if isinstance(cubes, CubeEmbed):
            self.image_depth_px, self.patch_depth_px = cubes.depth_px, cubes.patch_depth_px
            self.mean, self.std = (fmean(self.mean),), (fmean(self.std),)
        self.takes_spacing = hasattr(vit, "spacing_embed")

    def grid_of(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the layers, rows and columns of patches of images of this shape, (..., S, S) or (..., D, S, S)."""
        layers = shape[-3] // self.patch_depth_px if self.image_depth_px else 1
        return layers, shape[-2] // self.patch_px, shape[-1] // self.patch_px

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        spacing_mm: Tensor | None = None,
    ) -> Tokens:
        """Encode triplets or cubes.

        Args:
            images: (B, 3, S, S), or (B, 1, D, S, S) of a 3D network.
            mask: (B, N); where it is true, the patch is replaced by `mask_token`.
            mask_token: (D,).
            spacing_mm: Of the images along z, y and x, (B, 3); for networks that take it.

        Raises:
            ValueError: If a network that takes the spacing is not told.
        """
        patches = self.vit.patch_embed(images if mask is None else self._shown(images, mask))
        if mask is not None and mask_token is not None:
            hidden = mask.view(*patches.shape[:-1], 1)
            patches = torch.where(hidden, mask_token.to(patches.dtype), patches)
        return self._encode(*self._placed(patches, spacing_mm), self._layers(images))

    def encode_visible(self, images: Tensor, keep: Tensor, spacing_mm: Tensor | None = None) -> Tokens:
        """Encode only the patches at `keep` (B, M), as a masked autoencoder does; patch tokens are (B, M, D)."""
        hidden = keep.new_ones(len(images), self.vit.patch_embed.num_patches).scatter(1, keep, 0) > 0
        tokens, rope = self._placed(self.vit.patch_embed(self._shown(images, hidden)), spacing_mm)
        prefix = self.vit.num_prefix_tokens
        index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        shown = tokens[:, prefix:].gather(1, index)
        if rope is not None:
            rope = apply_keep_indices_nlc(tokens, rope, keep)
            # One rotation for all heads, or one per block and head.
            rope = rope.transpose(0, 1) if self._is_rope_mixed else rope.unsqueeze(1)
        return self._encode(torch.cat([tokens[:, :prefix], shown], dim=1), rope, self._layers(images))

    def _placed(self, patches: Tensor, spacing_mm: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return all tokens with their learned positions and spacing, and the rotations of ViTs that have them."""
        placed = place_layers(self.vit, patches) if self.image_depth_px else self.vit._pos_embed(patches)
        tokens, rope = placed if isinstance(placed, tuple) else (placed, None)
        if self.takes_spacing:
            if spacing_mm is None:
                raise ValueError(
                    "this network takes the spacing of its images, spacing_mm (B, 3); none was given"
                )
            tokens = tokens + self.vit.spacing_embed(spacing_mm.to(tokens.device)).to(tokens.dtype)
        return tokens, rope

    def _layers(self, images: Tensor) -> int:
        return self.grid_of(images.shape)[0]

    @property
    def _is_rope_mixed(self) -> bool:
        return bool(getattr(self.vit, "rope_mixed", False))

    def _shown(self, images: Tensor, hidden: Tensor) -> Tensor:
        """Make hidden patches (B, N) gray where a stem reads beyond each patch, so that shown ones do not hold them."""
        if not isinstance(self.stem, WhitenedStem):
            return images
        grid = hidden.view(len(images), 1, *self.stem.grid_size)
        return images.masked_fill(F.interpolate(grid.float(), images.shape[-2:]) > 0, 0.0)

    @property
    def stem(self) -> nn.Module:
        """What makes tokens of patches."""
        stem: nn.Module = self.vit.patch_embed
        return stem

    def attend_plainly(self) -> None:
        """Compute attention as two matrix products and a softmax instead of the fused kernel.

        The backward pass of torch's fused kernel for CPUs gains nothing from bfloat16 matrix units: at 261 tokens it
        takes twice as long as this. The price is memory: the attention matrix of every block is kept for it.
        """
        for module in self.vit.modules():
            if isinstance(module, _ATTENTIONS):
                module.fused_attn = False  # type: ignore[misc]  # Final for TorchScript alone.

    def _encode(self, tokens: Tensor, rope: Tensor | None, layers: int) -> Tokens:
        vit = self.vit
        prefix, given = vit.num_prefix_tokens, {}
        if self.image_depth_px:
            bias = vit.patch_embed.attention_bias(layers, prefix, tokens.shape[1] - prefix)
            given = {} if bias is None else {"attn_mask": bias}
        tokens = vit.norm_pre(tokens)
        for number, block in enumerate(vit.blocks):
            turned: dict[str, Any] = (
                given if rope is None else given | {"rope": rope[number] if self._is_rope_mixed else rope}
            )
            if vit.grad_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False, **turned)
            else:
                tokens = block(tokens, **turned)
        tokens = vit.norm(tokens)
        return Tokens(tokens[:, 0], tokens[:, prefix:], tokens[:, 1:prefix])


class ConvBackbone(Backbone):
    """A ConvNeXt as probes read it: its last feature map as patch tokens, their mean as class token, both normalized.

    The same tokens as the authors of DINOv3 read from theirs. It is not trained here: nothing can be hidden from it.
    """

    def __init__(self, network: ConvNeXt, image_px: int) -> None:
        """Wrap a timm model for images of this size."""
        nn.Module.__init__(self)
        self._wrap(network, network.num_features, int(str(network.feature_info[-1]["reduction"])), image_px)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        spacing_mm: Tensor | None = None,
    ) -> Tokens:
        """Encode images (B, 3, S, S)."""
        places = self.vit.forward_features(images)
        patches = self.vit.head.norm(places).flatten(2).transpose(1, 2)
        return Tokens(self.vit.forward_head(places, pre_logits=True), patches, patches[:, :0])

    @property
    def stem(self) -> nn.Module:
        """What makes the first map of the image."""
        stem: nn.Module = self.vit.stem
        return stem


@torch.no_grad()
def copy_whitening(source: Backbone, target: Backbone) -> None:
    """Give an untrained network the whitening of another, if it has one: training does not change it."""
    if isinstance(source.stem, WhitenedStem) and isinstance(target.stem, WhitenedStem):
        target.stem.mean.copy_(source.stem.mean)
        target.stem.whitening.copy_(source.stem.whitening)


@torch.no_grad()
def class_attention(backbone: Backbone, images: Tensor, spacing_mm: Tensor | None = None) -> Tensor | None:
    """Return how much the class token attends to each patch in the last block, which the fused kernel does not.

    Args:
        backbone: In evaluation.
        images: Triplets or cubes, normalized.
        spacing_mm: As `Backbone.forward` takes it.

    Returns:
        (B, heads, N), softmax weights; the remainder to 1 goes to the class token itself and to the registers.
        None where the last block's attention is of another kind, or there is none.
    """
    attention = None if isinstance(backbone, ConvBackbone) else backbone.vit.blocks[-1].attn
    if not isinstance(attention, _ATTENTIONS):
        return None
    seen: list[Tensor] = []

    def remember(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append(arguments[0][:, :, 0, backbone.vit.num_prefix_tokens :])

    hook, fused = attention.attn_drop.register_forward_pre_hook(remember), attention.fused_attn
    attention.fused_attn = False  # type: ignore[misc]  # Final for TorchScript alone.
    try:
        backbone(images, spacing_mm=spacing_mm)
    finally:
        hook.remove()
        attention.fused_attn = fused  # type: ignore[misc]
    return seen[0]


def build_backbone(config: BackboneConfig, *, for_training: bool = True) -> Backbone:
    """Build the backbone that a recipe names, with random weights or those that timm has for the name.

    Args:
        config: The architecture.
        for_training: Refuse networks that only probes can read.

    Raises:
        BackboneError: If timm does not know the name, or the model is no ViT with a class token, nor a ConvNeXt.
    """
    backbone = _wrapped(_build_network(config), config, config.timm_name)
    if isinstance(backbone, ConvBackbone):
        if for_training:
            raise BackboneError(
                f"timm model '{config.timm_name}' is a ConvNeXt, which probes read as backbone=timm:... and which is"
                " not pretrained here; name a vision transformer"
            )
        return backbone
    if config.init == "xavier":
        init_xavier(backbone.vit)
    set_norm_eps(backbone, config.norm_eps)
    backbone.vit.set_grad_checkpointing(config.grad_checkpointing)
    if config.drop_path:
        set_drop_path(backbone.vit, config.drop_path)
    return backbone


def _wrapped(network: nn.Module, config: BackboneConfig, name: str) -> Backbone:
    backbone: Backbone
    image_px = config.image_px
    if isinstance(network, ConvNeXt):
        if config.image_depth_px or config.spacing != "off":
            raise BackboneError(
                f"'{name}' is a ConvNeXt, which reads neither cubes nor spacing here; name a ViT"
            )
        backbone = ConvBackbone(network, image_px)
    elif isinstance(network, VisionTransformer | Eva) and network.cls_token is not None:
        extend(network, config)
        backbone = Backbone(network)
    else:
        raise BackboneError(_NEITHER.format(name))
    if image_px % backbone.patch_px:
        below = image_px // backbone.patch_px * backbone.patch_px
        raise BackboneError(
            f"images of {image_px} px are no multiple of the patch of {backbone.patch_px} px"
            f"{f' of {name}' if name else ''}; set image_px, and views.size_px in a recipe, to"
            f" {below or backbone.patch_px}"
        )
    if backbone.image_depth_px and backbone.image_depth_px % backbone.patch_depth_px:
        raise BackboneError(
            f"cubes of {backbone.image_depth_px} voxels along z are no multiple of the patch of"
            f" {backbone.patch_depth_px}; set image_depth_px, and views.depth_px in a recipe, to one"
        )
    return backbone


def _build_network(config: BackboneConfig) -> nn.Module:
    pretrained = config.weights == "timm"
    if config.arch == "custom":
        custom = VisionTransformer(
            img_size=config.image_px,
            patch_size=config.patch_px,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.heads,
            reg_tokens=config.registers,
            no_embed_class=True,
            num_classes=0,
            dynamic_img_size=True,
        )
        if config.stem == "whitened":
            custom.patch_embed = WhitenedStem(config.image_px, config.patch_px, config.embed_dim)
        return custom
    if config.arch != "timm" and not pretrained:
        # `create_model` drops arguments that are None, and LayerScale would stay.
        build = timm.model_entrypoint(_ARTICLE[config.arch])
        article: VisionTransformer = build(
            img_size=config.image_px,
            patch_size=config.effective_patch_px,
            init_values=None,
            num_classes=0,
            dynamic_img_size=True,
        )
        return article
    name = _ARTICLE.get(config.arch, config.timm_name)
    is_elsewhere = name.startswith(("local-dir:", "hf-hub:"))
    if not is_elsewhere and not timm.is_model(name.split(".")[0]):
        raise BackboneError(f"timm has no model '{name}'; timm.list_models('*vit*') lists those it has")
    try:
        sized = input_arguments(name, config.image_px)
        if config.timm_args:
            return _from_arguments(name, {**config.timm_arguments, **sized})
        refuse_leads(name)
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **sized)
    except TypeError as error:  # Networks that take no image size.
        raise BackboneError(_NEITHER.format(name)) from error
    except (OSError, RuntimeError, ValueError, LookupError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"timm model '{name}' cannot be opened ({type(error).__name__}: {reason}); check the name, the folder, and"
            " the network connection if the weights are not on this machine yet"
        ) from error


def build_timm_architecture(name: str, arguments: dict[str, Any], config: BackboneConfig) -> Backbone:
    """Build an architecture as a timm folder's `config.json` states it, with random weights.

    Args:
        name: `architecture` of the file.
        arguments: `model_args` of the file; a None in them counts, which `timm.create_model` would drop.
        config: With the input size, in place of the file's, and what this project adds to timm's.

    Raises:
        BackboneError: If this timm does not know the name, or cannot build it so.
    """
    _refuse_unknown(name)  # Before its input is asked for: of "hf-hub:..." timm would fetch a file to tell.
    network = _from_arguments(name, {**arguments, **input_arguments(name, config.image_px)})
    return _wrapped(network, config, name)


def _refuse_unknown(name: str) -> None:
    if not isinstance(name, str) or not timm.is_model(name):
        raise BackboneError(
            f"timm {timm.__version__} has no model {str(name)[:100]!r}; install the version that wrote it"
        )


def _from_arguments(name: str, arguments: dict[str, Any]) -> nn.Module:
    _refuse_unknown(name)
    refuse_other_arguments(name, arguments)
    try:
        network: nn.Module = timm.model_entrypoint(name)(**{**arguments, "num_classes": 0})
    except Exception as error:  # timm's, about values of another kind than it expects.
        raise BackboneError(
            f"timm cannot build '{name}' from what its config.json states: {error}"
        ) from error
    return network
