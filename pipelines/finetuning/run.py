"""One fine-tuning from backbone to table: every fold's network, beside the frozen backbone and its baselines."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.finetuning.config import FinetuneConfig
from pipelines.finetuning.network import Crops, FineTuned, Tuned
from pipelines.finetuning.record import save_tuned
from pipelines.finetuning.rows import FINETUNED, TunedFold, ask_tuned, tuned_rows
from pipelines.nodule.diagnoses import read_diagnoses
from pipelines.nodule.labeled import NoduleSet
from pipelines.probing.fold_record import FoldRecord, claimed, epoch_figure, epoch_table
from pipelines.probing.folds import Fold
from pipelines.probing.malignancy import evaluate, one_each, probe_factory, shuffled
from pipelines.probing.question import ask
from pipelines.probing.readers import ProbeError, open_backbones, readers_of
from pipelines.probing.reading import FrozenFeatures
from pipelines.probing.rows import find_nodules, gather_inputs, score_rows
from pipelines.probing.setup import (
    labeled_nodules,
    log_scores,
    open_cohort,
    report_unknown_diameters,
    settled_folds,
    short_table,
)
from pipelines.probing.target import Aim, aim_of
from pipelines.runtime.distributed import choose_device
from pipelines.runtime.interrupts import StopWatch
from pipelines.tracking.run import Run
from pipelines.training.run_folder import RunFolder
from probes.evaluation import headline
from probes.heads.fitting import FitSettings, early_stopping_fold
from probes.statistics.metrics import auroc_difference
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of


def run_finetune(config: FinetuneConfig, run: Run) -> None:
    """Fine-tune or resume; see `FinetuneConfig`.

    Raises:
        Interrupted: With exit code 130 or 143; the last whole epoch of the fold is saved.
        Refusal: If the configuration, cohort or run to resume does not allow it.
    """
    cohort = open_cohort(config)
    backbones = open_backbones(config.backbone, config.image_px or None)
    if backbones[0].backbone.image_depth_px or backbones[0].backbone.takes_spacing:
        raise ProbeError(
            f"{backbones[0].source} reads cubes or the spacing of its images; finetune trains 2D backbones that do not"
        )
    named = f"finetune {','.join(loaded.sha256 for loaded in backbones)}"
    with claimed(config, run, named, cohort.sha256) as own:
        if own is not None:
            FineTuning(config, own.run, cohort, own.folder, own.stop).go(backbones)


class FineTuning:
    """A fine-tuning with its folder and run."""

    def __init__(
        self, config: FinetuneConfig, run: Run, cohort: Cohort, folder: RunFolder, stop: StopWatch
    ) -> None:
        """Nothing is trained yet."""
        self.config, self.run, self.cohort, self.folder, self.stop = config, run, cohort, folder, stop
        self.records: list[FoldRecord] = []

    def go(self, backbones: Sequence[LoadedBackbone]) -> None:
        """Train the networks of all folds, and print them in the table of `probe_malignancy`."""
        config, run, cohort = self.config, self.run, self.cohort
        spec = CropSpec(size_mm=config.size_mm, out_px=backbones[0].backbone.image_px)
        diagnosis = read_diagnoses(config.diagnosis)
        nodules = labeled_nodules(config, cohort, spec, config.input == "whole_slice", diagnosis)
        report_unknown_diameters(nodules)
        aim = aim_of(config, nodules)
        is_column = config.target not in ("", "rating", "label")
        if aim.classes is not None or (is_column and aim.rating is not None):
            raise ProbeError(f"finetune learns two classes; target={config.target} has more than two values")
        nodules = aim.nodules
        readers = readers_of(config.backbone, backbones, cohort, nodules.patient_ids, config.leak)
        folds = settled_folds(config, run, cohort, readers, nodules)
        frozen = [FrozenFeatures(config, reader.loaded, nodules) for reader in readers]
        tuned = [
            fold
            for reader, own in zip(frozen, folds, strict=True)
            for fold in self.tune(reader, nodules, own)
        ]
        run.log_file(self.adapters, "adapters")
        epochs = epoch_table(self.records)
        run.log_table(epochs, "tables/epochs.csv")
        run.log_figure(epoch_figure(epochs), "figures/epochs.png")
        self.evaluate(nodules, aim, frozen, folds, tuned, diagnosis)

    @property
    def adapters(self) -> Path:
        """Folder of what each fold's network learned."""
        return self.folder.path / "adapters"

    def tune(self, reader: FrozenFeatures, nodules: NoduleSet, folds: Sequence[Fold]) -> list[TunedFold]:
        """Train a copy of one backbone in each of its folds, or read what was trained before."""
        config, labels, patients = self.config, nodules.labels, nodules.patient_ids
        settings = FitSettings(
            lr=config.lr,
            weight_decay=config.weight_decay,
            batch_size=config.batch_size,
            max_epochs=config.max_epochs,
            patience=config.patience,
        )
        crops, found = Crops.of(reader), []
        for train, test in folds:
            number = len(self.records)
            place = self.folder.checkpoints / f"fold_{number:03d}"
            record = FoldRecord(place, number, "", settings, self.run, self.stop)
            self.records.append(record)
            probe = FineTuned(
                loaded=reader.loaded,
                config=config,
                mm_per_px=reader.mm_per_px,
                settings=settings,
                seed=config.seed,
                device=choose_device(config.device),
                follower=record,
            ).fit(crops[train], labels[train], patients[train])
            network = probe.network_
            assert isinstance(network, Tuned)
            inner = early_stopping_fold(labels[train], patients[train], settings, config.seed)
            held_out = np.sort(np.concatenate([train[inner.test], test]))
            logits = np.full(len(labels), np.nan)
            logits[held_out] = probe.decision_function(crops[held_out])
            found.append(TunedFold(logits, train[inner.test], test))
            save_tuned(self.adapters / f"fold_{number:03d}", network, reader.loaded)
            self._report(record, network)
        return found

    def _report(self, record: FoldRecord, network: Tuned) -> None:
        best = min(record.figures, key=lambda one: one.validation_loss)
        print(
            f"fold {record.number + 1}: {number_of(len(record.figures), 'epoch')}, best at"
            f" {record.figures.index(best) + 1}: validation loss {best.validation_loss:.3f},"
            f" AUROC {best.validation_auroc:.3f}"
        )
        if record.number == 0:
            trained, everything = network.n_trained()
            print(f"{trained:,} of {everything:,} parameters learn ({trained / everything:.2%})")
            share = {"finetune/trained_share": trained / everything}
            self.run.log_metrics({"finetune/trained_parameters": float(trained)} | share)

    def evaluate(
        self,
        nodules: NoduleSet,
        aim: Aim,
        frozen: Sequence[FrozenFeatures],
        folds: Sequence[Sequence[Fold]],
        tuned: Sequence[TunedFold],
        diagnosis: pd.DataFrame | None,
    ) -> None:
        """Put the networks into the table of the frozen features and baselines, and ask the primary question."""
        config, run = self.config, self.run
        tested = np.unique(np.concatenate([test for own in folds for _, test in own]))
        found = find_nodules(config, self.cohort, nodules, diagnosis)
        inputs = gather_inputs(config, self.cohort, found, frozen, folds, diagnosis)
        target = aim.target(config, tested)
        factory = probe_factory(config.head, config.seed, config.device)
        scores = score_rows(inputs, target, nodules, found, factory)
        scores |= tuned_rows(tuned, nodules, float(nodules.labels[tested].mean()))
        table = evaluate(config, nodules, scores, shuffled(config, target, inputs, factory))
        table = table.assign(trained_on_labels=table["row"].str.startswith(FINETUNED))
        print(
            f"{short_table(table)}\nrows {FINETUNED}: the backbone was trained on labels, of training patients alone"
            f" (mode={config.mode}); in the others it is frozen"
        )
        metrics = headline(table) | self._over_frozen(nodules, scores, tested)
        for answer in (
            ask(config, nodules, inputs, found, aim.asked),
            ask_tuned(config, nodules, found, aim.asked, tuned),
        ):
            if answer is not None:
                print(answer)
                metrics |= answer.metrics()
        run.log_metrics(metrics)
        run.log_table(table, "tables/probe.csv")
        log_scores(
            run, nodules, one_each(scores) | {name: scores[name] for name in scores if FINETUNED in name}
        )

    def _over_frozen(
        self, nodules: NoduleSet, scores: dict[str, NDArray[np.float64]], tested: NDArray[np.int64]
    ) -> dict[str, float]:
        config = self.config
        gain = auroc_difference(
            nodules.labels[tested],
            scores[FINETUNED][tested],
            scores["features"][tested],
            nodules.patient_ids[tested],
            config.n_bootstrap,
            config.seed,
        )
        print(f"fine-tuned minus frozen: AUROC {gain}")
        return gain.named("probe/finetuned_over_frozen") | {"probe/finetuned_over_frozen_p": gain.p}
