"""`emorl drafts`: drafts to read, the same as one document, and every refusal in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from emorl_core.bundles.bundle import ChatSpec
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from server.serving.receipt import Receipt

PROMPT = "i feel tired and alone"
FEW = ("--candidates", 6, "--max-new-tokens", 5)


def test_drafts_are_printed_best_first_with_their_weights(emorl, bundle: Path) -> None:
    result = emorl("drafts", bundle, PROMPT, *FEW, "--min-distance", 0)
    assert result.code == 0
    ensemble = Ensemble.load(bundle, device="cpu", slots=64)  # as the command has it
    found = ensemble.drafts(PROMPT, candidates=6, max_new_tokens=5, min_distance=0.0)
    places = [result.out.index(" ".join(draft.text.split())) for draft in found.drafts]
    assert places == sorted(places)
    assert f"{len(found.drafts)} of {found.distinct} texts from 54 candidates, best first by likelihood" in result.out
    assert f"{found.lane_row_steps} lane-row steps, {found.unshared_lane_row_steps} one by one" in result.out
    assert "tipped by " in result.out


def test_a_bundle_with_scorers_ranks_by_them(emorl, bundle: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    shutil.copytree(bundle, scored)
    text = (scored / "bundle.yaml").read_text(encoding="utf-8")
    scorers = "scorers:\n  empathy: lexical_empathy\n  own: {kind: callable, path: 'json:loads'}\n"
    (scored / "bundle.yaml").write_text(text.replace("objectives:\n", f"{scorers}objectives:\n", 1), encoding="utf-8")
    document = json.loads(emorl("drafts", scored, PROMPT, *FEW, "--json").out)
    assert document["ranked_by"] == "scores"
    for draft in document["drafts"]:
        assert draft["mean"] == draft["scores"]["empathy"]
        assert (draft["scores"]["own"], draft["unscored"]) == (None, {"own": "code"})
    assert "by the mean of the scores" in emorl("drafts", scored, PROMPT, *FEW).out


def test_json_is_the_answer_of_the_route_and_receipts_are_made_on_request(emorl, bundle: Path) -> None:
    result = emorl("drafts", bundle, PROMPT, *FEW, "--json")
    assert result.out.count("\n") == 1
    document = json.loads(result.out)
    assert {"model", "drafts", "seed", "ranked_by", "candidates", "distinct", "cost"} == set(document)
    assert all("receipt" not in draft for draft in document["drafts"])
    for draft in json.loads(emorl("drafts", bundle, PROMPT, *FEW, "--json", "--receipt").out)["drafts"]:
        receipt = Receipt.model_validate_json(json.dumps(draft["receipt"]))
        assert (receipt.damage(), receipt.text, receipt.prompt) == ([], draft["text"], PROMPT)
        assert receipt.identity.base is not None


def test_sampled_drafts_name_their_seeds(emorl, fake) -> None:
    many = ("--temperature", 1, "--seed", 3, "--seeds", 4, "--count", 16, "--min-distance", 0)
    found = json.loads(emorl("drafts", "b", PROMPT, *many, "--json").out)
    assert {draft["seed"] for draft in found["drafts"] if draft["temperature"]} <= {3, 4, 5, 6}
    assert found["candidates"] == 8 + 3 * 4
    assert "; temperature 1, seed " in emorl("drafts", "b", PROMPT, *many).out


def test_a_chat_from_a_file(emorl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ensemble, "load", lambda *_, **__: fake_ensemble(chat=ChatSpec()))
    path = tmp_path / "chat.json"
    path.write_text(json.dumps([{"role": "user", "content": PROMPT}]), encoding="utf-8")
    document = json.loads(emorl("drafts", "b", "--chat", path, "--json", "--receipt").out)
    assert document["drafts"][0]["receipt"]["prompt"] == [{"role": "user", "content": PROMPT}]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "give either a prompt or --chat"),
        ((PROMPT, "--receipt"), "--receipt goes with --json"),
        ((PROMPT, "--count", 0), "count is 0; allowed: a whole number from 1 to 16"),
        ((PROMPT, "--seeds", 3, "--temperature", 0), "seeds is 3 at temperature 0"),
        ((PROMPT, "--diversity", 7), "diversity is 7"),
    ],
)
def test_what_is_wrong_is_one_line(emorl, fake, options: tuple, line: str) -> None:
    result = emorl("drafts", "b", *options)
    assert result.code == 2
    assert line in result.err
    assert result.err.count("\n") == 1
