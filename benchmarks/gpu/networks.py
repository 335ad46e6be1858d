"""Stage f: updates of the 3D recipe and of multi-crop with iBOT."""

from collections.abc import Iterator

from benchmarks.gpu.figures import Figure
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.timing import Arm
from benchmarks.gpu.updates import measured

ARMS = (
    Arm("3D ViT-S/8, cubes of 64, batch 32, 4 local", "vit_small_3d", 32),
    Arm("3D ViT-S/8, cubes of 64, batch 128, 4 local", "vit_small_3d", 128),
    Arm("ViT-S/14, batch 64, 6 local views, iBOT", "vit_small_multicrop", 64),
    Arm("ViT-S/14, batch 256, 6 local views, iBOT", "vit_small_multicrop", 256),
)


def measure(setting: Setting) -> Iterator[Figure]:
    """Samples a second and memory."""
    for arm in ARMS:
        yield from measured(arm, setting)
