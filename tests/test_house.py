"""The rules of the house: direction of imports, sizes, who may know MLflow, one list of packages."""

import ast
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "transforms": set(),
    "models": set(),
    "probes": {"transforms", "models"},
    "pipelines": {"transforms", "models", "probes"},
}
MLFLOW_MAY = {"tracking.py", "mlflow_plugin.py"}
LAZY = {"SimpleITK", "pylidc", "idc_index", "huggingface_hub", "onnx", "onnxruntime"}


def imported_modules(source: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def sources() -> list[Path]:
    return [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    for source in (ROOT / room).rglob("*.py"):
        trespass = (imported_modules(source) & set(MAY_IMPORT)) - MAY_IMPORT[room] - {room}
        assert not trespass, f"{source.relative_to(ROOT)} imports {sorted(trespass)}"


def test_only_the_tracking_files_know_mlflow() -> None:
    knowing = {p.name for p in sources() if "mlflow" in imported_modules(p)}
    assert knowing <= MLFLOW_MAY


def test_heavy_packages_are_imported_where_they_are_needed() -> None:
    eager = {p.name: imported_modules(p, top_level_only=True) & LAZY for p in sources()}
    assert not {name: found for name, found in eager.items() if found}


def test_files_and_functions_stay_readable() -> None:
    long_files = [p.name for p in sources() if len(p.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long_files
    for source in sources():
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{source.relative_to(ROOT)}:{node.name} has {length} lines"


def test_no_room_is_a_drawer_for_everything() -> None:
    names = {p.stem for p in sources()} | {p.parent.name for p in sources()}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def test_mlflow_builds_an_environment_of_the_same_packages() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    built = yaml.safe_load((ROOT / "mlflow_projects" / "python_env.yaml").read_text())["dependencies"]
    assert built == declared
