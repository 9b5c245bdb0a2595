"""`emorl sweep`: distinct texts with their weights, the exact line, and every refusal in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from tests.builders import OBJECTIVES

PROMPT = "i feel tired and alone"


def test_a_sweep_prints_each_text_with_the_weights_that_give_it(emorl, bundle: Path) -> None:
    result = emorl("sweep", bundle, PROMPT, "--resolution", 2, "--max-new-tokens", 5)
    assert result.code == 0
    expected = Ensemble.load(bundle, device="cpu").sweep(PROMPT, resolution=2, max_new_tokens=5)
    for text, indices in expected.distinct(0).items():
        assert " ".join(text.split()) in result.out
        assert f"{len(indices)} of 6: " in result.out
    assert f"{expected.lane_row_steps} lane-row steps" in result.out
    assert "reflection=0.5 empathy=0.5" in result.out


def test_json_holds_every_vector_once(emorl, bundle: Path) -> None:
    result = emorl("sweep", bundle, PROMPT, "--resolution", 3, "--max-new-tokens", 5, "--json")
    document = json.loads(result.out)
    assert result.out.count("\n") == 1
    vectors = [tuple(weights.values()) for each in document["texts"] for weights in each["weights"]]
    assert len(vectors) == len(set(vectors)) == document["vectors"] == 10
    assert document["lane_row_steps"] < document["unshared_lane_row_steps"]
    assert {each["finish_reason"] for each in document["texts"]} <= {"stop", "length"}


def test_weights_from_a_file_in_both_spellings(emorl, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_bytes(b'\xef\xbb\xbfreflection=1,empathy=3\r\n\r\n{"fluency": 2, "base": 2}\r\n')
    document = json.loads(emorl("sweep", bundle, PROMPT, "--weights-file", path, "--max-new-tokens", 3, "--json").out)
    found = [weights for each in document["texts"] for weights in each["weights"]]
    assert {"reflection": 0.25, "empathy": 0.75, "fluency": 0.0} in found
    assert {"base": 0.5, "reflection": 0.0, "empathy": 0.0, "fluency": 0.5} in found
    assert len(found) == 2


def test_a_sampled_sweep_names_its_seed_and_repeats_with_it(emorl, fake) -> None:
    first = emorl("sweep", "b", PROMPT, "--resolution", 2, "--temperature", 1, "--json")
    seed = json.loads(first.out)["seed"]
    again = emorl("sweep", "b", PROMPT, "--resolution", 2, "--temperature", 1, "--seed", seed, "--json")
    assert json.loads(again.out)["texts"] == json.loads(first.out)["texts"]
    assert f"seed {seed}" in emorl("sweep", "b", PROMPT, "--resolution", 2, "--temperature", 1, "--seed", seed).out


def test_the_line_between_two_objectives(emorl, bundle: Path) -> None:
    options = ("--max-new-tokens", 4)
    result = emorl("sweep", bundle, PROMPT, "--line", "reflection", "empathy", *options)
    assert result.code == 0
    expected = Ensemble.load(bundle, device="cpu").sweep_line(
        PROMPT, {"reflection": 1}, {"empathy": 1}, max_new_tokens=4
    )
    assert f"{len(expected.breaks)} breaks" in result.out
    document = json.loads(emorl("sweep", bundle, PROMPT, "--line", "reflection", "empathy", *options, "--json").out)
    assert [(i["start"], i["end"], i["text"]) for i in document["intervals"]] == [
        (i.start, i.end, i.text) for i in expected.intervals
    ]
    assert document["to"] == {"reflection": 0.0, "empathy": 1.0, "fluency": 0.0}


def test_ends_of_a_line_may_be_profiles_and_mixes(emorl, fake) -> None:
    result = emorl("sweep", "b", PROMPT, "--line", "balanced", "empathy=1,fluency=3", "--max-new-tokens", 3, "--json")
    document = json.loads(result.out)
    assert document["from"] == {name: pytest.approx(1 / 3) for name in ("reflection", "empathy", "fluency")}
    assert document["to"] == {"reflection": 0.0, "empathy": 0.25, "fluency": 0.75}


def test_the_map_of_three_objectives(emorl, fake) -> None:
    options = ("--map", *OBJECTIVES, "--max-new-tokens", 3)
    result = emorl("sweep", "b", PROMPT, *options)
    expected = fake_ensemble(slots=2).sweep_map(PROMPT, max_new_tokens=3)  # as many as `fake` has
    assert f"{len(expected.regions)} regions; exact; {expected.lane_row_steps} lane-row steps" in result.out
    assert " ".join(expected.regions[0].text.split()) in result.out
    document = json.loads(emorl("sweep", "b", PROMPT, *options, "--json").out)
    assert document["exact"] is True
    assert [each["text"] for each in document["regions"]] == [region.text for region in expected.regions]
    assert [tuple(map(tuple, each["polygon"])) for each in document["regions"]] == [r.polygon for r in expected.regions]


def test_a_map_with_too_many_regions_is_a_grid_and_says_so(emorl, fake) -> None:
    result = emorl("sweep", "b", PROMPT, "--map", *OBJECTIVES, "--max-new-tokens", 3, "--max-regions", 2)
    assert result.code == 0
    assert "not exact, since there are more than 2 regions (--max-regions); a grid in steps of 1/20" in result.out
    assert "of 231 points" in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "one of the arguments --resolution --weights-file --line --map is required"),
        (("--resolution", 2, "--line", "a", "b"), "not allowed with"),
        (("--resolution", 0), "resolution is 0"),
        (("--resolution", 2, "--temperature", -1), "temperature is -1"),
        (("--line", "reflection", "empaty"), "unknown objective 'empaty'"),
        (
            ("--line", "reflection", "empathy", "--temperature", 1),
            "--line is for greedy texts; it takes no --temperature",
        ),
        (("--line", "reflection", "empathy", "--repetition-penalty", 2), "no --repetition-penalty"),
        (("--line", "reflection", "empathy", "--combine", "probs"), "--line mixes hidden states"),
        (("--line", "reflection", "empathy", "--combine", "weights"), "it takes no --combine weights"),
        (("--map", "reflection", "empathy", "empaty"), "corners.2: unknown objective 'empaty'"),
        (("--map", "reflection", "empathy"), "--map: expected 3 arguments"),
        (("--map", *OBJECTIVES, "--line", "reflection", "empathy"), "not allowed with"),
        (("--map", *OBJECTIVES, "--temperature", 1), "--map is for greedy texts; it takes no --temperature"),
        (("--map", *OBJECTIVES, "--combine", "probs"), "--map mixes hidden states"),
        (("--map", *OBJECTIVES, "--max-regions", 0), "--max-regions is 0; allowed: a whole number from 1"),
        (("--resolution", 2, "--max-regions", 9), "--max-regions is for --map"),
        (("--weights-file", "missing.txt"), "missing.txt: no such file"),
    ],
)
def test_bad_sweeps_are_refused_in_one_line(options, says: str, emorl, fake) -> None:
    assert says in emorl("sweep", "b", PROMPT, *options).refused()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("\n", "holds no weights"),
        ("reflection=1\nreflection", "line 2: 'reflection' is not NAME=NUMBER"),
        (
            'empathy=1\n{"empathy": 1, "empathy": 2}',
            "line 2: neither NAME=NUMBER,… nor a JSON object: it cannot be read",
        ),
        ('{"empathy": 1, "empathy": 2}', "key 'empathy' stands twice"),
        (f'{{"empathy": {"9" * 400}}}', "a whole number of 400 digits"),
        (f'{{"empathy": {"9" * 5000}}}', "a whole number of 5000 digits"),
        (f"empathy={'9' * 400}", "empathy"),
        ('{"empathy": 1e999}', "the number '1e999' is too large"),
        ('{"empathy": ' + "[" * 100_000, "nested too deeply"),
        ('{"reflection": 1', "line 1: neither NAME=NUMBER,… nor a JSON object"),
        ("empathy=1\n\nempaty=1", "line 3: weights: unknown objective 'empaty'"),
        ('{"empathy": "much"}', "line 1: weights.empathy is not a number"),
        ("empathy=1\nempathy=-1", "line 2: weights.empathy is -1; negative weights are allowed only with"),
        ("empathy=1\nempathy=1,empathy=2", "line 2: 'empathy' is given twice"),
        ('empathy=1\n{"empathy": 1, "empathy": 2}', "key 'empathy' stands twice"),
        ('{"empathy": ' * 50_000, "line 1: neither NAME=NUMBER,… nor a JSON object"),
        ("empathy=1\u2028fluency=1", "line 1: 'empathy=1\\u2028fluency=1' is not NAME=NUMBER"),
        ("empathy=1\nempathy=\0", "cannot be read: line 2 holds a NUL character"),
    ],
)
def test_bad_weights_files_are_refused_by_line(content: str, says: str, emorl, fake, tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_text(content, encoding="utf-8")
    assert says in emorl("sweep", "b", PROMPT, "--weights-file", path).refused()
