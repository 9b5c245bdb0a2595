"""`POST /choices` keeps no word of a draft, and `POST /profiles/learn` learns from what it kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
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


@pytest.mark.parametrize(("route", "body"), [("/choices", taken("a", "b")), ("/profiles/learn", {"user": "x"})])
async def test_without_a_file_choices_are_not_kept(route: str, body: dict[str, Any]) -> None:
    async with in_process() as (client, _):
        response = await client.post(route, json=body)
        assert response.status_code == 404
        assert "choices_file" in error_of(response)["message"]
