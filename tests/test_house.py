"""Rules of the project: direction of imports, no cycle, sizes, who may call MLflow, one list of packages."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
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
REFUSALS = "transforms.refusal"
"""The one module that every package may import: it imports nothing, and all refusals descend from it."""
ORDER = (
    "runtime",
    "tracking",
    "command",
    "lidc",
    "cohort",
    "figures",
    "phantom",
    "ingest",
    "nodule",
    "backbones",
    "encoders",
    "training",
    "probing",
    "finetuning",
)
"""Folders of `pipelines`; each may import those before it. `audit`, `campaign` and `report` come last and apart."""
LAST = ("audit", "campaign", "report")
MOST_MODULES = 20
LAZY = {"SimpleITK", "pylidc", "idc_index", "huggingface_hub", "peft", "onnx", "onnxruntime"}


def sources(root: Path = ROOT) -> list[Path]:
    return [path for package in MAY_IMPORT for path in sorted((root / package).rglob("*.py"))]


def module_of(source: Path, root: Path = ROOT) -> str:
    return ".".join(source.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))


@cache
def imported_names(source: Path, root: Path = ROOT, top_level_only: bool = False) -> set[str]:
    """Full names of what a file imports, in functions and under TYPE_CHECKING too: modules, and names in them."""
    tree = parsed(source)
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module_of(source, root).split(".")
            if source.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            names |= {stem, *(f"{stem}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(source: Path, top_level_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imported_names(source, top_level_only=top_level_only)}


def import_graph(root: Path = ROOT) -> dict[str, set[str]]:
    """By module, the modules of ours that it imports; a package counts where a name is taken from it itself."""
    modules = {module_of(source, root): source for source in sources(root)}
    graph = {}
    for module, source in modules.items():
        found = imported_names(source, root) & set(modules)
        # `from a.b import c` names both a.b and the module a.b.c: the package alone ties nothing then.
        deepest = {name for name in found if not any(other.startswith(f"{name}.") for other in found)}
        graph[module] = deepest - {module}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def trespasses(root: Path = ROOT) -> Iterator[str]:
    """Imports inside `pipelines` that go against the order of its folders."""
    for module, imported in import_graph(root).items():
        parts = module.split(".")
        if parts[0] != "pipelines" or len(parts) < 2:
            continue
        folder = parts[1]
        for name in sorted(imported):
            target = name.split(".")[1:2]
            if name.split(".")[0] != "pipelines" or not target or target == [folder]:
                continue
            if folder in ORDER:
                allowed = set(ORDER[: ORDER.index(folder)])
            elif folder in LAST:
                allowed = set(ORDER)
            else:  # an entry point: everything but another entry point
                allowed = {*ORDER, *LAST}
            if target[0] not in allowed:
                yield f"{module} imports {name}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for source in (ROOT / package).rglob("*.py"):
        names = {
            name for name in imported_names(source) if not name.startswith(REFUSALS) and name != "transforms"
        }
        trespass = (
            ({name.split(".")[0] for name in names} & set(MAY_IMPORT)) - MAY_IMPORT[package] - {package}
        )
        assert not trespass, f"{source.relative_to(ROOT)} imports {sorted(trespass)}"


def test_no_import_goes_in_a_circle() -> None:
    assert not find_cycle(import_graph())


def test_folders_of_pipelines_import_only_those_before_them() -> None:
    assert not list(trespasses())


def test_product_code_imports_neither_the_demo_nor_tests() -> None:
    for source in sources():
        names = imported_names(source)
        assert not {name for name in names if name.split(".")[0] == "tests" or name == "pipelines.demo"}


def test_every_folder_of_pipelines_has_its_place_in_the_order() -> None:
    folders = {path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").is_file()}
    assert folders == {*ORDER, *LAST}


def crowded_folders(root: Path = ROOT) -> dict[str, int]:
    counts: dict[str, int] = {}
    for source in sources(root):
        if source.name != "__init__.py":
            folder = str(source.parent.relative_to(root))
            counts[folder] = counts.get(folder, 0) + 1
    return {folder: count for folder, count in counts.items() if count > MOST_MODULES}


def test_no_folder_is_a_drawer() -> None:
    assert not crowded_folders()
    names = {p.stem for p in sources()} | {p.parent.name for p in sources()}
    assert not names & {"utils", "util", "common", "helpers", "misc"}


def mlflow_callers(root: Path = ROOT) -> list[str]:
    """Files outside `pipelines/tracking` that import MLflow, by any name."""
    tracking = root / "pipelines" / "tracking"
    return [
        str(source.relative_to(root))
        for source in sources(root)
        if tracking not in source.parents
        and {"mlflow", "mlflow_skinny"} & {name.split(".")[0] for name in imported_names(source, root)}
    ]


def test_mlflow_is_imported_in_the_tracking_folder_alone() -> None:
    assert not mlflow_callers()


def test_heavy_packages_are_imported_where_they_are_needed() -> None:
    eager = {p.name: imported_packages(p, top_level_only=True) & LAZY for p in sources()}
    assert not {name: found for name, found in eager.items() if found}


def test_files_and_functions_stay_readable() -> None:
    long_files = [p.name for p in sources() if len(p.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long_files
    for source in sources():
        for node in ast.walk(parsed(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{source.relative_to(ROOT)}:{node.name} has {length} lines"


TOP_LEVEL = {
    *(
        ".ci",
        ".dockerignore",
        ".github",
        ".gitignore",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "Dockerfile",
        "LICENSE",
        "MLproject",
        "Makefile",
        "README.md",
        "SECURITY.md",
    ),
    *(
        "benchmarks",
        "constraints.txt",
        "docs",
        "mkdocs.yml",
        "mlflow_projects",
        "models",
        "pipelines",
        "probes",
        "pyproject.toml",
    ),
    *("tests", "transforms"),
}


def test_nothing_else_is_kept_in_git_and_no_link() -> None:
    """A link to somebody's folder of cohorts was once committed: in a fresh clone it leads nowhere."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git, or not a clone")
    files = [line.split(maxsplit=3) for line in listed.stdout.splitlines()]
    assert {path.partition("/")[0] for *_, path in files} <= TOP_LEVEL
    assert {mode for mode, *_ in files} <= {"100644", "100755"}


def test_mlflow_builds_an_environment_of_the_same_packages() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    built = yaml.safe_load((ROOT / "mlflow_projects" / "python_env.yaml").read_text())["dependencies"]
    assert built == declared


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)


@pytest.mark.parametrize(
    "closing",
    [
        "from pipelines.training.a import A",
        "def late():\n    from pipelines.training.a import A",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipelines.training.a import A",
        "from pipelines.training import a",
        "from .a import A",
        "from . import a",
        "import pipelines.training.a",
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, closing: str) -> None:
    plant(tmp_path, {"pipelines/training/a.py": "from pipelines.training.b import B\n"})
    plant(tmp_path, {"pipelines/training/b.py": closing + "\n"})
    assert {"pipelines.training.a", "pipelines.training.b"} <= set(find_cycle(import_graph(tmp_path)))


def test_planted_trespasses_are_found(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "pipelines/cohort/a.py": "def late():\n    from pipelines.training.b import B\n",
            "pipelines/training/b.py": "from pipelines.pretrain import run_pretrain\n",
            "pipelines/pretrain.py": "from pipelines.cohort.a import A\n",
            "pipelines/campaign/c.py": "from pipelines.report.d import D\n",
            "pipelines/report/d.py": "from pipelines.cohort.a import A\n",
        },
    )
    assert sorted(trespasses(tmp_path)) == [
        "pipelines.campaign.c imports pipelines.report.d",
        "pipelines.cohort.a imports pipelines.training.b",
        "pipelines.training.b imports pipelines.pretrain",
    ]


def test_a_planted_drawer_and_a_planted_client_are_found(tmp_path: Path) -> None:
    plant(tmp_path, {f"probes/heads/m{number}.py": "" for number in range(MOST_MODULES)})
    assert not crowded_folders(tmp_path)
    plant(tmp_path, {"probes/heads/one_more.py": "", "pipelines/tracking/run.py": "import mlflow\n"})
    assert crowded_folders(tmp_path) == {"probes/heads": MOST_MODULES + 1}
    assert not mlflow_callers(tmp_path)
    plant(tmp_path, {"pipelines/training/run.py": "def f():\n    from mlflow.tracking import MlflowClient\n"})
    assert mlflow_callers(tmp_path) == ["pipelines/training/run.py"]
