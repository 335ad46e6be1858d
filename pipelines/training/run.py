"""One training run from cohort to exported backbone, around the updates of `pipelines.training.trainer`."""

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import yaml

from models.backbone import Backbone
from models.losses.gather import world
from pipelines.backbones.folder import save_backbone
from pipelines.backbones.warm_start import first_weights, resolved
from pipelines.cohort.drawn import DrawnBatch
from pipelines.cohort.folder import Cohort
from pipelines.cohort.identity import ids_of, joined, same_voxels, same_voxels_said
from pipelines.cohort.union import open_cohorts
from pipelines.command.config import nested
from pipelines.command.entry_points import next_step
from pipelines.ingest.default_cohort import make_missing
from pipelines.runtime.distributed import (
    WorldError,
    agreed_stop,
    choose_device,
    device_name,
    done_by_rank_zero,
    from_rank_zero,
    process_group,
)
from pipelines.runtime.interrupts import Interrupted, StopWatch
from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.runtime.progress import progress
from pipelines.tracking.changes import changes_said, changes_text
from pipelines.tracking.description import HEADLINE, last_parts
from pipelines.tracking.names import Tag
from pipelines.tracking.outbox import StoreAwayError
from pipelines.tracking.run import Run
from pipelines.tracking.system_metrics import system_metrics, system_monitors
from pipelines.training.checkpoint import load_checkpoint, newest_step, save_checkpoint
from pipelines.training.config import PretrainConfig
from pipelines.training.curves import curves
from pipelines.training.evaluation import RetrievalEvaluation
from pipelines.training.figures import token_figures
from pipelines.training.first_backbone import first_backbone
from pipelines.training.indexing import indexed
from pipelines.training.loader import BatchPlan, LoaderError, MicroBatches, stream_batches
from pipelines.training.mixture import Mixture
from pipelines.training.patients import divide_patients, nodules_used
from pipelines.training.run_folder import RunFolder, claim_folder
from pipelines.training.trainer import NonFiniteLossError, Trainer
from pipelines.training.view_sheet import view_sheet
from pipelines.training.watch import Verdict, advice
from transforms.refusal import number_of
from transforms.views.batch import Views


def train(config: PretrainConfig, run: Run) -> None:
    """Run or resume a pretraining; see `PretrainConfig`.

    Raises:
        Interrupted: With exit code 130 or 143, after saving.
        Refusal: If the configuration, cohort or run to resume does not allow it.
    """
    device = choose_device(config.device)
    if config.nproc > 1 and "RANK" not in os.environ:
        raise WorldError(
            f"nproc={config.nproc} starts processes from the command line only; give --nproc {config.nproc}"
        )
    with process_group(device):
        done_by_rank_zero(lambda: make_missing(config.cohort))
        if from_rank_zero(RunFolder.state(PROJECT_ROOT / config.runs_dir, run.run_id) == "finished"):
            print(f"run {run.run_id} is already finished")
            return
        cohort = open_cohorts(config.cohort)
        TrainingRun(config, run, cohort, device).go()


class TrainingRun:
    """A training run with its folder, data and trainer.

    Attributes:
        folder: Locked by the first process; None in the others.
        run: The MLflow run that is written: that of this process (`wrapper`), or the one that it continues.
    """

    folder: RunFolder | None = None

    def __init__(self, config: PretrainConfig, run: Run, cohort: Cohort, device: torch.device) -> None:
        """Divide the patients, index their slices and build the networks; nothing is trained yet."""
        config = dataclasses.replace(config, backbone=resolved(config.backbone))
        self.config, self.cohort, self.device = config, cohort, device
        self.patients = divide_patients(cohort, config)
        self.index = indexed(config, cohort, self.patients.train, is_training=True)
        rank, processes = world()
        weights = [float(weight) for weight in config.cohort_weights.split(",") if weight]
        mixture = Mixture.of(self.index, cohort, weights, config.batch_size)
        self.plan = BatchPlan(
            len(self.index),
            config.batch_size,
            config.accumulation,
            config.seed,
            rank,
            processes,
            mixture,
            self.index.diameter_mm if config.batches == "diameter" else None,
        )
        backbone, self.seen_before = first_backbone(config, cohort, self.index, self.patients.held_out)
        self.trainer = Trainer(config, device, backbone)
        self.evaluation = RetrievalEvaluation(cohort, self.patients.held_out, config, device)
        self.wrapper = self.run = run
        self.recipe = run.stored().tags.get(Tag.RECIPE, "")
        try:
            self.checkpoints = done_by_rank_zero(self._claim_folder)
            checkpoint = load_checkpoint(self.checkpoints)
            if checkpoint is not None:
                self.trainer.restore(checkpoint)
        except BaseException:
            self._release()
            raise
        self.monitors = system_monitors() if rank == 0 else []
        if self.folder is not None:
            self.outbox = self.run.buffer_in(self.folder.path / "outbox")
            self.wrapper.outbox = self.outbox

    def _claim_folder(self) -> Path:
        """Lock the folder of this run, or that of the run to continue, and return its checkpoints."""
        self.folder, self.run = claim_folder(self.config, self.run, self.recipe, self.cohort.sha256)
        return self.folder.checkpoints

    def _release(self) -> None:
        if self.folder is not None:
            self.folder.release()

    def go(self) -> None:
        """Train to the last step, evaluate, export; on a signal save and end with the signal's exit code."""
        stop = StopWatch()
        try:
            self._describe()
            verdict = self._loop(stop)
        except (NonFiniteLossError, LoaderError) as error:
            self._close("FAILED")
            raise type(error)(f"{error}; {self._way_on(error)}") from error
        except BaseException as error:
            self._close("KILLED" if isinstance(error, Interrupted) else "FAILED")
            raise
        else:
            self._finish(verdict)
        finally:
            stop.close()
            self._release()

    def _way_on(self, error: NonFiniteLossError | LoaderError) -> str:
        step, run_id = newest_step(self.checkpoints), self.checkpoints.parent.name
        if step is None:
            return "no checkpoint was saved before it, so start anew"
        changes = " -P allow_changes=optim.lr,optim.clip_norm with the new value"
        changed = changes if isinstance(error, NonFiniteLossError) else ""
        return f"-P resume={run_id}{changed} goes on from the checkpoint of step {step}"

    def _close(self, status: str) -> None:
        """Set the status of a continued run; the run of this process is closed by the command line."""
        if self.run is not self.wrapper:
            self.run.finish(status)

    def _describe(self) -> None:
        cohort_tags = {Tag.COHORT_SHA: self.cohort.sha256, Tag.COHORT_KIND: self.cohort.kind}
        cohort_tags[Tag.DEVICE] = device_name(self.device)
        if self.trainer.step == 0:
            cohort_tags[Tag.STATUS] = "too early"
        if self.folder is not None and self.folder.is_resumed:
            self.run.reopen()
            cohort_tags[Tag.ERROR] = ""
            if changes := self.folder.note_changes(self.trainer.step, self.config):
                cohort_tags[Tag.CHANGES] = changes_text(changes)
                told = yaml.safe_dump(nested(self.config), sort_keys=False)
                self.run.log_text(told, f"config_from_step_{changes[-1].step:08d}.yaml")
                print(f"changed on resume: {changes_said(changes)}")
        if self.patients.leak:
            cohort_tags[Tag.LEAK] = self.patients.leak
        self.run.set_tags(cohort_tags)
        counts = {
            "data/train_patients": len(set(self.index.patient_ids)),
            "data/held_out_patients": len(self.patients.held_out),
            "data/train_slices": len(self.index),
            "data/same_voxels": len(same_voxels(self.cohort)),
        }
        if self.config.views.is_3d:
            counts["data/small_volumes"] = self.index.n_small
        self.run.log_dataset(
            last_parts(self.config.cohort),
            self.cohort.sha256,
            {"kind": self.cohort.kind} | counts,
            "training",
        )
        self.held_back: list[dict[str, float]] = [{name: float(count) for name, count in counts.items()}]
        self.run.log_text("\n".join(self.patients.held_out) + "\n", "held_out_patients.txt")
        if self.folder is not None:
            print(
                f"{number_of(counts['data/train_slices'], 'slice')} of"
                f" {number_of(counts['data/train_patients'], 'patient')},"
                f" {counts['data/held_out_patients']} held out; device {self.device}"
            )
            held_out = [f"held out: {sentence}" for sentence in self.evaluation.sample.index.said]
            for sentence in [*same_voxels_said(self.cohort), *self.index.said, *held_out]:
                print(sentence)

    def _loop(self, stop: StopWatch) -> Verdict:
        config, trainer = self.config, self.trainer
        batches = self._batches()
        eval_every = config.eval_every or max(config.steps // 10, 1)
        verdict: Verdict = "too early"
        if trainer.step >= config.steps:  # Killed after its last step, before its export.
            verdict = trainer.watcher.report(trainer.step)[1]
        if trainer.step == 0:
            self.held_back.append(self.evaluation.random_baseline(trainer.networks.teacher.backbone))
            self._evaluate()
        with progress(
            total=config.steps,
            initial=trainer.step,
            desc="pretrain",
            unit="step",
            disable=world()[0] != 0,
        ) as bar:
            while trainer.step < config.steps:
                self._update(batches)
                step, is_last = trainer.step, trainer.step == config.steps
                bar.update()
                if step == 1 or step % config.log_every == 0 or is_last:
                    metrics, verdict = trainer.report()
                    # MLflow's compare page opens on the metric that was logged first.
                    self.run.log_metrics({"teacher/gain": metrics["teacher/gain"]} | metrics, step)
                    self._log_held_back()
                    if self.monitors:
                        self.run.log_metrics(system_metrics(self.monitors), step)
                    self.run.set_tags({Tag.STATUS: verdict})
                    bar.set_postfix_str(_progress(metrics, verdict), refresh=False)
                if step % eval_every == 0 or is_last:
                    self._evaluate()
                code = agreed_stop(stop.exit_code)
                if step % config.save_every == 0 or is_last or code is not None:
                    self._save()
                if code is not None:
                    raise Interrupted(
                        code, f"interrupted at step {step} and saved; -P resume=auto continues this run"
                    )
                if config.stop_when == "hopeless" and trainer.watcher.is_hopeless(step):
                    print(f"stopped at step {step}: {verdict} for {config.watch.patience_steps} updates")
                    break
        return verdict

    def _update(self, batches: Iterator[DrawnBatch | Views]) -> None:
        try:
            self.trainer.update(batches)
        except LoaderError:
            # Nothing of the update was made. Of several processes the others wait for this one, and could not save.
            if self.config.accumulation == 1 and world()[1] == 1 and self.trainer.step:
                self._save()
            raise

    def _batches(self) -> Iterator[DrawnBatch | Views]:
        config, on_cpu = self.config, self.device.type == "cpu"
        workers = config.workers if config.workers >= 0 else (0 if on_cpu else 8)
        dataset = MicroBatches(self.index, self.plan, config.views, config.seed, render=on_cpu)
        first = self.trainer.step * config.accumulation
        return stream_batches(dataset, first, config.steps * config.accumulation, workers, pin=not on_cpu)

    def _evaluate(self) -> None:
        step, teacher = self.trainer.step, self.trainer.networks.teacher.backbone
        self.trainer.check_sums()
        measured = self.evaluation.measure(self.trainer.networks)
        if step:
            self.run.log_metrics(measured, step)
        else:
            self.held_back.append(measured)
        if self.folder is None:
            return
        self.run.log_image(view_sheet(self.index, self.plan, self.config, step), "views", step)
        shown = self.evaluation.examples(self.index)
        tokens, patient_ids = self.evaluation.teacher_tokens, self.evaluation.sample.patient_ids
        figures = token_figures(
            teacher,
            shown.images,
            self.config.views,
            tokens,
            patient_ids,
            shown.spacing_mm,
            shown.directions,
            shown.window_hu,
        )
        for key, figure in figures:
            self.run.log_image(figure, key, step)
        self.run.log_gallery()
        if self.config.keep_backbones:
            self._export({"backbone": teacher}, f"backbones/step_{step:08d}")

    def _log_held_back(self) -> None:
        for metrics in self.held_back:
            self.run.log_metrics(metrics)
        self.held_back.clear()

    def _save(self) -> None:
        tensors, facts = self.trainer.state()

        def write() -> None:
            if self.folder is not None:
                save_checkpoint(self.folder.checkpoints, self.trainer.step, tensors, facts)

        done_by_rank_zero(write)

    def _finish(self, verdict: Verdict) -> None:
        if self.folder is None:
            return
        said = advice(verdict, self.config.objective.kind)
        print(f"verdict: {verdict} ({said})")
        self._deliver_all()
        self.run.set_tags({Tag.STATUS: verdict, Tag.ADVICE: said})
        for figure, name in curves(self.run, self.config):
            self.run.log_figure(figure, f"figures/{name}.png")
        networks = self.trainer.networks
        self._export({"backbone": networks.teacher.backbone, "backbone_student": networks.student.backbone})
        self.run.set_tags({Tag.BACKBONE: "yes"})
        self.run.log_file(self.folder.checkpoints, "checkpoint")
        if self.run is not self.wrapper:
            self.run.describe(next_step("pretrain", self.config, self.run.run_id))
        self._close("FINISHED")
        self._deliver_all()
        self.folder.mark_finished()

    def _deliver_all(self) -> None:
        if not self.outbox.flush(is_last=True):
            raise StoreAwayError(
                f"all {self.trainer.step} updates are done and saved, but {self.outbox.reason}; {len(self.outbox)}"
                f" records wait in {self.outbox.folder}, and -P resume={self.run.run_id} then delivers them"
            )

    def _export(self, backbones: Mapping[str, Backbone], place: str = "") -> None:
        """Write backbones as artifacts: each under its name, or the only one at `place`."""
        record = {
            "run_id": self.run.run_id,
            "recipe": self.recipe,
            "cohort_sha": self.cohort.sha256,
            "nodules_sha": nodules_used(self.config, self.cohort),
            "holdout": self.config.holdout,
            "leak": self.patients.leak,
            "trained_on": joined(ids_of(self.cohort, self.patients.train), self.seen_before),
            "first_weights": first_weights(self.config.backbone, self.seen_before),
            "seed": self.config.seed,
            "steps": self.trainer.step,
            "mm_per_pixel": self.trainer.scale_mm if self.trainer.step else None,
            "mm_per_slice": self.trainer.slice_mm if self.trainer.step else None,
            "window_policy": self.config.views.window.policy,
            "hu_scale": self.config.views.window.hu_scale,
        }
        with tempfile.TemporaryDirectory() as folder:
            for name, backbone in backbones.items():
                save_backbone(Path(folder) / name, backbone, self.config.backbone, record | {"network": name})
                self.run.log_file(Path(folder) / name, place or name)
            if "backbone" in backbones and not place:
                self._log_model(Path(folder) / "backbone")

    def _log_model(self, folder: Path) -> None:
        measured = self.run.stored().metrics
        figures = {name: measured[name] for name in HEADLINE if name in measured}
        self.run.log_model("backbone", folder, figures, self.config.register_as)


def _progress(metrics: dict[str, float], verdict: Verdict) -> str:
    return (
        f"loss {metrics['loss/total']:.3f}, G {metrics['teacher/gain']:+.2f}, {verdict},"
        f" {metrics['perf/slices_per_s']:.0f} slices/s"
    )
