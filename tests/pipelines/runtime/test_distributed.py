"""Two processes that share a batch do what one process does with all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from pipelines.runtime.distributed import WorldError, choose_device, choose_precision
from tests.processes import WAIT_S, OpenProcess, free_port

ROOT = Path(__file__).resolve().parents[3]
SETUP = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from models.backbone import build_backbone
from models.losses.gather import world
from pipelines.training.checkpoint import load_checkpoint, save_checkpoint
from pipelines.cohort.folder import Cohort
from pipelines.command.config import load_recipe
from pipelines.runtime.distributed import from_rank_zero, process_group
from pipelines.training.loader import BatchPlan, MicroBatches, stream_batches
from pipelines.cohort.slices import SliceIndex
from pipelines.training.config import PretrainConfig
from pipelines.training.trainer import Trainer

torch.set_num_threads(1)
root, out, kind, koleo_on = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
is_mae = kind == "mae"
recipe = {
    "steps": 10, "batch_size": 8, "optim": {"warmup_steps": 2},
    "objective": {
        "kind": "dino" if kind == "sinkhorn" else kind, "center": "sinkhorn" if kind == "sinkhorn" else "ema",
        "koleo_on": koleo_on, "koleo_weight": 0 if is_mae else 0.1, "gram_weight": 0 if is_mae else 1,
    },
    "backbone": {"arch": "custom", "depth": 1, "embed_dim": 16, "heads": 2, "image_px": 28},
    "head": {"prototypes": 32}, "views": {"size_px": 28},
}
config = load_recipe(PretrainConfig, recipe)

def build():
    torch.manual_seed(0)
    trainer = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
    trainer.networks.double()
    trainer.objective.double()
    return trainer

def batches_from(first):
    cohort = Cohort.open(root)
    index = SliceIndex(cohort, cohort.series["patient_id"])
    data = MicroBatches(index, BatchPlan(len(index), 8, 1, 0, *world()), config.views, 0, True)
    return stream_batches(data, first, 10, 0, False)
"""
WORKER = (
    SETUP
    + """
with process_group(torch.device("cpu")):
    trainer, batches = build(), batches_from(0)
    while trainer.step < 10:
        trainer.update(batches)
    metrics, _ = trainer.report()
    if world()[0] == 0:
        state = dict(trainer.networks.state_dict()) | dict(trainer.objective.state_dict())
        state |= {"gain": torch.tensor(metrics["teacher/gain"], dtype=torch.float64)}
        state |= {"scale_mm": torch.tensor(trainer.scale_mm, dtype=torch.float64)}
        save_file(state, out)
"""
)
RESUMED = (
    SETUP
    + """
with process_group(torch.device("cpu")):
    whole, batches = build(), batches_from(0)
    for _ in range(6):
        whole.update(batches)
    tensors, facts = whole.state()
    if world()[0] == 0:
        save_checkpoint(out, 6, tensors, facts)
    from_rank_zero(None)  # It is written.
    resumed, rest = build(), batches_from(6)
    resumed.restore(load_checkpoint(out))
    for _ in range(4):
        whole.update(batches)
        resumed.update(rest)
    expected, found = whole.report()[0], resumed.report()[0]
    assert resumed.scale_mm == whole.scale_mm == from_rank_zero(whole.scale_mm)
    if world()[0] == 0:  # It alone logs: the class tokens that it kept are its own.
        wrong = {
            name: (value, found[name])
            for name, value in expected.items()
            if not name.startswith("perf/") and abs(found[name] - value) > 1e-6
        }
        assert not wrong, wrong
"""
)


REFUSAL = """
import sys, torch
from pipelines.runtime.distributed import WorldError
from pipelines.runtime.distributed import done_by_rank_zero, process_group, rank
from pipelines.training.checkpoint import CheckpointError

def refuse() -> None:
    raise CheckpointError("no space left")

with process_group(torch.device("cpu")):
    assert done_by_rank_zero(lambda: 7 + rank()) == 7
    try:
        done_by_rank_zero(refuse)
    except CheckpointError as error:
        sys.exit(f"rank {rank()}: {error}")
"""


def start(
    open_process: OpenProcess, tmp_path: Path, source: str, words: list[str], processes: int
) -> list[subprocess.Popen[str]]:
    script = tmp_path / "worker.py"
    script.write_text(source)
    port = str(free_port())
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        open_process(
            [sys.executable, str(script), *words],
            env=environment | {"RANK": str(rank), "WORLD_SIZE": str(processes)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def test_what_the_first_process_refuses_ends_all_with_the_same_sentence(
    tmp_path: Path, open_process: OpenProcess
) -> None:
    for rank, process in enumerate(start(open_process, tmp_path, REFUSAL, [], 2)):
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1
        assert said.splitlines()[-1] == f"rank {rank}: no space left"
        assert "Traceback" not in said


def train(
    open_process: OpenProcess, tmp_path: Path, cohort: Cohort, processes: int, kind: str, koleo_on: str
) -> dict[str, torch.Tensor]:
    out = tmp_path / f"{processes}.safetensors"
    started = start(open_process, tmp_path, WORKER, [str(cohort.root), str(out), kind, koleo_on], processes)
    for process in started:
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, said
        assert "deprecated" not in said
    return load_file(out)


@pytest.mark.parametrize(
    ("kind", "koleo_on"),
    [
        ("dino", "class_token"),
        pytest.param("dino", "head_logits", marks=pytest.mark.slow),
        pytest.param("sinkhorn", "head_logits", marks=pytest.mark.slow),
        pytest.param("simclr", "class_token", marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one_in_float64(
    tmp_path: Path, small_cohort: Cohort, open_process: OpenProcess, kind: str, koleo_on: str
) -> None:
    one, two = (train(open_process, tmp_path, small_cohort, n, kind, koleo_on) for n in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        tolerance = 1e-4 if name == "gain" else 1e-8
        assert torch.allclose(tensor, two[name], rtol=0, atol=tolerance), name


@pytest.mark.parametrize("kind", ["dino", pytest.param("mae", marks=pytest.mark.slow)])
def test_the_first_report_after_two_processes_resume_is_that_of_a_run_that_never_stopped(
    tmp_path: Path, small_cohort: Cohort, open_process: OpenProcess, kind: str
) -> None:
    words = [str(small_cohort.root), str(tmp_path / "checkpoints"), kind, "class_token"]
    for process in start(open_process, tmp_path, RESUMED, words, 2):
        _, said = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, said


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(WorldError, match="device 'abacus' is unknown"):
        choose_device("abacus")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(WorldError, match="is not on this machine; give cpu"):
            choose_device("cuda")


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(WorldError, match="'cuda:1' would be shared by all processes; give cuda"):
        choose_device("cuda:1")
    assert choose_device("cpu:1").type == "cpu"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines with one process each
    if torch.cuda.device_count() < 2:
        with pytest.raises(WorldError, match="is not on this machine"):
            choose_device("cuda:1")


@pytest.mark.parametrize(("is_supported", "expected"), [(True, torch.bfloat16), (False, None)])
def test_a_gpu_trains_in_bfloat16_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, is_supported: bool, expected: torch.dtype | None
) -> None:
    def answer(including_emulation: bool = True) -> bool:
        return including_emulation or is_supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert choose_precision("auto", torch.device("cuda"), 96) is expected
    assert choose_precision("bf16", torch.device("cuda"), 96) is torch.bfloat16


def test_small_networks_stay_in_float32_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, 96) is None
    assert choose_precision("bf16", cpu, 96) is torch.bfloat16
    assert choose_precision("fp32", torch.device("cuda"), 1024) is None
