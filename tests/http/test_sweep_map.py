"""`POST /sweep/map`: the regions of `Ensemble.sweep_map`, through the queue and the engine's thread like any request."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from emorl_core.engine.regions import MapResult
from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.http.harness import PROMPT, error_of, events, idle, live, wait_until

BODY: dict[str, Any] = {"prompt": PROMPT, "max_new_tokens": 4}
CORNERS = [{"reflection": 3, "fluency": 1}, {"fluency": 5, "base": 2}, {"empathy": 1}]


def regions_of(answer: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [
        ([tuple(place) for place in each["polygon"]], [tuple(place) for place in each["points"]], each["text"])
        for each in answer["regions"]
    ]


def expected(found: MapResult) -> list[tuple[Any, ...]]:
    return [(list(region.polygon), list(region.points), region.text) for region in found.regions]


@pytest.mark.parametrize("change", [{}, {"corners": CORNERS}, {"max_regions": 5, "resolution": 6}])
def test_the_regions_are_those_of_the_front_door(client: httpx.Client, change: dict[str, Any]) -> None:
    answer = client.post("/sweep/map", json={**BODY, **change}).json()
    options = {"most" if name == "max_regions" else name: value for name, value in change.items()}
    found = fake_ensemble(slots=4).sweep_map(PROMPT, max_new_tokens=4, **options)
    assert regions_of(answer) == expected(found)
    assert len(answer["regions"]) > 1
    assert answer["corners"] == list(found.corners)
    assert answer["exact"] is found.exact is ("max_regions" not in change)
    assert sum(each["share"] for each in answer["regions"]) == pytest.approx(1.0)
    if not found.exact:
        assert answer["why_not"] == "there are more than 5 regions (max_regions)"
        assert answer["resolution"] == 6


def test_the_stream_tells_regions_as_they_are_found_and_ends_with_the_whole_answer(client: httpx.Client) -> None:
    whole = client.post("/sweep/map", json=BODY).json()
    *found, done = events(client.post("/sweep/map", json={**BODY, "stream": True}).text)
    assert {each["type"] for each in found} == {"region"}
    assert (done["type"], done["regions"], done["exact"]) == ("done", whole["regions"], True)
    assert sorted(each["text"] for each in found) == sorted(each["text"] for each in whole["regions"])


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"corners": CORNERS[:2]}, "corners"),
        ({"corners": [*CORNERS, {"empathy": 1}]}, "corners"),
        ({"corners": [{"empaty": 1.0}, *CORNERS[1:]]}, "corners.0.empaty"),
        ({"corners": [*CORNERS[:2], {}]}, "corners.2"),
        ({"min_width": 0.0}, "min_width"),
        ({"resolution": 0}, "resolution"),
        ({"resolution": 100}, "resolution"),
        ({"max_regions": 5000}, "max_regions"),
        ({"max_new_tokens": 5000}, "max_new_tokens"),
        ({"temperature": 1.0}, "temperature"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_bad_input_is_one_422_that_names_the_field(client: httpx.Client, change: dict[str, Any], param: str) -> None:
    response = client.post("/sweep/map", json={**BODY, **change})
    assert response.status_code == 422
    assert error_of(response)["param"] == param


def test_without_corners_a_bundle_needs_three_objectives() -> None:
    with live(Settings(port=0), fake_ensemble(("empathy", "fluency"))) as server, server.client() as client:
        response = client.post("/sweep/map", json=BODY)
        assert response.status_code == 422
        assert error_of(response)["param"] == "corners"
        assert "has 2 objectives" in error_of(response)["message"]


def test_the_servers_own_limits_make_it_the_grid_and_are_named() -> None:
    slow = fake_ensemble(step_delay_s=0.02)
    for settings, ensemble, says in (
        (Settings(port=0, max_sweep=30), None, "more than 30 regions (max_sweep, a setting of this server)"),
        (Settings(port=0, sweep_map_timeout_s=0.05), slow, "(sweep_map_timeout_s, a setting of this server)"),
    ):
        with live(settings, ensemble) as server, server.client() as client:
            answer = client.post("/sweep/map", json={**BODY, "resolution": 4}).json()
            assert says in answer["why_not"]
            assert sum(len(each["points"]) for each in answer["regions"]) == 15
            wait_until(lambda: idle(server), "nothing of it is left")


def test_a_map_whose_reader_has_gone_ends_and_others_go_on() -> None:
    ensemble = fake_ensemble(step_delay_s=0.02, mean_length=60)
    with live(Settings(port=0), ensemble) as server, server.client() as client:
        body = {**BODY, "max_new_tokens": 1000, "stream": True, "min_new_tokens": 990}
        with client.stream("POST", "/sweep/map", json=body) as first:
            wait_until(lambda: server.service.reading().running == 1, "it runs")
            assert client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 3}).status_code == 200
            first.close()
        wait_until(lambda: idle(server), "nothing of it is left")
        assert 'route="/sweep/map"' in client.get("/metrics").text
