"""Configuration of a pretraining run: recipes set these keys."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from models.config import BackboneConfig, HeadConfig, ObjectiveConfig
from pipelines.command.config import Seed
from transforms.views.config import ViewConfig

_WEIGHTS = r"(?=.*[1-9])[0-9]*\.?[0-9]+(,[0-9]*\.?[0-9]+)*"
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedules; steps are optimizer updates."""

    lr: PositiveFloat = 2e-4
    min_lr: NonNegativeFloat = 1e-6
    warmup_steps: NonNegativeInt = 2500
    """Linear warm-up, then cosine to `min_lr` at the last step; at most half of the run."""
    weight_decay: NonNegativeFloat = 0.04
    weight_decay_end: NonNegativeFloat = 0.04
    decay_everything: bool = False
    """Decay biases, norms, tokens and positions too, as plain AdamW over all parameters does."""
    ema_momentum: Share = 0.996
    ema_momentum_end: Share = 0.996
    teacher_temp: PositiveFloat = 0.04
    teacher_temp_start: PositiveFloat = 0.04
    teacher_temp_warmup_steps: NonNegativeInt = 0
    frozen_steps: NonNegativeInt = 0
    """Updates at the start in which the head alone learns and the backbone keeps its weights, for a warm start."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a block over that of the next one; below 1 the first blocks of a warm start change least."""
    clip_norm: NonNegativeFloat = 0.0
    """Largest gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        """Refuse a schedule that rises."""
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr cannot be above lr, got {self.min_lr} and {self.lr}")


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """Thresholds of the verdict."""

    window_samples: PositiveInt = 4096
    """Samples over which mean codes are computed; too few make a mean look peaked."""
    min_steps: NonNegativeInt = 300
    """No verdict before this many updates."""
    learning_gain: float = 0.1
    """Gain above which a run learns, in nats; it must also have risen by this much since step 0."""
    wall_share: float = 0.5
    """Without gain: a mean code whose entropy is above this share of ln K is the wall, below it collapse."""
    patience_steps: NonNegativeInt = 5000
    """Updates of wall or collapse after which `stop_when: hopeless` stops. With center momentum 0.999 and KoLeo on
    logits a run is collapsed for a while before it learns; a patience below about 3000 would stop it too early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """A pretraining run; a step is always an optimizer update."""

    cohort: str = "cohorts/phantom"
    """A cohort, or several with commas between; patients are held out by the hash of their id in all of them."""
    cohort_weights: str = ""
    """Shares of the samples by cohort, such as 1,9; "" draws every slice of all cohorts equally often."""
    seed: Seed = 0
    steps: PositiveInt = 100_000
    batch_size: PositiveInt = 64
    """Slices of one forward pass over all processes; KoLeo, NT-Xent and Sinkhorn use all of them."""
    accumulation: PositiveInt = 1
    """Forward passes per update; gradients and centers are averaged over them."""
    holdout: Literal["half_a", "half_b"] | float = 0.2
    """Patients held out: a fraction by the hash of their id, or one half for cross-fitting."""
    slices: Literal["all", "inner", "points"] = "all"
    """`inner` leaves out slices without a neighbor, at an edge or a gap, where a channel is a copy of the slice;
    `points` takes those that show what `views.center: point` centers on."""
    points: Literal["nodules", "blobs", "both"] = "nodules"
    """What `views.center: point` centers on: annotated nodules, or dense blobs that are found in lung without labels
    (5 s a series, once); `both` takes the nodule where a slice shows one."""
    batches: Literal["shuffled", "diameter"] = "shuffled"
    """`diameter` puts slices of nodules of like diameter into a batch, so that size does not tell them apart."""
    max_patients: NonNegativeInt = 0
    """Train on this many patients, the first by the hash of their id; 0 takes all."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    gram_refresh_steps: NonNegativeInt = 0
    """0 aligns Gram matrices with the current teacher; else with a frozen one, replaced every this many updates."""
    views: ViewConfig = field(default_factory=ViewConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    stop_when: Literal["steps", "hopeless"] = "steps"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    workers: int = -1
    """Loader processes; -1 chooses by the device."""
    nproc: PositiveInt = 1
    """Processes on this machine, one device each."""
    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 0
    """Updates between two evaluations (retrieval, figures), also done at first and last step; 0: a tenth of the run."""
    eval_slices: NonNegativeInt = 1024
    save_every: PositiveInt = 500
    keep_backbones: bool = False
    """Keep the backbone of every evaluation as an artifact, for a scaling curve later."""
    register_as: str = ""
    """Name in MLflow's model registry that gets the backbone as a new version: `backbone=models:/NAME@alias`."""
    runs_dir: str = "runs"
    resume: str = ""
    """`auto` continues the newest unfinished run of this recipe and cohort, a run id continues that one."""
    allow_changes: str = ""
    """Comma-separated keys that a resumed run may change."""

    def __post_init__(self) -> None:
        """Refuse combinations that do not work."""
        if re.search("[/:]", self.register_as):
            raise ValueError(
                f"register_as={self.register_as} cannot be a name in MLflow's registry: it has / or :"
            )
        if self.cohort_weights and not re.fullmatch(_WEIGHTS, self.cohort_weights):
            raise ValueError(
                f"cohort_weights are numbers above 0 with commas between, got {self.cohort_weights}"
            )
        if self.batch_size < 2 and (self.objective.koleo_weight or self.objective.kind == "simclr"):
            raise ValueError(
                f"KoLeo and SimCLR need a neighbor: batch_size is {self.batch_size}, give 2 or more"
            )
        if self.views.size_px != self.backbone.image_px:
            raise ValueError(
                f"views.size_px {self.views.size_px} and backbone.image_px {self.backbone.image_px} must be the same"
            )
        if self.views.depth_px != self.backbone.image_depth_px:
            raise ValueError(
                f"views.depth_px {self.views.depth_px} and backbone.image_depth_px {self.backbone.image_depth_px} must"
                " be the same; 0 and 0 are triplets"
            )
        self._fit_views()
        if self.objective.pool == "roi" and (self.views.center != "point" or self.views.n_local):
            raise ValueError(
                "objective.pool 'roi' needs nodules in the middle: set views.center to 'point' and views.n_local to 0"
            )
        if self.views.n_local and self.objective.kind != "dino":
            raise ValueError(f"local views go with objective kind 'dino', not '{self.objective.kind}'")
        if self.objective.mae_target == "hu" and self.views.window.policy not in ("full", "fixed"):
            raise ValueError(
                f"mae_target 'hu' needs one window for all views, got policy '{self.views.window.policy}'; set "
                "views.window.policy to 'full' or 'fixed'"
            )
        if self.views.center != "point" and (self.slices == "points" or self.points != "nodules"):
            raise ValueError(
                f"slices '{self.slices}' and points '{self.points}' go with views.center 'point', got"
                f" '{self.views.center}'"
            )
        if self.batches == "diameter" and self.cohort_weights:
            raise ValueError("batches 'diameter' draws from all cohorts equally: leave cohort_weights out")
        if self.compile and self.objective.kind == "mae":
            raise ValueError(
                "compile has no effect for objective kind 'mae', which encodes parts of views; turn it off"
            )
        if not isinstance(self.holdout, str) and not 0 <= self.holdout < 1:
            raise ValueError(
                f"holdout is the share of patients held out, from 0 to below 1, got {self.holdout}"
            )

    def _fit_views(self) -> None:
        """Make the views of a timm network smaller, to a multiple of its patch; the log of the run shows their size."""
        patch_px, size_px = self.backbone.effective_patch_px, self.views.size_px
        if self.backbone.arch == "timm" and size_px % patch_px:
            fitted = max(size_px // patch_px, 1) * patch_px
            object.__setattr__(self, "views", dataclasses.replace(self.views, size_px=fitted))
            object.__setattr__(self, "backbone", dataclasses.replace(self.backbone, image_px=fitted))
