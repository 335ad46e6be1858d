"""`encoder=python:MODULE:FUNCTION`: what a function gets, and what it may not give."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.cohort.folder import Cohort
from pipelines.encoders.cube_encoder import CubeEncoder, EncoderError, encode_cubes
from pipelines.encoders.opening import open_encoder
from pipelines.nodule.cubes import Cubes
from pipelines.nodule.labeled import NoduleSet, nodule_set
from tests.conftest import MakeOnce
from tests.pipelines.probing.test_probe_malignancy import cohort_of, probed
from transforms.nodule_crop import CropSpec

FUNCTIONS = """
import numpy as np
calls = []
def seen(hu, affine, center):
    calls.append((hu.shape, affine, center))
    at = affine @ [*center, 1]
    return [hu[tuple(int(c) for c in center)], *at[:3]]
seen.shape, seen.spacing_mm = (5, 9, 11), (2.0, 1.0, 1.0)
def tokens(hu, affine, center):
    return hu.reshape(-1, 10)
tokens.shape = (2, 5, 10)
def gaps(hu, affine, center):
    return np.full(3, np.nan)
def growing(hu, affine, center):
    calls.append(0)
    return np.zeros(3 + len(calls))
def text(hu, affine, center):
    return "malignant"
def cube(hu, affine, center):
    return hu
def changing(hu, affine, center):
    hu[:] = 0
    return [1.0]
wrong = lambda hu, affine, center: [1.0]
wrong.shape = (0, 5, 5)
number = 3
def inner(hu, affine, center):
    return [hu.mean(), hu.std(), *hu.mean((1, 2)), *np.abs(np.diff(hu, axis=0)).mean((1, 2))]
inner.shape = (30, 20, 20)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"functions_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"python:{name}"


@pytest.fixture(scope="module")
def cohort(make_once: MakeOnce) -> Cohort:
    def slope(number: int) -> np.ndarray:
        x, y, z = np.mgrid[:40, :40, :5]
        return (x + 2 * y + 10 * z + 5 * number - 500).astype(float)

    root = make_once("slopes", lambda folder: cohort_of(folder, slope, [0, 1] * 10))
    return Cohort.open(root / "c")


@pytest.fixture(scope="module")
def nodules(cohort: Cohort) -> NoduleSet:
    return nodule_set(cohort, "given", CropSpec(size_mm=14.0, out_px=14))


def cubes_for(encoder: CubeEncoder, cohort: Cohort, nodules: NoduleSet) -> Cubes:
    return Cubes.around(cohort, nodules.table, encoder.spec)


def test_a_function_gets_the_cube_its_affine_and_the_center(
    module: str, cohort: Cohort, nodules: NoduleSet
) -> None:
    encoder = open_encoder(f"{module}:seen")
    assert (encoder.spec.shape, encoder.spec.spacing_mm) == ((5, 9, 11), (2.0, 1.0, 1.0))
    found = encode_cubes(encoder, cubes_for(encoder, cohort, nodules))
    number = nodules.table["patient_id"].str.removeprefix("p").astype(int).to_numpy()
    np.testing.assert_allclose(found[:, 0], 20 + 2 * 20 + 10 * 2 + 5 * number - 500, atol=0.01)
    np.testing.assert_allclose(found[:, 1:], np.tile([-20.0, -20.0, 4.0], (len(found), 1)), atol=1e-4)  # RAS


def test_the_mean_of_tokens_is_taken(module: str, cohort: Cohort, nodules: NoduleSet) -> None:
    encoder = open_encoder(f"{module}:tokens")
    assert encode_cubes(encoder, cubes_for(encoder, cohort, nodules)).shape == (20, 10)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gaps", "gave numbers that are not finite"),
        ("growing", "gave vectors of 4 and of 5 numbers; an encoder always gives one length"),
        ("text", "gave str, which holds no numbers"),
        ("cube", r"gave an array of shape \(50, 50, 50\); give a vector"),
    ],
)
def test_what_is_no_vector_is_refused(
    name: str, sentence: str, module: str, cohort: Cohort, nodules: NoduleSet
) -> None:
    encoder = open_encoder(f"{module}:{name}")
    with pytest.raises(EncoderError, match=sentence):
        encode_cubes(encoder, cubes_for(encoder, cohort, nodules))


def test_another_shape_at_a_later_batch_is_refused(cohort: Cohort, nodules: NoduleSet, module: str) -> None:
    encoder = open_encoder(f"{module}:tokens")
    sizes = iter((3, 4))

    def network(cubes: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.zeros((len(cubes), next(sizes)))

    from dataclasses import replace

    with pytest.raises(EncoderError, match=r"shape \(8, 4\) for 8 cubes, and gave vectors of 3 before"):
        encode_cubes(replace(encoder, network=network), cubes_for(encoder, cohort, nodules))


def test_a_function_cannot_change_what_others_see(module: str, cohort: Cohort, nodules: NoduleSet) -> None:
    encoder = open_encoder(f"{module}:changing")
    cubes = np.full((2, 50, 50, 50), -700, dtype=np.float32)
    encoder.network(cubes, np.stack([np.eye(4)] * 2))
    assert (cubes == -700).all()


def test_constant_patches_as_long_as_their_nodule_score_one_half(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [0, 1, 1] * 6

    def voxels(
        number: int,
    ) -> np.ndarray:  # of their own far from the nodule, so that no two are one person's
        patch = np.full((90, 90, 9 if labels[number] else 3), -700.0)
        patch[-1, -1] = -600.0 + number
        return patch

    cohort = cohort_of(tmp_path, voxels, labels)
    lengths = cohort.series.set_index("patient_id")["shape"].map(lambda shape: int(shape[0]))
    assert lengths["p0"] == 3
    assert lengths["p1"] == 9
    run = probed(cohort, "", tmp_path / "runs", encoder=f"{module}:inner", folds=2)
    assert run.metrics["probe/auroc"] == 0.5
    assert "no z: 18 of 18 nodules" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["python:no_such_module:f", "python:os", "python:"])
def test_what_is_no_function_is_refused(name: str) -> None:
    with pytest.raises(EncoderError, match="write python:MODULE:FUNCTION"):
        open_encoder(name)


def test_a_shape_that_is_none_and_a_value_that_is_no_function_are_refused(module: str) -> None:
    with pytest.raises(EncoderError, match="shape must be three numbers above 0"):
        open_encoder(f"{module}:wrong")
    with pytest.raises(EncoderError, match="there is no such function"):
        open_encoder(f"{module}:number")


def test_a_function_is_probed_without_random_weights_and_nothing_of_it_is_kept(
    module: str, cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = probed(cohort, "", tmp_path / "runs", encoder=f"{module}:seen", folds=2)
    assert run.tags["dinox.probed"] == f"{module}:seen"
    assert run.metrics["probe/n_nodules"] == 20
    assert "probe/random_auroc" not in run.metrics
    assert "no random weights" in capsys.readouterr().out
    assert not list((tmp_path / "runs").rglob("*.npy"))
