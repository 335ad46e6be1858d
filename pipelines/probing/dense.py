"""Do patch tokens show where the nodule is?"""

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.nodule.masks import MaskedCrops, masked_crops
from pipelines.probing.config import DenseConfig
from pipelines.probing.readers import open_backbones, readers_of
from pipelines.probing.setup import labeled_nodules, of_rows, open_cohort, settled_folds
from pipelines.runtime.distributed import choose_device
from pipelines.runtime.image_axes import image_axes
from pipelines.tracking.names import Tag
from pipelines.tracking.run import Run
from probes.dense import DenseProbe, dense_table
from transforms.hounsfield import named_window
from transforms.nodule_crop import CropSpec
from transforms.window_policy import ARTICLE_LUNG_HU


def run_dense(config: DenseConfig, run: Run) -> None:
    """Cross-fit the dense probe on learned tokens, on those of random weights and on pixels, in the same folds."""
    cohort, backbones = open_cohort(config), open_backbones(config.backbone)
    spec = CropSpec(size_mm=config.size_mm, out_px=backbones[0].backbone.image_px)
    everyone = labeled_nodules(config, cohort, spec)
    crops = masked_crops(cohort, everyone.table, spec, config.jitter_mm, config.seed)
    nodules = of_rows(everyone, crops.kept, crops.dropped)
    print(
        f"backbone {config.backbone or backbones[0].source}; {len(crops.kept)} of {len(everyone.labels)} nodules have"
        f" masks: {crops.source}"
    )
    readers = readers_of(config.backbone, backbones, cohort, nodules.patient_ids, config.leak)
    folds = settled_folds(config, run, cohort, readers, nodules)
    tokens = [tokens_of(config, reader.loaded, crops, spec) for reader in readers]
    run.set_tags({Tag.MASKS: crops.source})
    table = dense_table(
        {name: [(one[name], pairs) for one, pairs in zip(tokens, folds, strict=True)] for name in tokens[0]},
        crops.masks,
        nodules.patient_ids,
        crops.reader_masks,
        DenseProbe(seed=config.seed),
    )
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    run.log_metrics(metrics_of(table))
    run.log_table(table, "tables/dense.csv")
    run.log_figure(example_figure(crops), "figures/masks.png")


def tokens_of(
    config: DenseConfig, loaded: LoadedBackbone, crops: MaskedCrops, spec: CropSpec
) -> dict[str, NDArray[np.float32]]:
    """Return the input of each table row, (n, N, D): tokens, tokens of random weights, gray values of patches."""
    device = choose_device(config.device)
    tokens = {
        name: encode(
            network, crops.crops_hu, spec.mm_per_px, config.window, "patches", device, loaded.hu_scale
        )
        for name, network in (
            ("features", loaded.backbone),
            ("random_weights", random_twin(loaded, config.seed)),
        )
    }
    gray = named_window(torch.from_numpy(crops.crops_hu), config.window)
    patch = loaded.backbone.patch_px
    pixels = torch.nn.functional.unfold(gray, kernel_size=patch, stride=patch).transpose(1, 2)
    return tokens | {"pixels": pixels.numpy()}


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


def example_figure(crops: MaskedCrops, count: int = 12) -> Figure:
    """Show crops with the outline of their masks."""
    shown = np.linspace(0, len(crops.kept) - 1, min(count, len(crops.kept))).astype(np.int64)
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = image_axes(figure, 3, 4)
    low, high = ARTICLE_LUNG_HU
    for axis, number in zip(axes.flat, shown.tolist(), strict=False):
        axis.imshow(crops.crops_hu[number, 1], cmap="gray", vmin=low, vmax=high)
        axis.contour(crops.masks[number], levels=[0.5], colors="tab:orange", linewidths=1)
    figure.suptitle(f"masks: {crops.source}", fontsize=9)
    return figure
