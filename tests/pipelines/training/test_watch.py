"""The verdict on codes whose nature is known."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.losses.objective import Seen
from pipelines.training.config import WatchConfig
from pipelines.training.watch import Verdict, Watcher, advice

K, TEMP = 64, 0.1
CONFIG = WatchConfig(window_samples=512, min_steps=10, patience_steps=50)


def seen(teacher: Tensor, student: Tensor, tokens: Tensor) -> Seen:
    return Seen(torch.softmax(teacher, -1), student * TEMP, tokens, None)


def codes(kind: str, generator: torch.Generator, batch: int = 64) -> Seen:
    tokens = torch.randn(2, batch, 16, generator=generator)
    if kind == "wall":
        near_uniform = torch.randn(2, batch, K, generator=generator) * 0.01
        return seen(near_uniform, torch.zeros(2, batch, K), tokens)
    if kind == "collapsed":
        one = torch.zeros(2, batch, K)
        one[..., 3] = 20.0
        return seen(one, one, tokens)
    if kind == "untrained":  # Codes that differ between slices, which the other view does not predict.
        return seen(*(2 * torch.randn(2, 2, batch, K, generator=generator)), tokens)
    code = torch.randint(K, (batch,), generator=generator)
    told = torch.nn.functional.one_hot(code, K).float().expand(2, -1, -1) * 8.0
    return seen(told, told, tokens)


def watch(kind: str, steps: int = 30) -> tuple[dict[str, float], Verdict, Watcher]:
    generator = torch.Generator().manual_seed(0)
    watcher = Watcher(CONFIG, K, TEMP)
    watcher.observe(codes("untrained", generator))
    watcher.report(1)
    for _ in range(steps):
        watcher.observe(codes(kind, generator))
    metrics, verdict = watcher.report(steps)
    return metrics, verdict, watcher


@pytest.mark.parametrize("kind", ["wall", "collapsed", "learning"])
def test_each_state_is_told_from_the_others(kind: str) -> None:
    assert watch(kind)[1] == kind


def test_watching_keeps_class_tokens_and_not_the_batch_that_they_are_a_view_of() -> None:
    all_tokens = torch.randn(2, 64, 257, 16)
    code = torch.zeros(2, 64, K)
    watcher = Watcher(CONFIG, K, TEMP)
    watcher.observe(seen(code, code, all_tokens[:, :, 0]))
    kept = watcher.buckets[0].tokens
    assert torch.equal(kept, all_tokens[0, :, 0])
    assert kept.untyped_storage().nbytes() == 64 * 16 * 4


def test_an_untrained_network_does_not_pass_for_learning() -> None:
    metrics, verdict, _ = watch("untrained")
    mean_entropy_gap = math.log(metrics["teacher/prototypes_used"]) - metrics["teacher/entropy"]
    assert mean_entropy_gap > 0.5
    assert metrics["teacher/gain"] < 0
    assert verdict != "learning"


def test_the_wall_has_no_gain_and_uses_every_prototype() -> None:
    metrics, _, _ = watch("wall")
    assert metrics["teacher/gain"] == pytest.approx(0.0, abs=0.01)
    assert metrics["teacher/entropy"] == pytest.approx(math.log(K), abs=0.01)
    assert metrics["teacher/prototypes_used"] == pytest.approx(K, rel=0.01)


def test_collapse_uses_one_prototype() -> None:
    assert watch("collapsed")[0]["teacher/prototypes_used"] == pytest.approx(1.0, abs=0.01)


def test_the_gain_of_a_perfect_code_is_its_entropy() -> None:
    metrics, _, _ = watch("learning")
    code_entropy = math.log(metrics["teacher/prototypes_used"])
    assert metrics["teacher/gain"] == pytest.approx(code_entropy - metrics["student/entropy"], abs=0.05)


def test_no_verdict_before_the_minimum_step() -> None:
    assert watch("wall", steps=5)[1] == "too early"


def test_the_window_forgets_what_lies_before_it() -> None:
    generator = torch.Generator().manual_seed(0)
    watcher = Watcher(CONFIG, K, TEMP)
    for _ in range(20):
        watcher.observe(codes("collapsed", generator))
    for _ in range(9):
        watcher.observe(codes("wall", generator))
    assert watcher.report(40)[0]["teacher/prototypes_used"] == pytest.approx(K, rel=0.01)
    assert sum(bucket.samples for bucket in watcher.buckets) <= CONFIG.window_samples + 64


def test_only_lasting_trouble_is_hopeless() -> None:
    generator = torch.Generator().manual_seed(0)
    watcher = Watcher(CONFIG, K, TEMP)
    for step, kind in (
        (1, "untrained"),
        (20, "collapsed"),
        (60, "collapsed"),
        (65, "learning"),
        (100, "collapsed"),
    ):
        for _ in range(9):
            watcher.observe(codes(kind, generator))
        watcher.report(step)
        assert not watcher.is_hopeless(step)
    watcher.report(150)
    assert watcher.is_hopeless(150)


def test_state_goes_over_to_a_new_watcher() -> None:
    metrics, verdict, watcher = watch("learning")
    other = Watcher(CONFIG, K, TEMP)
    other.restore(*watcher.state())
    assert other.report(30) == (metrics, verdict)


def test_what_knows_no_prototypes_goes_on_after_it_was_restored_to_a_gpu() -> None:
    first, second = (Watcher(CONFIG, K, TEMP) for _ in range(2))
    with FakeTensorMode():  # Devices, no GPU: tensors of two devices that meet raise.
        one = Seen(None, None, torch.empty(2, 4, 16, device="cuda"), torch.zeros((), device="cuda"))
        first.observe(one)
        tensors, facts = first.state()
        second.restore({name: tensor.cpu().to("cuda") for name, tensor in tensors.items()}, facts)
        second.observe(one)
    assert second.buckets[0].samples == 8


def judged(watcher: Watcher, step: int, gain: float, tokens: Tensor | None = None) -> Verdict:
    """The verdict on a window of this gain, as an objective without prototypes states it."""
    if tokens is None:
        tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(1))
    watcher.buckets.clear()
    watcher.observe(Seen(None, None, tokens, torch.tensor(gain)))
    return watcher.report(step)[1]


@pytest.mark.parametrize(
    ("first", "below", "above"), [(0.5, 0.59, 0.61), (0.0, 0.09, 0.11), (-2.0, 0.09, 0.11)]
)
def test_a_run_learns_when_its_gain_is_above_the_threshold_and_has_risen_by_it(
    first: float, below: float, above: float
) -> None:
    watcher = Watcher(CONFIG, K, TEMP)
    assert judged(watcher, 1, first) == "too early"
    assert judged(watcher, 20, below) != "learning"
    assert judged(watcher, 30, above) == "learning"


def test_codes_of_full_entropy_on_features_of_one_direction_are_collapse_and_not_the_wall() -> None:
    watcher = Watcher(CONFIG, K, TEMP)
    one_direction = torch.randn(2, 64, 1, generator=torch.Generator().manual_seed(2)) * torch.arange(16.0)
    assert judged(watcher, 20, 0.0) == "wall"
    assert judged(watcher, 30, 0.0, one_direction) == "collapsed"


@pytest.mark.parametrize(("step", "verdict"), [(9, "too early"), (10, "wall"), (11, "wall")])
def test_the_first_verdict_falls_at_the_minimum_step(step: int, verdict: Verdict) -> None:
    assert judged(Watcher(CONFIG, K, TEMP), step, 0.0) == verdict


@pytest.mark.parametrize(("step", "is_hopeless"), [(69, False), (70, True)])
def test_a_run_is_hopeless_when_trouble_has_lasted_for_the_patience(step: int, is_hopeless: bool) -> None:
    watcher = Watcher(CONFIG, K, TEMP)
    judged(watcher, 20, 0.0)
    assert watcher.is_hopeless(step) == is_hopeless


def test_thresholds_of_gain_and_entropy_decide_the_verdict() -> None:
    def verdict(gain: float, share: float, **thresholds: float) -> Verdict:
        watcher = Watcher(WatchConfig(min_steps=0, **thresholds), 64, 0.1)
        watcher._judge(0, 0.0, math.log(64), 10.0)
        return watcher._judge(1, gain, share * math.log(64), 10.0)

    assert (verdict(0.4, 0.9), verdict(0.4, 0.9, learning_gain=0.5)) == ("learning", "wall")
    assert (verdict(0.0, 0.6), verdict(0.0, 0.6, wall_share=0.7)) == ("wall", "collapsed")


def test_the_advice_is_of_what_the_objective_has() -> None:
    for objective, has in (("dino", "teacher"), ("simclr", "view"), ("mae", "masked patches")):
        assert has in advice("wall", objective)
        assert ("prototypes" in advice("collapsed", objective)) == (objective == "dino")
    assert advice("too early", "mae") == advice("too early", "dino")
