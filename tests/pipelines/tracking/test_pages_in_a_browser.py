"""MLflow's own pages of two runs, as a person sees them in a window of 1700 x 1000: asserted by bounding boxes."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from pipelines.tracking.names import Tag
from pipelines.tracking.reading import compare_page, run_page, runs_page
from pipelines.tracking.run import Run
from tests.browser import CHROMIUM, HEIGHT, WIDTH, Box, Page, browsing
from tests.processes import OpenProcess, answers, free_port, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]


def two_runs(store: MlflowClient) -> list[str]:
    """Two trainings that differ in one parameter, with figures of two steps."""
    ids = []
    for letter, teacher_temp in (("a", 0.02), ("b", 0.1)):
        run = Run(store, str(store.create_run("0", run_name=f"pretrain demo phantom {letter}").info.run_id))
        run.log_params({"recipe": "demo", "cohort": "cohorts/phantom", "optim.teacher_temp": teacher_temp})
        run.log_metrics({"teacher/gain": 1.5 - teacher_temp})
        run.log_metrics({"retrieval/top1": 0.1})
        run.set_tags({Tag.ENTRY_POINT: "pretrain", Tag.STATUS: "learning"})
        run.log_dataset("phantom", "a" * 64, {"kind": "phantom", "volumes": 160}, "training")
        for step in (0, 100):
            run.log_image(Figure(figsize=(6, 4), facecolor="tab:blue"), "tokens/pca", step)
        run.log_figure(Figure(figsize=(6, 4), facecolor="tab:orange"), "figures/loss.png")
        run.describe("mlflow run . -e probe_malignancy")
        run.finish("FINISHED")
        ids.append(run.run_id)
    return ids


def is_seen(box: Box, least_px: float = 8.0) -> bool:
    """Whether a box lies in the window without scrolling."""
    inside = 0 <= box.left and box.right <= WIDTH and 0 <= box.top and box.bottom <= HEIGHT
    return inside and box.width >= least_px and box.height >= least_px


async def look(page: Page, ids: list[str], server: str) -> None:
    def at_server(address: str) -> str:
        return address.replace("http://127.0.0.1:5000", server)

    assert runs_page("0").endswith("?workflowType=machine_learning")
    await page.open(at_server(runs_page("0")))
    for text in ("pretrain demo phantom a", "pretrain demo phantom b"):
        assert is_seen(await page.box_of(text)), text
    assert is_seen(await page.box_of("phantom (aaaaaaaa")), "column Dataset"
    assert "workflowType=machine_learning" in await page.value("location.href")

    await page.open(at_server(run_page(ids[0], "0")))
    for text in (
        "pretrain demo phantom a",
        "Description",
        "information gain G, nats (teacher/gain)",
        "mlflow run . -e probe_malignancy",
        "Datasets",
        "phantom (aaaaaaaa",
    ):
        assert is_seen(await page.box_of(text)), text

    await page.open(f"{at_server(run_page(ids[0], '0'))}/artifacts/gallery.html")
    pane = await page.box("iframe")
    assert is_seen(pane, least_px=600)
    shown = await page.boxes_in_frame("img:not([hidden])")
    assert len(shown) == 2  # The last step of one figure, and the other.
    first = shown[0]
    assert first.width > 200
    assert first.height > 130
    assert 0 <= first.left
    assert first.right <= pane.width
    assert first.bottom <= pane.height
    assert len(await page.boxes_in_frame("input[type=range]")) == 1

    await page.open(at_server(compare_page(ids, "0")))
    assert is_seen(await page.box("svg.main-svg"), least_px=200)
    assert is_seen(await page.box_of("Comparing 2 Runs"))
    # What it opens on: the parameter that differs against the figure that was logged first.
    text = str(await page.value("document.body.innerText")).split("Run details")[0]
    assert "optim.teacher_temp" in text
    assert "teacher/gain" in text
    assert "recipe" not in text
    assert "retrieval/top1" not in text


def test_a_person_sees_runs_description_dataset_pictures_and_what_differs(
    own_store: Path, open_process: OpenProcess
) -> None:
    ids, port = two_runs(MlflowClient()), free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = ["mlflow", "ui", *options, "--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"]]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (own_store / "server.log").open("wb") as log:
        server = open_process([sys.executable, "-m", *command], env=environment, stdout=log, stderr=log)
        wait_until(lambda: answers(port), server, every_s=0.1)

        async def all_pages() -> None:
            async with browsing(own_store / "browser") as page:
                await look(page, ids, f"http://127.0.0.1:{port}")

        asyncio.run(all_pages())
