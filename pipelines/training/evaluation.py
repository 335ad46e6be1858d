"""View retrieval inside a training run: do two views of a held-out slice find each other?"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbone import Backbone, build_backbone
from models.student_teacher import StudentTeacher
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig
from probes.retrieval import RetrievalResult, retrieval
from transforms.views.batch import draw_views, render_views

_VIEW_SEED = 2**31 - 1
"""Views of an evaluation are the same at every step and in every run."""


class RetrievalEvaluation:
    """A fixed set of held-out slices, seen through two training-style views each."""

    def __init__(
        self, cohort: Cohort, patients: list[str], config: PretrainConfig, device: torch.device
    ) -> None:
        """Choose the slices: evenly over those of `patients`, at most `eval_slices`."""
        self.index = SliceIndex(cohort, patients, config.slices == "inner")
        count = min(config.eval_slices, len(self.index))
        self.rows = (
            np.linspace(0, len(self.index) - 1, count).astype(np.int64) if count else np.zeros(0, np.int64)
        )
        self.config, self.device = config, device
        self.teacher_tokens = np.zeros((2, 0, 0), np.float32)
        """Class tokens of the teacher as last measured: both views of each slice, (2, n, D)."""

    @property
    def patient_ids(self) -> NDArray[np.str_]:
        """Patient of each slice, (n,)."""
        return np.array(self.index.patient_ids, dtype=np.str_)[self.index.volume[self.rows]]

    def examples(self, training: SliceIndex, count: int = 4) -> torch.Tensor:
        """Render the first view of a few slices, (B, 3, S, S); of `training` when nobody is held out."""
        index, rows = (
            (self.index, self.rows)
            if len(self.rows)
            else (training, np.arange(len(training), dtype=np.int64))
        )
        shown = min(count, len(rows))
        # The middles of equal parts: the first slice of a series shows little.
        chosen = rows[((np.arange(shown) + 0.5) / shown * len(rows)).astype(np.int64)]
        return self._views(index, chosen)[0]

    def measure(self, networks: StudentTeacher) -> dict[str, float]:
        """Return `retrieval/*` of teacher and student; empty when nobody is held out."""
        if len(self.rows) < 2:
            return {}
        teacher, student = self._tokens([networks.teacher.backbone, networks.student.backbone])
        self.teacher_tokens = teacher
        found, own = self._retrieve(teacher), self._retrieve(student)
        return {
            "retrieval/top1": found.top1.value,
            "retrieval/top1_ci_low": found.top1.ci_low,
            "retrieval/top1_ci_high": found.top1.ci_high,
            "retrieval/top5": found.top5.value,
            "retrieval/ratio": found.ratio,
            "retrieval/n": float(len(self.rows)),
            "retrieval/student_top1": own.top1.value,
        }

    def random_floor(self) -> dict[str, float]:
        """Return `retrieval/random_*`: the same slices and views through random weights of this architecture."""
        if len(self.rows) < 2:
            return {}
        torch.manual_seed(self.config.seed)
        untrained = build_backbone(dataclasses.replace(self.config.backbone, weights="")).to(self.device)
        found = self._retrieve(self._tokens([untrained])[0]).top1
        return {
            "retrieval/random_top1": found.value,
            "retrieval/random_top1_ci_low": found.ci_low,
            "retrieval/random_top1_ci_high": found.ci_high,
        }

    def _retrieve(self, tokens: NDArray[np.float32]) -> RetrievalResult:
        volumes = self.index.volume[self.rows]
        series = np.array(self.index.volume_ids)[volumes]
        return retrieval(tokens[0], tokens[1], self.patient_ids, series, self.index.z[self.rows])

    @torch.no_grad()
    def _tokens(self, backbones: list[Backbone]) -> list[NDArray[np.float32]]:
        parts: list[list[torch.Tensor]] = [[] for _ in backbones]
        for chunk in np.array_split(self.rows, max(1, len(self.rows) // 64)):
            views = self._views(self.index, chunk)
            for backbone, tokens in zip(backbones, parts, strict=True):
                was_training = backbone.training
                backbone.eval()
                encoded = backbone(views.flatten(0, 1)).class_token
                backbone.train(was_training)
                tokens.append(encoded.unflatten(0, views.shape[:2]).float().cpu())
        return [torch.cat(tokens, dim=1).numpy() for tokens in parts]

    def _views(self, index: SliceIndex, rows: NDArray[np.int64]) -> torch.Tensor:
        batch = index.read(rows)
        draws = draw_views(batch, self.config.views, _VIEW_SEED, 0)
        return render_views(batch.to(self.device), draws, self.config.views).global_views
