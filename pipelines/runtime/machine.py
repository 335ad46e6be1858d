"""What a machine has too little of, as a refusal: the memory of a GPU, room on a disk. A user can correct it."""

import errno

from transforms.refusal import Refusal

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
}


class MachineError(Refusal):
    """The machine has too little of something."""


def refusal_of(error: BaseException) -> Refusal | None:
    """Return a refusal as it is, and what a machine lacks as one; None for everything else, which is a bug."""
    if isinstance(error, Refusal):
        return error
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this.
        return MachineError(
            f"the memory of the GPU is full ({str(error).partition('. GPU')[0]}); lower batch_size, or image_px where"
            " it is an option, or set backbone.grad_checkpointing=true in a training; `nvidia-smi` shows its users"
        )
    if (
        isinstance(error, OSError) and error.errno in _FULL
    ):  # Its file is not named: it may be that of a person.
        return MachineError(
            f"{_FULL[error.errno]} ({error.strerror}); free space, or choose another folder, then give the same command"
        )
    return None
