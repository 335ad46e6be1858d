"""Weights for everybody: timm and ONNX Runtime make the same tokens, and the card says what is known."""

import base64
import json
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.backbone import BackboneError, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.config import ExportConfig, OneWindow
from pipelines.backbones.exporting import (
    ExportError,
    export_backbone,
    export_hugging_face,
    export_onnx,
    push,
    run_export,
)
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.backbones.model_card import CardFacts, model_card
from pipelines.cohort.folder import Cohort
from pipelines.cohort.pseudonyms import lidc_scans
from pipelines.command.cli import run_entry_point
from pipelines.tracking.reading import StoredRun
from pipelines.tracking.run import Run
from pipelines.tracking.store import client
from pipelines.training.config import PretrainConfig
from pipelines.training.run import train

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)
RECORD = {
    "run_id": "r1",
    "recipe": "demo",
    "steps": 20,
    "holdout": 0.3,
    "mm_per_pixel": [0.9, 1.2],
    "leak": "",
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_backbone(tmp_path / "backbone", build_backbone(TINY), TINY, RECORD | {"hu_scale": 1.0})
    return tmp_path / "backbone"


def test_an_exported_folder_says_nothing_of_this_machine(saved: Path, tmp_path: Path) -> None:
    local = BackboneConfig(arch="timm", timm_name=f"local-dir:{saved}", weights="timm", image_px=28)
    save_backbone(tmp_path / "warm", build_backbone(local), local, RECORD)
    export_backbone(open_backbone(str(tmp_path / "warm")), tmp_path / "out")
    for file in (tmp_path / "out").glob("*.json"):
        assert str(tmp_path) not in file.read_text(), file.name
    assert open_backbone(str(tmp_path / "out")).sha256 == open_backbone(str(saved)).sha256


def test_ids_of_patients_leave_with_the_weights_only_where_all_are_public(tmp_path: Path) -> None:
    series, (patient, study) = next(iter(lidc_scans().items()))
    public = {"patient": [patient], "study": [study], "series": [series]}
    for own, secret in ((public, ""), (public | {"study": [study, "1.2.840.113619.2.55"]}, "113619")):
        save_backbone(tmp_path / "b", build_backbone(TINY), TINY, RECORD | {"trained_on": own})
        export_backbone(open_backbone(str(tmp_path / "b")), tmp_path / "out")
        record = json.loads((tmp_path / "out" / "dinox.json").read_text())
        assert record.get("trained_on") == (None if secret else public)
        assert record["holdout"] == 0.3
        assert not secret or secret not in (tmp_path / "out" / "dinox.json").read_text()


def test_tokens_that_timm_would_make_otherwise_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = open_backbone(str(saved))
    loaded.timm_config["model_args"]["num_heads"] = 4  # same shapes, other arithmetic
    with pytest.raises(ExportError, match=r"timm computes tokens .* differ by .* do not use this export"):
        export_backbone(loaded, tmp_path / "out")


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportError, match="exists and is not an export"):
        run_export(ExportConfig(out=str(tmp_path)), Run(client(), "none"))


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (TINY, "dinov2_with_registers"),
        (BackboneConfig(arch="custom", depth=2, embed_dim=16, heads=2, registers=0, image_px=28), "dinov2"),
        (BackboneConfig(arch="timm", timm_name="vit_small_patch14_dinov2", timm_args='{"depth": 2}', norm_eps=1e-3,
                        image_px=28), "dinov2"),
    ],
)  # fmt: skip
def test_transformers_makes_the_same_tokens_and_they_are_read_back(
    config: BackboneConfig, kind: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(config).eval()
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    export_hugging_face(backbone, tmp_path)  # refuses a difference above 1e-5
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind
    again = open_backbone(f"hf:{tmp_path}").backbone
    assert (again.image_px, again.mean, again.std) == (28, backbone.mean, backbone.std)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        for ours, theirs in zip(backbone(images), again(images), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"layernorm.bias": state["layernorm.bias"] + 0.01}, tmp_path / "model.safetensors")
    assert not torch.allclose(
        open_backbone(f"hf:{tmp_path}").backbone(images)[0], again(images)[0], atol=1e-3
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (BackboneConfig(arch="timm", timm_name="vit_small_patch16_dinov3", timm_args='{"depth": 1}', image_px=32),
         "its attention turns with the position"),
        (BackboneConfig(arch="custom", stem="whitened", image_px=28), "or its stem is its own"),
        (BackboneConfig(arch="timm", timm_name="vit_small_patch16_224", timm_args='{"depth": 1, "qkv_bias": false}',
                        image_px=32), "it has no bias of queries, keys and values"),
        (BackboneConfig(arch="timm", timm_name="vit_small_patch16_224", timm_args='{"depth": 1, "qk_norm": true}',
                        image_px=32), r"it has blocks\.0\.attn\.q_norm\.weight"),
        (BackboneConfig(arch="timm", timm_name="vit_small_patch16_224", timm_args='{"depth": 1, "mlp_ratio": 2.5}',
                        image_px=32), "its MLP is no whole number of times"),
        (BackboneConfig(arch="timm", timm_name="vit_small_patch16_224", timm_args='{"depth": 1, "reg_tokens": 2}',
                        image_px=32), "its registers have positions"),
    ],
)  # fmt: skip
def test_what_is_no_dinov2_is_not_laid_out_as_one(config: BackboneConfig, why: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=f"Dinov2 has no such network: .*{why}"):
        export_hugging_face(build_backbone(config), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def stored(entry_point: str, metrics: dict[str, float], **tags: str) -> StoredRun:
    return StoredRun("run-" + entry_point, "FINISHED", {"dinox.entry_point": entry_point} | tags, metrics, {})


def test_the_card_states_figures_with_intervals_and_leaks(saved: Path) -> None:
    pretraining = stored(
        "pretrain",
        {"data/train_patients": 4, "data/train_slices": 95, "data/held_out_patients": 2, "loss/total": 3.0}
        | {"retrieval/top1": 0.5, "retrieval/top1_ci_low": 0.4, "retrieval/top1_ci_high": 0.6},
        **{"dinox.status": "learning", "dinox.git_commit": "abc123"},
    )
    probe = stored(
        "probe_malignancy",
        {"probe/auroc_6_15mm": 0.71, "probe/auroc_ci_low_6_15mm": 0.61, "probe/auroc_ci_high_6_15mm": 0.81},
        **{"dinox.leak": "no_holdout"},
    )
    facts = CardFacts(pretraining, "steps: 20", [probe], "Six phantoms.", "mit")
    card = model_card([open_backbone(str(saved))], facts, has_onnx=False)
    assert card.startswith("---\nlicense: mit\nlibrary_name: timm\n")
    assert "| retrieval/top1 | 0.500 | 0.400 to 0.600 |" in card
    assert "| probe/auroc_6_15mm | 0.710 | 0.610 to 0.810 |" in card
    assert "no patients were held out" in card
    assert "95 axial slices of 4 patients; held out: 2 patients." in card
    for words in ("Six phantoms.", "abc123", "steps: 20", "0.90 to 1.20 mm per pixel", "learning"):
        assert words in card
    assert "loss/total" not in card
    assert "model.onnx" not in card
    for heading in ("Training data", "Results", "Limits", "What it must not be used for", "License"):
        assert f"\n## {heading}\n" in card


def test_the_card_of_a_real_run_holds_its_recipe_commit_and_figures(
    own_store: Path, small_cohort: Cohort
) -> None:
    words = ["--cohort", str(small_cohort.root), "--runs_dir", str(own_store / "runs"), "--device", "cpu"]
    words += ["--steps", "2", "--batch_size", "4", "--eval_slices", "16", "--head.prototypes", "32"]
    words += ["--backbone.depth", "1", "--backbone.embed_dim", "16", "--backbone.heads", "2"]
    words += ["--backbone.image_px", "28", "--views.size_px", "28"]
    assert run_entry_point("pretrain", PretrainConfig, train, "demo", words) == 0
    (trained,) = client().search_runs(["0"])
    figures, tags = trained.data.metrics, trained.data.tags
    words = [
        "--out",
        str(own_store / "out"),
        "--onnx",
        "no",
        "--hf",
        "yes",
        "--training_data",
        "Six phantoms.",
    ]
    assert run_entry_point("export", ExportConfig, run_export, None, words) == 0
    card = (own_store / "out" / "README.md").read_text()
    for fact in (
        f"Recipe `demo`, 2 optimizer updates, seed 0, code at commit `{tags['dinox.git_commit']}`, MLflow run"
        f" `{trained.info.run_id}`",
        "<summary>All settings</summary>", "\n  prototypes: 32\n", "Six phantoms.",
        f"{figures['data/train_slices']:.0f} axial slices of {figures['data/train_patients']:.0f} patients",
        f"| retrieval/top1 | {figures['retrieval/top1']:.3f} | {figures['retrieval/top1_ci_low']:.3f} to",
        f"Verdict of the pretraining on itself: {tags['dinox.status']}",
        'AutoModel.from_pretrained("FOLDER/hf")',
    ):  # fmt: skip
        assert fact in card, fact
    assert (own_store / "out" / "hf" / "model.safetensors").is_file()
    assert run_entry_point("export", ExportConfig, run_export, None, [*words[:4]]) == 0
    assert not (own_store / "out" / "hf").exists(), "an earlier export is replaced"


def test_a_card_of_unknown_weights_says_that_nothing_is_known(saved: Path) -> None:
    card = model_card([open_backbone(str(saved))], CardFacts(), has_onnx=True)
    assert "No description of the training data" in card
    assert "No test of these weights is recorded" in card
    assert "`model.onnx` takes" in card


@pytest.mark.parametrize(
    ("policy", "window"), [("lung_aware", "lung"), ("full", "full"), ("ranges", "ranges")]
)
def test_the_code_in_the_card_makes_our_tokens(policy: str, window: OneWindow, saved: Path) -> None:
    from pipelines.backbones.features import encode

    loaded = open_backbone(str(saved))
    loaded.record["window_policy"] = policy
    code = model_card([loaded], CardFacts(), has_onnx=False).split("```python\n")[1].split("```")[0]
    hu = torch.from_numpy(np.random.default_rng(0).uniform(-1400, 600, (2, 3, 28, 28)).astype(np.float32))
    said = {"hu": hu}
    exec(code.replace("FOLDER", str(saved)), said)  # the card's own words
    ours = encode(loaded.backbone, hu.numpy(), 1.0, window, "class_token", torch.device("cpu"))
    assert np.allclose(said["class_token"].detach().numpy(), ours, atol=1e-5)


@pytest.mark.slow
def test_onnx_runtime_makes_the_same_tokens_for_any_batch(saved: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    loaded = open_backbone(str(saved))
    export_onnx(loaded.backbone, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 28, 28)
        class_token, patch_tokens = session.run(None, {"images": images.numpy()})
        tokens = loaded.backbone(images)
        assert np.abs(class_token - tokens.class_token.numpy()).max() < 1e-4
        assert np.abs(patch_tokens - tokens.patch_tokens.numpy()).max() < 1e-4
    loaded.backbone.vit.blocks[0].attn.proj.bias[0].add_(0.1)
    reference = session.run(None, {"images": images.numpy()})[0]
    assert np.abs(reference - loaded.backbone(images).class_token.numpy()).max() > 1e-4


OPEN_WITH_TIMM = """
import importlib.util, sys
import numpy as np, timm, torch
for room in ("pipelines", "models", "transforms", "probes"):
    assert importlib.util.find_spec(room) is None, room
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
with torch.no_grad():
    found = model.forward_features(torch.from_numpy(np.load(sys.argv[2])))
np.save(sys.argv[3], torch.cat([found[:, :1], found[:, model.num_prefix_tokens :]], dim=1).numpy())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        BackboneConfig(arch="vit_small", image_px=224),
        BackboneConfig(arch="timm", timm_name="vit_tiny_patch16_224", image_px=64),
    ],
)
def test_timm_opens_it_in_an_environment_without_this_project(config: BackboneConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_backbone(tmp_path / "saved", build_backbone(config), config, RECORD)
    loaded = open_backbone(str(tmp_path / "saved"))
    export_backbone(loaded, tmp_path / "out")
    environment = tmp_path / "bare"
    venv.create(environment, with_pip=False)
    # timm and torch are lent by path; the editable install of this project is no folder there.
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (environment / library / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    images = torch.randn(2, 3, config.image_px, config.image_px)
    np.save(tmp_path / "images.npy", images.numpy())
    words = [environment / "bin/python", "-I", "-c", OPEN_WITH_TIMM]
    files = [tmp_path / "out", tmp_path / "images.npy", tmp_path / "tokens.npy"]
    subprocess.run([*words, *files], check=True, cwd=tmp_path)
    tokens = loaded.backbone(images)
    ours = torch.cat([tokens.class_token[:, None], tokens.patch_tokens], dim=1).numpy()
    assert np.abs(np.load(files[2]) - ours).max() < 1e-5


REPOSITORY = "https://huggingface.co/lab/lung"


class LoopbackHub(BaseHTTPRequestHandler):
    """Answers what the Hub answers to an upload of small files, and keeps what it was given."""

    kept: dict[str, bytes] = {}  # noqa: RUF012

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else self.read_chunks()
        path = self.path.split("?")[0]
        if path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            answer = {"files": [file | {"shouldIgnore": False} for file in files]}
        elif path.endswith("/commit/main"):
            for line in body.splitlines():
                said = json.loads(line)
                if said["key"] == "file":
                    self.kept[said["value"]["path"]] = base64.b64decode(said["value"]["content"])
            answer = {"commitUrl": f"{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
        elif path.endswith("/repos/create"):
            self.kept["request"] = body
            answer = {"url": REPOSITORY}
        else:
            answer = {}
        self.answer(answer)

    def do_GET(self) -> None:
        self.answer({"sha": "0" * 40, "id": "lab/lung", "siblings": []})

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def answer(self, said: object) -> None:
        answer = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def upload(endpoint: str, folder: Path, repository: str) -> subprocess.CompletedProcess[str]:
    """Push in a process of its own: huggingface_hub reads its address when it is imported."""
    code = (
        "import sys; from pathlib import Path; from pipelines.backbones.exporting import ExportError, push\n"
        "try: print(push(Path(sys.argv[1]), sys.argv[2], True))\n"
        "except ExportError as error: sys.exit(f'REFUSED {error}')"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-W", "ignore", "-c", code, str(folder), repository]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_hub_gets_every_file_of_the_folder(saved: Path) -> None:
    pytest.importorskip("huggingface_hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = upload(f"http://127.0.0.1:{server.server_port}", saved, "lab/lung")
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    asked = json.loads(LoopbackHub.kept.pop("request"))
    assert (asked["name"], asked["organization"]) == ("lung", "lab")
    assert "private" in (asked.get("visibility"), *(["private"] if asked.get("private") else []))
    assert LoopbackHub.kept == {file.name: file.read_bytes() for file in saved.iterdir()}


@pytest.mark.slow
def test_a_hub_that_is_away_or_a_name_that_cannot_be_is_one_sentence(saved: Path) -> None:
    pytest.importorskip("huggingface_hub")
    away = upload("http://127.0.0.1:9", saved, "lab/lung")
    assert away.returncode == 1
    assert "REFUSED" in away.stderr
    assert "is written, but could not be uploaded to lab/lung" in away.stderr
    with pytest.raises(ExportError, match="is not a valid repository name of the Hub; write OWNER/NAME"):
        push(saved, "a/b/c d", True)
