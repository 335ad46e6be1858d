"""Geometry of the features, beside that of random weights."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.backbone import Backbone
from pipelines.backbones.config import WindowName
from pipelines.backbones.features import encode
from pipelines.backbones.folder import LoadedBackbone, random_twin
from pipelines.backbones.view_retrieval import encode_views
from pipelines.cohort.accounting import Accounting
from pipelines.cohort.folder import Cohort
from pipelines.cohort.meta_volume import crop_at
from pipelines.figures.features import map_figure, spectrum_figure
from pipelines.figures.nodule_pictures import nearest_figure
from pipelines.nodule.labeled import NoduleSet, center_of
from pipelines.probing.config import RepresentationConfig
from pipelines.probing.folds import slices_of
from pipelines.probing.kernel_pairs import ENOUGH_PATIENTS, LungCrops, kernel_table, kernel_text, pair_crops
from pipelines.probing.readers import ProbeError, reader_of
from pipelines.probing.setup import labeled_nodules, left_out, of_rows, open_both, tag_probe
from pipelines.runtime.distributed import choose_device
from pipelines.tracking.run import Run
from probes.identifiability import identifiability
from probes.representation import (
    alignment,
    class_separation,
    geometry,
    knn_malignancy,
    nearest_of_others,
    principal_map,
    spectrum,
    stability,
)
from probes.statistics.checks import TooFewError, UnmeasurableError
from probes.statistics.estimate import Estimate
from transforms.geometry import VolumeGeometry
from transforms.nodule_crop import CropSpec
from transforms.refusal import number_of

_NEIGHBORS = 4
Features = NDArray[np.float32]
Measures = dict[str, float | Estimate]

_MEANING = {
    "active_dims": "dimensions with standard deviation above 0.01",
    "cosine": "mean cosine of two nodules",
    "class_separation": "mean cosine within a class minus across classes",
    "effective_rank": "RankMe",
    "centered_effective_rank": "RankMe after subtracting the mean",
    "centered_cosine": "mean cosine after subtracting the mean",
    "uniformity": "log mean exp(-2 squared distance); -4 is uniform",
    "alignment": "mean squared distance of two views of a slice; 0 .. 4",
    "knn_auroc": "malignant share of the 20 nearest nodules of other patients",
    "manufacturer_accuracy": "balanced accuracy of a linear probe for the manufacturer",
    "kernel_accuracy": "balanced accuracy of a linear probe for the kernel",
    "moved_by_window": "squared distance under another window, over that of two nodules",
    "moved_by_one_slice": "squared distance one slice further, over that of two nodules",
}


def run_representation(config: RepresentationConfig, run: Run) -> None:
    """Measure the backbone and random weights of its architecture on the same nodules and slices."""
    cohort, loaded = open_both(config)
    if loaded.backbone.image_depth_px:
        raise ProbeError(
            f"{loaded.source} reads cubes; probe_representation compares slices with their neighbors, which are inside"
            " one cube: use probe_malignancy or probe_aggregation"
        )
    reader = reader_of(loaded, cohort, cohort.series["patient_id"].to_numpy(dtype=np.str_), "avoid")
    spec = CropSpec(size_mm=config.size_mm, out_px=loaded.backbone.image_px)
    nodules = of_patients(labeled_nodules(config, cohort, spec), reader.tested)
    n_patients = len(np.unique(nodules.patient_ids))
    print(
        f"backbone {loaded.source}; {number_of(len(nodules.labels), 'nodule')} of {number_of(n_patients, 'patient')}"
    )
    tag_probe(run, cohort, loaded, reader.leak, nodules.mm_per_px)
    n_given = nodules.labeled.counts.n_given
    print(Accounting.of("nodules", n_given, "measured", len(nodules.labels), nodules.dropped["kind"]))
    run.log_table(nodules.dropped, "tables/dropped.parquet")

    networks = {"backbone": loaded.backbone, "random": random_twin(loaded, config.seed)}
    device, slice_mm = choose_device(config.device), nodules.table["spacing_z_mm"].tolist()
    next_slice, can_move = crops_one_slice_further(cohort, nodules, spec)
    sample, _ = slices_of(loaded, cohort, reader.tested, config.slices)
    view_tokens = encode_views(sample, networks, device)
    measured: dict[str, Measures] = {}
    features: dict[str, Features] = {}
    for name, network in networks.items():
        own = {
            part: _read(config, loaded, network, crops, slice_mm, window)
            for part, crops, window in (
                ("as_is", nodules.crops_hu, config.window),
                ("window", nodules.crops_hu, config.other_window),
                ("slice", next_slice, config.window),
            )
        }
        features[name] = own["as_is"]
        measured[name] = measures(own, nodules, cohort, can_move, config.seed)
        pair = view_tokens[name]["class_token"]
        measured[name]["alignment"] = alignment(pair[0], pair[1], sample.patient_ids)
    table = results_table(measured)
    print(table.to_string(index=False))
    run.log_metrics(metrics_of(measured) | {"representation/n_nodules": float(len(nodules.labels))})
    run.log_table(table, "tables/representation.csv")
    spectra = {name: spectrum(as_is) for name, as_is in features.items()}
    run.log_figure(spectrum_figure(spectra, len(nodules.labels)), "figures/spectrum.png")
    for name, as_is in features.items():
        title = f"Map of the features of {'random weights' if name == 'random' else 'the backbone'}"
        run.log_figure(map_figure(principal_map(as_is), colorings(nodules), title), f"figures/map_{name}.png")
        run.log_figure(neighbors_figure(nodules, as_is, config.size_mm), f"figures/nearest_{name}.png")

    def encoder(network: Backbone) -> Callable[[LungCrops], Features]:
        return lambda crops: _read(
            config, loaded, network, crops.hu, [float(row["spacing_mm"][0]) for row, _ in crops.places]
        )

    encoders = {name: encoder(network) for name, network in networks.items()}
    moved_by_kernel(config, run, cohort, reader.tested, spec, encoders)


def _read(
    config: RepresentationConfig,
    loaded: LoadedBackbone,
    network: Backbone,
    crops_hu: Features,
    slice_mm: Sequence[float],
    window: WindowName | None = None,
) -> Features:
    mm_per_px, device = config.size_mm / loaded.backbone.image_px, choose_device(config.device)
    window, scale = window or config.window, loaded.hu_scale
    return encode(network, crops_hu, mm_per_px, window, config.features, device, scale, slice_mm=slice_mm)


def moved_by_kernel(
    config: RepresentationConfig,
    run: Run,
    cohort: Cohort,
    patients: set[str],
    spec: CropSpec,
    encoders: dict[str, Callable[[LungCrops], Features]],
) -> None:
    """Print, and from 5 patients on log, how far another kernel moves the features of the same slices."""
    crops = pair_crops(cohort, patients, spec, config.seed)
    measured: dict[str, Measures] = {}
    try:
        measured = kernel_table(crops, encoders) if crops is not None else {}
    except UnmeasurableError as reason:
        print(f"kernel pairs: not testable: {reason}")
        return
    print(kernel_text(crops, measured))
    n_patients = crops.n_patients if crops is not None else 0
    run.log_metrics({"representation/n_kernel_patients": float(n_patients)})
    if n_patients >= ENOUGH_PATIENTS:
        run.log_metrics(metrics_of(measured))


def of_patients(nodules: NoduleSet, patients: set[str]) -> NoduleSet:
    """Return the nodules of some patients.

    Raises:
        TooFewError: If they have fewer than two.
    """
    chosen = np.isin(nodules.patient_ids, sorted(patients))
    if chosen.sum() < 2:
        raise TooFewError(
            f"labeled nodules of held-out patients ({len(patients)}): {int(chosen.sum())}; two are needed"
        )
    return of_rows(
        nodules, np.flatnonzero(chosen), left_out(nodules, ~chosen, "patient that the backbone saw")
    )


def crops_one_slice_further(
    cohort: Cohort, nodules: NoduleSet, spec: CropSpec
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Crop each nodule one slice closer to the head, or to the feet if the volume ends or has a gap there.

    Returns:
        Crops like those of `nodules`, and whether there was such a slice; where not, the crop is unchanged.
    """
    series = {str(row["volume_id"]): row for row in cohort.series.to_dict("records")}
    crops, can_move = nodules.crops_hu.copy(), np.zeros(len(nodules.labels), dtype=bool)
    for number, nodule in enumerate(nodules.table.to_dict("records")):
        row = series[str(nodule["volume_id"])]
        geometry = VolumeGeometry.from_row(row)
        z, y, x = geometry.to_index(center_of(nodule))
        middle = int(np.floor(z + 0.5))  # the center slice of the crop; the upper one of two equally near
        low, high = geometry.unbroken_run(middle)
        if low == high:
            continue
        beside = middle + 1 if middle < high else middle - 1
        crops[number] = crop_at(cohort, row, geometry.to_lps([beside, y, x]), spec).hu
        can_move[number] = True
    return crops, can_move


def measures(
    features: dict[str, Features], nodules: NoduleSet, cohort: Cohort, can_move: NDArray[np.bool_], seed: int
) -> Measures:
    """Measure one network; measures that the cohort does not allow, such as one kernel only, are left out."""
    own, labels, patients = features["as_is"], nodules.labels, nodules.patient_ids
    found: Measures = {**geometry(own, seed=seed)}
    kernels = cohort.series.set_index("volume_id")["kernel"]
    scanner = {
        "manufacturer": nodules.table["manufacturer"].to_numpy(dtype=np.str_),
        "kernel": nodules.table["volume_id"].map(kernels).to_numpy(dtype=np.str_),
    }
    questions: dict[str, Callable[[], float | Estimate]] = {
        "class_separation": lambda: class_separation(own, labels),
        "knn_auroc": lambda: knn_malignancy(own, labels, patients, seed=seed),
        "manufacturer_accuracy": lambda: _accuracy(own, scanner["manufacturer"], patients, seed),
        "kernel_accuracy": lambda: _accuracy(own, scanner["kernel"], patients, seed),
        "moved_by_window": lambda: stability(own, features["window"], patients),
        "moved_by_one_slice": lambda: stability(
            own[can_move], features["slice"][can_move], patients[can_move]
        ),
    }
    for name, ask in questions.items():
        try:
            found[name] = ask()
        except UnmeasurableError as reason:
            print(f"{name}: not measured: {reason}")
    return found


def results_table(measured: dict[str, Measures]) -> pd.DataFrame:
    """Return a table with one line per measure, one column per network, and the meaning of the measure."""
    names = [name for name in _MEANING if any(name in own for own in measured.values())]
    columns: dict[str, list[str]] = {"measure": names}
    for network, own in measured.items():
        columns[network] = [_text(own.get(name)) for name in names]
    return pd.DataFrame(columns | {"meaning": [_MEANING[name] for name in names]})


def metrics_of(measured: dict[str, Measures]) -> dict[str, float]:
    """Return `representation/<measure>` of the backbone and `representation/random_<measure>`, with intervals."""
    metrics: dict[str, float] = {}
    for network, own in measured.items():
        prefix = "" if network == "backbone" else f"{network}_"
        for name, value in own.items():
            key = f"representation/{prefix}{name}"
            metrics |= value.named(key) if isinstance(value, Estimate) else {key: value}
    return metrics


def colorings(nodules: NoduleSet) -> dict[str, NDArray[np.generic]]:
    """Return the values that color the map, by title."""
    known = nodules.table.get("malignancy_ratings")
    rating: NDArray[np.generic] = np.where(nodules.labels == 1, "malignant", "benign")
    if known is not None:
        rating = np.array([np.mean(one) if len(one) else np.nan for one in known], dtype=np.float64)
    return {
        "diameter, mm": nodules.diameter_mm,
        "readers' mean rating of malignancy" if known is not None else "label": rating,
        "scanner (nodules)": nodules.table["manufacturer"].to_numpy(dtype=np.str_),
        "slice spacing, mm": nodules.table["spacing_z_mm"].to_numpy(dtype=np.float64),
    }


def neighbors_figure(nodules: NoduleSet, features: Features, size_mm: float) -> Figure:
    """Show two malignant and two benign nodules, of middle and of large size, beside their nearest neighbors."""
    by_size = np.argsort(nodules.diameter_mm, kind="stable")
    classes = [by_size[nodules.labels[by_size] == label] for label in (1, 0)]
    queries = [own[int(share * (len(own) - 1))] for own in classes for share in (0.3, 0.7) if len(own)]
    chosen = np.array(list(dict.fromkeys(queries)), dtype=np.int64)
    nearest, cosine = nearest_of_others(features, nodules.patient_ids, chosen, _NEIGHBORS)
    return nearest_figure(nodules.table, nodules.crops_hu[:, 1], size_mm, chosen, nearest, cosine)


def _accuracy(own: Features, values: NDArray[np.str_], patients: NDArray[np.str_], seed: int) -> Estimate:
    is_known = values != ""
    if not is_known.any():
        raise UnmeasurableError("it is not recorded in the cohort")
    accuracy, too_few = identifiability(own[is_known], values[is_known], patients[is_known], seed=seed)
    if too_few:
        print(f"left out, because of too few patients: {', '.join(too_few)}")
    return accuracy


def _text(value: float | Estimate | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, Estimate) else f"{value:.4g}"
