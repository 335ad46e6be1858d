"""Which parts of a configuration are parameters in MLflow: those in which two studies differ, each under one name.

The compare page shows every parameter that differs, and each page of a run shows all of them; with a hundred of them
nobody finds the three that matter. The whole configuration is the artifact `config.yaml`.
"""

from collections.abc import Collection, Mapping
from typing import Any

MACHINE = frozenset(
    (
        *("device", "workers", "nproc", "runs_dir", "resume", "allow_changes", "out", "source"),
        *("log_every", "eval_every", "save_every", "eval_slices", "keep_backbones", "register_as", "dry_run"),
        *("stop_when", "private", "push_to", "verify", "seconds", "executor"),
    )
)
"""Keys that belong to a machine, a folder or the clock: parameters only where somebody gave them."""

PRETRAINING = frozenset(
    (
        *("recipe", "cohort", "cohort_weights", "seed", "steps", "batch_size", "holdout", "precision"),
        *(f"backbone.{key}" for key in ("arch", "timm_name", "depth", "embed_dim", "weights", "spacing")),
        *(f"backbone.{key}" for key in ("patch_px", "image_px", "image_depth_px")),
        "head.prototypes",
        *(f"objective.{key}" for key in ("kind", "pool", "gram_weight", "koleo_weight", "koleo_on")),
        *(f"objective.{key}" for key in ("center", "center_momentum", "student_temp", "ibot_weight")),
        *(f"views.{key}" for key in ("extent", "fraction", "fov_mm", "center", "shared_scale", "n_local")),
        *("views.window.policy", "views.window.hu_scale"),
        *(f"optim.{key}" for key in ("lr", "weight_decay", "ema_momentum", "teacher_temp")),
    )
)
"""Keys of a pretraining that are parameters even where nobody gave them."""


def compared(entry_point: str, flat: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the parameters of a run.

    Args:
        entry_point: Its name.
        flat: Its whole configuration, by dotted key.
        given: Keys that the command line, a campaign or the environment set.
    """
    keys = PRETRAINING if entry_point == "pretrain" else flat.keys() - MACHINE
    return {key: value for key, value in flat.items() if key in keys or key in given}
