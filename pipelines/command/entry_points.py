"""Every entry point: its meaning, module and configuration; nothing heavy is imported here.

Tests compare MLproject, the stages of campaigns, `--help` and README's table with this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One `mlflow run . -e NAME`, or `python -m pipelines.NAME`.

    Attributes:
        meaning: What it does, in one line.
        schema: Name of its configuration.
        body: Name of its function, which takes a configuration and a run.
        module: Where both are; "" for `pipelines.NAME`.
        recipe: Its default recipe; None if it takes none.
        is_stage: Whether it can be a stage of an arm of a campaign.
        takes_backbone: Whether it then uses the backbone of the first stage.
        is_public: Whether it is in MLproject and README.
    """

    name: str
    meaning: str
    schema: str
    body: str
    module: str = ""
    recipe: str | None = None
    is_stage: bool = False
    takes_backbone: bool = False
    is_public: bool = True

    def load_schema(self) -> type[Any]:
        """Import and return its configuration."""
        found: type[Any] = getattr(self._load(), self.schema)
        return found

    def load_body(self) -> Any:
        """Import and return its function."""
        return getattr(self._load(), self.body)

    def _load(self) -> Any:
        return import_module(self.module or f"pipelines.{self.name}")


def _probe(name: str, meaning: str, schema: str, body: str) -> EntryPoint:
    return EntryPoint(name, meaning, schema, body, is_stage=True, takes_backbone=True)


_LIST = (
    EntryPoint(
        "prepare",
        "CT in: DICOM, NIfTI, MetaImage, NRRD or PNG to a cohort of HU volumes and tables; refuses what it cannot read",
        "PrepareConfig",
        "run_prepare",
    ),
    EntryPoint(
        "download",
        "LIDC-IDRI, or another collection of the Imaging Data Commons, into folders (needs the extra `download`)",
        "DownloadConfig",
        "run_download",
    ),
    EntryPoint(
        "nodules",
        "LIDC's nodules, or those of a cohort: label rules with their counts, baselines, figures; needs no image",
        "NodulesConfig",
        "run_nodules",
    ),
    EntryPoint(
        "pretrain",
        "a cohort to a self-supervised backbone, with a verdict: learning, wall or collapsed",
        "PretrainConfig",
        "run_pretrain",
        recipe="demo",
        is_stage=True,
    ),
    _probe(
        "probe_malignancy",
        "frozen features beside diameter, pixels, random weights, shuffled labels; do they add to diameter?",
        "ProbeConfig",
        "run_probe",
    ),
    _probe(
        "probe_retrieval",
        "is a second view of a held-out slice its nearest neighbor? With intervals and chance",
        "RetrievalConfig",
        "run_retrieval",
    ),
    _probe(
        "probe_representation",
        "geometry of the features beside random weights: rank, cosine, how well the scanner can be read",
        "RepresentationConfig",
        "run_representation",
    ),
    _probe(
        "probe_aggregation",
        "slices of a nodule to one vector: center, mean, max, attention over z, planes, in one table",
        "AggregationConfig",
        "run_aggregation",
    ),
    _probe(
        "probe_supervised",
        "ResNet18 in 2D and 3D trained on the labels, in the folds of the other probes",
        "SupervisedConfig",
        "run_supervised",
    ),
    _probe(
        "probe_dense",
        "patch tokens to nodule masks: Dice beside that of readers, pixels and random weights",
        "DenseConfig",
        "run_dense",
    ),
    EntryPoint(
        "campaign",
        "many arms from one file, within a budget",
        "CampaignConfig",
        "run_campaign",
        module="pipelines.campaign.__main__",
    ),
    EntryPoint(
        "report",
        "the article's tables beside ours, each claim judged",
        "ReportConfig",
        "run_report",
        module="pipelines.report.__main__",
    ),
    EntryPoint("export", "a backbone to share: timm folder, ONNX, model card", "ExportConfig", "run_export"),
    EntryPoint(
        "embed",
        "a folder of CT or a cohort to a parquet file of embeddings with their places in mm",
        "EmbedConfig",
        "run_embed",
    ),
    EntryPoint(
        "export_png", "a cohort to 16-bit PNGs that `prepare` reads back", "ExportPngConfig", "run_export_png"
    ),
    EntryPoint(
        "rehearsal",
        "an entry point that trains nothing, to rehearse campaigns: how they start, end and fail",
        "RehearsalConfig",
        "run_rehearsal",
        is_stage=True,
        takes_backbone=True,
        is_public=False,
    ),
)
ENTRY_POINTS: dict[str, EntryPoint] = {one.name: one for one in _LIST}
