"""Training of a probe's folds that can be interrupted: checkpoints to resume from, and curves in MLflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure

from pipelines.runtime.interrupts import Interrupted, StopWatch
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.runtime.plot_style import new_figure, stroke
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.run import Run
from pipelines.training.checkpoint import (
    below,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from pipelines.training.run_folder import RunFolder, claim_folder
from probes.heads.fitting import EpochFigures, FitSettings, Training, learned


class Claimed(NamedTuple):
    """What a training of folds writes to, and what asks it to end."""

    folder: RunFolder
    run: Run
    stop: StopWatch


@contextmanager
def claimed(config: Any, run: Run, named: str, cohort_sha: str) -> Iterator[Claimed | None]:
    """Lock the folder of this run, or of the run that it continues; None if it is already finished.

    Args:
        config: With `runs_dir` and `resume`.
        run: Of this process.
        named: What the runs that may be continued have in common, beside cohort and options.
        cohort_sha: Hash of the cohort.

    Raises:
        Interrupted: With exit code 130 or 143; the last whole epoch of the fold is saved.
        ResumeError: If there is no such run, or it is being written.
        StoreAwayError: If the tracking store is away at the end; while training goes on, records wait in the folder.
    """
    if RunFolder.state(PROJECT_ROOT / config.runs_dir, run.run_id) == "finished":
        print(f"run {run.run_id} is already finished")
        yield None
        return
    folder, own_run = claim_folder(config, run, named, cohort_sha)
    stop, status = StopWatch(), "FAILED"
    outbox = run.outbox = own_run.buffer_in(folder.path / "outbox")
    try:
        if folder.is_resumed:
            own_run.reopen()
        yield Claimed(folder, own_run, stop)
        if not outbox.flush(is_last=True):
            raise StoreAwayError(
                f"all folds are trained and saved, but {outbox.reason}; {len(outbox)} records wait in {outbox.folder},"
                f" and -P resume={own_run.run_id} then delivers them"
            )
        folder.mark_finished()
        status = "FINISHED"
    except Interrupted:
        status = "KILLED"
        raise
    finally:
        if own_run is not run:
            own_run.finish(status)
        stop.close()
        folder.release()


@dataclass
class FoldRecord:
    """Follows the training of one fold: an epoch's figures are logged and everything is saved.

    Attributes:
        folder: Of its checkpoints.
        number: Of the fold.
        name: Put before the names of its figures: supervised_2d_, or nothing for a backbone.
        settings: Of the training.
        run: Where figures go; the step is the epoch, counted over the folds.
        stop: Asks to end.
        figures: Of the epochs done, those of an earlier process too.
    """

    folder: Path
    number: int
    name: str
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
                f"interrupted in epoch {len(self.figures) + 1} of fold {self.number + 1}; -P resume=auto"
                " continues after the last whole epoch",
            )

    def epoch_done(self, training: Training, figures: EpochFigures) -> None:
        """Log the figures of the epoch and save; of a training that is over its result alone."""
        self.figures.append(figures)
        step = self.number * self.settings.max_epochs + training.epoch
        self.run.log_metrics(
            {f"finetune/{self.name}{name}": value for name, value in asdict(figures).items()}, step
        )
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
    figure = new_figure(7.2, 3.2, f"Training of {table['fold'].nunique()} folds")
    axes, units = figure.subplots(1, 3), ("nats", "nats", "AUROC")
    names = ("loss", "validation_loss", "validation_auroc")
    for axis, name, unit in zip(axes, names, units, strict=True):
        for number, (fold, own) in enumerate(table.groupby("fold")):
            style = stroke(number)
            axis.plot(own["epoch"], own[name], **style.line, marker=style.marker, label=f"fold {fold}")
        axis.set(xlabel="epoch", ylabel=unit, title=name.replace("_", " ").replace("auroc", "AUROC"))
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles[:10], texts[:10], loc="outside lower center", ncols=5)
    return figure
