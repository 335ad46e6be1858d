"""The entropy wall, regenerated: centre momentum x the tensor that KoLeo sees, on small networks and synthetic slices.

Run:      python -m benchmarks.entropy_wall            (3 seeds a cell, 3000 updates; under 40 minutes on 2 cores)
Expected: centre momentum 0.9 with KoLeo on logits stays at ln K (wall); 0.999 without KoLeo collapses; 0.9 with KoLeo
          on the class token and 0.999 with KoLeo on logits learn. Evidence of a mechanism on toy data, no more.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pandas as pd
import torch

from models.backbone import build_backbone
from pipelines.config import find_recipe, load_recipe, read_yaml
from pipelines.pretrain import PretrainConfig
from pipelines.trainer import Trainer
from pipelines.wall_slices import chest_slices
from transforms.views import TripletBatch, Views, draw_views, render_views

K = 512
CELLS = [(cm, on) for cm in (0.9, 0.999) for on in ("none", "head_logits", "class_token")]
RECIPE = read_yaml(find_recipe("wall"))


def config_of(center_momentum: float, koleo_on: str, seed: int, steps: int) -> PretrainConfig:
    """Return the recipe of one cell."""
    config = load_recipe(PretrainConfig, RECIPE | {"seed": seed, "steps": steps})
    objective = replace(config.objective, center_momentum=center_momentum)
    if koleo_on == "none":
        objective = replace(objective, koleo_weight=0.0)
    else:
        objective = replace(objective, koleo_on=koleo_on)
    return replace(config, objective=objective)


def batches(config: PretrainConfig, slices: np.ndarray) -> Iterator[Views]:
    """Yield views of random slices without end."""
    rng = np.random.default_rng(config.seed)
    frame = torch.tensor([slices.shape[2:]] * config.batch_size)
    for step in range(config.steps):
        rows = rng.choice(len(slices), config.batch_size, replace=False)
        batch = TripletBatch(
            triplets_hu=torch.from_numpy(slices[rows]),
            size_hw=frame,
            pixel_mm=torch.ones(config.batch_size, 2),
            body=torch.ones(config.batch_size, 32, 32, dtype=torch.uint8),
            sample_keys=torch.from_numpy(rows),
            center_yx_px=torch.full((config.batch_size, 2), float("nan")),
        )
        yield render_views(batch, draw_views(batch, config.views, config.seed, step), config.views)


def train_cell(center_momentum: float, koleo_on: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one cell with one seed and return its last report."""
    torch.set_num_threads(1)
    config = config_of(center_momentum, koleo_on, seed, steps)
    torch.manual_seed(seed)
    trainer = Trainer(config, torch.device("cpu"), build_backbone(config.backbone))
    stream = batches(config, chest_slices(2048, seed=0))
    row: dict[str, Any] = {"centre momentum": center_momentum, "KoLeo on": koleo_on, "seed": seed}
    curve = []
    while trainer.step < steps:
        trainer.update(stream)
        if trainer.step in (1, steps) or trainer.step % 250 == 0:
            metrics, verdict = trainer.report()
            curve.append((trainer.step, round(metrics["loss/dino"], 3), round(metrics["teacher/gain"], 3)))
    row |= {"loss": metrics["loss/dino"], "G": metrics["teacher/gain"], "verdict": verdict, "curve": curve}
    row["prototypes used"] = metrics["teacher/prototypes_used"]
    row["effective rank"] = metrics["teacher/effective_rank"]
    return row


def study(seeds: int, steps: int, workers: int, cells: list[tuple[float, str]]) -> pd.DataFrame:
    """Train every cell with every seed, `workers` at a time."""
    jobs = [(*cell, seed, steps) for seed in range(seeds) for cell in cells]
    rows = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for row in pool.map(train_cell, *zip(*jobs, strict=True)):
            rows.append(row)
            shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
            print(shown, flush=True)
    return pd.DataFrame(rows)


def hard_cells_hold(table: pd.DataFrame) -> dict[str, bool]:
    """Judge the four cells whose outcome is known: in at least two of three seeds and on average."""
    by_cell = {key: cell for key, cell in table.groupby(["centre momentum", "KoLeo on"])}

    def judge(key: tuple[float, str], is_so: Any) -> bool:
        cell = by_cell.get(key)
        if cell is None:
            return False
        each = [is_so(loss, gain) for loss, gain in zip(cell["loss"], cell["G"], strict=True)]
        return sum(each) * 3 >= 2 * len(each) and is_so(cell["loss"].mean(), cell["G"].mean())

    return {
        "0.9, head_logits: wall": judge(
            (0.9, "head_logits"), lambda x, g: abs(x - math.log(K)) < 0.1 and g < 0.1
        ),
        "0.999, none: collapsed": judge((0.999, "none"), lambda x, g: x < 0.1 and g < 0.1),
        "0.9, class_token: learning": judge((0.9, "class_token"), lambda _, g: g > 0.2),
        "0.999, head_logits: learning": judge((0.999, "head_logits"), lambda _, g: g > 0.2),
    }


def main() -> None:
    """Print the table and whether the hard cells hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="")
    parser.add_argument("--cells", default="", help="such as 0.9:head_logits,0.999:none; all six by default")
    words = parser.parse_args()
    chosen = [(float(c.split(":")[0]), c.split(":")[1]) for c in words.cells.split(",") if c] or CELLS
    table = study(words.seeds, words.steps, words.workers, chosen)
    columns = ["loss", "G", "prototypes used", "effective rank"]
    print(f"\nln K = {math.log(K):.3f}")
    print(table.groupby(["centre momentum", "KoLeo on"])[columns].mean().round(3).to_string())
    print(
        table.pivot_table(
            index=["centre momentum", "KoLeo on"], columns="seed", values="verdict", aggfunc="first"
        )
    )
    for name, holds in hard_cells_hold(table).items():
        print(f"{'holds' if holds else 'FAILS'}: {name}")
    if words.out:
        table.to_csv(words.out, index=False)


if __name__ == "__main__":
    main()
