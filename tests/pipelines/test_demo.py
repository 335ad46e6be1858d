"""The demo's last table and how it reads nodules; the demo itself takes minutes and is run by hand."""

from pathlib import Path

from pipelines.command.config import find_recipe, load_recipe, read_yaml
from pipelines.demo import _ROWS, AT_THE_NODULE, table
from pipelines.phantom.nodules import DIAMETER_RANGE_MM
from pipelines.probing.config import ProbeConfig
from pipelines.tracking.names import METRICS
from pipelines.tracking.reading import newest_run
from pipelines.tracking.run import Run
from pipelines.training.config import PretrainConfig


def test_the_table_shows_both_runs_with_the_intervals_that_were_logged() -> None:
    first = {"loss/dino": 1.25, "probe/n_nodules": 204.0, "probe/nested_p": 0.00012}
    first |= {"probe/partial_r2": 0.1, "probe/partial_r2_ci_low": -0.05, "probe/partial_r2_ci_high": 0.2}
    lines = table([first, {"loss/dino": 6.24}], ["learning", "wall"]).splitlines()
    found = {line[:24].strip(): line[24:].split() for line in lines}
    assert found["verdict"] == ["learning", "wall"]
    assert found["loss (ln K = 6.24)"] == ["1.250", "6.240"]
    assert found["nodules held out"] == ["204", "-"]
    assert found["p"] == ["0.0001", "-"]
    assert found["partial R2"] == ["0.100", "[-0.050,", "0.200]", "-"]
    assert len({len(line) for line in lines}) == 1


def test_every_row_of_the_table_is_a_metric_with_the_interval_that_it_shows() -> None:
    for _, key, form in _ROWS:
        assert key in METRICS
        assert form or {f"{key}_ci_low", f"{key}_ci_high"} <= set(METRICS)


def test_the_probe_of_the_demo_reads_patches_smaller_than_every_nodule() -> None:
    settings = [(key, value) for key, _, value in (text.partition("=") for text in AT_THE_NODULE)]
    probe = load_recipe(ProbeConfig, {}, settings)
    network = load_recipe(PretrainConfig, read_yaml(find_recipe("demo"))).backbone
    assert (probe.features, probe.window) == ("roi", "full")
    assert probe.image_px % network.patch_px == 0
    assert network.patch_px * probe.size_mm / probe.image_px < DIAMETER_RANGE_MM[0]


def test_a_demo_given_again_reads_the_training_that_it_continued(own_store: Path) -> None:
    killed, wrapper, other = (Run.start("pretrain") for _ in range(3))
    for run, name in ((killed, "arm"), (wrapper, "arm"), (other, "other")):
        run.set_tags({"mlflow.runName": name})
    wrapper.set_tags({"dinox.resumes": killed.run_id})
    for run in (other, wrapper, killed):
        run.finish("FINISHED")
    assert newest_run("pretrain", "arm").run_id == killed.run_id
    assert newest_run("pretrain", "other").run_id == other.run_id
