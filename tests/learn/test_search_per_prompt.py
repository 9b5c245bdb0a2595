"""`emorl search --method per-prompt`: from prompts and scorers to a profile that a server answers with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emorl_cli.main import main
from emorl_core.bundles.bundle import BUNDLE_FILE, read_spec
from emorl_core.ensemble import Ensemble
from emorl_core.scorers import Context, build_scorer
from server.serving.receipt import Receipt, replay_request
from server.settings import Settings
from tests.builders import tiny_t5_bundle
from tests.http.harness import live
from training.search.per_prompt import base_states
from training.search.predictor import STEPS, fit, targets
from training.search.strategies.spaces import grid_points

OBJECTIVES = ("reflection", "empathy")
SEARCHED = ("I can't keep up at work.", "My sister and I had a fight.", "Nothing helps.", "I drink.")
HELD_OUT = ("The doctor said so.", "You feel tired of it.")
TOKENS = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a profile `auto` that was learned in it."""
    folder = tmp_path_factory.mktemp("per-prompt")
    bundle = tiny_t5_bundle(folder / "bundle", objectives=OBJECTIVES, ranks=(2, 4))
    for name, prompts in (("search", SEARCHED), ("held-out", HELD_OUT)):
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    words = [
        "search", str(bundle), "--prompts", str(folder / "search.txt"),
        "--held-out-prompts", str(folder / "held-out.txt"), "--scorer", "words=diversity",
        "--method", "per-prompt", "--profile", "auto", "--out", str(folder / "out"),
        "--max-new-tokens", str(TOKENS), "--device", "cpu", "--dtype", "float32", "--threads", "1", "--json",
    ]  # fmt: skip
    assert main(words) == 0
    return bundle


@pytest.fixture(scope="module")
def ensemble(bundle: Path) -> Ensemble:
    return Ensemble.load(bundle, device="cpu", dtype="float32")


def test_its_weights_are_those_of_a_grid_tried_and_scored_one_by_one(ensemble: Ensemble) -> None:
    scorer = build_scorer("diversity", Context("cpu"))
    points = grid_points(len(OBJECTIVES), STEPS)
    scores = np.zeros((len(SEARCHED), len(points)))
    for row, prompt in enumerate(SEARCHED):
        for column, point in enumerate(points):
            weights = dict(zip(OBJECTIVES, point, strict=True))
            reply = ensemble.generate(prompt, weights, max_new_tokens=TOKENS, seed=0).text
            (scores[row, column],) = scorer([prompt], [reply])
    head = fit(base_states(ensemble, SEARCHED), targets(np.round(scores, 6), points))
    for prompt, state in zip(HELD_OUT, base_states(ensemble, HELD_OUT), strict=True):
        found = ensemble.generate(prompt, profile="auto", max_new_tokens=4).weights
        assert list(found.values()) == pytest.approx(head.chosen(state), abs=2e-3)


def test_the_report_compares_it_with_fixed_weights(bundle: Path) -> None:
    report = json.loads((bundle.parent / "out" / "report.json").read_text())
    names = [entry["name"] for entry in report["candidates"]]
    assert names == ["predicted", "best single objective", "uniform", "best of the grid"]
    assert sum(report["weights"].values()) == pytest.approx(1)
    assert all("first_minus_this" in entry for entry in report["candidates"][1:])
    origin = read_spec(bundle / BUNDLE_FILE).profiles["auto"].origin
    assert origin["method"] == "per-prompt"
    assert origin["held_out_score"] == pytest.approx(report["candidates"][0]["held_out"]["score"], abs=1e-6)


def test_a_server_answers_with_it_and_its_receipt_replays_without_it(bundle: Path, ensemble: Ensemble) -> None:
    settings = Settings(port=0, bundle=str(bundle), device="cpu", dtype="float32", threads=1)
    with live(settings) as server, server.client() as client:
        listed = {each["name"]: each for each in client.get("/profiles").json()["profiles"]}
        assert (listed["auto"]["kind"], listed["auto"]["weights"]) == ("predicted", {})
        asked = {
            "prompt": HELD_OUT[0],
            "profile": "auto",
            "max_new_tokens": TOKENS,
            "temperature": 0.8,
            "receipt": True,
        }
        answers = [client.post("/generate", json=asked).json()]
        named = {"model": f"{ensemble.name}:auto", "prompt": HELD_OUT[0], "max_tokens": TOKENS, "receipt": True, "n": 2}
        several = client.post("/v1/completions", json=named).json()
        kept = zip(several["emorl"]["receipts"], several["choices"], strict=True)
        answers += [{"receipt": receipt, "text": choice["text"]} for receipt, choice in kept]
    expected = ensemble.generate(HELD_OUT[0], profile="auto", max_new_tokens=1).weights
    for answer in answers:
        receipt = Receipt.model_validate(answer["receipt"])
        assert receipt.damage() == []
        assert receipt.profile == "auto"
        assert receipt.weights == {"base": 0.0, **expected}
        request = replay_request(ensemble, receipt, HELD_OUT[0])
        assert request.predict is None
        (again,) = ensemble.ends([request], at_once=1)
        assert again.text == answer["text"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--goal", "worst"), "allowed with the method per-prompt: mean"),
        (("--resume",), "--resume does not go with the method per-prompt"),
        (("--objectives", "empathy"), "the method per-prompt weighs two or more"),
    ],
)
def test_what_it_cannot_do_is_said_first(
    options: tuple[str, ...], words: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "search",
        str(bundle),
        "--method",
        "per-prompt",
        "--no-write",
        "--out",
        str(tmp_path / "out"),
        *options,
    ]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
