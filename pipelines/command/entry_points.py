"""Every entry point: its meaning, configuration and function; nothing heavy is imported here.

Tests compare MLproject, the stages of campaigns, `--help` and README's table with this list.
"""

import re
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from pipelines.runtime.paths import IS_CHECKOUT


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One `mlflow run . -e NAME`, or `python -m pipelines.NAME`.

    Attributes:
        meaning: What it does, in one line.
        schema: Address of its configuration.
        body: Address of its function, which takes a configuration and a run; heavy to import.
        needs: Address of a function of its configuration that refuses, from tables alone and so before torch is
            imported, what the cohort has too little data for; "" if there is none.
        recipe: Its default recipe; None if it takes none.
        is_stage: Whether it can be a stage of an arm of a campaign.
        is_public: Whether it is in MLproject and README.
        next_step: The command that usually follows, with {run_id} and the keys of its configuration in braces.
    """

    name: str
    meaning: str
    schema: str
    body: str
    recipe: str | None = None
    is_stage: bool = False
    is_public: bool = True
    next_step: str = ""
    needs: str = ""

    def load_schema(self) -> Any:
        """Import and return its configuration, a dataclass."""
        return resolve_name(self.schema)

    def run(self, config: Any, run: Any) -> None:
        """Refuse what its data are too few for, then import its function and call it."""
        if self.needs:
            resolve_name(self.needs)(config)
        resolve_name(self.body)(config, run)


_LABELS = "pipelines.nodule.enough:refuse_too_few"
_LIST = (
    EntryPoint(
        "prepare",
        "CT in, of any format (`docs/cohorts.md`), to a cohort of HU volumes and tables; refuses what it cannot read",
        "pipelines.ingest.config:PrepareConfig",
        "pipelines.prepare:run_prepare",
        next_step="mlflow run . -e pretrain -P cohort={cohort}",
    ),
    EntryPoint(
        "download",
        "LIDC-IDRI, or another collection of the Imaging Data Commons, into folders (needs the extra `download`)",
        "pipelines.download:DownloadConfig",
        "pipelines.download:run_download",
    ),
    EntryPoint(
        "nodules",
        "LIDC's nodules, or those of a cohort: label rules with their counts, baselines, figures; needs no image",
        "pipelines.nodule.config:NodulesConfig",
        "pipelines.nodule.overview:run_nodules",
    ),
    EntryPoint(
        "pretrain",
        "a cohort to a self-supervised backbone, with a verdict: learning, wall or collapsed",
        "pipelines.training.config:PretrainConfig",
        "pipelines.training.run:train",
        needs="pipelines.training.patients:refuse_too_few",
        recipe="demo",
        is_stage=True,
        next_step="mlflow run . -e probe_malignancy -P backbone=runs:/{run_id}/backbone -P cohort={cohort}",
    ),
    EntryPoint(
        "probe_malignancy",
        "frozen features of nodules beside every baseline; do they know the rating beyond size and attenuation?",
        "pipelines.probing.config:ProbeConfig",
        "pipelines.probing.malignancy:run_probe",
        is_stage=True,
        needs=_LABELS,
        next_step="mlflow run . -e report",
    ),
    EntryPoint(
        "probe_retrieval",
        "is a second view of a held-out slice its nearest neighbor? With intervals and chance",
        "pipelines.probing.config:RetrievalConfig",
        "pipelines.probing.retrieval:run_retrieval",
        is_stage=True,
    ),
    EntryPoint(
        "probe_representation",
        "geometry of the features beside random weights: rank, cosine, how well the scanner can be read",
        "pipelines.probing.config:RepresentationConfig",
        "pipelines.probing.representation:run_representation",
        is_stage=True,
    ),
    EntryPoint(
        "probe_aggregation",
        "slices of a nodule to one vector: center, mean, max, attention over z, planes, 3D tokens",
        "pipelines.probing.config:AggregationConfig",
        "pipelines.probing.aggregation:run_aggregation",
        is_stage=True,
        needs=_LABELS,
    ),
    EntryPoint(
        "probe_supervised",
        "ResNet18 in 2D and 3D trained on the labels, in the folds of the other probes",
        "pipelines.probing.config:SupervisedConfig",
        "pipelines.probing.supervised:run_supervised",
        is_stage=True,
        needs=_LABELS,
    ),
    EntryPoint(
        "finetune",
        "a backbone trained on the labels (head, LoRA or full) in the folds of the probes, beside itself frozen",
        "pipelines.finetuning.config:FinetuneConfig",
        "pipelines.finetuning.run:run_finetune",
        is_stage=True,
        needs=_LABELS,
    ),
    EntryPoint(
        "probe_dense",
        "patch tokens to nodule masks: Dice beside that of readers, pixels and random weights",
        "pipelines.probing.config:DenseConfig",
        "pipelines.probing.dense:run_dense",
        is_stage=True,
        needs="pipelines.nodule.enough:refuse_too_few_patients",
    ),
    EntryPoint(
        "audit",
        "anybody's encoders, functions and tables on one cohort beside every baseline: one page, HTML and Markdown",
        "pipelines.audit:AuditConfig",
        "pipelines.audit.run:run_audit",
    ),
    EntryPoint(
        "campaign",
        "many arms from one file, within a budget",
        "pipelines.campaign:CampaignConfig",
        "pipelines.campaign.run:run_campaign",
    ),
    EntryPoint(
        "report",
        "runs beside each other with what differs, their curves, and the claims of the article that they answer",
        "pipelines.report:ReportConfig",
        "pipelines.report.run:run_report",
    ),
    EntryPoint(
        "export",
        "a backbone to share: timm folder, ONNX, model card",
        "pipelines.backbones.config:ExportConfig",
        "pipelines.backbones.exporting:run_export",
    ),
    EntryPoint(
        "embed",
        "a folder of CT or a cohort to a parquet file of embeddings with their places in mm",
        "pipelines.backbones.config:EmbedConfig",
        "pipelines.backbones.embedding:run_embed",
    ),
    EntryPoint(
        "export_png",
        "a cohort to 16-bit PNGs that `prepare` reads back",
        "pipelines.export_png:ExportPngConfig",
        "pipelines.export_png:run_export_png",
    ),
    EntryPoint(
        "rehearsal",
        "an entry point that trains nothing, to rehearse campaigns: how they start, end and fail",
        "pipelines.rehearsal:RehearsalConfig",
        "pipelines.rehearsal:run_rehearsal",
        is_stage=True,
        is_public=False,
    ),
)
ENTRY_POINTS: dict[str, EntryPoint] = {one.name: one for one in _LIST}


def next_step(name: str, config: Any, run_id: str) -> str:
    """Return the command that usually follows a run of an entry point; "" if none does."""
    step = ENTRY_POINTS[name].next_step.format(run_id=run_id, cohort=getattr(config, "cohort", ""))
    return step if IS_CHECKOUT else as_installed(step)


def as_installed(command: str) -> str:
    """Return `mlflow run . -e NAME -P KEY=VALUE` as an installed copy is called: `dinox NAME --KEY VALUE`."""
    return re.sub(r" -P ([\w.]+)=", r" --\1 ", command.replace("mlflow run . -e ", "dinox "))
