"""Backbones on disk: saved as safetensors that timm opens without this project, found by run, folder or timm name."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray
from safetensors.torch import save

from models.adjustments import init_xavier, set_norm_eps
from models.backbone import (
    Backbone,
    BackboneError,
    build_backbone,
    build_timm_architecture,
    copy_whitening,
)
from models.config import BackboneConfig
from models.loading import load_weights
from models.timm_arguments import MOST_BLOCKS, input_arguments
from pipelines.backbones.foreign import Foreign, is_weight_file, read_foreign, read_tensors
from pipelines.backbones.hugging_face import HF, read_hugging_face
from pipelines.backbones.shipped import SCHEME, shipped_folder
from pipelines.backbones.stated import RECORD, REMEDY, TIMM, read_stated
from pipelines.command.config import RecipeError, load_recipe
from pipelines.runtime.atomic import make_folder, write_atomically
from pipelines.runtime.json_files import DamagedFileError, read_json
from pipelines.runtime.paths import inside
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import fetch_artifact, fetch_model, newest_backbone_run
from pipelines.tracking.run import Run
from pipelines.tracking.store import shown_store

ARTIFACT = "backbone"
_SAME_SCALE = 0.02
"""Relative difference of two scales that are one: a training records what it drew, whose ends a short one misses."""
WHITENED = "dinox_whitened_stem"
"""In place of timm's name of an architecture that timm does not have, so that it refuses to open it."""
CUBES, SPACED = "dinox_3d.", "dinox_spaced."
"""Before timm's name of an architecture that reads cubes or the spacing too, which timm would leave out."""
_SMALL = 50_000_000
"""Weights that may be missing: positions of larger images."""
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class LoadedBackbone:
    """A frozen backbone with the record of its pretraining.

    Attributes:
        backbone: In evaluation mode, without gradients.
        source: The name that it was opened by.
        record: The pretraining record (recipe, holdout, mm per pixel, window policy ...); empty without one.
        sha256: Hash of the weights.
        timm_config: timm's config.json of the architecture.
    """

    backbone: Backbone
    config: BackboneConfig
    source: str
    record: dict[str, Any]
    sha256: str
    timm_config: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Id of the run that trained it; "" when unknown."""
        return str(self.record.get("run_id", ""))

    @property
    def named_run(self) -> str:
        """Id of the run in `runs:/<id>`, or that made a logged model; "" if it was opened from anything else."""
        if self.source.startswith("models:/"):
            return self.run_id
        is_run = self.source.startswith("runs:/")
        return self.source.removeprefix("runs:/").partition("/")[0] if is_run else ""

    @property
    def hu_scale(self) -> float:
        """Factor by which its pretraining multiplied HU."""
        return float(self.record.get("hu_scale", 1.0))


def save_backbone(
    folder: Path,
    backbone: Backbone,
    config: BackboneConfig,
    record: dict[str, Any],
    timm_config: dict[str, Any] | None = None,
) -> None:
    """Write weights, timm's config and our record into a folder.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` opens it without this project.

    Args:
        folder: Made when missing.
        backbone: The weights.
        config: Its architecture.
        record: The pretraining record.
        timm_config: timm's config if it is known already; otherwise it follows from `config`.
    """
    make_folder(folder)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.vit.state_dict().items()}
    # Not `save_file`: its files can be read by their owner alone.
    write_atomically(folder / _WEIGHTS, lambda file: file.write(save(state)))
    timm_config = timm_config or _timm_config(backbone, config)
    fields = {name: getattr(config, name) for name in BackboneConfig.__slots__}
    for name, tree in ((TIMM, timm_config), (RECORD, record | {"backbone": fields})):
        text = json.dumps(tree, indent=2)
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))  # type: ignore[misc]


def _timm_config(backbone: Backbone, config: BackboneConfig) -> dict[str, Any]:
    vit, size = backbone.vit, backbone.image_px
    # timm adds LayerScale to these architectures by default; the article does without.
    arguments: dict[str, Any] = {} if config.weights == "timm" else {"init_values": None}
    match config.arch:
        case "vit_small" | "vit_large":
            name = f"{config.arch}_patch14_reg4_dinov2"
            arguments |= {"patch_size": config.patch_px} if config.image_depth_px else {}
        case "custom":
            name = "vit_tiny_patch16_224" if config.stem == "patch" else WHITENED
            arguments = {
                "patch_size": config.patch_px,
                "embed_dim": config.embed_dim,
                "depth": config.depth,
                "num_heads": config.heads,
                "reg_tokens": config.registers,
                "no_embed_class": True,
            }
        case _:
            name = cast("dict[str, str]", vit.pretrained_cfg)["architecture"]
            arguments = config.timm_arguments or _arguments_of_folder(config.timm_name)
    depth = [backbone.image_depth_px] if backbone.image_depth_px else []
    return {
        "architecture": f"{_mark(config)}{name}",
        "num_classes": 0,
        "num_features": vit.num_features,
        "model_args": arguments | input_arguments(name, size),
        "pretrained_cfg": {
            "input_size": [len(backbone.mean), *depth, size, size],
            "num_classes": 0,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "interpolation": "bicubic",
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def is_timms(loaded: LoadedBackbone) -> bool:
    """Whether timm opens the folder by itself: nothing was added to its architecture."""
    return not _mark(loaded.config)


def timm_name_of(loaded: LoadedBackbone) -> str:
    """Return timm's name of the architecture, without the mark of what was added to it."""
    return str(loaded.timm_config["architecture"]).removeprefix(_mark(loaded.config))


def _mark(config: BackboneConfig) -> str:
    """Return what keeps timm from opening an architecture without what was added to it; "" for timm's own."""
    return CUBES if config.image_depth_px else SPACED if config.spacing != "off" else ""


def _arguments_of_folder(timm_name: str) -> dict[str, Any]:
    """Return the model arguments of a `local-dir:` name; {} for other names."""
    if not timm_name.startswith("local-dir:"):
        return {}
    path = Path(timm_name.removeprefix("local-dir:")) / TIMM
    return dict(json.loads(path.read_text(encoding="utf-8")).get("model_args", {}))


def open_backbone(name: str, image_px: int | None = None) -> LoadedBackbone:
    """Open a backbone by its name; docs/encoders.md lists the forms.

    Args:
        name: `runs:/<id>/backbone`, `shipped:<name>`, a folder, `timm:<name>`, `hf:DIR`, `hf:OWNER/NAME`, or a file of
            weights, or `models:/NAME@ALIAS` of MLflow's registry; `runs:/<id>` alone means its `backbone`,
            `shipped:<name>` its network `all`.
        image_px: Input size to build it for instead of its own; position embeddings are interpolated.

    Raises:
        BackboneError: If the run, folder or name does not exist or holds no backbone.
    """
    if name.startswith("runs:/"):
        run_id, _, path = name.removeprefix("runs:/").partition("/")
        with tempfile.TemporaryDirectory() as folder:
            try:
                return _from_folder(name, fetch_artifact(run_id, path or ARTIFACT, Path(folder)), image_px)
            except (BackboneError, DamagedFileError) as error:
                raise BackboneError(str(error).replace(folder, run_id)) from error
    if name.startswith("models:/"):
        with tempfile.TemporaryDirectory() as folder:
            return _from_folder(name, fetch_model(name, Path(folder)), image_px)
    if name.startswith("timm:"):
        return _from_timm(name, image_px)
    if name.startswith(SCHEME):
        return _from_folder(name, shipped_folder(name), image_px)
    if name.startswith(HF):
        return _from_foreign(name, read_hugging_face(name, image_px), image_px)
    if Path(name).is_dir():
        return _from_folder(name, Path(name), image_px)
    if is_weight_file(name):
        return _from_foreign(name, read_foreign(name), image_px)
    raise BackboneError(
        f"backbone '{name}' is no folder; give runs:/<run id>/backbone, shipped:<name>, a folder, timm:<name>,"
        " hf:<folder or OWNER/NAME>, models:/NAME@ALIAS, or a file of weights"
    )


def _from_folder(source: str, folder: Path, image_px: int | None) -> LoadedBackbone:
    for name in (RECORD, TIMM, _WEIGHTS):
        if not (folder / name).is_file():
            is_theirs = (folder / TIMM).is_file() and "model_type" in read_json(folder / TIMM, (), REMEDY)
            others = (
                f"{HF}FOLDER, since transformers wrote it"
                if is_theirs
                else "timm:local-dir:FOLDER if timm wrote it"
            )
            raise BackboneError(f"backbone '{source}' holds no {name}; open it as {others}")
        inside(folder, folder / name)
    timm_config, record = read_stated(folder)
    fixed = {"grad_checkpointing": False} | ({"image_px": image_px} if image_px is not None else {})
    try:
        config = load_recipe(BackboneConfig, {**record["backbone"], **fixed})
    except (RecipeError, TypeError) as error:
        raise BackboneError(f"{folder / RECORD} describes no backbone: {error}; {REMEDY}") from error
    state = read_tensors(folder / _WEIGHTS)
    _refuse_larger(timm_config, config, state, source)
    backbone = _build(timm_config, config)
    load_weights(backbone, state, source)
    with (folder / _WEIGHTS).open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return LoadedBackbone(backbone.requires_grad_(False).eval(), config, source, record, digest, timm_config)


def _refuse_larger(
    timm_config: dict[str, Any], config: BackboneConfig, state: Mapping[str, torch.Tensor], source: str
) -> None:
    """Refuse a description of a network that has many more weights than are stored, before memory is taken for it."""
    if config.depth <= MOST_BLOCKS:
        with torch.device("meta"):
            stated = sum(one.numel() for one in _build(timm_config, config).vit.parameters())
        if stated <= 2 * sum(one.numel() for one in state.values()) + _SMALL:
            return
    raise BackboneError(f"config.json of '{source}' describes a larger network than its weights; {REMEDY}")


def _from_foreign(source: str, foreign: Foreign, image_px: int | None) -> LoadedBackbone:
    config = BackboneConfig(
        arch="timm",
        timm_name=foreign.architecture,
        timm_args=json.dumps(foreign.arguments) if foreign.arguments else "",
        norm_eps=foreign.norm_eps,
        image_px=image_px or foreign.image_px,
    )
    backbone = build_backbone(config)
    notes = foreign.notes + load_weights(backbone, foreign.state, source)
    backbone.mean, backbone.std = foreign.mean, foreign.std
    print(f"{source}: {'; '.join(notes)}")
    backbone.requires_grad_(False).eval()
    record, written = {"opened": notes}, _timm_config(backbone, config)
    return LoadedBackbone(backbone, config, source, record, _sha256(backbone), written)


def _sha256(backbone: Backbone) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(backbone.vit.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _build(timm_config: dict[str, Any], config: BackboneConfig) -> Backbone:
    if config.stem == "whitened":
        backbone = build_backbone(config)
    else:
        name, arguments = timm_config["architecture"], timm_config["model_args"]
        backbone = build_timm_architecture(name.removeprefix(_mark(config)), arguments, config)
    trained = timm_config["pretrained_cfg"]
    if len(trained["mean"]) != len(backbone.mean):
        raise BackboneError(
            f"config.json normalizes {len(trained['mean'])} channels of a network that has {len(backbone.mean)};"
            f" {REMEDY}"
        )
    backbone.mean, backbone.std = tuple(trained["mean"]), tuple(trained["std"])
    set_norm_eps(backbone, config.norm_eps)
    return backbone


def _from_timm(source: str, image_px: int | None) -> LoadedBackbone:
    name = source.removeprefix("timm:")
    config = BackboneConfig(arch="timm", timm_name=name, weights="timm", image_px=image_px or 224)
    backbone = build_backbone(config, for_training=False).requires_grad_(False).eval()
    return LoadedBackbone(backbone, config, source, {}, _sha256(backbone), _timm_config(backbone, config))


def chosen_backbone(name: str) -> str:
    """Return `name`, or if it is "" the backbone of the newest finished pretrain run.

    Raises:
        BackboneError: If none was given and there is none.
    """
    if name:
        return name
    newest = newest_backbone_run()
    if newest is None:
        raise BackboneError(
            f"there is no finished pretrain run in {shown_store()} to probe; first run"
            " `mlflow run . -e pretrain`, or give -P backbone=timm:<name>"
        )
    return f"runs:/{newest}/backbone"


def random_twin(loaded: LoadedBackbone, seed: int) -> Backbone:
    """Return the same architecture with random weights: the baseline of every probe.

    A whitened stem keeps its whitening, which is fitted before any training, and gets other words.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = _build(loaded.timm_config, loaded.config)
        if loaded.config.init == "xavier":
            init_xavier(twin.vit)
    copy_whitening(loaded.backbone, twin)
    return twin.requires_grad_(False).eval()


def tag_scale(
    run: Run, loaded: LoadedBackbone, mm_per_px: NDArray[Any], mm_per_slice: NDArray[Any] | None = None
) -> None:
    """Warn, and tag the run, if a pixel size lies outside the range of the pretraining.

    Of networks that read cubes or take the spacing, `mm_per_slice`, the distance along z, counts too.
    """
    kinds = [("pixel", mm_per_px)]
    if mm_per_slice is not None and not is_timms(loaded):
        kinds.append(("slice", mm_per_slice))
    for kind, given in kinds:
        seen = loaded.record.get(f"mm_per_{kind}")
        low, high = float(given.min()), float(given.max())
        if seen and (low < seen[0] * (1 - _SAME_SCALE) or high > seen[1] * (1 + _SAME_SCALE)):
            run.set_tags({Tag.SCALE: "out of distribution"})
            print(
                f"scale: the network gets {low:.2f} .. {high:.2f} mm per {kind}, outside the {seen[0]:.2f} .."
                f" {seen[1]:.2f} of its pretraining"
            )
