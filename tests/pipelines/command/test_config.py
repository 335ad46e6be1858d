"""Strict reading of recipes: which keys are allowed, and the messages for mistakes."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipelines.command.cli import parse_overrides, resolve
from pipelines.command.config import (
    RECIPES,
    RecipeError,
    find_recipe,
    flatten,
    leaves,
    load_recipe,
    nested,
    read_yaml,
)
from pipelines.command.entry_points import ENTRY_POINTS
from pipelines.training.config import PretrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    lr: float = 1.0
    kind: Literal["a", "b"] = "a"
    range_mm: tuple[float, float] = (1.0, 2.0)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    steps: int = 10
    name: str = "x"
    from_: str = "dicom"
    flag: bool = False
    share: Literal["half"] | float = 0.5
    optim: Section = field(default_factory=Section)


def test_defaults_recipe_and_overrides_are_laid_in_that_order() -> None:
    config = load_recipe(
        Schema, {"steps": 20, "optim": {"lr": 2.0}}, [("optim.lr", "3e-4"), ("flag", "true")]
    )
    assert (config.steps, config.optim.lr, config.flag, config.name) == (20, 3e-4, True, "x")


def test_a_key_that_stands_twice_is_refused_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 10\noptim:\n  lr: 1e-3\n  kind: a\n  lr: 1e-4\n")
    with pytest.raises(RecipeError, match=r"recipe mine\.yaml names the key 'lr' twice, again in line 5"):
        read_yaml(file)
    file.write_text("steps: 10\noptim: {lr: 1e-3}\n")
    assert read_yaml(file) == {"steps": 10, "optim": {"lr": "1e-3"}}


def test_a_few_lines_of_aliases_that_would_mean_millions_are_refused(tmp_path: Path) -> None:
    names = "abcdefgh"
    laughs = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    (tmp_path / "r.yaml").write_text("\n".join(laughs) + "\n")
    with pytest.raises(RecipeError, match=r"recipe r.yaml uses the alias '\*a', which is not read"):
        read_yaml(tmp_path / "r.yaml")
    with pytest.raises(RecipeError, match="which is not a YAML value"):
        load_recipe(Schema, {}, [("optim.range_mm", "[&a 1, *a]")])


def test_text_stays_text_and_lists_become_tuples() -> None:
    config = load_recipe(Schema, {}, [("name", "007"), ("optim.range_mm", "[3, 4.5]"), ("from", "png")])
    assert (config.name, config.optim.range_mm, config.from_) == ("007", (3.0, 4.5), "png")


@pytest.mark.parametrize(
    ("tree", "overrides", "sentence"),
    [
        ({"stpes": 3}, [], "unknown key 'stpes'; did you mean 'steps'?"),
        ({}, [("optim.lrr", "1")], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ({}, [("lr", "1")], "unknown key 'lr'; did you mean 'optim.lr'?"),
        ({"optim": {"knd": "a"}}, [], "unknown key 'optim.knd'; did you mean 'optim.kind'?"),
        ({"optim": 3}, [], "key 'optim' is a section; it was given 3"),
        ({"optim": 3}, [("optim.lr", "1")], "key 'optim' is a section; it was given 3"),
        ({"optim": None}, [], "key 'optim' is a section; it was given None"),
        ({"steps": "x", "stpes": 3}, [], "unknown key 'stpes'; did you mean 'steps'?"),
        ({1: 3}, [], "unknown key '1'"),
        ({"from_": "png"}, [], "unknown key 'from_'; did you mean 'from'?"),
        (
            {"share": "third"},
            [],
            "key 'share' was given 'third': input should be 'half' or"
            " input should be a valid number, unable to parse string as a number",
        ),
        ({}, [("optim.lr", "-1")], "optim: lr must be above 0, got -1.0"),
    ],
)
def test_a_slip_is_answered_in_one_sentence(
    tree: dict[str, object], overrides: list[tuple[str, str]], sentence: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Schema, tree, overrides)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(("key", "text"), [("steps", "many"), ("optim.kind", "c"), ("optim.range_mm", "[1]")])
def test_a_value_of_the_wrong_type_names_its_key(key: str, text: str) -> None:
    with pytest.raises(RecipeError, match=f"key '{key}.*' was given"):
        load_recipe(Schema, {}, [(key, text)])


def test_flattening_and_back_is_the_same_configuration() -> None:
    config = load_recipe(Schema, {"steps": 7, "optim": {"kind": "b"}})
    assert load_recipe(Schema, nested(config)) == config
    assert flatten(nested(config))["optim.kind"] == "b"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_loads_and_opens_with_its_command_time_and_expectation(recipe: str) -> None:
    path = find_recipe(recipe)
    config = load_recipe(PretrainConfig, read_yaml(path))
    head = path.read_text(encoding="utf-8").split("\nsteps:")[0]
    assert config.steps > 0
    for word in ("Run:", "Time:", "Expected:", "mlflow run . -e pretrain"):
        assert word in head


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        find_recipe("dmeo")


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_an_unknown_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match="is neither a file nor one of the names in recipes"):
        find_recipe(name)


def test_a_recipe_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 3\n")
    config, name = resolve(Schema, ["--recipe", str(path), "--flag=yes"], recipe="demo")
    assert (config.steps, config.flag, name) == (3, True, "mine")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[1, 2", "is not valid YAML near line 1"),
        (b"a: b: c", "is not valid YAML near line 1"),
        (b"- a\n- b", "holds a list; it must be a mapping of keys"),
        (b"false", "holds a bool; it must be a mapping of keys"),
        (b"seed: 2026-13-45", "is not valid YAML"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is not text in UTF-8"),
        (b"\x00\x01\x02", "is not valid YAML"),
        (b"steps: " + b"[" * 1000 + b"]" * 1000, "is nested too deep"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_in_one_sentence(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"^recipe broken\.yaml {sentence}$") as caught:
        read_yaml(path)
    assert caught.value.exit_code == 2


def test_a_recipe_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(RecipeError, match=r"^recipe mine cannot be read: Is a directory$"):
        read_yaml(tmp_path / "mine")


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert load_recipe(Schema, read_yaml(path)) == Schema()


@pytest.mark.parametrize("text", ["2026-13-45", "[" * 1000, "9" * 5000, "{a: b: c}"])
def test_an_override_that_is_no_yaml_value_names_its_key(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^key 'steps' was given .*which is not a YAML value$"):
        load_recipe(Schema, {}, [("steps", text)])


@pytest.mark.parametrize("words", [["steps", "3"], ["--steps"], ["--steps", "3", "more"]])
def test_a_command_line_that_is_no_list_of_options_is_refused(words: list[str]) -> None:
    with pytest.raises(RecipeError, match="write --"):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([("batch_size", "1")], "need a neighbor: batch_size is 1"),
        ([("views.size_px", "84")], "views.size_px 84 and backbone.image_px 70 must be the same"),
        (
            [("backbone.image_px", "71"), ("views.size_px", "71")],
            "71 is not a multiple of the patch of 14 px",
        ),
        ([("accumulation", "0")], "key 'accumulation' was given 0: input should be greater than 0"),
        (
            [("backbone.heads", "0")],
            "key 'backbone.heads' was given 0: input should be greater than 0",
        ),
        ([("seed", "-1")], "key 'seed' was given -1: input should be greater than or equal to 0"),
        ([("holdout", "1.0")], "holdout is the share of patients held out"),
        (
            [
                ("objective.kind", "mae"),
                ("objective.gram_weight", "0"),
                ("objective.koleo_weight", "0"),
                ("compile", "true"),
            ],
            "compile has no effect for objective kind 'mae'",
        ),
        ([("objective.mae_target", "hu")], "needs one window for all views, got policy 'lung_aware'"),
        ([("objective.pool", "roi")], "needs nodules in the middle: set views.center to 'point'"),
        (
            [("backbone.stem", "whitened"), ("backbone.patch_px", "35")],
            "goes with arch 'custom' and an even patch_px, got custom and 35",
        ),
        ([("views.neighbor_slices", "-1")], "n_local and neighbor_slices must be 0 or more, got 0 and -1"),
    ],
)
def test_impossible_recipes_are_refused_in_a_sentence(
    overrides: list[tuple[str, str]], sentence: str
) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(PretrainConfig, read_yaml(find_recipe("demo")), overrides)


@pytest.mark.parametrize(
    "name", [name for name, one in ENTRY_POINTS.items() if "seed" in leaves(one.load_schema())]
)
def test_a_seed_that_numpy_cannot_take_is_refused_at_the_configuration(name: str) -> None:
    schema = ENTRY_POINTS[name].load_schema()
    assert load_recipe(schema, {}, [("seed", str(2**32 - 1001))]).seed == 2**32 - 1001
    for seed in (2**32, -1):
        with pytest.raises(RecipeError, match=f"'seed' was given {seed}: input should be") as refused:
            load_recipe(schema, {}, [("seed", str(seed))])
        assert "\n" not in str(refused.value)
