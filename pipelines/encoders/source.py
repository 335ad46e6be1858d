"""What every origin of features states of itself: backbones, encoders of cubes, and tables alike."""

from typing import Any, Protocol


class Source(Protocol):
    """An origin of features."""

    @property
    def source(self) -> str:
        """The name that it was opened by."""

    @property
    def run_id(self) -> str:
        """Id of the run that trained it; "" when unknown."""

    @property
    def sha256(self) -> str:
        """Hash of its weights or of its file; "" where there is none."""

    @property
    def record(self) -> dict[str, Any]:
        """What is recorded of its training; {} where nothing is."""
