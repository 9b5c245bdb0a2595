"""`emorl search`: from prompts and scorers to a profile in the bundle, and what it refuses before it begins."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import yaml

from emorl_core.bundles.bundle import BUNDLE_FILE, read_spec

WORDS = "sad tired angry lost small empty tense numb worried hurt".split()
SCORERS = ("--scorer", "long={kind: length, min_words: 1, max_words: 9}", "--scorer", "reflection=lexical_reflection")
QUICK = ("--levels", 2, "--max-new-tokens", 4)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"i feel {word} and cannot sleep\n" for word in WORDS))
    return path


@pytest.fixture
def search(emorl, own_bundle: Path, prompts: Path, tmp_path: Path):
    """`search(option, …)` on a bundle of its own, with small defaults."""

    def run(*options: object, scorers: tuple[object, ...] = SCORERS):
        return emorl("search", own_bundle, "--prompts", prompts, *scorers, *QUICK, "--out", tmp_path / "out", *options)

    return run


def test_the_found_weights_become_a_profile_with_their_origin(search, own_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    before = read_spec(own_bundle / BUNDLE_FILE)
    result = search()
    assert result.code == 0, result.err
    assert "16 directions x 2 levels = 32 evaluations in the simplex" in result.err
    assert "5 search prompts, 5 held out" in result.err
    assert "texts: " in result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    after = read_spec(own_bundle / BUNDLE_FILE)
    assert after.default_profile == before.default_profile
    profile = after.profiles["searched"]
    assert profile.weights == report["weights"]
    found = report["candidates"][0]["held_out"]
    origin = profile.origin
    assert origin["held_out_score"] == round(found["score"], 6)
    assert origin["held_out_interval"] == [round(bound, 6) for bound in found["interval"]]
    assert origin["scorers"] == {
        "long": {"kind": "length", "min_words": 1, "max_words": 9},
        "reflection": "lexical_reflection",
    }
    assert after.scorers == origin["scorers"]
    assert origin["search_prompts"] == report["prompts"]["search"]
    assert origin["command"].startswith("emorl search broken --prompts prompts.txt --scorer ")
    assert str(tmp_path) not in (own_bundle / BUNDLE_FILE).read_text(), "a bundle travels; paths of a machine do not"
    for name in ("found", "best single objective", "uniform", "best of level 1"):
        assert name in result.out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "evaluations.jsonl",
        "held-out.jsonl",
        "report.json",
        "weights.png",
        "weights.svg",
        "trade-offs.png",
    } <= written


def test_the_budget_of_the_paper_s_search_is_shown_first(search) -> None:
    result = search("--space", "cube", "--no-plots", "--no-write", "--search-prompts", 1)
    threads, budget, *_ = result.err.splitlines()
    assert threads.startswith("computing with ")
    assert budget.startswith("3^3 x 2 levels = 54 evaluations in the cube")


def test_a_second_search_asks_before_it_replaces_anything(search, own_bundle: Path, tmp_path: Path) -> None:
    assert search("--no-plots").code == 0
    before = (own_bundle / BUNDLE_FILE).read_bytes(), (tmp_path / "out" / "evaluations.jsonl").read_bytes()
    assert "profile 'searched' is in the bundle already; --overwrite replaces it" in search("--no-plots").refused()
    refused = search("--no-plots", "--profile", "other")
    assert refused.code == 2
    assert "holds an earlier search; --resume goes on with it" in refused.err
    assert before == ((own_bundle / BUNDLE_FILE).read_bytes(), (tmp_path / "out" / "evaluations.jsonl").read_bytes())
    again = search("--no-plots", "--overwrite", "--set-default")
    assert again.code == 0
    assert read_spec(own_bundle / BUNDLE_FILE).default_profile == "searched"


def test_a_resumed_search_generates_nothing_that_is_known(search, own_bundle: Path) -> None:
    first = json.loads(search("--no-plots", "--json").out)
    again = json.loads(search("--no-plots", "--json", "--resume", "--profile", "other").out)
    assert again["evaluations"]["texts_generated"] == again["evaluations"]["texts_scored"] == 0
    assert again["evaluations"]["resumed"] > 0
    assert again["weights"] == first["weights"]
    assert again["candidates"] == first["candidates"]
    assert read_spec(own_bundle / BUNDLE_FILE).profiles["other"].weights == first["weights"]


def test_a_finished_search_can_be_resumed_and_says_the_same_again(search, own_bundle: Path) -> None:
    first = json.loads(search("--no-plots", "--json").out)
    again = search("--no-plots", "--json", "--resume", "--set-default")
    assert again.code == 0, again.err
    report = json.loads(again.out)
    assert report["evaluations"]["texts_generated"] == report["evaluations"]["texts_scored"] == 0
    assert (report["weights"], report["candidates"]) == (first["weights"], first["candidates"])
    spec = read_spec(own_bundle / BUNDLE_FILE)
    assert spec.profiles["searched"].weights == first["weights"]
    assert spec.default_profile == "searched"
    deeper = search("--no-plots", "--resume", "--levels", 3)
    assert deeper.code == 0, deeper.err
    assert read_spec(own_bundle / BUNDLE_FILE).profiles["searched"].origin["evaluations"] == 48


def test_resuming_replaces_no_profile_of_another_search_or_of_a_person(
    search, own_bundle: Path, tmp_path: Path
) -> None:
    assert search("--no-plots").code == 0
    before = (own_bundle / BUNDLE_FILE).read_bytes()
    for options in (("--goal", "worst"), ("--profile", "balanced"), ("--out", tmp_path / "nothing there")):
        message = search("--no-plots", "--resume", *options).refused()
        assert "is in the bundle already; --overwrite replaces it" in message
    assert (own_bundle / BUNDLE_FILE).read_bytes() == before


def test_every_way_on_that_a_refusal_names_is_one(search, own_bundle: Path, tmp_path: Path) -> None:
    """After the tutorial: the bundle was searched before, for another profile and with other scorers."""
    assert search("--no-plots", "--profile", "mine", scorers=SCORERS[:2]).code == 0
    refused = search("--no-plots", "--set-default").refused()
    assert "--resume goes on with it, --overwrite starts anew, or name another --out" in refused
    other = search("--no-plots", "--set-default", "--resume")
    assert other.code == 2
    assert "had another scorers; --overwrite starts anew, or name another --out" in other.err
    assert search("--no-plots", "--set-default", "--out", tmp_path / "another").code == 0
    refused = search("--no-plots", "--set-default").refused()
    assert (
        "--overwrite replaces it, --resume goes on with the search that wrote it, or give another --profile" in refused
    )
    assert search("--no-plots", "--set-default", "--resume", "--out", tmp_path / "another").code == 0
    assert search("--no-plots", "--set-default", "--overwrite").code == 0
    spec = read_spec(own_bundle / BUNDLE_FILE)
    assert spec.default_profile == "searched"
    assert "mine" in spec.profiles


def test_without_matplotlib_nothing_is_drawn_and_a_note_says_how_to_get_it(
    search, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "matplotlib" else find(name, *more)
    )
    result = search()
    assert result.code == 0
    assert (
        result.err.splitlines()[-1]
        == 'nothing is drawn: plots need matplotlib: pip install "emorl[search]", or --no-plots'
    )
    assert "plots" not in result.out
    assert "searched" in read_spec(own_bundle / BUNDLE_FILE).profiles
    assert "matplotlib" not in search("--no-plots", "--overwrite").err
    assert not list((tmp_path / "out").glob("*.png"))


def test_no_write_leaves_the_bundle_as_it_is(search, own_bundle: Path) -> None:
    before = (own_bundle / BUNDLE_FILE).read_bytes()
    result = search("--no-write", "--no-plots", "--json")
    assert json.loads(result.out)["profile"] is None
    assert result.out.count("\n") == 1
    assert (own_bundle / BUNDLE_FILE).read_bytes() == before


def test_prompts_too_long_for_the_bundle_are_left_out_and_said(search, prompts: Path) -> None:
    with prompts.open("a") as file:
        file.write("tired and alone " * 60 + "\n")
    result = search("--no-plots", "--no-write")
    assert result.code == 0
    assert "too long for the bundle and left out" in result.err


def test_a_recipe_gives_prompts_and_scorers_also_from_within_the_bundle(
    emorl, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(json.dumps({"prompt": f"i feel {a} and {b}"}) + "\n" for a in WORDS for b in WORDS[:3])
    (tmp_path / "rows.jsonl").write_text(rows)
    recipe = {
        "name": "x",
        "base": {"path": "base"},
        "data": {"sources": [{"kind": "jsonl", "path": "rows.jsonl"}]},
        "objectives": {"reflection": {"scorer": "lexical_reflection"}, "empathy": {"scorer": "lexical_empathy"}},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    common = (*QUICK, "--no-plots", "--json")
    result = emorl("search", own_bundle, "--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "1", *common)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert list(report["scorers"]) == ["reflection", "empathy"]
    assert "30 rows" in result.err

    from training.recipe.recipe import load_recipe

    stored = {"recipe": load_recipe(tmp_path / "recipe.yaml").model_dump(mode="json")}
    (own_bundle / "training.json").write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)  # where the recipe's relative paths start
    again = emorl("search", own_bundle, "--out", tmp_path / "2", "--profile", "two", *common)
    assert again.code == 0, again.err
    assert json.loads(again.out)["prompts"] == report["prompts"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--goal", "best"), "goal is 'best'"),
        (("--goal", "weighted:humour=1"), "'humour' is no scorer"),
        (("--levels", 0), "levels is 0"),
        (("--profile", "no name!"), "profiles"),
        (("--profile", "balanced"), "profile 'balanced' is in the bundle already"),
        (("--objectives", "reflection,humour"), "objectives: 'humour' is not in the bundle"),
        (("--held-out", 2), "held-out is 2"),
        (("--search-prompts", 0), "--search-prompts is 0"),
        (("--recipe", "recipe.yaml"), "--recipe and --prompts exclude each other"),
        (("--scorer", "x"), "--scorer 'x' is not NAME=KIND"),
        (("--scorer", "long=length"), "'long' is given twice"),
        (("--scorer", "no name!=length"), "the name 'no name!' must be up to 64 letters"),
        (("--scorer", "other=no_such"), "scorer other.kind is 'no_such'"),
        (("--scorer", "other={"), "neither a kind nor a YAML mapping"),
        (("--scorer", "other={kind: length, kind: lexical_empathy}"), "key 'kind' stands twice"),
    ],
)
def test_bad_searches_are_refused_and_write_nothing(
    options, says: str, search, own_bundle: Path, tmp_path: Path
) -> None:
    before = (own_bundle / BUNDLE_FILE).read_bytes()
    result = search("--no-plots", *options)
    assert result.code == 2
    assert says in result.err.splitlines()[-1]
    assert result.out == ""
    assert "Traceback" not in result.err
    assert (own_bundle / BUNDLE_FILE).read_bytes() == before
    assert not (tmp_path / "out" / "evaluations.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "the bundle holds no training.json; give --recipe, or --prompts and --scorer"),
        (("--scorer", "a=length"), "--scorer and --held-out-prompts go with --prompts"),
        (("--recipe", "none.yaml"), "none.yaml: no such file"),
        (("--prompts", "none.txt", "--scorer", "a=length"), "none.txt: no such file"),
    ],
)
def test_a_search_without_prompts_or_scorers_says_what_to_give(options, says: str, emorl, own_bundle: Path) -> None:
    assert says in emorl("search", own_bundle, "--no-plots", *options).refused()


def test_a_bundle_from_the_hub_is_not_written(
    emorl, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched = shutil.copytree(bundle, tmp_path / "cache")
    monkeypatch.setattr("emorl_core.bundles.bundle._from_hub", lambda name, revision: fetched)
    refused = emorl("search", "someone/bundle", "--prompts", "p.txt", "--scorer", "a=length").refused()
    assert "a bundle from the hub cannot be written; give --no-write, or a folder" in refused
