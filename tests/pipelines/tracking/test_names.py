"""The list of names: nothing is logged that is not on it, nothing is on it that is not logged."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure

from pipelines.runtime.paths import PROJECT_ROOT
from pipelines.tracking.names import IMAGES, LISTED, METRICS, Metric, Tag, UnlistedNameError
from pipelines.tracking.names_page import PAGE, names_page
from pipelines.tracking.run import SilentRun

LIST = PROJECT_ROOT / "pipelines" / "tracking" / "names.py"
LISTS = (LIST, LIST.with_name("probe_names.py"), LIST.with_name("old_names.py"))
LOOKS_LIKE_A_METRIC = re.compile(r"[a-z_]+/[a-zA-Z0-9_*]+")
"""Group and name; * stands for what an f-string fills in."""
GROUPS = {name.partition("/")[0] for name in METRICS}
NO_METRICS = {"data/lidc"}
"""A default folder in the form of a metric."""


def product_files(root: Path = PROJECT_ROOT) -> list[Path]:
    folders = ("pipelines", "probes", "models", "transforms")
    files = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    return [path for path in files if path not in LISTS]


@cache
def texts_of(source: str) -> tuple[tuple[str, bool], ...]:
    return tuple(texts_in(ast.parse(source)))


def texts_in(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every string of a file but docstrings, * for what an f-string fills in; whether it is a name given to a log."""
    given = {
        id(key)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("log_metrics", "log_metric", "history")
        for mapping in ast.walk(call)
        for key in (mapping.keys if isinstance(mapping, ast.Dict) else [mapping])
        if isinstance(mapping, ast.Dict) or mapping in call.args
    }
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in docstrings | inside:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, id(node) in given
        elif isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "*" for p in node.values]
            yield "".join(parts), id(node) in given


def used_metrics(root: Path = PROJECT_ROOT) -> set[str]:
    """Names of metrics in product code, as patterns: of a listed group, or handed to a log."""
    found = set()
    for path in product_files(root):
        for text, is_given in texts_of(path.read_text(encoding="utf-8")):
            if LOOKS_LIKE_A_METRIC.fullmatch(text) and (is_given or text.partition("/")[0] in GROUPS):
                found.add(text)
    return found - NO_METRICS


def matches(pattern: str, name: str) -> bool:
    return bool(re.fullmatch("[a-zA-Z0-9_]*".join(map(re.escape, pattern.split("*"))), name))


def unlisted(patterns: set[str]) -> set[str]:
    return {pattern for pattern in patterns if not any(matches(pattern, name) for name in METRICS)}


def bare_tags(root: Path = PROJECT_ROOT) -> set[str]:
    """Tags that product code writes as text and not as a member of `Tag`."""
    found = set()
    for path in product_files(root):
        for text, _ in texts_of(path.read_text(encoding="utf-8")):
            found |= set(re.findall(r"\b(?:dinox\.[a-z_]+|mlflow\.(?:runName|parentRunId))", text))
    return found - {"dinox.json"}  # the record in a backbone's folder


def test_every_metric_in_the_code_is_listed() -> None:
    found = used_metrics()
    assert {"loss/total", "loss/*", "probe/*auroc**", "campaign/hours", "nodules/*_auroc**"} <= found
    assert not unlisted(found)


def test_no_listed_metric_is_unused() -> None:
    found = used_metrics()
    assert not {name for name in METRICS if not any(matches(pattern, name) for pattern in found)}
    # What fills the holes of f-strings is spelled somewhere as well.
    text = "\n".join(path.read_text(encoding="utf-8") for path in product_files())
    alternatives = {
        word.strip("_")
        for metric in LISTED
        if not metric.pattern.startswith("system/")  # which MLflow names
        for part in re.findall(r"\{([^}]*)\}", metric.pattern)
        for word in part.split(",")
    }
    assert {"one_slice", "inter_reader", "3_6mm"} <= alternatives
    assert not {a for a in alternatives if not re.search(rf"(?<![a-zA-Z0-9]){a}(?![a-zA-Z0-9])", text)}


def test_no_tag_is_written_as_text_and_none_is_unused() -> None:
    assert not bare_tags()
    text = "\n".join(path.read_text(encoding="utf-8") for path in product_files())
    used = set(re.findall(r"\bTag\.([A-Z_]+)\b", text))
    assert used == set(Tag.__members__)


@pytest.mark.parametrize(
    "line",
    [
        'run.log_metrics({"loss/dinno": 1.0}, step)',
        'run.log_metrics({f"loss_terms/{name}": 1.0 for name in names} | {"fresh/total": 1.0})',
        'metrics["probe/aurok"] = 1.0',
        'metrics[f"retrieval/{prefix}top2"] = 1.0',
        'x = run.history("lost/total")',
        'NAMES = ("teacher/gain_ratio",)',
        'store.log_metric(run_id, "speed/hours", 0.0)',
    ],
)
def test_a_planted_metric_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "planted.py").write_text(f"def f():\n    {line}\n")
    assert unlisted(used_metrics(tmp_path))


@pytest.mark.parametrize(
    "line",
    ['run.set_tags({"dinox.arm": "a"})', 'q = f"tags.`dinox.armm` = {name}"', 'tags["mlflow.runName"]'],
)
def test_a_planted_tag_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "planted.py").write_text(f"def f():\n    {line}\n")
    assert bare_tags(tmp_path)


def test_a_run_refuses_what_is_not_listed() -> None:
    run = SilentRun()
    run.log_metrics({"loss/total": 1.0, "probe/random_auroc_ci_low_6_15mm": 0.5})
    run.set_tags({Tag.STATUS: "wall"})
    with pytest.raises(UnlistedNameError, match="loss/dinno"):
        run.log_metrics({"loss/total": 1.0, "loss/dinno": 1.0})
    with pytest.raises(UnlistedNameError, match=r"dinox\.stat"):
        run.set_tags({"dinox.stat": "wall"})  # type: ignore[dict-item]
    with pytest.raises(UnlistedNameError, match="tokens/pcb"):
        run.log_image(Figure(), "tokens/pcb", 1)


def test_braces_hold_the_names_of_a_family_and_no_more() -> None:
    family = Metric("a/{,b_}c{_d,_e}", "", "")
    assert family.names == ("a/c_d", "a/c_e", "a/b_c_d", "a/b_c_e")
    assert Metric("a/b", "", "").names == ("a/b",)
    assert len(METRICS) == sum(len(metric.names) for metric in LISTED), "two entries list one name"
    assert "nodules/pixels_auroc_ci_high_10_15mm" in METRICS
    assert not {"probe/", "probe/_auroc", "retrieval/top1_", "aggregation/center_gain"} & set(METRICS)


def test_every_name_says_what_it_is() -> None:
    assert all(one.unit and one.meaning and "\n" not in one.meaning for one in LISTED)
    assert all(tag.meaning for tag in Tag)
    assert all(IMAGES.values())


def test_the_page_is_that_of_the_list() -> None:
    assert PAGE.read_text(encoding="utf-8") == names_page(), "run: python -m pipelines.tracking.names_page"


def test_recipes_campaigns_and_the_article_name_listed_metrics() -> None:
    named = set()
    for path in sorted((PROJECT_ROOT / "mlflow_projects").rglob("*.yaml")):
        words = re.findall(
            r"\b[a-z]+/[a-zA-Z0-9_]+\b", repr(yaml.safe_load(path.read_text(encoding="utf-8")))
        )
        named |= {word for word in words if word.partition("/")[0] in GROUPS}
    assert {"teacher/gain", "aggregation/center_auroc", "probe/gain_over_diameter"} <= named
    assert named <= set(METRICS)


def test_the_list_is_light_to_import() -> None:
    code = "import sys, pipelines.tracking.names_page; print(sorted({'mlflow', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    )
    assert done.stdout == "[]\n"
