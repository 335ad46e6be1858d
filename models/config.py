"""Configuration of networks and their objective; nothing heavy is imported, so that recipes are read quickly."""

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

Arch = Literal["vit_small", "vit_large", "custom", "timm", "weights"]
MaeTarget = Literal["patch", "hu"]
MaskShape = Literal["random", "blocks"]
Pool = Literal["class_token", "roi"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Which vision transformer, and where its first weights come from."""

    arch: Arch = "vit_small"
    """`vit_small` and `vit_large` are the article's ViT-S/14 and ViT-L/14; `custom` reads the five fields below;
    `timm` takes `timm_name`; `weights` is that of the network in `weights`."""
    timm_name: str = ""
    """One of timm's vision transformers with a class token, such as vit_small_patch16_dinov3. Views that are no
    multiple of the patch in its name are made smaller to one that is."""
    timm_args: str = ""
    """Arguments of `timm_name` other than its own, as JSON, such as {"depth": 6}."""
    norm_eps: PositiveFloat | None = None
    """Epsilon of LayerNorm, in which publications of one architecture differ; null leaves timm's."""
    depth: PositiveInt = 4
    embed_dim: PositiveInt = 96
    heads: PositiveInt = 4
    patch_px: PositiveInt = 14
    registers: NonNegativeInt = 4
    image_px: PositiveInt = 224
    image_depth_px: NonNegativeInt = 0
    """Voxels of a cube along z, for a 3D network; `vit_small` and `vit_large` read `patch_px` then. 0: triplets, 2D."""
    patch_depth_px: NonNegativeInt = 0
    """Voxels of a 3D patch along z; 0: as many as in the plane."""
    inflate: Literal["centered", "averaged"] = "centered"
    """How the three channels of a 2D network in `weights` become the depth of a 3D patch: at its three middle voxels,
    or their sum spread evenly."""
    inflated: bool = False
    """Class token and registers weigh as many times as a cube has layers of patches, as against the patches of one
    slice; `weights` of a 2D network set it, and it stays with the network."""
    spacing: Literal["off", "tokens"] = "off"
    """`tokens` adds to every token what the network learns of the mm per voxel along z, y and x (of triplets: slice
    distance and mm per pixel)."""
    stem: Literal["patch", "whitened"] = "patch"
    """`patch` maps each patch linearly, as ViTs do; `whitened` (arch `custom`) compares 6 x 6 px of the center slice,
    every 2 px, with 128 words in a space that is whitened on the training slices: the words learn, and the random twin
    has other words in the same space."""
    init: Literal["timm", "xavier"] = "timm"
    """`xavier`: Xavier-uniform linear layers and positions from N(0, 0.1)."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Stochastic depth of the student: how often the last block is skipped for a sample; rises linearly from 0."""
    weights: str = ""
    """Warm start: "timm" for timm's pretrained weights, or a backbone's name, folder, hf:... or file of weights."""
    grad_checkpointing: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid shapes."""
        if self.arch in ("vit_small", "vit_large", "custom") and self.image_px % self.effective_patch_px:
            raise ValueError(
                f"image_px {self.image_px} is not a multiple of the patch of {self.effective_patch_px} px"
            )
        self._check_depth()
        if self.arch == "custom" and self.embed_dim % self.heads:
            raise ValueError(f"embed_dim {self.embed_dim} cannot be shared by {self.heads} heads")
        if self.stem == "whitened" and (self.arch != "custom" or self.patch_px % 2):
            raise ValueError(
                f"stem 'whitened' goes with arch 'custom' and an even patch_px, got {self.arch} and {self.patch_px}"
            )
        if (self.arch == "timm") != bool(self.timm_name):
            raise ValueError("timm_name goes with arch 'timm': give both or neither")
        if self.timm_arguments and (self.arch != "timm" or self.weights == "timm"):
            raise ValueError(
                "timm_args goes with arch 'timm' and not with weights 'timm', which are of timm's own"
            )
        if self.arch == "weights" and self.weights in ("", "timm"):
            raise ValueError(
                "arch 'weights' takes the architecture of weights: name them, such as hf:DIR or FILE.pth"
            )

    def _check_depth(self) -> None:
        depth_px = self.patch_depth_px or self.effective_patch_px
        if self.patch_depth_px and not self.image_depth_px:
            raise ValueError("patch_depth_px is of cubes: set image_depth_px, their voxels along z, too")
        if self.inflated and not self.image_depth_px:
            raise ValueError("inflated is set by 2D weights of a 3D network; this one has image_depth_px 0")
        if self.arch in ("vit_small", "vit_large", "custom") and self.image_depth_px % depth_px:
            raise ValueError(
                f"image_depth_px {self.image_depth_px} is not a multiple of the patch of {depth_px} voxels along z"
            )
        if self.image_depth_px and self.stem != "patch":
            raise ValueError(
                f"stem '{self.stem}' reads the center slice of triplets, not cubes; set stem to 'patch'"
            )
        if self.image_depth_px and self.weights == "timm":
            raise ValueError(
                "weights 'timm' are those of a 2D network: name it, as arch 'weights' and weights 'timm:NAME'"
            )

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """`timm_args` as they are given to timm."""
        try:
            return dict(json.loads(self.timm_args or "{}"))
        except (ValueError, TypeError, RecursionError):
            raise ValueError(
                f'timm_args is a JSON object, such as {{"depth": 6}}, got {self.timm_args}'
            ) from None

    @property
    def effective_patch_px(self) -> int:
        """The patch size in the plane: of the article's backbones 14 px, of timm's as in the name, else 1."""
        if self.arch == "timm":
            stated = re.search(r"patch(\d+)", self.timm_name)
            return int(stated[1]) if stated else 1
        return self.patch_px if self.arch == "custom" or self.image_depth_px else 14


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Size of the projection head; ln(prototypes) is the loss of a uniform output."""

    prototypes: Annotated[int, Field(ge=2)] = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Which terms, at which weights and temperatures."""

    kind: Literal["dino", "simclr", "mae"] = "dino"
    pool: Pool = "class_token"
    """What the head of `dino` and `simclr` gets. `roi`: the mean of the patch tokens, weighted by a Gaussian around the
    middle of the view, where the nodule is (`views.center: point`; SD an eighth of the view, 3 of 24 mm). The class
    token is not trained then; probe with `features=roi`."""
    gram_weight: float = 1.0
    gram_registers: bool = False
    """Count register tokens as patches: the reference's error, kept as an arm."""
    koleo_weight: float = 0.1
    koleo_on: Literal["head_logits", "class_token"] = "head_logits"
    """`head_logits` takes both views of the batch together, as the article's code does; `class_token` takes one view
    at a time, as DINOv2 does. Where two views of a slice share little, the first goes with center momentum 0.999, the
    second with 0.9, and crossing them fails (docs/decisions/0002-cross-view-share.md)."""
    student_temp: float = 0.1
    center: Literal["ema", "sinkhorn"] = "ema"
    center_momentum: float = 0.999
    simclr_temp: float = 0.1
    ibot_weight: float = 0.0
    ibot_mask: tuple[float, float] = (0.1, 0.5)
    ibot_mask_shape: MaskShape = "random"
    """`blocks` hides rectangles, as iBOT does: a patch whose neighbors are shown is guessed from their edges."""
    mae_mask: float = 0.7
    mae_target: MaeTarget = "patch"
    """`patch` normalizes each patch by itself, which removes its mean HU; `hu` keeps HU (window policy `full` or
    `fixed`) and trains the class token through the decoder."""

    def __post_init__(self) -> None:
        """Refuse invalid weights, temperatures and momenta."""
        if min(self.gram_weight, self.koleo_weight, self.ibot_weight) < 0:
            raise ValueError("weights of losses cannot be negative; 0 leaves a term out")
        if min(self.student_temp, self.simclr_temp) <= 0:
            raise ValueError("temperatures must be above 0")
        if not 0 <= self.center_momentum < 1:
            raise ValueError(f"center_momentum must lie in [0, 1), got {self.center_momentum}")
        low, high = self.ibot_mask
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"ibot_mask is the lowest and the highest hidden share of patches, got {low} and {high}"
            )
        if not 0 < self.mae_mask < 1:
            raise ValueError(f"mae_mask is the hidden share of patches, between 0 and 1, got {self.mae_mask}")
        if self.kind != "dino" and self.ibot_weight:
            raise ValueError(f"ibot_weight goes with kind 'dino'; kind is '{self.kind}'")
        if self.kind == "mae" and self.pool == "roi":
            raise ValueError("pool 'roi' goes with kind 'dino' and 'simclr'; 'mae' pools nothing")
        if self.kind == "mae" and (self.gram_weight or self.koleo_weight):
            raise ValueError(
                "kind 'mae' has no views to align or spread: set gram_weight and koleo_weight to 0"
            )
