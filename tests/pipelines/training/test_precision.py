"""Off the wall, half precision and compilation change how a gradient is computed, not what it is."""

import pytest

from benchmarks.agreement import gradients, learned, lowest_cosine, views_of


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # The compiler's own modules use what Python will drop.
def test_bf16_and_compiled_gradients_agree_with_float32_off_the_wall() -> None:
    trainer, gain = learned()
    assert gain > 0.2, "the gradients of a network at the wall are rounding and say nothing"
    views = next(views_of(trainer.config, seed=1))
    exact = gradients(trainer, views)
    assert lowest_cosine(exact, gradients(trainer, views, precision="bf16")) >= 0.99
    assert lowest_cosine(exact, gradients(trainer, views, compile=True)) >= 0.99
    # The comparison can fail: the gradient of another batch is another gradient.
    assert lowest_cosine(exact, gradients(trainer, next(views_of(trainer.config, seed=2)))) < 0.9
