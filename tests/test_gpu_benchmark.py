"""The measurement of a GPU: its arithmetic, what it keeps when a stage fails, and a rehearsal of every line."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import worker
from benchmarks.gpu.arithmetic import Shape, forward_flops, update_flops
from benchmarks.gpu.figures import LINES, Figure, append, found, read, table
from benchmarks.gpu.profile import kind_of
from benchmarks.gpu.stages import ALL, STAGES
from benchmarks.gpu.suite import marked_files
from benchmarks.gpu.timing import shape_of
from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.runtime.paths import PROJECT_ROOT

MAY_BE_MISSING = (
    "monai mlflow scipy sklearn nibabel pydicom pylidc SimpleITK matplotlib psutil transformers onnx".split()
)


@pytest.mark.parametrize("registers", [0, 4])
def test_counted_operations_are_those_of_the_network(registers: int) -> None:
    config = BackboneConfig(
        arch="custom", depth=3, embed_dim=48, heads=3, patch_px=14, image_px=70, registers=registers
    )
    backbone = build_backbone(config)
    backbone.attend_plainly()  # The counter does not know the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.zeros(1, 3, 70, 70))
    assert forward_flops(shape_of(backbone)) == counter.get_total_flops()


def test_deit_small_takes_its_published_operations() -> None:
    # 4.6 G multiply-adds at 224 px: Touvron et al. 2021, arXiv:2012.12877, table 5.
    shape = Shape(width=384, depth=12, tokens=198, patches=196, patch_inputs=768)
    assert forward_flops(shape) / 2e9 == pytest.approx(4.6, abs=0.05)


def test_an_update_is_three_passes_of_the_student_and_one_of_the_teacher_for_each_view() -> None:
    shape = Shape(width=384, depth=12, tokens=261, patches=256, patch_inputs=588)
    head = 2 * 384 * (384 + 8192)
    assert update_flops(shape, prototypes=8192) == 8 * (forward_flops(shape) + head)


def test_figures_are_read_back_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    append(tmp_path, "b", Figure("rate", 3.5, "1/s"))
    append(tmp_path, "b", Figure("rate", 4.0, "1/s"))
    append(tmp_path, "c", Figure("rate", None, "1/s", "out of memory"))
    with (tmp_path / LINES).open("a") as file:
        file.write('{"stage": "d", "na')
    lines = read(tmp_path)
    assert [line.stage for line in lines] == ["b", "b", "c"]
    assert found(lines, "b", "rate") == 4.0
    assert found(lines, "c", "rate") is None
    assert "| c | rate | not measured | 1/s | out of memory |" in table(lines, {}, "a machine")


WORKER = """
import json, os, sys, time
folder, letters, plan = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
def line(stage, name, value, note):
    record = {"stage": stage, "name": name, "value": value, "unit": "", "note": note}
    open(folder + "/figures.jsonl", "a").write(json.dumps(record) + "\\n")
for letter in letters:
    line(letter, "", None, "begins")
    line(letter, "first", 1.0, "")
    what = plan.get(letter)
    if what == "hangs": time.sleep(60)
    if what == "dies": os._exit(9)
    line(letter, "last", 2.0, "")
    line(letter, "", None, "ends")
"""


def test_a_stage_that_dies_or_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {letter: replace(stage, budget_s=1) for letter, stage in ALL.items()}
    monkeypatch.setattr(worker, "ALL", quick)

    def start(letters: Sequence[str]) -> list[str]:
        plan = '{"c": "dies", "d": "hangs"}'
        return [sys.executable, "-S", "-c", WORKER, str(tmp_path), "".join(letters), plan]

    worker.run_all("bcde", tmp_path, start, tmp_path, total_s=60)
    lines = read(tmp_path)
    last = [line.stage for line in lines if line.figure.name == "last"]
    assert last == ["b", "e"], "the stages that are sound"
    assert [found(lines, letter, "first") for letter in "bcde"] == [1.0] * 4, "found before it broke"
    failed = {line.stage: line.figure.note for line in lines if line.figure.name == "failed"}
    assert set(failed) == {"c", "d"}
    assert "ended with 9" in failed["c"]
    assert "over its budget" in failed["d"]


def test_stages_that_the_time_does_not_reach_are_said(tmp_path: Path) -> None:
    worker.run_all("bc", tmp_path, lambda letters: [sys.executable, "-c", ""], tmp_path, total_s=0)
    assert [(line.stage, line.figure.name) for line in read(tmp_path)] == [("b", "not run"), ("c", "not run")]


def test_all_stages_fit_in_eight_minutes() -> None:
    assert sum(stage.budget_s for stage in STAGES.values()) <= 480
    assert list(STAGES) == ["b", "c", "d", "e", "g", "a", "f", "h"]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", "attention"),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_TNT", "matrix products"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer and moving average"),
        ("void at::native::vectorized_layer_norm_kernel<float>", "normalization"),
        ("void at::native::vectorized_elementwise_kernel<4, GeluCUDAKernelImpl>", "elementwise and other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_the_files_with_gpu_tests_are_found() -> None:
    assert "tests/pipelines/training/test_trainer_gpu.py" in marked_files()


@pytest.mark.slow
def test_a_rehearsal_reports_every_stage_where_little_is_installed(tmp_path: Path) -> None:
    lines = [f"import sys; sys.modules.update(dict.fromkeys({MAY_BE_MISSING!r}))"]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    # On a CPU views are rendered by scipy's sparse matrices, and tests need all that is tested.
    for letters, path in (("bcegfhx", f"{tmp_path}{os.pathsep}"), ("da", "")):
        command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--stages", letters]
        environment = os.environ | {"PYTHONPATH": f"{path}{PROJECT_ROOT}"}
        folder = tmp_path / letters
        ended = subprocess.run(
            [*command, "--out", str(folder)], cwd=PROJECT_ROOT, env=environment, check=False
        )
        seen = {line.stage for line in read(folder) if line.figure.name and line.figure.value is not None}
        assert seen == set(letters), (folder / "errors.txt").read_text()
        assert ended.returncode == 0
