"""Do patch tokens show where the nodule is?"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.backbones.cube_features import encode_nodule_cubes
from pipelines.backbones.cube_tokens import CUBES_AT_ONCE, cube_spec
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.figures.nodule_pictures import masks_figure
from pipelines.nodule.cubes import CubeBatch
from pipelines.nodule.masks import MaskedCrops, masked_crops
from pipelines.probing.config import DenseConfig
from pipelines.probing.folds import Fold
from pipelines.probing.readers import open_backbones, readers_of
from pipelines.probing.setup import labeled_nodules, of_rows, open_cohort, settled_folds
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.dense import DenseProbe, dense_table, dice
from transforms.hounsfield import named_window
from transforms.nodule_crop import CropSpec
from transforms.nodule_cube import CubeSpec


def run_dense(config: DenseConfig, run: Run) -> None:
    """Cross-fit the dense probe on learned tokens, on those of random weights and on pixels, in the same folds."""
    cohort, backbones = open_cohort(config), open_backbones(config.backbone)
    first = backbones[0]
    flat = CropSpec(size_mm=config.size_mm, out_px=first.backbone.image_px)
    spec = cube_spec(first, config.size_mm) if first.backbone.image_depth_px else flat
    everyone = labeled_nodules(config, cohort, flat)
    crops = masked_crops(cohort, everyone.table, spec, config.jitter_mm, config.seed)
    nodules = of_rows(everyone, crops.kept, crops.dropped)
    print(
        f"backbone {config.backbone or backbones[0].source}; {len(crops.kept)} of {len(everyone.labels)} nodules have"
        f" masks: {crops.source}"
    )
    readers = readers_of(config.backbone, backbones, cohort, nodules.patient_ids, config.leak)
    folds = settled_folds(config, run, cohort, readers, nodules)
    slice_mm = nodules.table["spacing_z_mm"].to_numpy(np.float64)
    tokens = [tokens_of(config, reader.loaded, crops, spec, slice_mm) for reader in readers]
    run.set_tags({Tag.MASKS: crops.source})
    probe = DenseProbe(seed=config.seed, grid=grid_of(first, spec))
    table = dense_table(
        {name: [(one[name], pairs) for one, pairs in zip(tokens, folds, strict=True)] for name in tokens[0]},
        crops.masks,
        nodules.patient_ids,
        crops.reader_masks,
        probe,
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    run.log_metrics(metrics_of(table))
    run.log_table(table, "tables/dense.csv")
    drawn = example_figure(crops, tokens[0]["features"], folds[0][0], probe, config.size_mm)
    run.log_figure(drawn, "figures/masks.png")


def grid_of(loaded: LoadedBackbone, spec: CropSpec | CubeSpec) -> tuple[int, ...] | None:
    """Return the patches of a cube along z, y and x; None for slices."""
    return loaded.backbone.grid_of(spec.shape) if isinstance(spec, CubeSpec) else None


def tokens_of(
    config: DenseConfig,
    loaded: LoadedBackbone,
    crops: MaskedCrops,
    spec: CropSpec | CubeSpec,
    slice_mm: NDArray[np.float64],
) -> dict[str, NDArray[np.float32]]:
    """Return the input of each table row, (n, N, D): tokens, tokens of random weights, gray values of patches."""
    device = choose_device(config.device)
    networks = {"features": loaded.backbone, "random_weights": random_twin(loaded, config.seed)}
    patch, gray = loaded.backbone.patch_px, named_window(torch.from_numpy(crops.crops_hu), config.window)
    if isinstance(spec, CubeSpec):
        tokens = {
            name: encode_nodule_cubes(
                network, _batches(crops, spec), config.window, "patches", device, loaded.hu_scale
            )
            for name, network in networks.items()
        }
        sides = (loaded.backbone.patch_depth_px, patch, patch)
        return tokens | {"pixels": _patches_of(gray, sides).numpy()}
    tokens = {
        name: encode(
            network,
            crops.crops_hu,
            spec.mm_per_px,
            config.window,
            "patches",
            device,
            loaded.hu_scale,
            slice_mm=slice_mm,
        )
        for name, network in networks.items()
    }
    pixels = torch.nn.functional.unfold(gray, kernel_size=patch, stride=patch).transpose(1, 2)
    return tokens | {"pixels": pixels.numpy()}


def _batches(crops: MaskedCrops, spec: CubeSpec) -> Iterator[CubeBatch]:
    """Yield the cubes as they were cut; their places do not matter here."""
    for start in range(0, len(crops.crops_hu), CUBES_AT_ONCE):
        hu = crops.crops_hu[start : start + CUBES_AT_ONCE]
        spacing_mm = np.tile(spec.spacing_mm, (len(hu), 1))
        yield CubeBatch(hu, np.tile(np.eye(4), (len(hu), 1, 1)), spacing_mm, spacing_mm)


def _patches_of(cubes: torch.Tensor, sides: tuple[int, int, int]) -> torch.Tensor:
    """Return the voxels of each patch of cubes (n, D, P, P), (n, N, voxels), patches in the order z, y, x."""
    for axis, side in enumerate(sides, start=1):
        cubes = cubes.unfold(axis, side, side)
    return cubes.flatten(4).flatten(1, 3)


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """Return `dense/dice` of the features and `dense/<row>_dice` of the rest, with intervals."""
    metrics: dict[str, float] = {}
    for line in table.to_dict("records"):
        prefix = "" if line["row"] == "features" else f"{line['row']}_"
        for end in ("", "_ci_low", "_ci_high"):
            metrics[f"dense/{prefix}dice{end}"] = float(line[f"dice{end}"])
        if line["row"] == "features":
            metrics["dense/n_nodules"] = float(line["n_nodules"])
            for end in ("", "_ci_low", "_ci_high"):
                metrics[f"dense/gain_over_pixels{end}"] = float(line[f"minus_pixels{end}"])
            metrics["dense/gain_over_pixels_p"] = float(line["p"])
    return metrics


def example_figure(
    crops: MaskedCrops,
    tokens: NDArray[np.float32],
    fold: Fold,
    probe: DenseProbe,
    size_mm: float,
    count: int = 12,
) -> Figure:
    """Show test nodules of one fold with the mask predicted from tokens over the reference, from low to high Dice.

    Of cubes the middle slice is shown; Dice is that of the whole mask.
    """
    train, test = fold
    fitted = replace(probe).fit(tokens[train], crops.masks[train])
    predicted = fitted.predict(tokens[test], crops.masks.shape[1:])
    values = dice(predicted, crops.masks[test])
    order = np.argsort(values, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(np.int64)]
    hu = crops.crops_hu[test][shown]
    slices_hu = hu[:, hu.shape[1] // 2]
    masks, found = ([_middle(one[row]) for row in shown] for one in (crops.masks[test], predicted))
    title = (
        f"Predicted (dashed) over reference masks ({crops.source}, solid): {len(shown)} of {len(test)} test nodules"
        f" of one fold, by Dice, mean {values.mean():.2f}"
    )
    return masks_figure(slices_hu, size_mm, masks, found, values[shown], title)


def _middle(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask if mask.ndim == 2 else mask[len(mask) // 2]
