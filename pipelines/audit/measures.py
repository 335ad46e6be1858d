"""What an audit measures beside the rows of the malignancy probe."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.audit import AuditConfig
from pipelines.backbones.config import FeatureName
from pipelines.backbones.cube_features import encode_nodule_cubes
from pipelines.backbones.cube_tokens import CUBES_AT_ONCE
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone
from pipelines.cohort.folder import Cohort
from pipelines.command.config import load_recipe
from pipelines.encoders.cube_encoder import CubeEncoder, encode_cubes
from pipelines.encoders.source import Source
from pipelines.encoders.table import FeatureTable
from pipelines.probing.config import ProbeConfig
from pipelines.probing.external import FEW_SHOT_DRAWS
from pipelines.probing.kernel_pairs import ENOUGH_PATIENTS, LungCrops, Place, kernel_table, pair_crops
from pipelines.probing.malignancy import Probed
from pipelines.probing.reading import IMAGE_PX, cubes_read
from pipelines.runtime.distributed import choose_device
from probes.identifiability import identifiability
from probes.nodule_rays import ball_region, disk_region
from probes.scoring import as_pairs, has_most, permutation
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.estimate import Estimate, holm
from probes.statistics.metrics import auroc, auroc_difference
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of

RANDOM = "random_weights"
DISK_MM = 10.0
BASELINES = ("diameter", "pixels", "hu", "dictionary", "random_words", "image_diameter")
"""Rows that do not depend on the encoder."""


@dataclass(frozen=True)
class Audited:
    """One encoder of an audit.

    Attributes:
        letter: By which tables and figures name it.
        name: As it was given, paths shortened to their last part.
        config: Of its probe.
        probed: What its probe found.
        tags: Of its probe: leak, scale.
        shots: Few-shot AUROC by number of nodules and draw.
        note: What is said beside its name.
    """

    letter: str
    name: str
    config: ProbeConfig
    probed: Probed
    tags: dict[str, str]
    shots: pd.DataFrame
    note: str = ""

    @property
    def reads(self) -> str:
        """What it reads of a nodule."""
        own, frozen = self.config, self.probed.frozen[0]
        of_tokens = f", {own.features}, {own.window}" if isinstance(frozen.loaded, LoadedBackbone) else ""
        if frozen.cubes is not None and frozen.cubes.own_voxels:
            return (
                f"{' x '.join(map(str, frozen.cubes.spec.shape))} voxels of the volume (z, y, x){of_tokens}"
            )
        if frozen.cubes is not None:
            spec = frozen.cubes.spec
            sides = " x ".join(f"{side * n:g}" for side, n in zip(spec.spacing_mm, spec.shape, strict=True))
            return (
                f"{sides} mm (z, y, x) at {' x '.join(f'{side:g}' for side in spec.spacing_mm)} mm{of_tokens}"
            )
        return f"{own.size_mm:g} mm{of_tokens}" if of_tokens else "a table"

    def row(self, name: str = "features", stratum: str = "all") -> dict[str, float]:
        """Return a line of the probe's table; {} where there is none."""
        table = self.probed.table
        found = table[(table["row"] == name) & (table["stratum"] == stratum)].to_dict("records")
        return {str(key): value for key, value in found[0].items()} if found else {}


def short(name: str) -> str:
    """Return a name without the folders of its file: a page that is sent around shows no folder of a person."""
    named, plus, options = name.partition("+")
    head, sep, last = named.rpartition(":")
    return f"{head}{sep}{Path(last).name}{plus}{options}" if Path(last).exists() else name


def scores_of(one: Audited) -> pd.DataFrame:
    """Return labels, patients and scores of the tested nodules, by nodule_id; `random_weights 0` ... of the twins."""
    probed = one.probed
    own = {name: score for name, score in probed.scores.items() if "_and_" not in name and score.ndim == 1}
    own |= {f"{RANDOM} {n}": score for n, score in enumerate(probed.scores.get(RANDOM, ()))}
    frame = pd.DataFrame(own, index=probed.nodules.table["nodule_id"])
    frame["diameter"] = probed.nodules.diameter_mm
    frame["label"], frame["patient"] = probed.nodules.labels, probed.nodules.patient_ids
    kept: pd.DataFrame = frame[np.isfinite(frame["features"])]
    return kept


def pairs(config: AuditConfig, audited: Sequence[Audited]) -> pd.DataFrame:
    """Compare encoders with each other, and each with the baselines, paired over patients; p by Holm over all.

    Returns:
        first, second, n_nodules, and AUROC of the first minus that of the second with interval, p and p_holm.
    """
    frames = {one.letter: scores_of(one) for one in audited}
    asked = [(a, (b, "features")) for a, b in combinations(frames, 2)]
    for letter, frame in frames.items():
        columns = frame.columns[frame.notna().all()]
        if "diameter" not in columns and has_most(frame["diameter"].to_numpy()):
            columns = columns.append(pd.Index(["diameter"]))
        others = [
            name
            for name in (*BASELINES, RANDOM)
            if columns.str.startswith(f"{name} ").any() or name in columns
        ]
        asked += [(letter, (letter, name)) for name in others]
    lines = []
    for one, (other, its) in asked:
        named = [
            name
            for name in frames[other]
            if name == its or (its == RANDOM and str(name).startswith(f"{RANDOM} "))
        ]
        both = (
            frames[one]
            .join(frames[other][named].add_prefix("other_"), how="inner")
            .dropna(
                subset=[f"other_{name}" for name in named]  # nodules whose diameter is not known
            )
        )
        second = both[[f"other_{name}" for name in named]].to_numpy().T
        try:
            found = auroc_difference(
                both["label"], both["features"], second, both["patient"], config.n_bootstrap, config.seed
            )
        except UnmeasurableError:
            continue
        name = other if its == "features" else its
        line = {"first": one, "second": name, "n_nodules": len(both), **found.named("difference")}
        lines.append(line | {"p": found.p})
    table = pd.DataFrame(lines)
    return table.assign(p_holm=holm(table["p"].tolist())) if lines else table


def read_from(config: AuditConfig, cohort: Cohort, one: Audited) -> pd.DataFrame:
    """Measure how well scanner, kernel and spacing are read from the vectors, beside the random twin.

    Returns:
        what, classes, accuracy (balanced) and that of the twin with intervals; or the reason why it is not measured.
    """
    nodules = one.probed.nodules
    series = cohort.series.set_index("volume_id").loc[nodules.table["volume_id"]]
    spacing = np.array([list(row) for row in series["spacing_mm"]])
    known: dict[str, NDArray[np.str_]] = {
        "manufacturer": nodules.table["manufacturer"].to_numpy(dtype=np.str_),
        "kernel": series["kernel"].to_numpy(dtype=np.str_),
        "slice spacing, mm": _binned(spacing[:, 0], [0, 1.25, 2.0, 100]),
        "pixel spacing, mm": _binned(spacing[:, 1], [0, 0.65, 0.75, 100]),
    }
    features = np.asarray(one.probed.inputs.features[0][0], dtype=np.float64)
    twins = one.probed.inputs.twins
    lines = []
    for what, values in known.items():
        line: dict[str, object] = {"what": what}
        try:
            accuracy, left = _accuracy(features, values, nodules.patient_ids, config.seed)
            line |= {"classes": len(set(values[values != ""])) - left, **accuracy.named("accuracy")}
            if twins:
                own = np.asarray(twins[0][0][0], dtype=np.float64)
                line |= _accuracy(own, values, nodules.patient_ids, config.seed)[0].named("random")
        except TooFewError as reason:
            line["reason"] = str(reason)
        lines.append(line)
    return pd.DataFrame(lines)


def few_shots(config: AuditConfig, probed: Probed) -> pd.DataFrame:
    """Fit the vectors of a few nodules and test them on all other patients: AUROC by number of nodules and draw."""
    target, nodules = probed.target, probed.nodules
    patients, lines = nodules.patient_ids, []
    parts = [
        (vectors, np.unique(np.concatenate([test for _, test in as_pairs(folds)])))
        for vectors, folds in probed.inputs.features
    ]
    rows = np.arange(len(patients))
    for number in [int(part) for part in config.shots.split(",") if part and int(part) < len(rows) / 2]:
        for draw in range(FEW_SHOT_DRAWS):
            fold = (np.arange(number), np.arange(number, len(rows)))
            order = permutation(target.labels, patients, [fold], config.seed + draw)
            own = np.sort(order[:number])
            others = ~np.isin(patients, patients[own])
            scores = target.score([(vectors, [(own, test[others[test]])]) for vectors, test in parts])
            tested = np.isfinite(scores)
            area = float(auroc(target.labels[tested], scores[tested], np.ones((1, int(tested.sum()))))[0])
            lines.append({"n_nodules": number, "draw": draw, "auroc": area})
    return pd.DataFrame(lines, columns=["n_nodules", "draw", "auroc"])


def kernel_distance(cohort: Cohort, own: ProbeConfig, loaded: Source, patients: set[str]) -> str:
    """Return how far another kernel moves the features, over the distance of two patients, or why it is not known.

    Places are of lung, without a nodule: `roi` reads a disk, in cubes a ball, of 10 mm there.

    Args:
        cohort: Of the pairs.
        own: How the encoder is read.
        loaded: The encoder.
        patients: Who may be looked at.
    """
    if isinstance(loaded, FeatureTable):
        return "not measured: a table holds no vectors of other images"
    cubes = cubes_read(own, cohort, loaded)
    out_px = loaded.backbone.image_px if isinstance(loaded, LoadedBackbone) else IMAGE_PX
    spec = CropSpec(size_mm=own.size_mm, out_px=out_px)

    def is_readable(place: Place) -> bool:
        return cubes is None or bool(replace(cubes, places=[place]).can_be_cut()[0])

    def network(crops: LungCrops) -> NDArray[np.float32]:
        own_cubes = None if cubes is None else replace(cubes, places=crops.places)
        if isinstance(loaded, CubeEncoder) and own_cubes is not None:
            return encode_cubes(loaded, own_cubes)
        assert isinstance(loaded, LoadedBackbone)
        backbone, device, scale = loaded.backbone, choose_device(own.device), loaded.hu_scale
        features: FeatureName = own.features  # type: ignore[assignment]  # a table has no backbone
        if own_cubes is not None:
            ball = partial(ball_region, diameter_mm=DISK_MM)
            batches = own_cubes.batches(CUBES_AT_ONCE)
            return encode_nodule_cubes(backbone, batches, own.window, features, device, scale, ball)
        px_mm = spec.mm_per_px
        region = disk_region(len(crops.hu), out_px, px_mm, DISK_MM) if features == "roi" else None
        slice_mm = [float(row["spacing_mm"][0]) for row, _ in crops.places]
        return encode(
            backbone, crops.hu, px_mm, own.window, features, device, scale, region=region, slice_mm=slice_mm
        )

    crops = pair_crops(cohort, patients, spec, own.seed, is_readable)
    if crops is None:
        return "not testable: no tested patient has one acquisition with two kernels"
    try:
        moved = kernel_table(crops, {"": network})[""]["moved_by_kernel"]
    except UnmeasurableError as reason:
        return f"not testable: {reason}"
    few = f" ({ENOUGH_PATIENTS} are needed)" if crops.n_patients < ENOUGH_PATIENTS else ""
    value = str(moved) if isinstance(moved, Estimate) else f"{moved:.3f}"
    shape = "disk" if cubes is None else "ball"
    read = f", read in a {shape} of {DISK_MM:g} mm" if own.features == "roi" else ""
    return f"{value} of the squared distance of two patients{read}; {number_of(crops.n_patients, 'patient')}{few}"


def probe_config(config: AuditConfig, named: str) -> ProbeConfig:
    """Return the configuration of the probe of one encoder, `NAME+key=value+key=value`.

    Raises:
        RecipeError: If an option of it is not one, or does not fit.
    """
    name, *options = named.split("+")
    shared = (
        "cohort",
        "rule",
        "diagnosis",
        "folds",
        "repeats",
        "n_bootstrap",
        "draws",
        "seed",
        "device",
        "runs_dir",
    )
    settings: dict[str, object] = {key: getattr(config, key) for key in shared}
    settings["match_mm"] = config.match_mm
    if name.startswith("table:"):
        settings["features"] = name
    elif name == "astra" or name.startswith(("monai:", "python:")):
        settings["encoder"] = name
    else:
        of_2d = {"size_mm": config.size_mm, "window": config.window, "features": config.features}
        settings |= of_2d | {"backbone": name}
    changes = [option.partition("=")[::2] for option in options]
    return load_recipe(ProbeConfig, settings, changes)


def _accuracy(
    features: NDArray[np.float64], values: NDArray[np.str_], patients: NDArray[np.str_], seed: int
) -> tuple[Estimate, int]:
    is_known = values != ""
    if not is_known.any():
        raise TooFewError("the cohort does not record it")
    accuracy, left = identifiability(features[is_known], values[is_known], patients[is_known], seed=seed)
    return accuracy, len(left)


def _binned(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.str_]:
    names = [f"to {high:g}" for high in edges[1:-1]] + [f"above {edges[-2]:g}"]
    return np.asarray(pd.cut(values, edges, labels=names).astype(str), dtype=np.str_)
