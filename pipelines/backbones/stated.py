"""What a backbone's folder states of itself, checked by type before anything is built from it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveFloat, ValidationError

from pipelines.runtime.json_files import DamagedFileError, read_json

RECORD, TIMM = "dinox.json", "config.json"
REMEDY = "export or fetch that backbone again"
_PLAIN = ConfigDict(strict=True, allow_inf_nan=False)
_Channels = Annotated[list[FiniteFloat], Field(min_length=1, max_length=3)]
_Span = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)] | None


class _Trained(BaseModel):
    """What is read of `pretrained_cfg`."""

    model_config = _PLAIN
    mean: _Channels
    std: Annotated[list[PositiveFloat], Field(min_length=1, max_length=3)]


class _Timm(BaseModel):
    """What is read of timm's config.json."""

    model_config = _PLAIN
    architecture: Annotated[str, Field(max_length=200)]
    model_args: dict[str, Any]
    pretrained_cfg: _Trained


class _Record(BaseModel):
    """What is read of dinox.json; older ones lack most of it."""

    model_config = _PLAIN
    backbone: dict[str, Any]
    run_id: str = ""
    recipe: str = ""
    cohort_sha: str = ""
    network: str = ""
    leak: str = ""
    first_weights: str = ""
    holdout: Literal["half_a", "half_b"] | Annotated[float, Field(ge=0, le=1)] = 0.0
    trained_on: dict[str, list[str]] = {}
    seed: int = 0
    steps: int = 0
    mm_per_pixel: _Span = None
    mm_per_slice: _Span = None
    window_policy: str = ""
    hu_scale: PositiveFloat = 1.0
    opened: list[str] = []


def read_stated(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read timm's config.json and the record of the pretraining, dinox.json, as they were written.

    Raises:
        FileNotFoundError: If one does not exist.
        DamagedFileError: If a key is missing or holds something else than it should.
    """
    config, record = (read_json(folder / name, (), REMEDY) for name in (TIMM, RECORD))
    for name, kind, tree in ((TIMM, _Timm, config), (RECORD, _Record, record)):
        try:
            kind.model_validate(tree)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])[:80]
            raise DamagedFileError(
                f"{folder / name} is damaged: {place} is missing or of another kind than it should be; {REMEDY}"
            ) from error
    if len(config["pretrained_cfg"]["mean"]) != len(config["pretrained_cfg"]["std"]):
        raise DamagedFileError(f"{folder / TIMM} is damaged: mean and std are of as many channels; {REMEDY}")
    return config, record
