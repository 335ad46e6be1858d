"""A backbone as a folder that timm and ONNX Runtime open without this project, with its card."""

import dataclasses
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.config import BackboneConfig
from pipelines.backbones.config import ExportConfig
from pipelines.backbones.folder import LoadedBackbone, chosen_backbone, open_backbone, save_backbone
from pipelines.backbones.model_card import CardFacts, model_card
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.runtime.atomic import write_atomically, writing
from pipelines.tracking.names import Tag
from pipelines.tracking.reading import StoredRun, fetch_artifact, read_run, search_runs
from pipelines.tracking.run import Run
from pipelines.tracking.store import NotInStoreError
from transforms.refusal import Refusal

OPSET = 18
TIMM_TOLERANCE, ONNX_TOLERANCE = 1e-5, 1e-4
"""Largest allowed difference of a token; float32 tokens after the final norm are of order 1."""


class ExportError(Refusal):
    """An export that cannot be made, whose tokens differ when it is read again, or that cannot be uploaded."""


def run_export(config: ExportConfig, run: Run) -> None:
    """Write weights, ONNX and model card, check their tokens against the backbone, then upload if asked."""
    out = Path(config.out)
    _refuse_other_things(out)
    with_onnx = _is_onnx_wanted(config.onnx)
    loaded = open_backbone(chosen_backbone(config.backbone))
    export_backbone(loaded, out)
    if with_onnx:
        with writing(out):
            export_onnx(loaded.backbone, out / "model.onnx")
    else:
        (out / "model.onnx").unlink(missing_ok=True)
    card = model_card(loaded, card_facts(loaded, config), with_onnx)
    write_atomically(out / "README.md", lambda file: file.write(card.encode()))
    run.set_tags({Tag.EXPORTED: loaded.source, Tag.BACKBONE_SHA: loaded.sha256})
    run.log_text(card, "README.md")
    print(
        f'{out}: timm.create_model("local-dir:{out}", pretrained=True) opens it{", so does ONNX" * with_onnx}'
    )
    if config.push_to:
        print(f"uploaded to {push(out, config.push_to, config.private)}")


def _refuse_other_things(out: Path) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "dinox.json").is_file())):
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

    Paths of this machine, such as that of the initial weights, are not exported; nor are the ids of the patients that
    were trained on, unless all of them are those of LIDC-IDRI: pseudonyms mean nothing under another key.

    Raises:
        ExportError: If timm computes different tokens.
    """
    plain = BackboneConfig(arch="timm", timm_name=loaded.timm_config["architecture"])
    named = plain if loaded.config.timm_name else loaded.config
    first = loaded.config.weights if loaded.config.weights == "timm" else ""
    shape = dataclasses.replace(named, weights=first, image_px=loaded.backbone.image_px)
    public = {name for series, names in lidc_scans().items() for name in (series, *names)}
    record = dict(loaded.record)
    if not public.issuperset(name for names in record.get("trained_on", {}).values() for name in names):
        del record["trained_on"]
    save_backbone(out, loaded.backbone, shape, record, loaded.timm_config)
    vit: Any = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = _probe_images(loaded.backbone, 2)
    with torch.no_grad():
        theirs = vit.forward_features(images)
        class_token, patch_tokens = _BothTokens(loaded.backbone.cpu())(images)
    own = torch.cat([class_token[:, None], patch_tokens], dim=1)
    found = torch.cat([theirs[:, :1], theirs[:, vit.num_prefix_tokens :]], dim=1)
    _refuse_difference("timm", float((own - found).abs().max()), TIMM_TOLERANCE)


class _BothTokens(nn.Module):
    """A backbone whose outputs are plain tensors: class token (B, D) and patch tokens (B, N, D)."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        return tokens.class_token, tokens.patch_tokens


def export_onnx(backbone: Backbone, path: Path) -> None:
    """Write a backbone as ONNX with a free batch size, and run it to check that the tokens are the same.

    Raises:
        ExportError: If ONNX Runtime computes different tokens.
    """
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]

    model = _BothTokens(backbone.cpu()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The exporter warns about its own internals.
        torch.onnx.export(
            model,
            (_probe_images(backbone, 2),),
            path,
            input_names=["images"],
            output_names=["class_token", "patch_tokens"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = _probe_images(backbone, batch)
        with torch.no_grad():
            own = model(images)
        theirs = session.run(None, {"images": images.numpy()})
        pairs = zip(own, theirs, strict=True)
        difference = max(float(np.abs(a.numpy() - b).max()) for a, b in pairs)
        _refuse_difference("ONNX Runtime", difference, ONNX_TOLERANCE)


def _probe_images(backbone: Backbone, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, backbone.image_px, backbone.image_px, generator=generator)


def _refuse_difference(reader: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise ExportError(
            f"{reader} computes tokens from the exported folder that differ by {difference:.2g}, more than"
            f" {tolerance:g}: do not use this export; another version of {reader} may agree"
        )


def card_facts(loaded: LoadedBackbone, config: ExportConfig) -> CardFacts:
    """Collect the facts of a backbone from the store; few, when its run is not in this store."""
    query = f"tags.`{Tag.BACKBONE_SHA}` = '{loaded.sha256}' and tags.`{Tag.ENTRY_POINT}` LIKE 'probe%'"
    probes = search_runs(StoredRun, f"{query} and attributes.status = 'FINISHED'")
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
