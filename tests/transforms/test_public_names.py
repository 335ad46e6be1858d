"""`from transforms import ...`: every public name is there, and nothing is imported that was not asked for."""

import subprocess
import sys
from importlib import import_module

import pytest
from monai.transforms import MapTransform, Transform

import transforms

HEAVY = ("torch", "monai", "mlflow", "SimpleITK", "nibabel")
PUBLIC = (
    "LoadDicomSeries LoadDicomSeriesd WindowHU WindowHUd RandWindowHU RandWindowHUd SliceTriplet SliceTripletd "
    "NoduleCrop NoduleCropd RandViewCropd WindowConfig CropSpec ViewConfig CtSeries read_series Refusal "
    "SeriesRefusedError"
).split()


STAGES = {
    "package": "import transforms, transforms.dicom",
    "parts": "from transforms import WindowConfig, CropSpec, read_series",
    "worker": "import pipelines.ingest.preparation, pipelines.training.loader",
    # Each is imported when no other module of ours is there that could have brought what it uses.
    "transforms": (
        "OURS = {'transforms', 'models', 'probes', 'pipelines'}\n"
        f"for name in {PUBLIC}:\n"
        "    for module in [name for name in sys.modules if name.partition('.')[0] in OURS]:\n"
        "        del sys.modules[module]\n"
        "    exec(f'from transforms import {name}')\n"
        "WindowHU(-1350, 150), LoadDicomSeriesd('image')"
    ),
}


@pytest.fixture(scope="module")
def heavy() -> dict[str, set[str]]:
    """Which of the heavy packages a fresh process has loaded after each of these stages, which follow each other."""
    told = f"\nprint(*[name for name in {HEAVY} if name in sys.modules])\n"
    code = "import sys\n" + told.join([*STAGES.values(), ""])
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return dict(zip(STAGES, map(set, map(str.split, done.stdout.splitlines())), strict=True))


@pytest.mark.parametrize("name", sorted({*PUBLIC, *transforms.__all__}))
def test_every_public_name_can_be_imported_and_is_listed(name: str) -> None:
    assert getattr(transforms, name).__name__ == name
    assert name in transforms.__all__
    assert name in dir(transforms)


def test_array_and_dictionary_forms_come_in_pairs_of_monai_transforms() -> None:
    for name in ("LoadDicomSeries", "WindowHU", "RandWindowHU", "SliceTriplet", "NoduleCrop"):
        assert issubclass(getattr(transforms, name), Transform)
        assert issubclass(getattr(transforms, f"{name}d"), MapTransform)


def test_the_package_alone_imports_neither_torch_nor_monai(heavy: dict[str, set[str]]) -> None:
    assert heavy["package"] == heavy["parts"] == set()


def test_every_transform_brings_what_it_needs(heavy: dict[str, set[str]]) -> None:
    assert {"torch", "monai"} <= heavy["transforms"]


@pytest.mark.parametrize("package", ["transforms", "transforms.dicom"])
def test_a_name_that_is_not_there_is_an_error_as_for_any_module(package: str) -> None:
    with pytest.raises(ImportError, match="cannot import name 'LoadDicomSerie'"):
        exec(f"from {package} import LoadDicomSerie")
    assert not hasattr(import_module(package), "LoadDicomSerie")


@pytest.mark.parametrize("name", ["LoadDicomSeries", "LoadDicomSeriesd", "SeriesRefusedError", "read_series"])
def test_what_the_reader_once_exported_itself_is_still_found_there(name: str) -> None:
    assert getattr(import_module("transforms.dicom"), name) is getattr(transforms, name)


def test_what_a_worker_imports_brings_no_monai(heavy: dict[str, set[str]]) -> None:
    """Loader processes and those of `prepare` are many and start from nothing: MONAI would cost each of them 900 MB."""
    assert "torch" in heavy["worker"]
    assert "monai" not in heavy["worker"]
