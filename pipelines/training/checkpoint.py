"""Checkpoints: written atomically with a checksum, rotated, and read without running pickled code.

One checkpoint is two files: `step_N.safetensors` (all tensors) and `step_N.json` (all else, with the sha256 of the
first). The JSON file gets its name last, so a checkpoint whose JSON exists is complete.
"""

import fcntl
import hashlib
import json
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.tensors import differing
from pipelines.runtime.atomic import make_folder, settle, writing
from pipelines.runtime.json_files import DamagedFileError, read_json
from transforms.refusal import Refusal

_STEP = TypeAdapter(NonNegativeInt)
_OF_A_BUCKET = ("sums", "mean_p", "tokens")


class _Watch(BaseModel):
    """Facts of the watcher."""

    samples: Annotated[list[PositiveInt], Field(max_length=10_000)]
    first_gain: float | None
    hopeless_since: int | None


class _Facts(BaseModel):
    """What a checkpoint holds beside tensors; those from before 3D lack the last."""

    model_config = ConfigDict(strict=True)
    watch: _Watch
    summed: NonNegativeInt
    scale_mm: Annotated[list[float], Field(min_length=2, max_length=2)]
    slice_mm: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 0.0]


class CheckpointError(Refusal):
    """A checkpoint cannot be written or used; the message says why and what to do."""


class Checkpoint(NamedTuple):
    """Everything that a run needs to continue."""

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`.

    Returns:
        The path of its JSON file.

    Raises:
        CheckpointError: If it cannot be written; earlier checkpoints stay unchanged.
    """
    make_folder(folder)
    body, head = folder / f"step_{step:08d}.safetensors", folder / f"step_{step:08d}.json"
    part = body.with_suffix(".part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        record = {"step": step, "sha256": _sha256(part), "facts": facts}
        settle(part, body)
        part.write_text(json.dumps(record), encoding="utf-8")
        settle(part, head)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}: {reason}; earlier ones are unchanged"
        ) from error
    kept = {one.stem for one in sorted(folder.glob("step_*.json"))[-keep:]}
    for left in sorted(folder.glob("step_*")):  # The JSON file of a checkpoint before its tensors.
        if left.stem not in kept:  # Too old, or left by a process that was killed while it saved.
            left.unlink()
    return head


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint of a folder; None if there is none.

    Raises:
        CheckpointError: If the newest one is truncated or was changed since it was written.
    """
    head = max(folder.glob("step_*.json"), default=None)
    if head is None:
        return None
    body = head.with_suffix(".safetensors")
    try:
        record = read_json(head, ("step", "sha256", "facts"), "delete it")
        is_whole = body.is_file() and _sha256(body) == record["sha256"]
    except DamagedFileError:
        is_whole = False
    if not is_whole:
        raise CheckpointError(
            f"checkpoint {head.stem} in {folder} is truncated or was changed since it was written;"
            f" delete {head.name} to continue from the one before it"
        )
    try:
        step = _STEP.validate_python(record["step"])
        return Checkpoint(step, load_file(body), record["facts"])
    except (ValidationError, SafetensorError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {head.stem} in {folder} was not written by this program; delete {head.name}"
        ) from error


def refuse_other_state(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint, of others perhaps, that lacks parts of a training or holds other things in their place.

    Raises:
        CheckpointError: If it does.
    """
    tensors, own = checkpoint.tensors, torch.get_rng_state()
    try:
        facts = _Facts.model_validate(checkpoint.facts)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} holds no valid {place}; delete it"
        ) from error
    names = {f"watch/{i}.{name}" for i in range(len(facts.watch.samples)) for name in _OF_A_BUCKET}
    rng = tensors.get("rng/torch", torch.empty(0))
    is_rng = rng.shape == own.shape and rng.dtype == own.dtype
    if not (
        names <= tensors.keys()
        and is_rng
        and all(one.numel() == 1 for one in below("sums", tensors).values())
    ):
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} lacks parts of a training; delete it"
        )


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint of a folder; None if there is none."""
    head = max(folder.glob("step_*.json"), default=None)
    return None if head is None else int(head.stem.removeprefix("step_"))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's per-parameter state as named tensors, e.g. "12.exp_avg"."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, slot in optimizer.state_dict()["state"].items()
        for name, value in slot.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load the state that `optimizer_tensors` returned.

    Raises:
        CheckpointError: If it is that of other parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    shapes = {
        f"{i}.{name}": one.shape for i, one in enumerate(parameters) for name in ("exp_avg", "exp_avg_sq")
    }
    shapes |= {f"{i}.step": torch.Size([]) for i in range(len(parameters))}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        if shapes.get(key) != value.shape or not value.is_floating_point():
            raise CheckpointError(
                f"the checkpoint's optimizer is of another architecture, first '{key[:80]}'; resume with the recipe"
                " that wrote it"
            )
        state.setdefault(int(index), {})[name] = value
    if any(len(slot) != 3 for slot in state.values()):
        raise CheckpointError(
            "the checkpoint's optimizer lacks parts; delete it to continue from the one before it"
        )
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_module(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load a module's tensors.

    Raises:
        CheckpointError: If the checkpoint is of another architecture.
    """
    if wrong := differing(module.state_dict(), tensors):
        raise CheckpointError(
            f"the checkpoint's {what} is of another architecture: {len(wrong)} tensors differ, first '{wrong[0]}';"
            " resume with the recipe that wrote it"
        )
    module.load_state_dict(tensors)


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and "/", without it."""
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }


def lock_folder(folder: Path) -> IO[str] | None:
    """Lock a run's folder for this process; None if another process holds the lock.

    The lock ends with the process, so the folder of a killed run is free at once. By `flock` its loader processes,
    which run for some more seconds, would inherit the lock; a record lock they do not inherit.
    """
    make_folder(folder)
    with writing(folder / "lock"):
        handle = (folder / "lock").open("a", encoding="utf-8")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either error.
        handle.close()
        return None
    return handle


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
