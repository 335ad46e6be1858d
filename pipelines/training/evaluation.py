"""View retrieval inside a training run: do two views of a held-out slice find each other?"""

import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from models.backbone import Backbone, build_backbone, copy_whitening
from models.student_teacher import StudentTeacher
from pipelines.backbones.view_retrieval import (
    Found,
    SliceSample,
    directions_of,
    encode_views,
    render_sample,
    retrieval_metrics,
    retrieve,
    sample_slices,
)
from pipelines.cohort.folder import Cohort
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig
from pipelines.training.indexing import indexed

_LOGGED = ("top1", "top1_ci_low", "top1_ci_high", "top5", "ratio", "n", "student_top1")
_LOGGED_ONCE = ("random_top1", "random_top1_ci_low", "random_top1_ci_high")


class Examples(NamedTuple):
    """A few views to draw, and what figures say of them.

    Attributes:
        images: Triplets (B, 3, S, S) or cubes (B, 1, D, S, S).
        spacing_mm: Sides (z, y, x) of their voxels, (B, 3).
        directions: Of their axes (z, y, x) in the patient, RAS, (B, 3, 3).
        window_hu: Lower and upper edges, (B, 2).
    """

    images: torch.Tensor
    spacing_mm: torch.Tensor
    directions: NDArray[np.float64]
    window_hu: torch.Tensor


class RetrievalEvaluation:
    """A fixed set of held-out slices with two training-style views of each.

    Attributes:
        sample: The slices; none when no patient is held out.
        teacher_tokens: Class tokens of the teacher at the last evaluation: both views of each slice, (2, n, D).
    """

    def __init__(
        self, cohort: Cohort, patients: list[str], config: PretrainConfig, device: torch.device
    ) -> None:
        """Choose at most `eval_slices` slices, evenly over those of `patients`."""
        index = indexed(config, cohort, patients)
        self.sample = sample_slices(index, config.views, config.eval_slices)
        self.config, self.device = config, device
        self.teacher_tokens = np.zeros((2, 0, 0), np.float32)

    def examples(self, training: SliceIndex, count: int = 4) -> Examples:
        """Render the first view of a few slices; of `training` when no patient is held out."""
        sample = self.sample
        if not len(sample.rows):
            sample = SliceSample(training, np.arange(len(training), dtype=np.int64), sample.views)
        n_slices = len(sample.rows)
        shown = min(count, n_slices)
        # The middles of equal parts, because the first slice of a series shows little.
        chosen = sample.rows[((np.arange(shown) + 0.5) / shown * n_slices).astype(np.int64)]
        views = render_sample(sample, chosen, self.device)
        directions = directions_of(sample, chosen)[0]
        return Examples(views.global_views[0], views.spacing_mm[0], directions, views.window_hu[0])

    def measure(self, networks: StudentTeacher) -> dict[str, float]:
        """Return `retrieval/*` of teacher and student; empty when no patient is held out."""
        if len(self.sample.rows) < 2:
            return {}
        both = {"backbone": networks.teacher.backbone, "student": networks.student.backbone}
        tokens = encode_views(self.sample, both, self.device)
        self.teacher_tokens = tokens["backbone"]["class_token"]
        found: Found = {
            (name, "class_token"): retrieve(self.sample, own["class_token"]) for name, own in tokens.items()
        }
        return _logged(retrieval_metrics(found), _LOGGED)

    def random_baseline(self, trained: Backbone) -> dict[str, float]:
        """Return `retrieval/random_*`: the same slices and views encoded with random weights of this architecture."""
        if len(self.sample.rows) < 2:
            return {}
        torch.manual_seed(self.config.seed)
        untrained = build_backbone(dataclasses.replace(self.config.backbone, weights=""))
        copy_whitening(trained, untrained)
        tokens = encode_views(self.sample, {"random": untrained}, self.device)["random"]
        found: Found = {("random", "class_token"): retrieve(self.sample, tokens["class_token"])}
        return _logged(retrieval_metrics(found), _LOGGED_ONCE)


def _logged(metrics: dict[str, float], names: tuple[str, ...]) -> dict[str, float]:
    """Return the metrics that are logged; an interval over a single patient does not exist."""
    return {key: metrics[key] for name in names if (key := f"retrieval/{name}") in metrics}
