"""Watches the teacher's codes during training and judges whether the run learns.

The loss alone is not enough: at ln K the codes carry no information, and below ln K a low loss may be a collapsed
teacher, which is easy to predict. The information gain between two views, G = H(mean teacher p) - cross-view
cross-entropy (nats), is a lower bound of the information that the code of one view carries about another view of the
same slice. It is negative for an untrained network, and zero at the entropy wall (the teacher outputs nearly the
uniform distribution) and in collapse.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.losses.gather import mean_over_ranks
from models.losses.objective import Seen
from pipelines.training.config import WatchConfig
from probes.statistics.rank import effective_rank

Verdict = Literal["too early", "wall", "collapsed", "learning"]
VERDICT_NUMBER: dict[Verdict, float] = {"too early": 0, "wall": 1, "collapsed": 2, "learning": 3}

_ADVICE: dict[Verdict, str] = {
    "too early": "too few updates to judge",
    "learning": "the code of one view predicts that of the other better than the mean code does",
    "wall": "the teacher outputs nearly the uniform distribution for all slices: give KoLeo the class token with center"
    " momentum 0.9, or head logits with 0.999 and more updates, or lower the teacher temperature",
    "collapsed": "the teacher gives every slice the same few prototypes, so a low loss has no meaning: with center"
    " momentum 0.999 put KoLeo on head logits, else 0.9 with KoLeo on the class token, or lower the learning rate",
}
_WITHOUT_PROTOTYPES: dict[str, dict[Verdict, str]] = {
    "simclr": {
        "learning": "a view is told from those of other slices better than at first",
        "wall": "a view is not told from those of other slices better than at first: more updates, a larger batch, or a"
        " higher learning rate",
        "collapsed": "all slices get nearly one class token: lower the learning rate",
    },
    "mae": {
        "learning": "masked patches are predicted better than by their means",
        "wall": "masked patches are not predicted better than by their means: more updates, or a higher learning rate",
        "collapsed": "all slices get nearly one class token: lower the learning rate",
    },
}
_BUCKETS = 8
_TOKENS_KEPT = 64
"""Class tokens kept of each bucket: 8 x 64 give the rank and the cosine."""


def advice(verdict: Verdict, objective: str) -> str:
    """Return what a verdict means for an objective (`dino`, `simclr`, `mae`), and what to try next."""
    return _WITHOUT_PROTOTYPES.get(objective, {}).get(verdict, _ADVICE[verdict])


@dataclass(slots=True)
class _Bucket:
    """Sums over some hundred samples; a window consists of a few buckets."""

    samples: int
    sums: Tensor  # (4,): cross-entropy, teacher entropy, student entropy, gain where there are no prototypes
    mean_p: Tensor  # (K,), sum over samples; empty without prototypes
    tokens: Tensor  # (<= 64, D)


class Watcher:
    """Running sums over the last `window_samples` samples, without a device synchronization until `report`."""

    def __init__(self, config: WatchConfig, prototypes: int, student_temp: float) -> None:
        """Start with an empty window."""
        self.config = config
        self.log_k = math.log(prototypes)
        self.student_temp = student_temp
        self.buckets: deque[_Bucket] = deque()
        self.first_gain: float | None = None
        self.hopeless_since: int | None = None

    @torch.no_grad()
    def observe(self, seen: Seen) -> None:
        """Add the codes and class tokens of one batch."""
        samples = seen.class_token.shape[1]
        # A copy: a view would keep all tokens of the batch alive, patches too.
        tokens = seen.class_token[0, -_TOKENS_KEPT:].float().clone()
        new = _Bucket(samples, self._sums(seen) * samples, tokens.new_empty(0), tokens)
        if seen.teacher_probs is not None:
            new.mean_p = seen.teacher_probs.float().mean((0, 1)) * samples
        if self.buckets and self.buckets[-1].samples < self.config.window_samples / _BUCKETS:
            last = self.buckets[-1]
            last.samples += samples
            last.sums = last.sums + new.sums
            last.mean_p = last.mean_p + new.mean_p
            last.tokens = torch.cat([last.tokens, new.tokens])[-_TOKENS_KEPT:]
            return
        self.buckets.append(new)
        while sum(b.samples for b in self.buckets) - self.buckets[0].samples >= self.config.window_samples:
            self.buckets.popleft()

    def _sums(self, seen: Seen) -> Tensor:
        zero = torch.zeros((), device=seen.class_token.device)
        if seen.teacher_probs is None or seen.student_logits is None:
            gain = seen.gain.float() if seen.gain is not None else zero
            return torch.stack([zero, zero, zero, gain])
        probs = seen.teacher_probs.float()
        log_probs = F.log_softmax(seen.student_logits[: len(probs)].float() / self.student_temp, dim=-1)
        cross_entropy = -(probs * log_probs.roll(1, 0)).sum(-1).mean()
        teacher_entropy = torch.special.entr(probs).sum(-1).mean()
        student_entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
        return torch.stack([cross_entropy, teacher_entropy, student_entropy, zero])

    def report(self, step: int) -> tuple[dict[str, float], Verdict]:
        """Return the metrics of the window and the verdict on the run at `step`; every process must call it."""
        samples = sum(bucket.samples for bucket in self.buckets)
        sums = torch.stack([b.sums for b in self.buckets]).sum(0)
        cross_entropy, teacher, student, gain = (mean_over_ranks(sums) / samples).tolist()
        tokens = torch.cat([bucket.tokens for bucket in self.buckets]).cpu()
        unit = F.normalize(tokens, dim=-1)
        pairs = max(len(unit) * (len(unit) - 1), 1)
        metrics = {
            "teacher/effective_rank": effective_rank(tokens.numpy()),
            "teacher/cosine": float((unit.sum(0).square().sum() - len(unit)) / pairs),
        }
        code_entropy = self.log_k
        if self.buckets[0].mean_p.numel():
            mean_p = mean_over_ranks(torch.stack([b.mean_p for b in self.buckets]).sum(0)) / samples
            code_entropy = float(torch.special.entr(mean_p).sum())
            gain = code_entropy - cross_entropy
            metrics |= {"teacher/entropy": teacher, "student/entropy": student}
            metrics["teacher/prototypes_used"] = math.exp(code_entropy)
        metrics["teacher/gain"] = gain
        verdict = self._judge(step, gain, code_entropy, metrics["teacher/effective_rank"])
        metrics["teacher/verdict"] = VERDICT_NUMBER[verdict]
        return metrics, verdict

    def _judge(self, step: int, gain: float, code_entropy: float, rank: float) -> Verdict:
        if self.first_gain is None:
            self.first_gain = gain
        threshold = max(self.config.learning_gain, self.first_gain + self.config.learning_gain)
        verdict: Verdict
        if step < self.config.min_steps:
            verdict = "too early"
        elif gain > threshold:
            verdict = "learning"
        elif code_entropy > self.config.wall_share * self.log_k and rank > 1.5:
            verdict = "wall"
        else:
            verdict = "collapsed"
        if verdict in ("too early", "learning"):
            self.hopeless_since = None
        elif self.hopeless_since is None:
            self.hopeless_since = step
        return verdict

    def is_hopeless(self, step: int) -> bool:
        """Whether wall or collapse has lasted `patience_steps` updates."""
        since = self.hopeless_since
        return since is not None and step - since >= self.config.patience_steps

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the state that a resumed run needs to report the same numbers; every process must call it."""
        tensors: dict[str, Tensor] = {}
        for i, bucket in enumerate(self.buckets):
            bucket.sums, bucket.mean_p = mean_over_ranks(bucket.sums), mean_over_ranks(bucket.mean_p)
            tensors |= {f"{i}.sums": bucket.sums, f"{i}.mean_p": bucket.mean_p, f"{i}.tokens": bucket.tokens}
        return tensors, {
            "samples": [bucket.samples for bucket in self.buckets],
            "first_gain": self.first_gain,
            "hopeless_since": self.hopeless_since,
        }

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Load the state that `state` returned."""
        self.buckets = deque(
            _Bucket(samples, tensors[f"{i}.sums"], tensors[f"{i}.mean_p"], tensors[f"{i}.tokens"])
            for i, samples in enumerate(facts["samples"])
        )
        self.first_gain, self.hopeless_since = facts["first_gain"], facts["hopeless_since"]
