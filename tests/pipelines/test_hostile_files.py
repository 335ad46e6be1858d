"""Files of strangers: nothing in them runs, no socket opens, and nothing outside of their folder is read or sent."""

import json
import pickle
import shutil
import socket
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.backbone import build_backbone
from models.config import BackboneConfig
from pipelines.backbones.folder import open_backbone, save_backbone
from pipelines.cohort.folder import Cohort
from pipelines.command.config import read_yaml
from pipelines.encoders.checkpoint import read_tensors
from pipelines.encoders.table import open_table
from pipelines.finetuning.record import open_tuned
from pipelines.ingest.config import PrepareConfig
from pipelines.ingest.preparation import prepare_cohort
from pipelines.nodule.lidc_masks import read_mask
from pipelines.tracking.outbox import Outbox, Record
from pipelines.training.checkpoint import Checkpoint, load_checkpoint, refuse_other_state, restore_optimizer
from tests.pipelines.ingest.test_png_sources import hub_form
from transforms.refusal import Refusal

TINY = BackboneConfig(arch="custom", depth=1, embed_dim=16, heads=2, image_px=28)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.fixture(autouse=True)
def guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Work in an empty folder, in which nothing may be run; a socket or a process that is opened is a fault."""
    tried: list[str] = []

    def refuse(*given: Any, **_: Any) -> NoReturn:
        tried.append(repr(given[1:])[:200])
        raise AssertionError(f"opened {tried[-1]}")

    for owner, name in (
        (socket.socket, "connect"), (socket.socket, "connect_ex"), (socket.socket, "sendto"), (socket, "getaddrinfo"),
        (socket, "create_connection"), (subprocess.Popen, "__init__"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.chdir(tmp_path)
    yield tried
    assert not tried
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "backbone", build_backbone(TINY), TINY, {"recipe": "demo"})
    return tmp_path / "backbone"


def put(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_guard_sees_a_download(guard: list[str]) -> None:
    with pytest.raises(AssertionError, match="opened"):
        socket.create_connection(("127.0.0.1", 1))
    guard.clear()


@pytest.mark.parametrize(
    "name", ["hf-hub:evil/net", "local-dir:/etc", "hf_hub:evil/net", "vit_tiny_patch16_224:x"]
)
@pytest.mark.parametrize("scheme", ["", "timm:local-dir:"])
def test_an_architecture_that_is_an_address_is_not_asked_for(backbone: Path, name: str, scheme: str) -> None:
    put(backbone / "config.json", architecture=name)
    with pytest.raises(Refusal):
        open_backbone(f"{scheme}{backbone}")


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 10**6}, {"embed_dim": 10**7}, {"embed_dim": 49152, "depth": 400}, {"mlp_ratio": 60000.0, "depth": 500},
     {"reg_tokens": 10**9}, {"norm_layer": {"file": "x"}}, {"act_layer": "os.system"},
     {"depth": -1}, {"num_heads": 0}, {"patch_size": 0}, {"weight_init": "x"}, {"embed_dim": "1e9"}],
)  # fmt: skip
def test_a_network_that_its_weights_do_not_fill_takes_no_memory(
    backbone: Path, arguments: dict[str, Any]
) -> None:
    tree = json.loads((backbone / "config.json").read_text())
    put(backbone / "config.json", model_args=tree["model_args"] | arguments)
    with pytest.raises(Refusal) as refusal:
        open_backbone(str(backbone))
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("file", "changes"),
    [("config.json", {"model_args": 7}), ("config.json", {"architecture": ["x"]}),
     ("config.json", {"pretrained_cfg": []}),
     ("config.json", {"pretrained_cfg": {"mean": [1, 2], "std": [1, 2]}}),
     ("config.json", {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.0] * 3}}),
     ("dinox.json", {"mm_per_pixel": "0.5"}), ("dinox.json", {"hu_scale": float("nan")}), ("dinox.json", {"opened": 1}),
     ("dinox.json", {"trained_on": {"patient": "all"}}), ("dinox.json", {"holdout": [0.5]}),
     ("dinox.json", {"backbone": {"arch": "timm", "timm_name": "hf-hub:evil/net", "stem": "whitened"}})],
)  # fmt: skip
def test_a_record_of_other_types_is_one_sentence(backbone: Path, file: str, changes: dict[str, Any]) -> None:
    put(backbone / file, **changes)
    with pytest.raises(Refusal):
        open_backbone(str(backbone))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "dinox.json"])
def test_a_link_out_of_a_backbones_folder_is_not_followed(backbone: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(backbone, tmp_path / "whole")
    (backbone / name).unlink()
    (backbone / name).symlink_to(tmp_path / "whole" / name)
    with pytest.raises(Refusal, match=r"leads out of .*backbone, which is not followed"):
        open_backbone(str(backbone))
    (tmp_path / "link").symlink_to(tmp_path / "whole")  # The folder itself may be named by a link.
    assert open_backbone(str(tmp_path / "link")).backbone.image_px == 28


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".bin", ".torch"])
@pytest.mark.parametrize("write", [torch.save, lambda one, path: path.write_bytes(pickle.dumps(one))])
def test_a_pickle_does_not_run(tmp_path: Path, ending: str, write: Callable[[Any, Path], object]) -> None:
    path = tmp_path / f"w{ending}"
    write({"state_dict": Harmful()}, path)
    with pytest.raises(Refusal):
        read_tensors(path)
    with pytest.raises(Refusal):
        open_backbone(f"{path}:vit_tiny_patch16_224")


def test_a_pickle_in_numpys_form_does_not_run(small_cohort: Cohort, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(small_cohort.root, cohort)
    volume_id = str(small_cohort.series["volume_id"].iloc[0])
    for folder in ("volumes", "body"):
        np.save(cohort / folder / f"{volume_id}.npy", np.array([Harmful()], dtype=object), allow_pickle=True)
    with pytest.raises(Refusal, match="is damaged or cannot be read"):
        Cohort.open(cohort).volume(volume_id)
    with pytest.raises(Refusal, match="is damaged or cannot be read"):
        Cohort.open(cohort).body(volume_id)
    (cohort / "masks").mkdir()
    np.savez(cohort / "masks" / "n.npz", mask=np.array([Harmful()], dtype=object), start_zyx=np.zeros(3, int))
    with pytest.raises(Refusal, match=r"mask .* is damaged"):
        read_mask(cohort, "n")


def test_a_mask_that_inflates_to_gigabytes_is_refused_before_it_does(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with (
        zipfile.ZipFile(tmp_path / "masks" / "n.npz", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("mask.npy", "w") as part,
    ):
        np.lib.format.write_array_header_1_0(
            part, {"descr": "|b1", "fortran_order": False, "shape": (1 << 29,)}
        )
        for _ in range(1 << 9):
            part.write(bytes(1 << 20))
    with pytest.raises(Refusal, match=r"mask .* is damaged"):
        read_mask(tmp_path, "n")


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "..", "x" * 300, "a\0b"])
def test_a_cohort_whose_table_names_a_file_elsewhere_is_refused(
    small_cohort: Cohort, tmp_path: Path, name: str
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(small_cohort.root, cohort)
    table = pq.read_table(cohort / "series.parquet")
    ids = [name, *table["volume_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "volume_id", pa.array(ids)), cohort / "series.parquet")
    with pytest.raises(Refusal, match="holds in row 1 no valid volume_id"):
        Cohort.open(cohort)
    assert read_mask(cohort, f"../{name}") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("shape", None), ("shape", [1, 2]), ("shape", "x"), ("sha256", "../../x"), ("affine_ras", [float("nan")] * 16),
     ("spacing_mm", [0.0, 1.0, 1.0]), ("volume_id", None), ("gaps", None)],
)  # fmt: skip
def test_a_cell_of_a_cohort_that_cannot_be_is_one_sentence(
    small_cohort: Cohort, tmp_path: Path, name: str, value: object
) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(small_cohort.root, cohort)
    table = pq.read_table(cohort / "series.parquet")
    values = pa.array(
        [value] * len(table), **({} if isinstance(value, str) else {"type": table.schema.field(name).type})
    )
    number = table.column_names.index(name)
    pq.write_table(table.set_column(number, name, values), cohort / "series.parquet")
    with pytest.raises(Refusal, match=rf"no valid {name}|is damaged"):
        Cohort.open(cohort)


def test_a_link_out_of_a_cohort_is_not_followed(small_cohort: Cohort, tmp_path: Path) -> None:
    cohort, volume_id = tmp_path / "cohort", str(small_cohort.series["volume_id"].iloc[0])
    shutil.copytree(small_cohort.root, cohort)
    (cohort / "volumes" / f"{volume_id}.npy").unlink()
    (cohort / "volumes" / f"{volume_id}.npy").symlink_to(small_cohort.root / "volumes" / f"{volume_id}.npy")
    with pytest.raises(Refusal, match="leads out of"):
        Cohort.open(cohort).volume(volume_id)
    (cohort / "nodules.parquet").unlink()
    (cohort / "nodules.parquet").symlink_to(small_cohort.root / "nodules.parquet")
    with pytest.raises(Refusal, match="leads out of"):
        Cohort.open(cohort)


def test_a_table_of_a_billion_rows_in_a_few_bytes_is_not_read(small_cohort: Cohort, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    shutil.copytree(small_cohort.root, cohort)
    with pq.ParquetWriter(
        tmp_path / "t.parquet", pa.schema([("nodule_id", pa.int8()), ("a", pa.int8())])
    ) as writer:
        part = pa.table({name: pa.array(np.zeros(10_000_000, np.int8)) for name in ("nodule_id", "a")})
        for _ in range(6):
            writer.write_table(part)
    assert (tmp_path / "t.parquet").stat().st_size < 1e6
    shutil.copy(tmp_path / "t.parquet", cohort / "refused.parquet")
    with pytest.raises(Refusal, match="states 60000000 rows"):
        Cohort.open(cohort)
    with pytest.raises(Refusal, match="states 60000000 rows"):
        open_table(f"table:{tmp_path / 't.parquet'}")


@pytest.mark.parametrize("way", ["absolute", "above", "link", "folder"])
def test_an_index_of_pngs_stays_in_its_folder(tmp_path: Path, way: str) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    png, outside = source / "png" / "2.png", tmp_path / "outside" / "2.png"
    outside.parent.mkdir()
    shutil.move(png, outside)
    if way == "link":
        png.symlink_to(outside)
    elif way == "folder":
        (source / "more").symlink_to(outside.parent)
    named = {
        "absolute": str(outside),
        "above": "../outside/2.png",
        "link": "png/2.png",
        "folder": "more/2.png",
    }[way]
    text = (source / "index.csv").read_text()
    (source / "index.csv").write_text(text.replace("png/2.png", named))
    config = PrepareConfig(source=str(source), cohort=str(tmp_path / "c"), from_="png", workers=1)
    with pytest.raises(Refusal, match="leads out of the folder"):
        prepare_cohort(config)


def test_an_image_of_gigapixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    source = hub_form(tmp_path / "s", lambda hu: hu + 32768)
    path = source / "png" / "2.png"
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    struct.pack_into(">II", content, 16, 60_000, 60_000)
    path.write_bytes(bytes(content))
    config = PrepareConfig(source=str(source), cohort=str(tmp_path / "c"), from_="png", workers=1)
    with pytest.raises(Refusal, match="not a PNG, or one that is missing, cut short or damaged"):
        prepare_cohort(config)


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:pathlib.Path.touch [ran]", "a: !!python/name:os.system", "a: &x [1]\nb: [*x, *x]",
     "[" * 5000, f"a: {'9' * 5000}", "a: 2020-13-45", "? {a: 1}\n: 2", "\x00", "a: !include /etc/passwd"],
)  # fmt: skip
def test_yaml_builds_plain_values_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(Refusal):
        read_yaml(tmp_path / "r.yaml")


@pytest.mark.parametrize("backbone", ["hf:evil/net", "timm:hf-hub:evil/net", "timm:vit_tiny_patch16_224"])
def test_a_fine_tuning_does_not_fetch_the_backbone_that_its_file_names(tmp_path: Path, backbone: str) -> None:
    record = dict.fromkeys(
        ("mode", "lora_rank", "lora_targets", "features", "window", "size_mm", "mm_per_px"), 1
    )
    (tmp_path / "finetuned.json").write_text(
        json.dumps(record | {"backbone": backbone, "backbone_sha": "", "image_px": 28})
    )
    with pytest.raises(Refusal, match="would be fetched because a file names it"):
        open_tuned(tmp_path)


def test_a_waiting_record_sends_no_file_from_elsewhere(tmp_path: Path) -> None:
    sent: list[Record] = []
    (tmp_path / "outbox").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    record = {
        "run_id": "a",
        "kind": "file",
        "content": {"folder": ""},
        "payload": str(tmp_path / "secret.txt"),
    }
    (tmp_path / "outbox" / "00000000.json").write_text(json.dumps(record))
    with pytest.raises(Refusal, match="leads out of"):
        Outbox(tmp_path / "outbox", sent.append).flush()
    assert not sent


def test_a_checkpoint_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "step_00000001.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    for record in ({"step": 10**30, "sha256": 1, "facts": []}, {"step": "x"}, [], 7):
        (tmp_path / "step_00000001.json").write_text(json.dumps(record))
        with pytest.raises(Refusal, match="is truncated or was changed"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("summed", -1),
        ("watch", 7),
        ("scale_mm", ["a", 1.0]),
        ("scale_mm", [1.0]),
        ("watch", {"samples": [1, 2]}),
    ],
)
def test_facts_of_a_checkpoint_that_cannot_be_are_one_sentence(place: str, value: object) -> None:
    watch = {"samples": [4], "first_gain": None, "hopeless_since": None}
    facts = {"watch": watch, "summed": 1, "scale_mm": [0.5, 1.0], "slice_mm": [1.0, 1.0]}
    names = ("watch/0.sums", "watch/0.mean_p", "watch/0.tokens")
    tensors = dict.fromkeys(names, torch.zeros(1)) | {"rng/torch": torch.get_rng_state()}
    refuse_other_state(Checkpoint(1, tensors, facts))
    with pytest.raises(Refusal, match=f"holds no valid {place}"):
        refuse_other_state(Checkpoint(1, tensors, facts | {place: value}))
    with pytest.raises(Refusal, match="lacks parts of a training"):
        refuse_other_state(Checkpoint(1, tensors | {"rng/torch": torch.zeros(3)}, facts))


def test_an_optimizer_of_other_parameters_is_not_restored() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2, 3))])
    whole = {"0.step": torch.tensor(1.0), "0.exp_avg": torch.zeros(2, 3), "0.exp_avg_sq": torch.zeros(2, 3)}
    restore_optimizer(optimizer, whole)
    for wrong in ({"7.step": torch.tensor(1.0)}, {"0.exp_avg": torch.zeros(3)}, {"x": torch.zeros(1)}):
        with pytest.raises(Refusal, match="of another architecture"):
            restore_optimizer(optimizer, whole | wrong)
    with pytest.raises(Refusal, match="lacks parts"):
        restore_optimizer(optimizer, {"0.step": torch.tensor(1.0)})
