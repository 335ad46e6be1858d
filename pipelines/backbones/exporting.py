"""A backbone as a folder that timm and ONNX Runtime open without this project, with its card."""

import dataclasses
import importlib.util
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn

from models.backbone import Backbone, ConvBackbone
from models.config import BackboneConfig
from pipelines.backbones.config import ExportConfig
from pipelines.backbones.dinov2_layout import write_hugging_face
from pipelines.backbones.folder import (
    LoadedBackbone,
    chosen_backbone,
    is_timms,
    open_backbone,
    save_backbone,
    timm_name_of,
)
from pipelines.backbones.model_card import CardFacts, model_card
from pipelines.backbones.shipped import HALVES, MOST_BYTES, NETWORKS, SUMS, write_sums
from pipelines.backbones.short_loader import open_folder
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.runtime.atomic import whole_folder, write_text
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, fetch_artifact, read_run, search_runs
from pipelines.tracking.run import Run
from pipelines.tracking.store import NotInStoreError
from transforms.refusal import Refusal, number_of

OPSET = 18
TIMM_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
"""Largest allowed difference of a token; float32 tokens after the final norm are of order 1."""


_OWN = {"model.safetensors", "config.json", "dinox.json", "README.md", "model.onnx", "hf", SUMS, *NETWORKS}
"""Names that an export writes; what else lies in its folder stays."""


class ExportError(Refusal):
    """An export that cannot be made, whose tokens differ when it is read again, or that cannot be uploaded."""


def run_export(config: ExportConfig, run: Run) -> None:
    """Write weights, ONNX and model card, check their tokens against the backbone, then upload if asked."""
    out, names = Path(config.out), [name.strip() for name in config.backbone.split(",")]
    _refuse_other_things(out)
    networks = [_with_public_ids(open_backbone(chosen_backbone(name))) for name in names]
    with_onnx = len(networks) == 1 and _is_onnx_wanted(config.onnx)
    if config.hf == "yes" and (len(networks) > 1 or importlib.util.find_spec("transformers") is None):
        raise ExportError("hf=yes takes one backbone, and the extra to check it: pip install -e '.[hf]'")
    networks = in_roles(networks) if len(networks) > 1 else networks
    card = model_card(networks, card_facts(networks, config), with_onnx, out.name, config.hf == "yes")
    with whole_folder(out, _OWN) as made:
        if len(networks) > 1:
            export_box(networks, made)
        else:
            export_backbone(networks[0], made)
        if with_onnx:
            export_onnx(networks[0].backbone, made / "model.onnx")
        if config.hf == "yes":
            export_hugging_face(networks[0].backbone, made / "hf")
        write_text(made / "README.md", card)
    run.set_tags(
        {
            Tag.EXPORTED: ",".join(one.source for one in networks),
            Tag.BACKBONE_SHA: ",".join(one.sha256 for one in networks),
        }
    )
    run.log_text(card, "README.md")
    opened = f'timm.create_model("local-dir:{out}", pretrained=True) opens it'
    if not is_timms(networks[0]):
        opened = "the short loader in its README.md opens it with timm"
    opened += ", so does ONNX" * with_onnx
    if config.hf == "yes":
        opened += f', and transformers: AutoModel.from_pretrained("{out / "hf"}")'
    if len(networks) > 1:
        opened = (
            f"three networks to ship; in models/weights/{out.name}, -P backbone=shipped:{out.name} takes them"
        )
    print(f"{out}: {opened}")
    if config.push_to:
        print(f"uploaded to {push(out, config.push_to, config.private)}")


def _refuse_other_things(out: Path) -> None:
    is_export = any((out / name).is_file() for name in ("dinox.json", SUMS))
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not is_export)):
        raise ExportError(f"{out} exists and is not an export; give a new folder as out=DIR")


def _is_onnx_wanted(asked: Literal["auto", "yes", "no"]) -> bool:
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if asked == "yes" and missing:
        raise ExportError(
            f"onnx=yes needs {', '.join(missing)}; install the extra: pip install -e '.[export]'"
        )
    return asked != "no" and not missing


def export_backbone(loaded: LoadedBackbone, out: Path) -> None:
    """Write weights and timm's config, and open them with timm to check that the tokens are the same.

    What timm has not, cubes and spacing, the short loader of the card adds to it.

    Raises:
        ExportError: If timm has no such architecture, or computes different tokens.
    """
    if loaded.config.stem == "whitened":
        raise ExportError(
            f"{loaded.source} has a whitened stem, which timm cannot build; use it in this project, as backbone=..."
        )
    if isinstance(loaded.backbone, ConvBackbone):
        raise ExportError(
            f"{loaded.source} is a ConvNeXt of timm's, read by probes and not trained here; take it from timm"
        )
    save_public(loaded, out)
    given, prefix = _probe_inputs(loaded.backbone, 2), loaded.backbone.vit.num_prefix_tokens
    with torch.no_grad():
        if is_timms(loaded):
            vit: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
            theirs = vit.forward_features(*given)
        else:
            theirs = open_folder(out)(*given)
        class_token, patch_tokens = _BothTokens(loaded.backbone.cpu())(*given)
    own = torch.cat([class_token[:, None], patch_tokens], dim=1)
    found = torch.cat([theirs[:, :1], theirs[:, prefix:]], dim=1)
    _refuse_difference("timm", float((own - found).abs().max()), TIMM_TOLERANCE)


def save_public(loaded: LoadedBackbone, out: Path) -> None:
    """Write weights and record without paths of this machine, such as that of the initial weights.

    The ids of the patients that were trained on are written only if all of them are those of LIDC-IDRI: pseudonyms
    mean nothing under another key.
    """
    named = timm_name_of(loaded)
    plain = BackboneConfig(arch="timm", timm_name=named, norm_eps=loaded.config.norm_eps)
    shape = plain if loaded.config.timm_name else loaded.config
    first = loaded.config.weights if loaded.config.weights == "timm" else ""
    names = ("image_depth_px", "patch_depth_px", "inflated", "spacing")
    kept = {name: getattr(loaded.config, name) for name in names}
    shape = dataclasses.replace(shape, weights=first, image_px=loaded.backbone.image_px, **kept)
    record = _with_public_ids(loaded).record
    save_backbone(out, loaded.backbone, shape, record, loaded.timm_config)


def _with_public_ids(loaded: LoadedBackbone) -> LoadedBackbone:
    """Return a backbone whose record names the patients of its training only if all are those of LIDC-IDRI."""
    public = {name for series, names in lidc_scans().items() for name in (series, *names)}
    trained_on = loaded.record.get("trained_on", {})
    names = {name for kind, names in trained_on.items() if kind != "voxels" for name in names}
    record = {key: value for key, value in loaded.record.items() if key != "trained_on" or names <= public}
    return dataclasses.replace(loaded, record=record)


def in_roles(networks: Sequence[LoadedBackbone]) -> list[LoadedBackbone]:
    """Return three networks of one recipe in the order of `NETWORKS`, by the patients that each left out.

    Raises:
        ExportError: If they are not three such networks, one of them holds ids that are not public or has no record of
            them, a patient was seen by both halves, or they are too large to ship.
    """
    by_role = {str(one.record.get("holdout")): one for one in networks}
    rest = [one for role, one in by_role.items() if role not in HALVES]
    if len(networks) != 3 or len(rest) != 1 or not by_role.keys() >= set(HALVES):
        raise ExportError(
            "weights to ship are three backbones of one recipe: one pretrained with holdout=half_a, one with half_b,"
            f" one with neither; got holdout {', '.join(str(one.record.get('holdout')) for one in networks)}"
        )
    ordered = [rest[0], *(by_role[half] for half in HALVES)]
    for one in ordered:
        if "trained_on" not in one.record:
            raise ExportError(
                f"backbone '{one.source}' has no record of its patients that may be shown: weights to ship are trained"
                " on LIDC-IDRI alone, whose ids are public"
            )
        if one.timm_config != rest[0].timm_config or one.hu_scale != rest[0].hu_scale:
            raise ExportError(f"backbones '{one.source}' and '{rest[0].source}' are of two architectures")
    seen = [set(one.record["trained_on"]["patient"]) for one in ordered[1:]]
    if seen[0] & seen[1]:
        shared = number_of(len(seen[0] & seen[1]), "patient")
        raise ExportError(f"both halves were trained on the same {shared}; pretrain them apart")
    size = sum(tensor.nbytes for one in ordered for tensor in one.backbone.vit.state_dict().values())
    if size > MOST_BYTES:
        raise ExportError(
            f"three networks of together {size / 1e6:.1f} MB; at most {MOST_BYTES / 1e6:g} MB ship"
        )
    return ordered


def export_box(networks: Sequence[LoadedBackbone], out: Path) -> None:
    """Write the three networks of `in_roles` and their hashes, as `models/weights/NAME` ships them."""
    for role, loaded in zip(NETWORKS, networks, strict=True):
        save_public(loaded, out / role)
    write_sums(out)


class _BothTokens(nn.Module):
    """A backbone whose outputs are plain tensors: class token (B, D) and patch tokens (B, N, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, spacing_mm: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images, spacing_mm=spacing_mm)
        return tokens.class_token, tokens.patch_tokens


def export_onnx(backbone: Backbone, path: Path) -> None:
    """Write a backbone as ONNX with a free batch size, and run it to check that the tokens are the same.

    Its inputs are `images`, triplets or cubes, and `spacing_mm` (batch, 3) of networks that take it.

    Raises:
        ExportError: If ONNX Runtime computes different tokens.
    """
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

    model, inputs = _BothTokens(backbone.cpu()).eval(), _input_names(backbone)
    batch_axis = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter warns about its own internals.
        torch.onnx.export(
            model,
            _probe_inputs(backbone, 2),
            path,
            input_names=inputs,
            output_names=["class_token", "patch_tokens"],
            dynamic_shapes=dict.fromkeys(inputs, batch_axis),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        given = _probe_inputs(backbone, batch)
        with torch.no_grad():
            own = model(*given)
        theirs = session.run(None, {name: one.numpy() for name, one in zip(inputs, given, strict=True)})
        pairs = zip(own, theirs, strict=True)
        difference = max(float(np.abs(a.numpy() - b).max()) for a, b in pairs)
        _refuse_difference("ONNX Runtime", difference, ONNX_TOLERANCE)


def export_hugging_face(backbone: Backbone, folder: Path) -> None:
    """Write a backbone as transformers' Dinov2, and open it with transformers to check that the tokens are the same.

    Raises:
        ExportError: If Dinov2 has no such architecture, or transformers computes other tokens.
    """
    from transformers import AutoModel

    write_hugging_face(backbone, folder)
    theirs = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    (images,) = _probe_inputs(backbone, 2)
    with torch.no_grad():
        found, tokens = theirs(images).last_hidden_state, backbone.cpu()(images)
    own = torch.cat([tokens.class_token[:, None], tokens.register_tokens, tokens.patch_tokens], dim=1)
    _refuse_difference("transformers", float((own - found).abs().max()), TIMM_TOLERANCE)


def _input_names(backbone: Backbone) -> list[str]:
    return ["images", "spacing_mm"] if backbone.takes_spacing else ["images"]


def _probe_inputs(backbone: Backbone, batch: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    depth = (backbone.image_depth_px,) if backbone.image_depth_px else ()
    shape = (batch, len(backbone.mean), *depth, backbone.image_px, backbone.image_px)
    images = torch.randn(shape, generator=generator)
    if not backbone.takes_spacing:
        return (images,)
    return images, 0.4 + 2 * torch.rand(batch, 3, generator=generator)


def _refuse_difference(reader: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise ExportError(
            f"{reader} computes tokens from the exported folder that differ by {difference:.2g}, more than"
            f" {tolerance:g}: do not use this export; another version of {reader} may agree"
        )


def card_facts(networks: Sequence[LoadedBackbone], config: ExportConfig) -> CardFacts:
    """Collect the facts of a backbone from the store; few, when its run is not in this store.

    Args:
        networks: The backbone; of weights to ship all three, of which probes read two or three together.
        config: With what no run records.
    """
    loaded, hashes = networks[0], [one.sha256 for one in networks]
    wanted = {",".join(hashes[first:]) for first in range(2)} | {hashes[0]}
    probes = [
        run
        for sha256 in sorted(wanted - {""})
        for run in search_runs(
            StoredRun,
            f"tags.`{Tag.BACKBONE_SHA}` = '{sha256}' and tags.`{Tag.ENTRY_POINT}` LIKE 'probe%'"
            " and attributes.status = 'FINISHED'",
        )
    ]
    facts = CardFacts(probes=probes, training_data=config.training_data, license=config.license)
    if not loaded.run_id:
        return facts
    try:
        with tempfile.TemporaryDirectory() as folder:
            recipe = fetch_artifact(loaded.run_id, "config.yaml", Path(folder)).read_text(encoding="utf-8")
    except NotInStoreError as error:
        print(f"the model card has no details of the pretraining: {error}")
        return facts
    return dataclasses.replace(facts, pretraining=read_run(StoredRun, loaded.run_id), recipe=recipe)


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload an exported folder to the Hugging Face Hub and return its address there.

    Raises:
        ExportError: If the extra `hub` is missing, the name is invalid, or the Hub refuses or cannot be reached.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ExportError("push_to needs huggingface_hub; install the extra: pip install -e '.[hub]'")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # whose base depends on the version
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
    )

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        message = "Backbone exported by dinox-ct"
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
    except HFValidationError:
        raise ExportError(
            f"push_to={repository} is not a valid repository name of the Hub; write OWNER/NAME"
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise ExportError(
            f"{folder} is written, but could not be uploaded to {repository} ({type(error).__name__}): log in with"
            " `hf auth login`, check the name and the network, and run the same command again"
        ) from error
