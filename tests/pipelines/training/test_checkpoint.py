"""A checkpoint is whole or absent, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
import torch

from pipelines.training.checkpoint import (
    CheckpointError,
    load_checkpoint,
    optimizer_tensors,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)

TENSORS = {"a/b": torch.arange(6.0).view(2, 3), "rng": torch.arange(4, dtype=torch.uint8)}


def test_a_checkpoint_returns_as_it_was(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, TENSORS, {"x": [1.5, None]})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.facts) == (7, {"x": [1.5, None]})
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_the_newest_is_read_and_older_ones_are_rotated_out(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        save_checkpoint(tmp_path, step, TENSORS, {})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step_00000010.json",
        "step_00000010.safetensors",
        "step_00000100.json",
        "step_00000100.safetensors",
    ]


def test_what_a_killed_save_left_is_swept_by_the_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, TENSORS, {})
    for left in ("step_00000006.part", "step_00000006.safetensors", "step_00000004.safetensors"):
        (tmp_path / left).write_bytes(b"half")
    save_checkpoint(tmp_path, 7, TENSORS, {})
    names = [f"step_0000000{step}.{ending}" for step in (5, 7) for ending in ("json", "safetensors")]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("fault", ["truncated", "tampered", "missing", "header"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    head = save_checkpoint(tmp_path, 7, TENSORS, {})
    body = head.with_suffix(".safetensors")
    whole = body.read_bytes()
    match fault:
        case "truncated":
            body.write_bytes(whole[:-4])
        case "tampered":
            body.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        case "missing":
            body.unlink()
        case "header":
            head.write_text(head.read_text()[:-9])
    with pytest.raises(CheckpointError, match=r"step_00000007 .* is truncated or was changed"):
        load_checkpoint(tmp_path)


def test_a_write_cut_off_before_its_json_is_not_seen(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, TENSORS, {})
    (tmp_path / "step_00000009.safetensors").write_bytes(b"half")
    (tmp_path / "step_00000010.part").write_bytes(b"half")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 7


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 7, TENSORS, {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.training.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"step 8 could not be written .*No space left"):
        save_checkpoint(tmp_path, 8, TENSORS, {})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 7


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    head = save_checkpoint(tmp_path, 7, TENSORS, {})
    assert json.loads(head.read_text())["step"] == 7
    length = int.from_bytes(head.with_suffix(".safetensors").read_bytes()[:8], "little")
    assert json.loads(head.with_suffix(".safetensors").read_bytes()[8 : 8 + length])


def test_another_architecture_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of another architecture: 2 tensors differ, first 'bias'"):
        restore_module(torch.nn.Linear(2, 3), dict(torch.nn.Linear(2, 4).state_dict()), "network")


def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def build() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)

    def steps(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, count: int) -> None:
        for i in range(count):
            optimizer.zero_grad()
            layer(torch.full((1, 3), float(i))).square().sum().backward()
            optimizer.step()

    layer, optimizer = build()
    steps(layer, optimizer, 3)
    save_checkpoint(tmp_path, 3, dict(layer.state_dict()) | optimizer_tensors(optimizer), {})
    steps(layer, optimizer, 4)
    found = load_checkpoint(tmp_path)
    assert found is not None
    other, fresh = build()
    other.load_state_dict({name: found.tensors[name] for name in ("weight", "bias")})
    restore_optimizer(fresh, {name: t for name, t in found.tensors.items() if name[0].isdigit()})
    steps(other, fresh, 4)
    assert torch.equal(layer.weight, other.weight)
