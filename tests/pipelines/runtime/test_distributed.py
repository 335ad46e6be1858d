"""Two processes that share a batch do what one process does with all of it."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipelines.cohort.folder import Cohort
from pipelines.runtime.distributed import WorldError, choose_device, choose_precision
from tests.pipelines.runtime import ranks
from tests.processes import WAIT_S, free_port

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([ranks.__name__])


def ended(
    folder: Path, processes: int, task: Callable[..., None], *words: object
) -> list[tuple[int | None, str]]:
    """Let some processes share a task; returns how each ended and what it said of that."""
    port, said = free_port(), [folder / f"{number} of {processes}" for number in range(processes)]
    started = [
        FORKS.Process(target=ranks.as_rank, args=(number, processes, port, file, task, *words), daemon=True)
        for number, file in enumerate(said)
    ]
    for process in started:
        process.start()
    try:
        for process in started:
            process.join(WAIT_S)
        return [(process.exitcode, file.read_text()) for process, file in zip(started, said, strict=True)]
    finally:
        for process in started:
            process.kill()


def test_what_the_first_process_refuses_ends_all_with_the_same_sentence(tmp_path: Path) -> None:
    for rank, (code, said) in enumerate(ended(tmp_path, 2, ranks.refuse)):
        assert code == 1
        assert said.splitlines()[-1] == f"rank {rank}: no space left"
        assert "Traceback" not in said


def trained(
    folder: Path, cohort: Cohort, processes: int, kind: str, koleo_on: str
) -> dict[str, torch.Tensor]:
    out = folder / f"{processes}.safetensors"
    for code, said in ended(folder, processes, ranks.train, cohort.root, out, kind, koleo_on):
        assert code == 0, said
        assert "deprecated" not in said
    return load_file(out)


@pytest.mark.parametrize(
    ("kind", "koleo_on"),
    [
        ("dino", "class_token"),
        pytest.param("dino", "head_logits", marks=pytest.mark.slow),
        pytest.param("sinkhorn", "head_logits", marks=pytest.mark.slow),
        pytest.param("simclr", "class_token", marks=pytest.mark.slow),
        ("cubes", "class_token"),
    ],
)
def test_two_processes_equal_one_in_float64(
    tmp_path: Path, small_cohort: Cohort, kind: str, koleo_on: str
) -> None:
    one, two = (trained(tmp_path, small_cohort, n, kind, koleo_on) for n in (1, 2))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        tolerance = 1e-4 if name == "gain" else 1e-8
        assert torch.allclose(tensor, two[name], rtol=0, atol=tolerance), name


@pytest.mark.parametrize(
    "kind", ["dino", *(pytest.param(one, marks=pytest.mark.slow) for one in ("mae", "cubes"))]
)
def test_the_first_report_after_two_processes_resume_is_that_of_a_run_that_never_stopped(
    tmp_path: Path, small_cohort: Cohort, kind: str
) -> None:
    for code, said in ended(tmp_path, 2, ranks.resume, small_cohort.root, tmp_path / "checkpoints", kind):
        assert code == 0, said


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
