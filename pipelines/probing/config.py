"""Configuration of the probes of a backbone; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, StringConstraints

from pipelines.backbones.config import FeatureName, NoduleFeature, OneWindow, WindowName
from pipelines.command.config import Seed
from probes.label_rules import LabelRule

HeadName = Literal["logistic", "mlp", "attentive"]
TableName = Annotated[str, StringConstraints(pattern="^table:.")]
"""A file of vectors from elsewhere, `table:FILE.parquet` or `table:FILE.csv`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeBase:
    """Options of every probe: which backbone, on which cohort."""

    cohort: str = "cohorts/phantom"
    backbone: str = ""
    """runs:/<id>/backbone, shipped:<name>, a folder, timm:<name>, hf:DIR, hf:OWNER/NAME, or a file of weights
    (docs/encoders.md); "" takes the newest finished pretrain run."""
    seed: Seed = 0
    device: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class NoduleProbe(ProbeBase):
    """A probe of crops of labeled nodules."""

    labels_needed: ClassVar[bool] = True
    rule: LabelRule = "consensus"
    size_mm: PositiveFloat = 50.0
    """Side of the crop; at the backbone's input size this fixes the mm per pixel and per patch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldedProbe(NoduleProbe):
    """A probe that is fitted on some patients and tested on others, fold by fold."""

    split: Literal["folds", "article"] = "folds"
    """`article`: one 60/20/20 split by patient; its validation part is added to the training part of a probe."""
    folds: int = 5
    repeats: int = 1
    """How often the patients are shuffled again and split into folds."""
    leak: Literal["avoid", "allow"] = "avoid"
    """`allow` tests on every patient, whether or not the backbone saw it; the run is tagged."""

    def __post_init__(self) -> None:
        """Refuse counts that give no folds."""
        if self.folds < 2 or self.repeats < 1:
            raise ValueError(
                f"folds must be 2 or more and repeats 1 or more, got {self.folds} and {self.repeats}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig(FoldedProbe):
    """A malignancy probe of one backbone, or of several that are cross-fitted, on one cohort."""

    backbone: str = ""
    """runs:/<id>/backbone, shipped:<name>, a folder, timm:<name>, hf:DIR, hf:OWNER/NAME, or a file of weights
    (docs/encoders.md); "" takes the newest finished pretrain run.
    Several, separated by commas, are cross-fitted, as those of shipped:<name> are: each scores the patients that it
    never saw (holdout half_a and half_b), and the out-of-fold scores are pooled."""
    repeats: int = 5
    encoder: str = ""
    """In place of a backbone, what takes a cube of HU: monai:LAYOUT:FILE, astra, or python:MODULE:FUNCTION."""
    diagnosis: str = ""
    """CSV of TCIA's patient diagnoses, for the rule tcia_diagnosis."""
    input: Literal["crop", "whole_slice"] = "crop"
    """`whole_slice`, as in the article: the whole slice through the nodule, resized to the input."""
    image_px: NonNegativeInt = 0
    """Input size; 0 takes the backbone's own."""
    voxels: Literal["resampled", "own"] = "resampled"
    """Of the cubes of a 3D backbone: `resampled` shows size_mm in the plane, voxels as long along z as those of its
    pretraining; `own` cuts the volume's voxels as they are and reads no size_mm."""
    window: WindowName = "lung"
    features: FeatureName | TableName = "class_token"
    """Tokens of the backbone; or in its place table:FILE.parquet or .csv, vectors from elsewhere, by id or place."""
    match_mm: PositiveFloat = 3.0
    """Largest distance of a place in a table of features from the center of its nodule."""
    head: HeadName = "logistic"
    target: str = ""
    """rating: a ridge on the readers' mean rating; label: a classifier of the label, as heads other than logistic are;
    else a column of the table of nodules, of two values, numbers or names (`keep_columns` of prepare). "" takes ratings
    of crops where every nodule has one and the rule sums them up. The AUROC is against the label, or against a column
    of two values."""
    baselines: Literal["all", "random"] = "all"
    """`random` leaves out what does not depend on the backbone, such as the dictionaries, and the questions about the
    readers' characteristics: for the many arms of a campaign, which are compared with each other."""
    n_bootstrap: PositiveInt = 2000
    draws: PositiveInt = 9999
    """Sign flips of the primary test: do the features predict the rating beyond size and attenuation?"""
    test_cohort: str = ""
    """A second cohort, on which nothing is fitted: scores are frozen from all nodules of the first."""
    shots: str = ""
    """Numbers of nodules, such as 16,48,128: a few-shot curve on the test cohort, 20 draws a point."""
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        """Refuse options that do not fit together."""
        FoldedProbe.__post_init__(self)
        _check_origin(self)
        if (self.head == "attentive") != (self.features == "patches"):
            raise ValueError(
                "head=attentive and features=patches go together: one query attends over all patches"
            )
        if self.test_cohort and self.target not in ("", "rating", "label"):
            raise ValueError(f"a test cohort is scored by rating or label, not by target={self.target}")
        if self.test_cohort and ("," in self.backbone or self.head != "logistic"):
            raise ValueError("test_cohort takes one backbone and head=logistic")
        if not all(
            part.strip().isdecimal() and int(part) > 3 for part in self.shots.split(",") if self.shots
        ):
            raise ValueError(f"shots are whole numbers of 4 or more, such as 16,48,128; got {self.shots!r}")
        if self.shots and not self.test_cohort:
            raise ValueError("shots draw a curve on a test cohort; name one by test_cohort")
        if self.target == "rating" and self.head != "logistic":
            raise ValueError(f"target=rating is a ridge regression; head={self.head} is fitted to the label")
        if self.input == "whole_slice" and self.features in ("neighborhood", "roi"):
            raise ValueError(
                f"features={self.features} is the middle of the image, where a whole slice has no nodule;"
                " use input=crop"
            )


def _check_origin(config: ProbeConfig) -> None:
    """Refuse features of two origins, and options of backbones where there is none."""
    origins = {"backbone": config.backbone, "encoder": config.encoder, "features": table_of(config)}
    given = [f"{name}={value}" for name, value in origins.items() if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} name two origins of features; give one")
    if not config.encoder and not table_of(config):
        return
    of_backbones = {"features": "class_token", "window": "lung", "image_px": 0, "input": "crop"}
    for name, default in of_backbones.items():
        value = getattr(config, name)
        if value not in (default, table_of(config)):
            raise ValueError(f"{name}={value} is an option of backbones, which {given[0]} does not have")


def table_of(config: ProbeConfig) -> str:
    """Return `table:FILE` of the option `features`, "" if features are tokens of a backbone."""
    return config.features if config.features.startswith("table:") else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig(ProbeBase):
    """View retrieval with the backbones of one run, or any other backbone, on one cohort."""

    slices: Annotated[int, Field(ge=2)] = 4096
    """Held-out slices, spread evenly; all of them, if there are fewer."""
    views: str = ""
    """Recipe whose views are drawn, so that backbones are asked the same; "" draws as each was pretrained."""
    adjacent_slices: NonNegativeInt = 2
    """Slices of one series this far apart or less are left out of `not_adjacent`: their triplets overlap."""
    checkpoints: Literal["last", "all"] = "last"
    """`all` also measures every backbone that the run kept during training, each at its step."""
    leak: Literal["avoid", "allow"] = "avoid"
    """`allow` tests on every patient, whether or not the backbone saw it; the run is tagged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepresentationConfig(NoduleProbe):
    """Geometry of the features of one backbone on the nodules of one cohort."""

    window: OneWindow = "lung"
    other_window: OneWindow = "wide"
    """Second window for measuring stability."""
    features: NoduleFeature = "class_token"
    slices: PositiveInt = 512
    """Number of slices whose two views give the alignment."""

    def __post_init__(self) -> None:
        """Refuse two equal windows."""
        if self.window == self.other_window:
            raise ValueError(f"window and other_window are both {self.window}; stability needs two")


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig(FoldedProbe):
    """A linear probe from the patch tokens of one backbone to the masks of nodules."""

    labels_needed: ClassVar[bool] = False
    window: OneWindow = "lung"
    jitter_mm: float = 12.0
    """Largest distance of the nodule from the middle of the crop, along x and along y; in cubes along z too."""

    def __post_init__(self) -> None:
        """Refuse a jitter that moves the nodule out of the crop."""
        FoldedProbe.__post_init__(self)
        if not 0 <= self.jitter_mm < self.size_mm / 2:
            raise ValueError(
                f"jitter_mm must be 0 or more and less than half of size_mm, got {self.jitter_mm} of {self.size_mm}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AggregationConfig(FoldedProbe):
    """Ways of pooling the slices around each nodule, over the frozen features of one backbone."""

    volumetric: str = ""
    """A 3D backbone, named as `backbone` is, whose vector of the whole cube is one more row; of several in `backbone`
    as many, in their order. Patients are tested that both did not see."""
    window: WindowName = "lung"
    features: NoduleFeature = "class_token"
    z_range_mm: PositiveFloat = 12.0
    """Range of slices above and below the nodule's center, the same for every nodule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SupervisedConfig(FoldedProbe):
    """ResNet18 on triplet crops and on cubes, trained from random weights inside each fold."""

    backbone: str = ""
    """Backbone whose folds are used, so that results compare with its probe; "" tests on all patients."""
    networks: Literal["both", "2d", "3d"] = "both"
    weights: str = ""
    """A .safetensors file of timm's resnet18 to start the 2D network from, such as ImageNet's; "" is random."""
    size_mm: PositiveFloat = 40.0
    """Side of the crop, and of the cube."""
    image_px: PositiveInt = 32
    cube_px: PositiveInt = 16
    """Side of the cube in voxels."""
    lr: PositiveFloat = 3e-4
    batch_size: PositiveInt = 32
    max_epochs: NonNegativeInt = 0
    """0 takes 40 on a GPU and 6 on a CPU, where an epoch of the 3D network takes minutes."""
    patience: NonNegativeInt = 5
    """Training stops after this many epochs without a lower loss on the validation patients."""
    n_bootstrap: PositiveInt = 2000
    runs_dir: str = "runs"
    resume: str = ""
    """`auto` continues the newest unfinished run of these options and cohort, a run id continues that one."""
