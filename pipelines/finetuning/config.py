"""Configuration of fine-tuning; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pipelines.backbones.config import NoduleFeature, OneWindow
from pipelines.probing.config import ProbeConfig

Mode = Literal["head", "lora", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(ProbeConfig):
    """A backbone trained on the labels of each training fold, beside the same backbone frozen."""

    mode: Mode = "lora"
    """What learns: `head` a linear classifier alone, `lora` low-rank adapters too (needs the extra `lora`), `full`
    everything."""
    lora_rank: PositiveInt = 4
    lora_targets: str = "qkv"
    """Ends of the names of the layers that get adapters, with commas between; `qkv` is whatever makes queries, keys and
    values."""
    lr: PositiveFloat = 1e-3
    """Learning rate of the head and of adapters."""
    backbone_lr: PositiveFloat = 5e-5
    """Learning rate of the backbone's own weights (mode=full)."""
    weight_decay: NonNegativeFloat = 0.05
    batch_size: PositiveInt = 32
    max_epochs: PositiveInt = 30
    patience: NonNegativeInt = 6
    """Training stops after this many epochs without a lower loss on the validation patients, a fifth of the training
    patients."""
    repeats: int = 1
    window: OneWindow = "lung"
    features: Literal[NoduleFeature, "roi"] = "class_token"
    head: Literal["logistic", "mlp"] = "logistic"
    """Of the frozen rows; `mlp` is fitted to the label, as the fine-tuned network is."""
    resume: str = ""
    """`auto` continues the newest unfinished run of these options, backbone and cohort, a run id continues that one."""

    def __post_init__(self) -> None:
        """Refuse an encoder of cubes and a test cohort, which only frozen features have."""
        ProbeConfig.__post_init__(self)
        if self.encoder:
            raise ValueError(
                f"finetune trains a backbone; probe_malignancy reads encoder={self.encoder} frozen"
            )
        if self.test_cohort:
            raise ValueError("finetune has no test_cohort; probe_malignancy scores frozen features on one")
