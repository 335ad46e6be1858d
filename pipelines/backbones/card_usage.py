"""The part of a model card that says how to read CT with a network that timm does not open by itself."""

import inspect

from pipelines.backbones import short_loader
from pipelines.backbones.folder import LoadedBackbone


def usage_with_loader(loaded: LoadedBackbone, gray: str, onnx: str) -> str:
    """Return the section on use of a network that reads cubes, or spacing, as Markdown.

    Args:
        loaded: The network.
        gray: Lines of Python from `hu` to `gray`.
        onnx: What is said of ONNX; "" for nothing.
    """
    backbone = loaded.backbone
    shape = ", ".join(str(side) for side in (backbone.image_depth_px, *(backbone.image_px,) * 2) if side)
    read = (
        "It reads cubes (batch, 1, D, S, S) of Hounsfield units: z toward the head, y toward the back, x toward the"
        " patient's left; any multiples of the patch."
        if backbone.image_depth_px
        else "It reads three neighboring axial slices (z - 1, z, z + 1), (batch, 3, S, S), z toward the head."
    )
    told = (
        "\n\nIt takes the spacing of what it reads: `spacing_mm` (batch, 3), mm per voxel along z, y and x (of slices:"
        " their distance, and mm per pixel)."
        if backbone.takes_spacing
        else ""
    )
    scaled = "" if loaded.hu_scale == 1.0 else f"hu = hu * {loaded.hu_scale}  # as in its pretraining\n"
    spacing, prefix = ", spacing_mm" * backbone.takes_spacing, backbone.vit.num_prefix_tokens
    axes = ", 1" * (3 if backbone.image_depth_px else 2)
    return f"""## How to use it

{read} In pretraining a voxel measured {_span(loaded, "slice")} along z and {_span(loaded, "pixel")} in the plane.{told}

timm alone would leave out what was added to it. These lines open the folder with timm, torch and safetensors:

```python
{inspect.getsource(short_loader).strip()}


# hu: float tensor (batch, {"1" if backbone.image_depth_px else "3"}, {shape}), Hounsfield units
{scaled}{gray}
mean, std = (torch.tensor(values).view(-1{axes}) for values in ({list(backbone.mean)}, {list(backbone.std)}))
tokens = open_folder("FOLDER")((gray - mean) / std{spacing})
class_token, patch_tokens = tokens[:, 0], tokens[:, {prefix}:]
```

Patch tokens come layer by layer along z, then row by row.{onnx}"""


def _span(loaded: LoadedBackbone, kind: str) -> str:
    seen = loaded.record.get(f"mm_per_{kind}")
    return f"{seen[0]:.2f} to {seen[1]:.2f} mm" if seen else "an unknown number of mm"
