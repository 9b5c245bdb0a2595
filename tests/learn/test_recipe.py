"""Recipes: what is refused and how it is said, presets, overrides, and that every field says what it means."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from emorl_core.errors import EmorlError
from emorl_core.kinds import Section
from training.config import RecipeError
from training.recipe.recipe import Recipe, load_recipe, parse_recipe
from training.rl.settings import RlSettings

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LEAST: dict[str, Any] = {
    "name": "x",
    "base": {"path": "base"},
    "data": {"sources": [{"kind": "pair", "path": "pair.csv"}]},
    "objectives": {
        "reflection": {"scorer": "lexical_reflection"},
        "empathy": {"scorer": {"kind": "lexical_empathy"}},
    },
}


def sections(model: type[BaseModel] = Recipe) -> Iterator[type[BaseModel]]:
    """A model and every section below it."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from sections(inner)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(**values: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**LEAST, **values}), encoding="utf-8")
        return path

    return written


def test_every_field_says_what_it_means() -> None:
    seen = 0
    for section in sections():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith((".", "`).", "next.")), f"{section.__name__}.{name}"
            seen += 1
    assert seen > 50


def test_every_field_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    for section in sections():
        for name in section.model_fields:
            assert f"`{name}`" in page, f"{section.__name__}.{name}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_project_are_valid(path: Path) -> None:
    assert load_recipe(path).objectives


def test_the_recipes_that_the_pages_name_are_there() -> None:
    assert {"demo.yaml", "pair-t5-base.yaml", "pair-small.yaml", "pair-smollm2.yaml"} <= {path.name for path in RECIPES}


def test_defaults_are_the_numbers_of_the_paper_where_they_do_no_harm() -> None:
    """method.md section 2."""
    rl = parse_recipe(LEAST).rl
    assert (rl.prompts_per_step, rl.samples_per_prompt, rl.max_new_tokens) == (16, 3, 64)
    assert (rl.temperature, rl.learning_rate, rl.max_grad_norm) == (1.0, 1e-4, 2.0)
    assert (rl.validate_every, rl.stop.window, rl.stop.threshold, rl.kl.coefficient) == (8, 20, 0.015, 0.05)
    recipe = parse_recipe(LEAST)
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout) == (8, 32, 0.05)
    assert (recipe.prompt_template, recipe.max_source_tokens) == ("{prompt} [SEP] ", 128)
    assert recipe.data.splits == {"train": 0.8, "validation": 0.1, "test": 0.1}


def test_the_two_presets_are_the_two_columns_of_the_table() -> None:
    """method.md section 2: published, and what a better one does."""
    better = parse_recipe(LEAST).rl
    assert better == RlSettings()
    assert (better.kl.kind, better.train_on, better.train_end) == ("k1_in_reward", "sampled", True)
    assert (better.top_k, better.dropout_when_generating, better.gradient_source_tokens) == (0, False, None)
    assert (better.stop.check, better.keep, better.reward) == ("validation", "best", "standardised")
    paper = parse_recipe({**LEAST, "preset": "paper"}).rl
    assert (paper.kl.kind, paper.train_on, paper.train_end) == ("none", "reencoded", False)
    assert (paper.top_k, paper.dropout_when_generating, paper.gradient_source_tokens) == (50, True, 512)
    assert (paper.stop.rule, paper.stop.check, paper.keep, paper.reward) == ("paper", "epoch", "last", "log")
    assert (paper.advantage, paper.policy_loss) == ("mean", "sequence_sum")


def test_a_recipe_overrides_its_preset_key_by_key() -> None:
    given = {"kl": {"coefficient": 0.2}, "top_k": 0, "stop": {"max_steps": 7}}
    rl = parse_recipe({**LEAST, "preset": "paper", "rl": given}).rl
    assert (rl.kl.kind, rl.kl.coefficient, rl.top_k) == ("none", 0.2, 0)
    assert (rl.stop.rule, rl.stop.max_steps, rl.train_on) == ("paper", 7, "reencoded")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"obectives": {}}, "unknown key 'obectives' (did you mean 'objectives'?)"),
        ({"rl": {"learning_rte": 1}}, "rl: unknown key 'learning_rte' (did you mean 'learning_rate'?)"),
        ({"rl": {"stop": {"windw": 1}}}, "rl.stop: unknown key 'windw' (did you mean 'window'?)"),
        ({"base": {"path": "a", "hub": "b"}}, "base: give exactly one of"),
        ({"base": {"path": "a", "revision": "b"}}, "base: revision goes with hub"),
        ({"base": None}, "base: "),
        ({"data": {"sources": []}}, "data.sources"),
        ({"data": {"sources": ["pears"]}}, "data.sources.0.kind is 'pears' (did you mean 'pair'?)"),
        ({"data": {"sources": LEAST["data"]["sources"], "splits": {"train": 1.0}}}, "data.splits: validation must"),
        ({"data": {"sources": LEAST["data"]["sources"], "splits": {"tran": 1.0}}}, "data.splits.tran"),
        ({"objectives": {}}, "objectives"),
        ({"objectives": {"base": {"scorer": "lexical_empathy"}}}, "objectives: base is the bare model"),
        ({"objectives": {"a b": {"scorer": "lexical_empathy"}}}, "objectives.a b"),
        ({"objectives": {"a": {"scorer": "lexical_empaty"}}}, "objectives.a.scorer.kind is 'lexical_empaty'"),
        ({"objectives": {"a": {}}}, "objectives.a.scorer is missing"),
        ({"lora": {"rank": 0}}, "lora.rank: Input should be greater than or equal to 1 (found 0)"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout"),
        ({"rl": {"samples_per_prompt": 1}}, "rl.samples_per_prompt"),
        ({"rl": {"learning_rate": float("nan")}}, "rl.learning_rate"),
        ({"rl": {"advantage": "median"}}, "rl.advantage"),
        ({"rl": {"kl": {"kind": "k2"}}}, "rl.kl.kind"),
        ({"preset": "papr"}, "preset"),
        ({"prompt_template": "no place"}, "prompt_template: must contain {prompt} exactly once"),
        ({"profiles": {"p": {"humour": 1.0}}}, "profiles.p: weights: unknown objective 'humour'"),
        ({"default_profile": "p"}, "default_profile 'p' is unknown"),
        ({"compute": {"trackers": ["excel"]}}, "compute.trackers.0"),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_the_field(values: dict[str, Any], said: str) -> None:
    with pytest.raises(EmorlError) as refused:
        parse_recipe({**LEAST, **values})
    assert said in refused.value.message
    assert "\n" not in refused.value.message


def test_files_that_are_no_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice.yaml").write_text("name: a\nbase: {path: b, path: c}\n")
    (tmp_path / "bomb.yaml").write_text("a: &a [*a]\n")
    (tmp_path / "number.yaml").write_text(f"seed: {'9' * 5000}\n")
    with open(tmp_path / "huge.yaml", "wb") as huge:
        huge.truncate(2**40)
    for name, said in [
        ("missing.yaml", "no such file"),
        ("list.yaml", "must be a mapping"),
        ("broken.yaml", "cannot be read as YAML"),
        ("bytes.yaml", "cannot be read as YAML"),
        ("twice.yaml", "line 2: key 'path' stands twice"),
        ("bomb.yaml", "an alias stands inside"),
        ("number.yaml", "cannot be read as !!int"),
        ("huge.yaml", "is larger than 1 MiB"),
        (".", "is a folder"),
    ]:
        with pytest.raises(RecipeError, match=said) as refused:
            load_recipe(tmp_path / name)
        assert "\n" not in refused.value.message


def test_a_recipe_may_come_through_a_pipe(write: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    text = write().read_text()
    writer = threading.Thread(target=lambda: (tmp_path / "pipe.yaml").write_text(text))
    writer.start()
    assert load_recipe(tmp_path / "pipe.yaml").name == "x"
    writer.join()


def test_an_override_changes_one_of_two_places_that_name_an_alias(tmp_path: Path) -> None:
    rest = yaml.safe_dump({key: value for key, value in LEAST.items() if key != "data"})
    aliased = "data: {sources: [&a {kind: pair, path: a.csv}, *a]}"
    (tmp_path / "aliased.yaml").write_text(f"{rest}{aliased}\n")
    recipe = load_recipe(tmp_path / "aliased.yaml", ["data.sources.0.path=b.csv"])
    assert [source["path"] for source in recipe.data.sources] == ["b.csv", "a.csv"]


def test_overrides_reach_any_place(write: Any) -> None:
    recipe = load_recipe(
        write(),
        ["rl.learning_rate=3e-4", "rl.stop.max_steps=7", "lora.targets=[q, v]", "data.sources.0.path=other.csv",
         "objectives.empathy.rank=2", "preset=paper"],
    )  # fmt: skip
    assert (recipe.rl.learning_rate, recipe.rl.stop.max_steps, recipe.rl.train_on) == (3e-4, 7, "reencoded")
    assert recipe.lora.targets == ("q", "v")
    assert recipe.data.sources[0]["path"] == "other.csv"
    assert recipe.lora_of("empathy").rank == 2
    assert recipe.lora_of("reflection").rank == 8


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rl.learning_rate", "write it as"),
        ("=3", "write it as"),
        ("rl learning_rate=3", "write it as"),
        ("name.first=3", "no such place"),
        ("name.first.second=3", "not a mapping"),
        ("data.sources.7=3", "no such place"),
        ("rl.kl.strength=3", "unknown key 'strength'"),
        ("lora=[", "not YAML"),
        ("lora={rank: 2, rank: 4}", "key 'rank' stands twice"),
        (f"seed={'9' * 400}", "a whole number of 400 digits"),
    ],
)
def test_overrides_that_fit_nowhere_are_refused(write: Any, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(write(), [override])


def test_restricting_leaves_out_what_needs_the_others() -> None:
    recipe = parse_recipe(
        {
            **LEAST,
            "profiles": {"both": {"reflection": 1, "empathy": 1}, "one": {"empathy": 1}},
            "default_profile": "both",
        }
    )
    one = recipe.restricted(["empathy"])
    assert list(one.objectives) == ["empathy"]
    assert set(one.profiles) == {"one"}
    assert one.default_profile is None
    with pytest.raises(RecipeError, match="'humour' is not in the recipe"):
        recipe.restricted(["humour"])


def test_a_recipe_is_frozen() -> None:
    recipe = parse_recipe(LEAST)
    with pytest.raises(ValidationError):
        recipe.rl.top_k = 3  # type: ignore[misc]
