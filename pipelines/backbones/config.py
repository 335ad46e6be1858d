"""Configuration of encoding, `embed` and `export`; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.ingest.config import FolderFormat

OneWindow = Literal["lung", "mediastinal", "wide", "full", "ranges"]
"""`full` is -1000..1000 HU, which keeps attenuation; `ranges` is the first three, one a channel."""
WindowName = Literal[OneWindow, "stacked"]
"""`stacked` joins the features under the article's three, lung, mediastinal and wide."""
SliceFeature = Literal["class_token", "mean_patch", "both"]
"""One vector per image."""
NoduleFeature = Literal[SliceFeature, "neighborhood"]
"""One vector per nodule; `neighborhood` is the mean of the patches within 10 mm of its center."""
FeatureName = Literal[NoduleFeature, "roi", "patches"]
"""`roi` reads patches inside the nodule and around it; `patches` keeps all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeSettings:
    """Field of view and CT window of the slices, or cubes, that the network gets."""

    size_mm: float = 0.0
    """Side of the square field of view around the middle of the slice; 0 shows the whole slice. Of a 3D backbone the
    side of its cubes in the plane; 0 takes the middle of its pretraining."""
    overlap: float = 0.25
    """Least share of their side that neighboring cubes of a 3D backbone have in common."""
    window: OneWindow = "lung"
    batch_size: int = 32
    """Slices or cubes per forward pass; it limits the memory used."""

    def __post_init__(self) -> None:
        """Refuse a negative size, an empty batch and cubes that do not move on."""
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is a share of a cube's side, from 0 to below 1, got {self.overlap}")
        if not self.size_mm >= 0 or self.batch_size < 1:
            raise ValueError(
                f"size_mm must be 0 or more and batch_size 1 or more, got {self.size_mm} mm and {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedConfig(EncodeSettings):
    """What to embed, with which backbone, and where to write the table."""

    NOT_STORED: ClassVar = ("source",)

    source: str = "cohorts/phantom"
    """A folder with any number of CT series, a file of one volume, or a cohort folder."""
    from_: FolderFormat = "auto"
    """Format of the source, when it is no cohort, found by itself by default; `from` on the command line."""
    backbone: str = ""
    """runs:/<id>/backbone, shipped:<name>, a folder, timm:<name>, hf:DIR, hf:OWNER/NAME, or a file of weights
    (docs/encoders.md); "" takes the newest finished pretrain run."""
    out: str = "exports/embeddings.parquet"
    features: SliceFeature = "class_token"
    """`both` joins the class token and the mean of the patch tokens."""
    keep_ids: bool = False
    """Write patient ids and folder names unchanged, because all of them are public."""
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse settings of encoding that are not possible, and an output that is not parquet."""
        EncodeSettings.__post_init__(self)
        if not self.out.endswith(".parquet"):
            raise ValueError(f"out={self.out} must end in .parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Which backbone to export, where to, and facts of its model card that no run records."""

    backbone: str = ""
    """runs:/<id>/backbone, shipped:<name>, a folder, timm:<name>, hf:DIR, hf:OWNER/NAME, or a file of weights
    (docs/encoders.md); "" takes the newest finished pretrain run. Three,
    separated by commas (holdout half_a, half_b and neither), make a folder that ships as models/weights/NAME."""
    out: str = "exports/backbone"
    """Folder to write; an earlier export is replaced."""
    onnx: Literal["auto", "yes", "no"] = "auto"
    """`auto` writes model.onnx where the extra `export` is installed."""
    hf: Literal["no", "yes"] = "no"
    """`yes` writes hf/ too: Dinov2 of transformers, with registers where the backbone has some."""
    license: str = "apache-2.0"
    """License of the weights: an SPDX identifier in lower case."""
    training_data: str = ""
    """Description of the training data, with their license and citation."""
    push_to: str = ""
    """OWNER/NAME of a repository of the Hugging Face Hub to upload the folder to."""
    private: bool = True
    """Whether a repository that the upload creates is private."""
