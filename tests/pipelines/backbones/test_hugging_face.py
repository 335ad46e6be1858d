"""What transformers wrote gives transformers' tokens: through hf:, as a file in every wrapper, as a warm start."""

import argparse
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from models.backbone import Backbone, BackboneError, build_backbone
from models.config import BackboneConfig
from pipelines.backbones.config import EmbedConfig
from pipelines.backbones.embedding import run_embed
from pipelines.backbones.features import network_input
from pipelines.backbones.folder import LoadedBackbone, open_backbone, random_twin, save_backbone
from pipelines.backbones.warm_start import load_first_weights, resolved
from pipelines.command.cli import run_entry_point
from pipelines.tracking.store import client
from transforms.window_policy import PROBE_WINDOWS_HU

transformers = pytest.importorskip("transformers")

SIZE: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 42}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Dinov2": ("Dinov2", {"patch_size": 14, "mlp_ratio": 2}),
    "Dinov2 with SwiGLU": ("Dinov2", {"patch_size": 14, "use_swiglu_ffn": True}),
    "Dinov2 with registers": ("Dinov2WithRegisters", {"patch_size": 14}),
    "DINOv3": ("DINOv3ViT", {"patch_size": 14, "intermediate_size": 96, "num_register_tokens": 4}),
    "DINOv3 gated": (
        "DINOv3ViT",
        {"patch_size": 14, "intermediate_size": 96, "use_gated_mlp": True, "hidden_act": "silu"},
    ),
    "ViT": ("ViT", {"patch_size": 14, "intermediate_size": 96}),
    "ViT of one channel": ("ViT", {"patch_size": 14, "intermediate_size": 96, "num_channels": 1}),
}


def made(kind: str, folder: Path, **changes: Any):
    """A random model of transformers, and its folder; no tensor is at its initial zeros or ones."""
    name, own = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZE | own | changes)
    model = getattr(transformers, f"{name}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=KINDS)
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("hf")
    return made(request.param, folder), folder


@torch.no_grad()
def difference(model, backbone: Backbone, px: int = 42, **named: Any) -> float:
    images = torch.randn(2, 3, px, px)
    shown = images[:, 1:2] if model.config.num_channels == 1 else images
    theirs = model(shown, **named).last_hidden_state
    ours = backbone(images)
    prefix = 1 + (getattr(model.config, "num_register_tokens", 0) or 0)
    assert ours.patch_tokens.shape[1] == theirs.shape[1] - prefix == (px // 14) ** 2
    found = torch.cat([ours.class_token[:, None], ours.register_tokens, ours.patch_tokens], dim=1)
    return float((found - theirs).abs().max())


def test_tokens_are_those_of_transformers(one) -> None:
    model, folder = one
    loaded = open_backbone(f"hf:{folder}")
    assert difference(model, loaded.backbone) < 1e-5
    assert loaded.backbone.image_px == 42
    twin = random_twin(loaded, 0)
    assert difference(model, twin) > 0.1
    assert [m.eps for m in twin.modules() if isinstance(m, torch.nn.LayerNorm)] == [
        m.eps for m in loaded.backbone.modules() if isinstance(m, torch.nn.LayerNorm)
    ]


def test_tokens_at_another_size_are_those_of_transformers(one) -> None:
    model, folder = one
    named = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    assert difference(model, open_backbone(f"hf:{folder}", image_px=70).backbone, 70, **named) < 1e-5


def test_a_backbone_of_transformers_is_saved_and_opened_as_ours(one, tmp_path: Path) -> None:
    model, folder = one
    loaded = open_backbone(f"hf:{folder}")
    save_backbone(tmp_path, loaded.backbone, loaded.config, loaded.record)
    again = open_backbone(str(tmp_path))
    assert difference(model, again.backbone) < 1e-5
    assert again.record["opened"] == loaded.record["opened"]


def test_the_size_and_normalization_of_the_processor_are_honored_and_recorded(tmp_path: Path) -> None:
    made("Dinov2", tmp_path)
    said = {"crop_size": {"height": 56, "width": 56}, "size": {"shortest_edge": 64}, "do_center_crop": True}
    said |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.5, 1.0], "rescale_factor": 1 / 255}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    loaded = open_backbone(f"hf:{tmp_path}")
    assert loaded.backbone.image_px == 56
    hu = torch.tensor(PROBE_WINDOWS_HU["lung"])[:, None, None, None].expand(2, 3, 56, 56)
    shown = network_input(hu, loaded.backbone, "lung")
    assert torch.allclose(shown[0, :, 0, 0], torch.tensor([-2.0, -0.8, -0.3]))
    assert torch.allclose(shown[1, :, 0, 0], torch.tensor([2.0, 1.2, 0.7]))
    assert any("56 px (preprocessor_config.json)" in note for note in loaded.record["opened"])

    said |= {"do_center_crop": False, "size": {"height": 28, "width": 28}, "rescale_factor": 1 / 127.5}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    other = open_backbone(f"hf:{tmp_path}").backbone
    assert other.image_px == 28
    assert other.mean[0] == pytest.approx(0.25)  # gray values reach this network as 0..2
    assert other.std[0] == pytest.approx(0.125)


def wrapped(state: dict[str, torch.Tensor], how: str) -> Any:
    """A state as training codes save it."""

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": tensor for name, tensor in state.items()}

    noise = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    heads = {"head.mlp.0.weight": torch.zeros(4, 4)}
    return {
        "alone": state,
        "state_dict": {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)},
        "model": {"model": under("module."), "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}},
        "DINO": {"student": {f"module.backbone.{name}": t for name, t in noise.items()} | heads,
                 "teacher": under("backbone.") | heads, "args": argparse.Namespace(arch="vit_small")},
        "DINOv2": {"model": under("teacher.backbone.") | {f"student.backbone.{n}": t for n, t in noise.items()}},
        "lightly": {"state_dict": under("teacher_backbone.vit.")
                    | {f"student_backbone.vit.{n}": t for n, t in noise.items()}},
        "backbone": under("backbone.") | heads,
    }[how]  # fmt: skip


@pytest.mark.parametrize("how", ["alone", "state_dict", "model", "DINO", "DINOv2", "lightly", "backbone"])
@pytest.mark.parametrize("kind", ["Dinov2 with registers", "DINOv3"])
def test_a_file_in_every_wrapper_gives_the_same_tokens(
    tmp_path: Path, kind: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = made(kind, tmp_path)
    torch.save(wrapped(dict(model.state_dict()), how), tmp_path / "weights.pth")
    loaded = open_backbone(f"{tmp_path}/weights.pth:heads=3", image_px=42)
    assert difference(model, loaded.backbone) < 1e-5
    said = capsys.readouterr().out
    assert "gray values normalized with ImageNet's" in said
    assert ("taken off" in said) == (how not in ("alone", "state_dict"))


def start(name: str, **fields: Any) -> tuple[Backbone, LoadedBackbone]:
    config = BackboneConfig(arch="weights", weights=name, image_px=42)
    config = dataclasses.replace(resolved(config), **fields)
    torch.manual_seed(1)
    backbone = build_backbone(config).eval()
    load_first_weights(backbone, config)
    return backbone, open_backbone(name, 42)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Dinov2", "DINOv3", "ViT"])
def test_a_warm_start_begins_with_the_tokens_of_its_source(tmp_path: Path, kind: str) -> None:
    model = made(kind, tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    opened = open_backbone(f"hf:{tmp_path}")
    save_backbone(tmp_path / "ours", opened.backbone, opened.config, opened.record)
    images = torch.randn(2, 3, 42, 42)
    for name in (f"hf:{tmp_path}", f"{tmp_path}/weights.pt:heads=3", str(tmp_path / "ours")):
        backbone, source = start(name)
        for one, other in zip(backbone(images), source.backbone(images), strict=True):
            assert torch.equal(one, other), name
        assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "clip"}, "is of kind 'clip'; networks of kind dinov2,"),
        ({"auto_map": {"AutoModel": "modeling.Own"}}, "needs code of its own, which is not run"),
        ({"hidden_act": "relu"}, "has the activation 'relu'"),
        ({"num_attention_heads": 5}, "48 numbers, which 5 heads cannot share"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    made("Dinov2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(BackboneError, match=sentence):
        open_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("file", "tree", "sentence"),
    [
        (
            "config.json",
            {"num_attention_heads": "three"},
            r"config\.json states num_attention_heads as 'three'",
        ),
        ("config.json", {"num_attention_heads": 0}, r"config\.json states num_attention_heads as 0"),
        ("config.json", {"layer_norm_eps": None}, r"config\.json states layer_norm_eps as None"),
        ("config.json", {"image_size": "large"}, r"config\.json states image_size as 'large'"),
        (
            "preprocessor_config.json",
            {"image_std": [0, 0, 0]},
            r"preprocessor_config\.json states image_std as 0",
        ),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, "states image_mean as"),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 50}},
            "50 px are no multiple of the patch of 14 px",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    tmp_path: Path, file: str, tree: dict[str, Any], sentence: str
) -> None:
    made("Dinov2", tmp_path)
    before = json.loads((tmp_path / file).read_text()) if (tmp_path / file).is_file() else {}
    (tmp_path / file).write_text(json.dumps(before | tree))
    with pytest.raises(BackboneError, match=sentence):
        open_backbone(f"hf:{tmp_path}")


def test_images_smaller_than_a_patch_are_refused(tmp_path: Path) -> None:
    made("Dinov2", tmp_path)
    with pytest.raises(BackboneError, match=r"images of 7 px are no multiple .* to 14"):
        open_backbone(f"hf:{tmp_path}", image_px=7)


def test_what_is_no_folder_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"holds no config\.json of transformers"):
        open_backbone(f"hf:{tmp_path}")
    with pytest.raises(BackboneError, match="takes a folder, or OWNER/NAME"):
        open_backbone(f"hf:{tmp_path}/nowhere")
    made("Dinov2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        open_backbone(f"hf:{tmp_path}")


def test_a_run_records_how_its_network_was_read(
    own_store: Path, small_phantom_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("Dinov2", own_store / "net")
    words = [
        "--source",
        str(small_phantom_source),
        "--backbone",
        f"hf:{own_store / 'net'}",
        "--device",
        "cpu",
    ]
    words += ["--out", str(own_store / "tokens.parquet")]
    assert run_entry_point("embed", EmbedConfig, run_embed, None, words) == 0
    (run,) = client().search_runs(["0"])
    said = run.data.tags["dinox.opened"]
    assert "images of 42 px (there is no preprocessor_config.json: as usual for dinov2)" in said
    assert said in capsys.readouterr().out


class Hub(BaseHTTPRequestHandler):
    """The Hugging Face Hub on this machine, with one repository and what was asked of it."""

    folder: Path
    asked: ClassVar[list[str]] = []
    revision = "a" * 40

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.path.removeprefix("/api/models").startswith("/lab/net/"):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if self.path.startswith("/api/"):
            files = sorted(self.folder.iterdir())
            tree: Any = {
                "id": "lab/net",
                "sha": self.revision,
                "siblings": [{"rfilename": one.name} for one in files],
            }
            if "/tree/" in self.path:
                tree = [
                    {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "1"}
                    for one in files
                ]
            return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        content = (self.folder / self.path.rpartition("/")[2]).read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": self.revision}
        return self.answer(200, content, etag)

    do_HEAD = do_GET

    def answer(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        return


@pytest.mark.slow
def test_a_repository_is_downloaded_because_it_was_named_and_its_code_is_not(tmp_path: Path) -> None:
    made("DINOv3", tmp_path / "repository")
    for other in ("modeling.py", "flax_model.msgpack", "pytorch_model.bin"):
        (tmp_path / "repository" / other).write_text("raise SystemExit('ran')")
    Hub.folder = tmp_path / "repository"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys\n"
        "from pipelines.backbones.folder import open_backbone\n"
        "from models.backbone import BackboneError\n"
        "print(open_backbone('hf:lab/net').sha256)\n"
        "try: open_backbone('hf:lab/other')\n"
        "except BackboneError as refusal: print(refusal)\n"
    )
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    words = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    server.server_close()
    assert open_backbone(f"hf:{tmp_path / 'repository'}").sha256 in done.stdout, done.stderr
    assert f"hf:lab/net: revision {Hub.revision}" in done.stdout
    assert "lab/other cannot be downloaded from the Hugging Face Hub (RepositoryNotFoundError)" in done.stdout
    fetched = {path.rpartition("/")[2] for path in Hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}


def test_a_folder_of_timms_is_told_from_one_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "convnext_atto", "model_args": {}}')
    with pytest.raises(BackboneError) as refusal:
        open_backbone(f"hf:{tmp_path}")
    assert str(refusal.value) == (
        f"{tmp_path}/config.json states no model_type, so transformers did not write it; a folder of timm's opens as"
        " timm:local-dir:FOLDER, one of this project by its path"
    )
