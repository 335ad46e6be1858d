"""What may be said to timm about an architecture: numbers and names of it, and nothing that it would fetch or run."""

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from timm.models import is_model_in_modules, load_model_config_from_hf as read_hub_config
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from transforms.refusal import Refusal

_ARGUMENTS = frozenset(
    name for kind in (VisionTransformer, Eva, ConvNeXt) for name in inspect.signature(kind).parameters
) - {"device", "dtype"}
MOST_BLOCKS, _MOST = 512, 65_536
_LEADS = {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}


class BackboneError(Refusal):
    """A backbone that cannot be built, or whose files cannot be used."""


def input_arguments(name: str, image_px: int) -> dict[str, Any]:
    """Return what tells a timm model the size of its input; a ConvNeXt takes any size and no such argument.

    Raises:
        OSError, ValueError, LookupError: If a `local-dir:` or `hf-hub:` cannot be read, as timm has it.
    """
    architecture = _architecture(name)
    is_conv = timm.is_model(architecture) and is_model_in_modules(architecture, ["convnext"])
    return {} if is_conv else {"img_size": image_px, "dynamic_img_size": True}


def _architecture(name: str) -> str:
    if name.startswith("local-dir:"):
        return str(_config(name)["architecture"])
    if name.startswith("hf-hub:"):
        return str(read_hub_config(name.removeprefix("hf-hub:"))[1])
    return name.split(".")[0]


def _config(name: str) -> dict[str, Any]:
    path = Path(name.removeprefix("local-dir:")) / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8.
        raise BackboneError(
            f"timm model '{name}' cannot be opened: its config.json is damaged; fetch that folder again"
        ) from error
    parts = (tree.get("model_args") or {}, tree.get("pretrained_cfg", tree)) if isinstance(tree, dict) else ()
    if not parts or not all(isinstance(part, dict) for part in parts) or "architecture" not in tree:
        raise BackboneError(
            f"timm model '{name}' cannot be opened: its config.json states no architecture as timm writes it"
        )
    return dict(tree)


def refuse_other_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that no network's constructor takes: timm would fetch or open what some of them name.

    Raises:
        BackboneError: If there is one, or its value is no name and no number of a network's size.
    """
    others = sorted(arguments.keys() - _ARGUMENTS)
    if others:
        raise BackboneError(
            f"the arguments of '{name}' in its config.json hold {', '.join(others)}, which describes no architecture"
            " and is never followed; remove it"
        )
    for key, value in arguments.items():
        for one in value if isinstance(value, list | tuple) and len(value) <= MOST_BLOCKS else [value]:
            most = MOST_BLOCKS if key in ("depth", "depths") else _MOST
            is_number = isinstance(one, int | float) and math.isfinite(one) and abs(one) <= most
            if not (one is None or is_number or (isinstance(one, str) and len(one) < 100)):
                raise BackboneError(
                    f"the argument {key} of '{name}' in its config.json is {repr(value)[:60]}, which is no name and no"
                    f" number up to {most}; correct it"
                )


def refuse_leads(name: str) -> None:
    """Refuse a `local-dir:` or `hf-hub:` name whose config.json leads elsewhere; timm would follow it.

    Raises:
        BackboneError: If it names weights at another place, or other arguments than an architecture's.
        OSError, ValueError, LookupError: If it cannot be read, as timm has it.
    """
    if name.startswith("local-dir:"):
        tree = _config(name)
        arguments, stated = tree.get("model_args") or {}, tree.get("pretrained_cfg", tree)
    elif name.startswith("hf-hub:"):
        stated, _, arguments = read_hub_config(name.removeprefix("hf-hub:"))
        own = ("hf_hub_id", "source")  # which timm adds: where it was just read
        stated = {key: value for key, value in stated.items() if key not in own}
    else:
        return
    refuse_other_arguments(name, arguments or {})
    leads = sorted(key for key, value in stated.items() if value and key in _LEADS)
    if leads:
        raise BackboneError(
            f"config.json of '{name}' names weights at another place ({', '.join(leads)}), which is never followed;"
            " remove that, and put model.safetensors beside it"
        )
