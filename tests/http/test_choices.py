"""`POST /choices` keeps no word of a draft, `/choices/next` says what to ask, and `/profiles/learn` learns from it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emorl_core.choices.learning import Preference
from emorl_core.fake import fake_ensemble
from server.settings import Settings, SettingsError, load_settings
from tests.http.harness import error_of, in_process

MARKER = "ZEBRAFISH"
HASH = hashlib.sha256(MARKER.encode()).hexdigest()


def taken(better: str, worse: str) -> dict[str, Any]:
    drafts = [(better, "taken"), (worse, "rejected")]
    return {
        "user": "ward-3",
        "reason": "warmer",
        "shown": [
            {"weights": {name: 1}, "text_sha256": HASH, "scores": {name: 0.5}, "outcome": outcome}
            for name, outcome in drafts
        ],
    }


async def test_choices_are_kept_and_learned_from(tmp_path: Path) -> None:
    path = tmp_path / "choices.db"
    async with in_process(Settings(choices_file=path)) as (client, _):
        none = (await client.post("/profiles/learn", json={"user": "ward-3"})).json()
        assert (none["choices"], none["user"]) == (0, "ward-3")
        for number in range(1, 7):
            response = await client.post("/choices", json=taken("empathy", "reflection"))
            assert (response.status_code, response.json()) == (200, {"id": number})
        learned = (await client.post("/profiles/learn", json={"user": "ward-3"})).json()
        assert learned["choices"] == 6
        assert learned["weights"]["empathy"] > none["weights"]["empathy"] > learned["weights"]["reflection"]
        other = (await client.post("/profiles/learn", json={"user": "ward-4"})).json()
        assert other["choices"] == 0
        body = {**taken("empathy", "reflection"), "text": MARKER}
        refused = await client.post("/choices", json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (422, "unknown_field")
        body = {**taken("empathy", "reflection"), "reason": MARKER}
        refused = await client.post("/choices", json=body)
        assert refused.status_code == 422
        assert MARKER not in refused.text
    assert MARKER.encode() not in path.read_bytes()
    assert b"empathy" in path.read_bytes()


async def test_an_objective_that_the_bundle_does_not_have_is_refused_and_not_learned_from(tmp_path: Path) -> None:
    """It was kept, and counted as equal weights when it was learned from."""
    body = taken("empathy", "empathi")
    async with in_process(Settings(choices_file=tmp_path / "choices.db")) as (client, _):
        refused = await client.post("/choices", json=body)
        assert (refused.status_code, error_of(refused)["code"]) == (422, "invalid_weights")
        assert error_of(refused)["param"] == "shown.1.weights"
        assert "unknown objective 'empathi'" in error_of(refused)["message"]
        assert (await client.post("/profiles/learn", json={"user": "ward-3"})).json()["choices"] == 0


@pytest.mark.parametrize(
    ("route", "body"),
    [("/choices", taken("a", "b")), ("/choices/next", {"user": "x"}), ("/profiles/learn", {"user": "x"})],
)
async def test_without_a_file_choices_are_not_kept(route: str, body: dict[str, Any]) -> None:
    async with in_process() as (client, _):
        response = await client.post(route, json=body)
        assert response.status_code == 404
        assert "choices_file" in error_of(response)["message"]


def comparison(better: str, worse: str) -> dict[str, Any]:
    return {name: value for name, value in taken(better, worse).items() if name != "user"}


async def test_the_next_pair_is_the_most_telling_one_left() -> None:
    corners = [{"empathy": 2}, {"reflection": 1}, {"fluency": 1}]
    middles = [{"reflection": 0.5, "fluency": 0.5, "empathy": weight} for weight in (0.1, 0.11)]
    async with in_process() as (client, service):
        ensemble = service.deployment().ensemble
        body: dict[str, Any] = {"choices": [], "candidates": corners[:2] + middles}
        answer = (await client.post("/choices/next", json=body)).json()
        belief = Preference(ensemble.objectives)
        vectors = np.array([belief.vector(each) for each in body["candidates"]])
        assert (tuple(answer["pair"]), answer["choices"]) == (belief.next_pair(vectors), 0)
        assert answer["weights"] == [ensemble.resolve(body["candidates"][i]).as_dict() for i in answer["pair"]]
        without = [answer["pair"]]
        again = (await client.post("/choices/next", json={**body, "without": without})).json()
        assert again["pair"] != answer["pair"]
        known = {"choices": [comparison("empathy", "reflection")] * 9}
        told = (await client.post("/choices/next", json=known)).json()
        assert (told["choices"], len(told["weights"])) == (9, 2)
        for body, said in (
            ({"choices": [], "candidates": corners, "without": [[0, 3]]}, "without has the pair [0, 3]"),
            ({"choices": [], "candidates": corners, "without": [[0, 1], [1, 2], [0, 2]]}, "no pair of them is left"),
            ({"choices": [], "candidates": [{"empathy": 1}, {"joy": 1}]}, "candidates.1: "),
            ({"choices": [comparison("empathy", "joy")]}, "choices.0.shown.1.weights: "),
            ({}, "exactly one of user and choices"),
            ({"user": "ward-3", "choices": []}, "exactly one of user and choices"),
        ):
            refused = await client.post("/choices/next", json=body)
            assert refused.status_code == 422
            assert said in error_of(refused)["message"]


async def test_choices_in_the_body_teach_the_same_and_are_not_kept(tmp_path: Path) -> None:
    async with in_process(Settings(choices_file=tmp_path / "choices.db")) as (client, _):
        for _ in range(4):
            await client.post("/choices", json=taken("empathy", "reflection"))
        kept = (await client.post("/profiles/learn", json={"user": "ward-3"})).json()
    async with in_process() as (client, _):
        body = {"choices": [comparison("empathy", "reflection")] * 4}
        sent = (await client.post("/profiles/learn", json=body)).json()
        assert sent == {**kept, "user": None}
        assert len(sent["outline"]) > 2
        nameless = await client.post("/profiles/learn", json={**body, "store": True})
        assert "store is true without a user" in error_of(nameless)["message"]


async def test_a_learned_profile_is_served_at_once_told_in_receipts_and_there_after_a_restart(tmp_path: Path) -> None:
    settings = Settings(choices_file=tmp_path / "choices.db", learn_profiles=True)
    request = {"prompt": "I cannot sleep", "profile": "ward-3", "receipt": True}
    async with in_process(settings) as (client, _):
        assert (await client.get("/info")).json()["choices"]["profiles"]
        empty = await client.post("/profiles/learn", json={"user": "ward-3", "store": True})
        assert "no choices" in error_of(empty)["message"]
        await client.post("/choices", json=taken("empathy", "reflection"))
        assert (await client.post("/generate", json=request)).status_code == 422
        learned = (await client.post("/profiles/learn", json={"user": "ward-3", "store": True})).json()
        assert learned["profile"] == "ward-3"
        answer = (await client.post("/generate", json=request)).json()
        assert (answer["profile"], answer["receipt"]["profile"]) == ("ward-3", "ward-3")
        assert answer["weights"] == pytest.approx(learned["weights"])
        listed = (await client.get("/profiles")).json()["profiles"][-1]
        assert (listed["name"], listed["origin"]["choices"]) == ("ward-3", 1)
        assert listed["origin"]["region"] == learned["region"]
        assert "fake:ward-3" in [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        await client.post("/choices", json={**taken("empathy", "reflection"), "user": "balanced"})
        taken_name = await client.post("/profiles/learn", json={"user": "balanced", "store": True})
        assert "the bundle has a profile of that name" in error_of(taken_name)["message"]
        await client.post("/choices", json={**taken("empathy", "reflection"), "user": "a@b"})
        no_name = await client.post("/profiles/learn", json={"user": "a@b", "store": True})
        assert "allowed as a profile's name" in error_of(no_name)["message"]
    async with in_process(settings) as (client, _):
        again = (await client.post("/generate", json=request)).json()
        assert (again["text"], again["weights"]) == (answer["text"], answer["weights"])
    async with in_process(settings, fake_ensemble(("joy", "hope"))) as (client, _):
        assert [each["name"] for each in (await client.get("/profiles")).json()["profiles"]] == [
            "balanced",
            "joy",
            "hope",
        ]


async def test_profiles_are_kept_only_where_the_operator_said_so(tmp_path: Path) -> None:
    async with in_process(Settings(choices_file=tmp_path / "choices.db")) as (client, _):
        assert not (await client.get("/info")).json()["choices"]["profiles"]
        await client.post("/choices", json=taken("empathy", "reflection"))
        refused = await client.post("/profiles/learn", json={"user": "ward-3", "store": True})
        assert refused.status_code == 422
        assert "learn_profiles" in error_of(refused)["message"]
    with pytest.raises(SettingsError, match="choices_file is not set"):
        load_settings(learn_profiles=True)
