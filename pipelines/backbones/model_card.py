"""A model card in Markdown, from the runs that trained and probed a backbone; unknown facts are marked as unknown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from pipelines.backbones.card_usage import usage_with_loader
from pipelines.backbones.folder import LoadedBackbone, is_timms
from pipelines.backbones.shipped import NETWORKS
from pipelines.tracking.changes import changes_of, changes_said
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun
from transforms.refusal import number_of
from transforms.window_policy import CHANNEL_RANGES_HU, PROBE_WINDOWS_HU

LEAKS = {
    "": "",
    "no_holdout": "tested on patients of the pretraining, because no patients were held out",
    "allowed": "tested on patients of the pretraining too, as requested by an option",
    "unknown": "it is unknown whether tested patients were in the pretraining",
}

LIDC = """Trained on scans of LIDC-IDRI, which are licensed under the Creative Commons Attribution 3.0 Unported
License (https://creativecommons.org/licenses/by/3.0/); the weights are derived from them, the scans are not included.

- Data: Armato III, S. G., McLennan, G., Bidaut, L., McNitt-Gray, M. F., Meyer, C. R., Reeves, A. P., Zhao, B., Aberle,
  D. R., Henschke, C. I., Hoffman, E. A., Kazerooni, E. A., MacMahon, H., van Beek, E. J. R., Yankelevitz, D., et al.
  (2015). Data From LIDC-IDRI [Data set]. The Cancer Imaging Archive. https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX
- Publication: Armato III, S. G., et al. (2011). The Lung Image Database Consortium (LIDC) and Image Database Resource
  Initiative (IDRI): a completed reference database of lung nodules on CT scans. Medical Physics 38, 915-931.
  https://doi.org/10.1118/1.3528204
- Archive: Clark, K., et al. (2013). The Cancer Imaging Archive (TCIA): maintaining and operating a public information
  repository. Journal of Digital Imaging 26, 1045-1057. https://doi.org/10.1007/s10278-013-9622-7

The authors acknowledge the National Cancer Institute and the Foundation for the National Institutes of Health, and
their critical role in the creation of the free publicly available LIDC/IDRI Database used in this study."""

_SETTINGS = (
    "rule",
    "target",
    "input",
    "features",
    "window",
    "size_mm",
    "head",
    "split",
    "folds",
    "repeats",
    "seed",
    "leak",
)
"""Of a probe, which its figures depend on."""

_OF_A_MACHINE = ("cohort", "runs_dir", "device", "workers", "nproc", "resume", "allow_changes")
"""Settings of a training that a card leaves out: paths, and what changes no result."""

_NOT_FOR = """## What it must not be used for

- Diagnosis, triage, screening or any decision about a patient: it is a research artifact, no medical device, and no
  authority has cleared it.
- Finding out who a patient is, or joining scans of one person across data sets.
- Any claim about a population, scanner or task on which it was not tested."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """The facts that a card is written from.

    Attributes:
        pretraining: The run that trained the backbone; None when it is not in the store.
        recipe: Its resolved configuration, as YAML; "" when unknown.
        probes: Runs that probed exactly these weights, and no others beside them.
        training_data: Description by the person who exports; "" without one.
        license: Of the weights, an identifier of the SPDX list.
    """

    pretraining: StoredRun | None = None
    recipe: str = ""
    probes: Sequence[StoredRun] = ()
    training_data: str = ""
    license: str = "apache-2.0"


def model_card(
    networks: Sequence[LoadedBackbone],
    facts: CardFacts,
    has_onnx: bool,
    name: str = "NAME",
    has_hf: bool = False,
) -> str:
    """Return the card of a backbone as Markdown; of weights to ship as `name`, of all three networks."""
    loaded = networks[0]
    sections = [
        _front_matter(facts, "timm" if len(networks) == 1 and is_timms(loaded) else "dinox-ct"),
        _summary(loaded),
        _three(networks, name) if len(networks) > 1 else _usage(loaded, has_onnx, has_hf),
        _data(loaded, facts),
        _recipe(loaded, facts),
        _results(facts),
        _limits(loaded),
        _NOT_FOR,
        f"## License\n\nWeights: {facts.license}. The training data have their own license; see above.",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(facts: CardFacts, library: str) -> str:
    header: dict[str, Any] = {
        "license": facts.license,
        "library_name": library,
        "pipeline_tag": "image-feature-extraction",
        "tags": ["computed-tomography", "chest", "lung", "self-supervised", "vision-transformer"],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _summary(loaded: LoadedBackbone) -> str:
    backbone = loaded.backbone
    millions = sum(p.numel() for p in backbone.parameters()) / 1e6
    patch, size = (f"{side} px" for side in (backbone.patch_px, f"{backbone.image_px} x {backbone.image_px}"))
    if backbone.image_depth_px:
        patch = f"{backbone.patch_depth_px} x {backbone.patch_px} x {backbone.patch_px} voxels (z, y, x)"
        size = f"{backbone.image_depth_px} x {backbone.image_px} x {backbone.image_px} voxels"
    return (
        f"# A {'3D ' if backbone.image_depth_px else ''}vision transformer for lung CT\n\n"
        f"`{loaded.timm_config['architecture']}` with the arguments in config.json: {millions:.1f} M parameters,"
        f" {len(backbone.vit.blocks)} blocks, patch {patch}, input {size}, tokens of"
        f" {backbone.embed_dim} numbers. Pretrained without labels; a frozen feature extractor, not a classifier."
        f" SHA-256 of the weights: `{loaded.sha256}`."
    )


def _three(networks: Sequence[LoadedBackbone], box: str) -> str:
    lines, loaded = [], networks[0]
    for name, one in zip(NETWORKS, networks, strict=True):
        patients, left_out = len(one.record["trained_on"]["patient"]), one.record["holdout"] or "nobody"
        steps, seed, run = (one.record.get(key) for key in ("steps", "seed", "run_id"))
        lines.append(f"| `{name}` | {left_out} | {patients} | {steps} | {seed} | `{run}` | `{one.sha256}` |")
    table, seen = "\n".join(lines), loaded.record.get("mm_per_pixel") or (1.0, 1.0)
    size_mm = sum(seen) / 2 * loaded.backbone.image_px
    window = _window(loaded)
    return f"""## Three networks

`-P backbone=shipped:{box}` of dinox-ct takes them together: a test reads patients that none was trained on with `all`,
and every patient of the training with the half that left him out. Where no patient is tested it takes `all`. The ids of
the patients are in each `dinox.json`; `sha256sum -c SHA256SUMS` checks the files.

Trained at {seen[0]:.2f} to {seen[1]:.2f} mm per pixel. Probe with `-P size_mm={size_mm:.0f} -P window={window}`. Read:

```python
from pipelines.backbones.config import EncodeSettings
from pipelines.backbones.encode import encode

settings = EncodeSettings(size_mm={size_mm:.0f}, window="{window}")  # around the middle of each slice
for volume in encode("SCANS", "shipped:{box}", settings):
    volume.patch_tokens, volume.patch_lps_mm  # (Z, N, {loaded.backbone.embed_dim}), (Z, N, 3)
```

| folder | patients left out | trained on patients | updates | seed | run | SHA-256 of the weights |
|---|---|---|---|---|---|---|
{table}"""


def _window(loaded: LoadedBackbone) -> str:
    policy = str(loaded.record.get("window_policy"))
    return policy if policy in ("full", "ranges") else "lung"


def _gray(window: str) -> str:
    """Lines of Python from `hu` to `gray`."""
    if window == "ranges":
        return f"""low, high = torch.tensor({CHANNEL_RANGES_HU.tolist()}).T[..., None, None]  # HU, by channel
gray = ((hu[:, [1, 1, 1]] - low) / (high - low)).clamp(0, 1)  # of the middle slice"""
    low, high = PROBE_WINDOWS_HU[window]
    return f"gray = ((hu - ({low:g})) / {high - low:g}).clamp(0, 1)  # CT window {low:g} .. {high:g} HU"


def _usage(loaded: LoadedBackbone, has_onnx: bool, has_hf: bool) -> str:
    mean, std = list(loaded.backbone.mean), list(loaded.backbone.std)
    size, scale = loaded.backbone.image_px, loaded.hu_scale
    seen = loaded.record.get("mm_per_pixel")
    scales = f"{seen[0]:.2f} to {seen[1]:.2f} mm per pixel" if seen else "an unknown scale"
    scaled = "" if scale == 1.0 else f"hu = hu * {scale}  # as in its pretraining\n"
    onnx = (
        f"\n\n`model.onnx` takes `images` ({_shape(loaded)}), normalized as above,"
        f"{' and `spacing_mm` (batch, 3),' * loaded.backbone.takes_spacing} and returns `class_token` and"
        " `patch_tokens` for any batch size."
        if has_onnx
        else ""
    )
    if not is_timms(loaded):
        return usage_with_loader(loaded, _gray(_window(loaded)), onnx)
    transformers = (
        '\n\nWith transformers: `AutoModel.from_pretrained("FOLDER/hf")`; pixel_values are (gray - mean) / std, class'
        " token, registers and patch tokens are in this order in `last_hidden_state`."
        if has_hf
        else ""
    )
    return f"""## How to use it

The three channels are three neighboring axial slices (z - 1, z, z + 1) in Hounsfield units, z toward the head. In
pretraining a pixel measured {scales}.

```python
import timm, torch

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
# hu: float tensor (batch, 3, {size}, {size}), Hounsfield units
{scaled}{_gray(_window(loaded))}
mean, std = (torch.tensor(values).view(3, 1, 1) for values in ({mean}, {std}))
tokens = model.forward_features((gray - mean) / std)
class_token, patch_tokens = tokens[:, 0], tokens[:, model.num_prefix_tokens :]
```{onnx}{transformers}"""


def _shape(loaded: LoadedBackbone) -> str:
    return "batch, 1, D, S, S" if loaded.backbone.image_depth_px else "batch, 3, S, S"


def _data(loaded: LoadedBackbone, facts: CardFacts) -> str:
    said = facts.training_data or "No description of the training data was given at export."
    is_lidc = "trained_on" in loaded.record
    lines = [f"## Training data\n\n{said}", *([LIDC] if is_lidc else [])]
    if facts.pretraining is not None:
        metrics = facts.pretraining.metrics
        named = ("data/train_patients", "data/train_slices", "data/held_out_patients")
        if all(name in metrics for name in named):
            patients, slices, held_out = (int(metrics[name]) for name in named)
            cubes = "cubes around " * bool(loaded.backbone.image_depth_px)
            lines.append(
                f"{cubes}{number_of(slices, 'axial slice')} of {number_of(patients, 'patient')}; held out:"
                f" {number_of(held_out, 'patient')}."
            )
    if "cohort_sha" in loaded.record:
        lines.append(f"SHA-256 of the cohort (volume ids and voxels): `{loaded.record['cohort_sha']}`.")
    if "holdout" in loaded.record:
        lines.append(
            f"Held out: patients by the hash of their id, share `{loaded.record['holdout']}`;"
            f" {'the ids of all others are in dinox.json' if is_lidc else 'their ids are not in this folder'}."
        )
    return "\n\n".join(lines)


def _recipe(loaded: LoadedBackbone, facts: CardFacts) -> str:
    record = loaded.record
    if not record:
        return "## Training\n\nThese weights have no record of their training."
    commit = facts.pretraining.tags.get(Tag.GIT_COMMIT, "unknown") if facts.pretraining else "unknown"
    text = (
        f"## Training\n\nRecipe `{record.get('recipe') or 'none'}`, {record.get('steps', 'unknown')} optimizer updates,"
        f" seed {record.get('seed', 'unknown')}, code at commit `{commit}`, MLflow run `{loaded.run_id or 'unknown'}`;"
        f" the {'student' if record.get('network') == 'backbone_student' else 'EMA teacher'} network."
    )
    if facts.pretraining and (changes := changes_of(facts.pretraining.tags)):
        text += f" Changed when it was resumed: {changes_said(changes)}; the settings below are the first."
    if facts.recipe:
        settings = {
            key: value for key, value in yaml.safe_load(facts.recipe).items() if key not in _OF_A_MACHINE
        }
        shown = yaml.safe_dump(settings, sort_keys=False).strip()
        text += f"\n\n<details><summary>All settings</summary>\n\n```yaml\n{shown}\n```\n\n</details>"
    return text


def _results(facts: CardFacts) -> str:
    parts = [
        "## Results\n\nEach figure with its 95% interval, beside the same test without this network (baselines)."
    ]
    runs = ([facts.pretraining] if facts.pretraining else []) + list(facts.probes)
    for run in runs:
        lines = _with_intervals(run.metrics)
        if lines:
            leak = LEAKS.get(run.tags.get(Tag.LEAK, ""), run.tags.get(Tag.LEAK, ""))
            name = run.tags.get(Tag.ENTRY_POINT, "run")
            heading = f"### `{name}`, run `{run.run_id}`" + (f"\n\nLeak: {leak}." if leak else "")
            settings = [f"{key}={value}" for key in _SETTINGS if (value := run.params.get(key))]
            heading += f"\n\nSettings: `{' '.join(settings)}`." if settings else ""
            parts.append(
                f"{heading}\n\n| figure | value | 95% interval |\n|---|---|---|\n" + "\n".join(lines)
            )
    if len(parts) == 1:
        return "## Results\n\nNo test of these weights is recorded: their performance is unknown."
    if facts.pretraining is not None and Tag.STATUS in facts.pretraining.tags:
        parts.append(f"Verdict of the pretraining on itself: {facts.pretraining.tags[Tag.STATUS]}.")
    return "\n\n".join(parts)


def _with_intervals(metrics: Mapping[str, float]) -> list[str]:
    lines = []
    for name in sorted(metrics):
        low, high = metrics.get(_beside(name, "low")), metrics.get(_beside(name, "high"))
        if low is not None and high is not None:
            lines.append(f"| {name} | {metrics[name]:.3f} | {low:.3f} to {high:.3f} |")
        elif name.endswith(("nested_z", "nested_p")):
            lines.append(f"| {name} | {metrics[name]:.4f} | |")
    return lines


def _beside(name: str, end: str) -> str:
    """Return the name of an interval's end; a stratum such as `_6_15mm` follows it."""
    stem, mark, stratum = name.partition("_6_15mm")
    return f"{stem}_ci_{end}{mark}{stratum}"


def _limits(loaded: LoadedBackbone) -> str:
    leak = loaded.record.get("leak")
    lines = [
        "It was trained on axial CT of the chest only: other anatomy, modalities and orientations are out of"
        " distribution, and so is a scale outside the one above.",
        "It has seen the scanners, reconstruction kernels, doses, ages and diseases of its training data; performance"
        " on other populations is unknown until it is measured there.",
        "Malignancy depends largely on size: judge a probe on these features by what it adds to the diameter alone.",
        "Labels of readers are opinions; agreement with them is not agreement with pathology.",
    ]
    if leak:
        lines.append(
            f"No patients were held out of its pretraining ({leak}): tests on the same data are too optimistic."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
