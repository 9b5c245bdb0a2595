"""Where a search's prompts and scorers come from, and what goes into the bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from emorl_core.bundles.bundle import BUNDLE_FILE, BundleSpec, read_spec, write_spec
from emorl_core.fake import fake_ensemble
from emorl_core.files.hashes import folder_hash
from emorl_core.scorers import ScorerError
from tests.learn.scorer_models import classifier
from training.data.records import DataError, Record
from training.recipe.recipe import load_recipe
from training.search.inputs import Inputs, chosen, from_files, from_recipe, prompts_hash, read_prompts, stored_recipe
from training.search.profile import check_profile, write_profile
from training.search.strategies.grid import SearchError

SPECS = {"reflection": "lexical_reflection"}
LINES = [f"i feel {word} about work and cannot sleep" for word in "sad tired angry lost small empty tense numb".split()]


def prompt_file(folder: Path, lines: list[str] = LINES, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_file(folder: Path, **data: Any) -> Path:
    rows = [json.dumps({"prompt": line}) for line in LINES * 3 + [f"{line} again" for line in LINES * 2]]
    prompt_file(folder, rows, "prompts.jsonl")
    recipe = {
        "name": "x",
        "base": {"path": "base"},
        "data": {"sources": [{"kind": "jsonl", "path": "prompts.jsonl"}], **data},
        "objectives": {"reflection": {"scorer": "lexical_reflection"}, "short": {"scorer": "length"}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_text_files_give_one_record_per_distinct_prompt(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, ["  one  two", "", "one two", "three"])
    assert [(record.prompt, record.where) for record in read_prompts(path)] == [
        ("one two", "prompts.txt:1"),
        ("three", "prompts.txt:4"),
    ]
    rows = prompt_file(tmp_path, ['{"prompt": "one", "x": 1}', '{"prompt": "two"}'], "rows.jsonl")
    assert [record.prompt for record in read_prompts(rows)] == ["one", "two"]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_files_in_any_dress(start: str, end: str, tmp_path: Path) -> None:
    lines = ["one\fand\x85so\u2028on\v", "", "two"]  # a line, whatever `str.splitlines` says
    (tmp_path / "prompts.txt").write_bytes((start + end.join(lines) + end).encode())
    assert [(record.prompt, record.where) for record in read_prompts(tmp_path / "prompts.txt")] == [
        ("one and so on", "prompts.txt:1"),
        ("two", "prompts.txt:3"),
    ]


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"\xff\xfe\x00a\x80", b"a\n\xe9", b"a\nb\0", "a\nb".encode("utf-16-le")]
)
def test_files_without_prompts_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"prompts.txt: (holds no prompt|cannot be read)"):
        read_prompts(tmp_path / "prompts.txt")


def test_files_are_split_by_prompt(tmp_path: Path) -> None:
    inputs = from_files(prompt_file(tmp_path), SPECS, fraction=0.25)
    assert (len(inputs.search), len(inputs.held_out)) == (6, 2)
    assert not {r.prompt for r in inputs.search} & {r.prompt for r in inputs.held_out}
    assert list(inputs.scorers) == ["reflection"]


def test_a_prompt_in_both_files_is_refused(tmp_path: Path) -> None:
    one, other = prompt_file(tmp_path, LINES[:4]), prompt_file(tmp_path, [LINES[5], LINES[2].upper()], "other.txt")
    with pytest.raises(DataError, match="share their prompt or dialogue with another part"):
        from_files(one, SPECS, held_out=other)


@pytest.mark.parametrize(
    ("specs", "options", "error", "says"),
    [
        ({}, {}, SearchError, "no scorer is named"),
        (SPECS, {"fraction": 1.0}, SearchError, "held-out is 1"),
        ({"reflection": "lexical_reflexion"}, {}, ScorerError, "did you mean 'lexical_reflection'"),
    ],
)
def test_bad_inputs_are_refused(
    specs: dict[str, Any], options: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        from_files(prompt_file(tmp_path), specs, **options)


def test_a_recipe_searches_on_validation_and_is_judged_on_test(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, splits={"train": 0.5, "validation": 0.25, "test": 0.25})
    inputs = from_recipe(load_recipe(path), tmp_path)
    assert (len(inputs.search), len(inputs.held_out)) == (4, 4)
    assert list(inputs.scorers) == ["reflection", "short"]
    assert not {r.prompt for r in inputs.search} & {r.prompt for r in inputs.held_out}


def test_a_recipe_without_test_prompts_halves_validation(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, splits={"train": 0.5, "validation": 0.5, "test": 0.0})
    inputs = from_recipe(load_recipe(path), tmp_path)
    assert (len(inputs.search), len(inputs.held_out)) == (4, 4)
    assert "half of its validation prompts are held out" in inputs.notes[-1]


def test_the_recipe_in_a_bundle_is_found_there(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path))
    (tmp_path / "training.json").write_text(json.dumps({"recipe": recipe.model_dump(mode="json")}))
    assert stored_recipe(tmp_path) == recipe


@pytest.mark.parametrize("content", [None, "{}", "broken", "[]"])
def test_a_bundle_without_a_recipe_says_what_to_give(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "training.json").write_text(content)
    with pytest.raises(SearchError, match="give --recipe, or --prompts and --scorer"):
        stored_recipe(tmp_path)


def test_prompts_are_chosen_whatever_their_order_and_long_ones_left_out() -> None:
    records = tuple(Record(line) for line in LINES)

    def choose(records: tuple[Record, ...], **limits: int) -> Inputs:
        inputs = Inputs(records[:6], records[6:], {}, {})
        return chosen(inputs, lambda prompt: "tired" not in prompt, **{"search": 3, "held_out": 9, "seed": 1, **limits})

    one, other = choose(records), choose((*records[5::-1], *records[6:]))
    assert one.search == other.search
    assert len(one.search) == 3
    assert one.notes == ("1 search prompts are too long for the bundle and left out",)
    assert choose(records, seed=2).search != one.search
    with pytest.raises(SearchError, match="1 held_out prompts; allowed: from 2"):
        choose(records, held_out=1)


def test_the_hash_of_prompts_knows_their_order_and_references() -> None:
    one, two = Record("a"), Record("b")
    hashes = {prompts_hash(each) for each in ([one, two], [two, one], [one], [Record("a", references=("r",)), two])}
    assert len(hashes) == 4


def spec_in(folder: Path) -> BundleSpec:
    write_spec(folder, fake_ensemble().spec)
    return read_spec(folder / BUNDLE_FILE)


def test_a_profile_is_written_with_its_origin_and_all_else_stays(tmp_path: Path) -> None:
    before = spec_in(tmp_path)
    weights = {"reflection": 0.5, "empathy": 0.0, "fluency": 0.5}
    write_profile(tmp_path, "searched", weights, {"by": "x"}, set_default=False, overwrite=False)
    after = read_spec(tmp_path / BUNDLE_FILE)
    assert after.profiles["searched"].weights == weights
    assert after.profiles["searched"].origin == {"by": "x"}
    assert after.default_profile == "balanced"
    assert {name: p for name, p in after.profiles.items() if name != "searched"} == before.profiles
    with pytest.raises(SearchError, match="'searched' is in the bundle already; --overwrite replaces it"):
        write_profile(tmp_path, "searched", weights, {}, set_default=False, overwrite=False)
    write_profile(tmp_path, "searched", {"empathy": 1.0}, {}, set_default=True, overwrite=True)
    assert read_spec(tmp_path / BUNDLE_FILE).default_profile == "searched"
    assert [path.name for path in tmp_path.iterdir()] == [BUNDLE_FILE]


def test_the_scorers_of_a_search_stay_in_the_bundle_with_their_files(tmp_path: Path) -> None:
    bundle, recipe = tmp_path / "bundle", tmp_path / "recipe"
    bundle.mkdir()
    classifier(recipe / "judge", ["bad", "good"])
    spec_in(bundle)
    judge = {"kind": "cross_encoder", "model": "judge"}

    def write(scorers: dict[str, object]) -> BundleSpec:
        weights = {"empathy": 1.0}
        options = {"set_default": False, "overwrite": True, "scorers": scorers, "scorers_folder": recipe}
        write_profile(bundle, "searched", weights, {}, **options)
        return read_spec(bundle / BUNDLE_FILE)

    write({"reflection": "length", "empathy": judge})
    after = write({"reflection": "lexical_reflection"})
    ((place, sha256),) = after.scorer_files.items()
    assert after.scorers == {"reflection": "lexical_reflection", "empathy": {**judge, "model": place}}
    assert folder_hash(bundle / place) == sha256


def test_scorers_that_learned_from_the_data_stay_out_of_the_bundle(tmp_path: Path) -> None:
    (prompts := tmp_path / "prompts.txt").write_text("".join(f"i feel {word}\n" for word in "abcdefgh"))
    specs = {"fluency": "lexical_fluency", "empathy": "lexical_empathy"}
    inputs = from_files(prompts, specs)
    assert inputs.storable == specs  # there was nothing to learn from
    assert replace(inputs, corpus=True).storable == {"empathy": "lexical_empathy"}


def test_a_profile_s_name_is_checked_before_the_search(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    with pytest.raises(SearchError, match="profiles"):
        check_profile(spec, "not a name!", overwrite=False)
    with pytest.raises(SearchError, match="already"):
        check_profile(spec, "balanced", overwrite=False)
    check_profile(spec, "balanced", overwrite=True)
