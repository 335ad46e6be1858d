"""What a fold's training leaves behind: checkpoints to resume from, curves in MLflow, and the adapters."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save

from pipelines.backbones.folder import LoadedBackbone, open_backbone
from pipelines.command.config import load_recipe
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.network import AdapterError, Tuned
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.interrupts import Interrupted, StopWatch
from pipelines.runtime.json_files import read_json
from pipelines.tracking.run import Run
from pipelines.training.checkpoint import (
    below,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from probes.heads.fitting import EpochFigures, FitSettings, Training, learned

_WEIGHTS, _RECORD = "learned.safetensors", "finetuned.json"
_KEPT = ("mode", "lora_rank", "lora_targets", "features", "window", "size_mm")
"""Options that say how a network is built and read."""


@dataclass
class FoldRecord:
    """Follows the training of one fold: an epoch's figures are logged and everything is saved.

    Attributes:
        folder: Of its checkpoints.
        number: Of the fold.
        settings: Of the training.
        run: Where figures go; the step is the epoch, counted over the folds.
        stop: Asks to end.
        figures: Of the epochs done, those of an earlier process too.
    """

    folder: Path
    number: int
    settings: FitSettings
    run: Run
    stop: StopWatch
    figures: list[EpochFigures] = field(default_factory=list)

    def begins(self, training: Training) -> None:
        """Go back to the checkpoint, if there is one."""
        checkpoint = load_checkpoint(self.folder)
        if checkpoint is None:
            return
        tensors, facts = checkpoint.tensors, checkpoint.facts
        self.figures = [EpochFigures(*values) for values in facts["figures"]]
        training.epoch, training.waited = checkpoint.step, facts["waited"]
        training.best_loss = facts["best_loss"]
        training.best = below("best", tensors)
        if training.is_over(self.settings):
            return
        training.network.load_state_dict(below("network", tensors), strict=False)
        restore_optimizer(training.optimizer, below("optimizer", tensors))
        training.order.set_state(tensors["rng/order"])
        training.noise.set_state(tensors["rng/noise"])
        torch.set_rng_state(tensors["rng/torch"])
        if "rng/cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng/cuda"])

    def batch_done(self) -> None:
        """End the training if the process was asked to."""
        if self.stop.exit_code is not None:
            raise Interrupted(
                self.stop.exit_code,
                f"interrupted in epoch {len(self.figures) + 1} of fold {self.number + 1}; -P resume=auto continues"
                " after the last whole epoch",
            )

    def epoch_done(self, training: Training, figures: EpochFigures) -> None:
        """Log the figures of the epoch and save; of a training that is over its result alone."""
        self.figures.append(figures)
        step = self.number * self.settings.max_epochs + training.epoch
        self.run.log_metrics({f"finetune/{name}": value for name, value in asdict(figures).items()}, step)
        parts = {"best": training.best}
        if not training.is_over(self.settings):
            rng = {"torch": torch.get_rng_state()}
            rng |= {"order": training.order.get_state(), "noise": training.noise.get_state()}
            if torch.cuda.is_available():
                rng["cuda"] = torch.cuda.get_rng_state()
            own = {"network": learned(training.network), "optimizer": optimizer_tensors(training.optimizer)}
            parts |= own | {"rng": rng}
        tensors = {f"{part}/{name}": one for part, own in parts.items() for name, one in own.items()}
        facts: dict[str, Any] = {"waited": training.waited, "best_loss": training.best_loss}
        facts |= {"figures": [list(asdict(one).values()) for one in self.figures]}
        save_checkpoint(self.folder, training.epoch, tensors, facts, keep=1)


def epoch_table(records: Sequence[FoldRecord]) -> pd.DataFrame:
    """Return the figures of every fold and epoch."""
    return pd.DataFrame(
        {"fold": record.number, "epoch": epoch} | asdict(figures)
        for record in records
        for epoch, figures in enumerate(record.figures, 1)
    )


def epoch_figure(table: pd.DataFrame) -> Figure:
    """Draw training loss, validation loss and validation AUROC by epoch, a line a fold."""
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    names = ("loss", "validation_loss", "validation_auroc")
    for axis, name in zip(figure.subplots(1, 3), names, strict=True):
        for fold, own in table.groupby("fold"):
            axis.plot(own["epoch"], own[name], marker=".", label=f"fold {fold}")
        axis.set(xlabel="epoch", title=name.replace("_", " "))
    return figure


def save_tuned(folder: Path, network: Tuned, loaded: LoadedBackbone) -> None:
    """Write what a network learned, less the backbone's frozen weights: with adapters below 1 MB for a ViT-S."""
    make_folder(folder)
    state = {name: one.detach().cpu().contiguous() for name, one in learned(network).items()}
    write_atomically(folder / _WEIGHTS, lambda file: file.write(save(state)))
    record = {name: getattr(network.config, name) for name in _KEPT}
    record |= {"mm_per_px": network.mm_per_px, "image_px": loaded.backbone.image_px}
    record |= {"backbone": loaded.source, "backbone_sha": loaded.sha256}
    text = json.dumps(record, indent=2) + "\n"
    write_atomically(folder / _RECORD, lambda file: file.write(text.encode()))


def open_tuned(folder: Path, loaded: LoadedBackbone | None = None) -> Tuned:
    """Open what `save_tuned` wrote, on its backbone.

    Args:
        folder: Of the adapter.
        loaded: Its backbone; None: opened by the name that the folder states.

    Raises:
        AdapterError: If it was trained on another backbone.
    """
    needed = (*_KEPT, "mm_per_px", "image_px", "backbone", "backbone_sha")
    record: dict[str, Any] = read_json(folder / _RECORD, needed, "fine-tune again")
    loaded = loaded or open_backbone(record["backbone"], record["image_px"])
    if loaded.sha256 != record["backbone_sha"]:
        raise AdapterError(
            f"what was learned in {folder.name} belongs to backbone {record['backbone']}, whose weights are not those"
            f" of {loaded.source}; give that one"
        )
    config = load_recipe(FinetuneConfig, {name: record[name] for name in _KEPT})
    network = Tuned(loaded, config, record["mm_per_px"])
    network.load_state_dict(load_file(folder / _WEIGHTS), strict=False)
    return network.requires_grad_(False).eval()
