"""Entry point `audit`: anybody's encoders on one cohort, beside every baseline, as one page to send to a reviewer."""

from dataclasses import dataclass

from pydantic import PositiveFloat, PositiveInt

from pipelines.backbones.config import FeatureName, WindowName
from pipelines.command.config import Seed
from pipelines.probing.config import FoldedProbe
from probes.label_rules import LabelRule


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditConfig:
    """What to audit, on which nodules."""

    encoders: str = ""
    """Names with commas between, each as backbone=, encoder= or features= of probe_malignancy take it: such as
    runs:/<id>/backbone, shipped:<name>, monai:LAYOUT:FILE, astra, python:MODULE:FUNCTION, table:FILE. Options of one
    alone follow it: shipped:whitened_words+features=roi+window=full+size_mm=24. "" takes the newest finished pretrain
    run."""
    cohort: str = "cohorts/phantom"
    rule: LabelRule = "consensus"
    diagnosis: str = ""
    """CSV of TCIA's patient diagnoses, for the rule tcia_diagnosis."""
    size_mm: PositiveFloat = 50.0
    """Side of the crop of 2D backbones."""
    window: WindowName = "lung"
    """CT window of 2D backbones."""
    features: FeatureName = "class_token"
    """Tokens of 2D backbones; `patches` gives no vector and is refused."""
    match_mm: PositiveFloat = 3.0
    """Largest distance of a place in a table of features from the center of its nodule."""
    folds: int = 5
    repeats: int = 5
    """How often the patients are shuffled again and split into folds."""
    n_bootstrap: PositiveInt = 2000
    draws: PositiveInt = 9999
    """Sign flips of the primary test."""
    shots: str = "16,48,128"
    """Numbers of nodules of the few-shot curve, tested on all other patients, 20 draws a point; "" draws none."""
    seed: Seed = 0
    device: str = "auto"
    out: str = "exports/audit"
    """Folder of audit.html and audit.md; both are logged to MLflow too."""
    runs_dir: str = "runs"

    def __post_init__(self) -> None:
        """Refuse counts that give no folds, shots that are no numbers, and features without a vector."""
        FoldedProbe(folds=self.folds, repeats=self.repeats)
        if self.features == "patches":
            raise ValueError("features=patches gives no vector a nodule; choose another")
        if not all(
            part.strip().isdecimal() and int(part) > 3 for part in self.shots.split(",") if self.shots
        ):
            raise ValueError(f"shots are whole numbers of 4 or more, such as 16,48,128; got {self.shots!r}")
