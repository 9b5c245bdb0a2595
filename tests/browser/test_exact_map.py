"""The map with exact borders: what the page draws and lists is what `/sweep/map` says; beyond its bounds, a grid."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.browser.conftest import Open
from tests.http.harness import PROMPT, Live, wait_until

pytestmark = pytest.mark.browser
TOKENS = 3


def mapped(server: Live, **fields: Any) -> dict[str, Any]:
    body = {"prompt": PROMPT, "max_new_tokens": TOKENS, **fields}
    answer: dict[str, Any] = httpx.post(f"{server.url}/sweep/map", json=body, timeout=120).json()
    return answer


def test_the_map_has_the_true_borders_and_a_click_takes_the_text_there(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", str(TOKENS))
    desk.write(PROMPT)
    desk.draw_map()
    desk.page.get_by_text("with exact borders.").wait_for()
    answer = mapped(server)
    assert answer["exact"]
    texts = {each["text"] for each in answer["regions"]}
    listed = [each.text_content() for each in desk.page.locator(".region-text").all()]
    assert (set(listed), len(listed)) == (texts, len(texts))
    assert len(texts) > 3
    cells = desk.page.locator(".cell")
    assert cells.count() == len(answer["regions"]), "a polygon each"
    drawn = sorted(len(each.get_attribute("points").split()) for each in cells.all())
    assert drawn == sorted(len(each["polygon"]) for each in answer["regions"])
    region = answer["regions"][1]
    corners = region["polygon"]
    a, b, c = (sum(column) / len(corners) for column in zip(*corners, strict=True))
    desk.page.mouse.move(*desk.pad_place((a, b, c)))
    assert region["text"] in desk.page.locator(".peek").text_content()
    held: list[Any] = []
    desk.page.route("**/generate", lambda route: held.append(route))
    with desk.page.expect_request("**/generate"):
        desk.page.mouse.click(*desk.pad_place((a, b, c)))
    assert desk.text == region["text"], "the map's text, with no answer yet"
    held[0].continue_()
    desk.wait_done()
    assert desk.text == region["text"]
    desk.shoot("exact-map")
    desk.page.unroute("**/generate")
    desk.page.locator(".region").nth(2).click()
    wait_until(lambda: desk.text == listed[2], "the list takes it too")
    desk.button("Hide").click()
    assert cells.count() == 0


def test_a_map_with_too_many_regions_is_drawn_as_the_grid_and_says_why(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", str(TOKENS))
    desk.write(PROMPT)

    def with_few(route: Any) -> None:
        asked = route.request.post_data_json
        if asked["max_regions"] == 400:  # by hand
            asked |= {"max_regions": 3}
            assert asked["resolution"] == 20
        route.continue_(post_data=json.dumps(asked))

    desk.page.route("**/sweep/map", with_few)
    desk.draw_map()
    desk.page.get_by_text("on 231 points. Not exact: there are more than 3 regions").wait_for()
    assert desk.page.locator(".cell").count() == 231
    answer = mapped(server, max_regions=3)
    assert not answer["exact"]
    listed = {each.text_content() for each in desk.page.locator(".region-text").all()}
    assert listed == {each["text"] for each in answer["regions"]}


def test_options_that_let_chance_decide_have_a_grid(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", "2")
    desk.option("Temperature", "0.8")
    desk.write(PROMPT)
    with desk.page.expect_request("**/sweep") as sweep:
        desk.draw_map()
    assert len(json.loads(sweep.value.post_data)["weights"]) == 231
    desk.page.get_by_text("on 231 points. Not exact: the options").wait_for()
