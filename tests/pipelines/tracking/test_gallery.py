"""One page of all figures of a run: every step behind a slider, the headline figures above, nothing from outside."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image

from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run


def gray(value: float, width: int = 4) -> Figure:
    figure = Figure(figsize=(width, 2))
    figure.patch.set_facecolor((value, value, value))
    return figure


def test_every_step_is_on_the_page_in_order_and_the_last_is_shown(own_store: Path) -> None:
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run = Run(store, str(store.create_run("0", run_name="pretrain demo").info.run_id))
    run.log_metrics({"teacher/gain": 1.5, "retrieval/top1": 0.25})
    run.log_metrics({"retrieval/top1_ci_low": 0.2, "retrieval/top1_ci_high": 0.31})
    run.set_tags({Tag.STATUS: "learning"})
    for step in (0, 200, 1000):
        run.log_image(gray(step / 1000), "tokens/pca", step)
    run.name, run.cohort_name = "pretrain demo", "lidc"
    large = gray(0.5, width=30)
    large.suptitle("loss, 5 folds")
    run.log_figure(large, "figures/loss.png")
    assert large.get_suptitle() == "pretrain demo · cohort lidc\nloss, 5 folds"
    run.describe()
    names = {Path(file.path).name for file in store.list_artifacts(run.run_id, "figures")}
    assert names == {
        "tokens_pca_step000000.png",
        "tokens_pca_step000200.png",
        "tokens_pca_step001000.png",
        "loss.png",
    }
    drawn = Path(store.download_artifacts(run.run_id, "figures", str(own_store)))
    with Image.open(drawn / "loss.png") as image:
        assert image.info["dpi"] == (pytest.approx(300, abs=0.1), pytest.approx(300, abs=0.1))
        assert image.width == 30 * 300
    page = Path(store.download_artifacts(run.run_id, "gallery.html", str(own_store))).read_text(
        encoding="utf-8"
    )
    assert "<h1>pretrain demo</h1><p>learning</p>" in page
    assert "<td>0.25</td><td>0.200 to 0.310</td>" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)

    pictures = re.findall(r'<img alt="([^"]*)" src="data:image/webp;base64,([^"]*)"( hidden)?>', page)
    assert [(alt, hidden) for alt, _, hidden in pictures] == [
        ("step 0", " hidden"),
        ("step 200", " hidden"),
        ("step 1000", ""),
        ("loss", ""),
    ]
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for _, data, _ in pictures]
    means = [float(np.asarray(image).mean()) for image in images]
    np.testing.assert_allclose(means[:3], [0, 51, 255], atol=3)
    assert images[3].width == 1600
    assert page.count('type="range"') == 1  # One picture needs no slider.


def test_a_run_without_figures_has_no_page(own_store: Path) -> None:
    store = MlflowClient(f"sqlite:///{own_store / 'mlflow.db'}")
    run = Run(store, str(store.create_run("0").info.run_id))
    run.describe()
    assert store.list_artifacts(run.run_id) == []
