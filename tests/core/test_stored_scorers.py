"""Scorers of a bundle: stored with their files and hashes, checked and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emorl_core.bundles.bundle import BUNDLE_FILE, BaseRef, Bundle, BundleSpec, ObjectiveSpec, write_spec
from emorl_core.bundles.stored_scorers import learned, load_scorers, store_scorers
from emorl_core.errors import BundleError
from emorl_core.files.hashes import folder_hash
from emorl_core.scorers import Context, build_scorer
from tests.learn.scorer_models import classifier

PROMPTS, REPLIES = ["i feel tired of work"] * 2, ["you feel tired", "go old new red"]
OWN = {"kind": "callable", "path": "tests.learn.own_scorers:share_of_letters", "arguments": {"letter": "b"}}


def bundle_with(folder: Path, scorers: dict[str, Any], files: dict[str, str] | None = None) -> Bundle:
    """Without a base: scorers alone are looked at."""
    spec = BundleSpec(
        name="tiny",
        base=BaseRef(path="base"),
        objectives={"reflection": ObjectiveSpec(adapter="adapters/reflection")},
        scorers=scorers,
        scorer_files=files or {},
    )
    write_spec(folder, spec)
    return Bundle.open(folder)


@pytest.fixture
def stored(tmp_path: Path) -> Bundle:
    """A bundle with a classifier, which is a part of a product."""
    (tmp_path / "recipe").mkdir()
    (tmp_path / "bundle").mkdir()
    judge = classifier(tmp_path / "recipe" / "judge", ["bad", "good"])
    (judge / "optimizer.bin").write_bytes(b"no part of it")
    specs = {
        "reflection": {"kind": "product", "of": [{"kind": "cross_encoder", "model": "judge"}, "repetition"]},
        "short": {"kind": "length", "min_words": 1},
    }
    scorers, files = store_scorers(tmp_path / "bundle", specs, tmp_path / "recipe")
    return bundle_with(tmp_path / "bundle", scorers, files)


def test_a_stored_scorer_gives_the_scores_of_the_one_it_came_from(stored: Bundle, tmp_path: Path) -> None:
    spec = {"kind": "product", "of": [{"kind": "cross_encoder", "model": "judge"}, "repetition"]}
    wanted = build_scorer(spec, Context("cpu", tmp_path / "recipe"))(PROMPTS, REPLIES)
    (tmp_path / "recipe").rename(tmp_path / "gone")
    loaded = load_scorers(stored)
    assert list(loaded) == ["reflection", "short"]
    assert loaded["reflection"] is not None
    assert loaded["reflection"](PROMPTS, REPLIES) == wanted


def test_what_is_stored_has_its_hash_and_no_path_of_this_machine(stored: Bundle, tmp_path: Path) -> None:
    ((place, sha256),) = stored.spec.scorer_files.items()
    assert place == f"scorers/judge-{sha256[:12]}"
    assert folder_hash(stored.folder / place) == sha256
    assert not (stored.folder / place / "optimizer.bin").exists()
    assert str(tmp_path) not in (stored.folder / BUNDLE_FILE).read_text()
    again = store_scorers(stored.folder, {"x": {"kind": "cross_encoder", "model": "judge"}}, tmp_path / "recipe")
    assert again == ({"x": {"kind": "cross_encoder", "model": place}}, {place: sha256})
    assert [path.name for path in (stored.folder / "scorers").iterdir()] == [place.removeprefix("scorers/")]


def test_a_bundle_without_scorers_says_nothing_of_them(tmp_path: Path) -> None:
    assert "scorer" not in (bundle_with(tmp_path, {}).folder / BUNDLE_FILE).read_text()


def test_files_that_are_not_those_that_were_stored_are_refused(stored: Bundle) -> None:
    (place,) = stored.spec.scorer_files
    config = stored.folder / place / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(BundleError, match=rf"scorer_files\.{place} is .*; the files have .*not those that were stored"):
        load_scorers(stored)
    for file in (stored.folder / place).iterdir():
        file.unlink()
    (stored.folder / place).rmdir()
    with pytest.raises(BundleError, match="there is no such folder in the bundle"):
        load_scorers(stored)


@pytest.mark.parametrize("place", ["judge", "../outside", "{absolute}"])
def test_a_folder_without_a_hash_is_refused(place: str, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    classifier(bundle / "judge", ["bad", "good"])
    classifier(tmp_path / "outside", ["bad", "good"])
    place = place.format(absolute=tmp_path / "outside")
    opened = bundle_with(bundle, {"reflection": {"kind": "cross_encoder", "model": place}})
    with pytest.raises(BundleError, match=r"scorers\.reflection: model is .*; allowed: a folder of scorer_files"):
        load_scorers(opened)


@pytest.mark.parametrize("place", ["../outside", "/tmp"])
def test_hashes_are_of_folders_inside_the_bundle(place: str, tmp_path: Path) -> None:
    opened = bundle_with(tmp_path, {}, {place: "0" * 64})
    with pytest.raises(BundleError, match="allowed: a path inside the bundle"):
        load_scorers(opened)


@pytest.mark.parametrize(
    ("scorers", "words"),
    [
        ({"reflection": "lexical_reflectoin"}, "did you mean 'lexical_reflection'"),
        ({"reflection": {"kind": "product", "of": ["length", "nothing"]}}, r"of\.1\.kind is 'nothing'"),
        ({"reflection": {"kind": "length", "least": 3}}, "least is unknown"),
        ({"a name": "length"}, "a name"),
    ],
)
def test_scorers_that_are_none_are_faults_of_the_spec(scorers: dict[str, Any], words: str, tmp_path: Path) -> None:
    good = bundle_with(tmp_path, {"reflection": "length"})
    path = good.folder / BUNDLE_FILE
    shown = repr(scorers)
    path.write_text(path.read_text().replace("scorers:\n  reflection: length\n", f"scorers: {shown}\n"))
    with pytest.raises(BundleError, match=words):
        Bundle.open(tmp_path)


def test_code_runs_only_when_it_may(tmp_path: Path) -> None:
    opened = bundle_with(tmp_path, {"own": OWN, "both": {"kind": "product", "of": ["length", OWN]}, "l": "length"})
    loaded = load_scorers(opened)
    assert {name: scorer is None for name, scorer in loaded.items()} == {"own": True, "both": True, "l": False}
    assert None not in load_scorers(opened, code=True).values()


def test_what_learned_from_the_data_is_known() -> None:
    assert learned({"kind": "contrast", "of": "lexical_empathy"})
    assert learned({"kind": "product", "of": ["length", "lexical_fluency"]})
    assert not learned({"kind": "lexical_fluency", "use_corpus": False})
    assert not learned("lexical_empathy")
