"""What the page draws by itself: the map, or the line between two objectives, once the draft is whole and nobody waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.browser.conftest import Open, Watch
from tests.browser.desk import Desk
from tests.http.harness import PROMPT, Live, live, wait_until

pytestmark = pytest.mark.browser
TOKENS = 3


@pytest.fixture
def few(server: Live, open_page: Open) -> Desk:
    """A page whose maps are quick."""
    desk = open_page(server.url)
    desk.option("Most tokens", str(TOKENS))
    return desk


def asked(desk: Desk) -> list[dict[str, Any]]:
    """From now on, the requests for maps."""
    found: list[dict[str, Any]] = []
    desk.page.on("request", lambda request: found.append(request.post_data_json) if "/sweep" in request.url else None)
    return found


def drawn(desk: Desk) -> None:
    desk.page.get_by_text("with exact borders.").wait_for()


def test_the_map_of_every_prompt_is_drawn_by_itself_and_once(few: Desk) -> None:
    maps = asked(few)
    few.write(PROMPT)
    drawn(few)
    assert few.page.locator(".cell").count() > 3
    assert [(each["prompt"], each["max_regions"], each["resolution"]) for each in maps] == [(PROMPT, 100, 10)]
    few.page.mouse.click(*few.pad_place((0.2, 0.5, 0.3)))
    few.wait_done()
    few.write(PROMPT)
    few.page.wait_for_timeout(1500)
    assert len(maps) == 1, "it is drawn already"
    few.write("Nobody listens to me")
    wait_until(lambda: few.page.wait_for_timeout(50) or len(maps) == 2, "another prompt, another map")
    drawn(few)


def test_it_waits_for_the_draft_and_gives_way_to_the_next_one(server: Live, few: Desk) -> None:
    """A map that never ends: what somebody asks for aborts it, and it comes again."""
    begun: list[Any] = []
    ended: list[str] = []
    few.page.route("**/sweep/map", lambda route: begun.append(route))
    few.page.on("requestfailed", lambda request: ended.append("map") if request.url.endswith("/map") else None)
    few.write(PROMPT)
    wait_until(lambda: few.page.wait_for_timeout(50) or len(begun) == 1, "it begins")
    assert not ended
    few.page.mouse.click(*few.pad_place((0.1, 0.8, 0.1)))
    wait_until(lambda: few.page.wait_for_timeout(50) or ended == ["map"], "the drag ends it")
    few.wait_done()
    wait_until(lambda: few.page.wait_for_timeout(50) or len(begun) == 2, "and it comes again")
    few.button("Three drafts").click()
    wait_until(lambda: few.page.wait_for_timeout(50) or ended == ["map", "map"], "drafts end it")
    few.page.get_by_text("different texts, best first").wait_for()
    few.page.unroute("**/sweep/map")
    drawn(few)


def test_what_was_found_stays_when_it_gives_way(server: Live, few: Desk) -> None:
    region = {
        "type": "region", "polygon": [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]], "points": [], "share": 0.25,
        "text": "You feel tired.",
    }  # fmt: skip
    few.page.evaluate(
        """(line) => {
          const plain = window.fetch;
          window.fetch = (url, init) => String(url).endsWith("/sweep/map") ? Promise.resolve(new Response(new ReadableStream({
            start(stream) {
              stream.enqueue(new TextEncoder().encode(line));
              init.signal.addEventListener("abort", () => stream.error(init.signal.reason));
            },
          }))) : plain(url, init);
          window.plain = plain;
        }""",
        f"data: {json.dumps(region)}\n\n",
    )
    few.write(PROMPT)
    wait_until(lambda: few.page.locator(".cell").count() == 1, "the first region")
    few.page.locator("#system, #prompt").first.focus()
    few.button("Three drafts").click()
    few.page.get_by_text("1 text so far.").wait_for()
    assert few.page.locator(".cell").count() == 1
    few.page.evaluate("() => { window.fetch = window.plain; }")
    drawn(few)
    assert few.page.locator(".cell").count() > 3


def test_it_is_told_when_it_is_a_grid_that_nobody_asked_for_and_the_point_moves_freely(server: Live, few: Desk) -> None:
    def with_few(route: Any) -> None:
        body = route.request.post_data_json
        route.continue_(post_data=json.dumps({**body, "max_regions": min(3, body["max_regions"])}))

    few.page.route("**/sweep/map", with_few)
    few.write(PROMPT)
    few.page.get_by_text("on 66 points. Not exact: there are more than 3 regions").wait_for()
    few.page.mouse.click(*few.pad_place((0.333, 0.333, 0.334)))
    few.wait_done()
    assert any(round(weight * 10) / 10 != weight for weight in few.weights)
    few.page.unroute("**/sweep/map")
    few.button("Draw it finer").click()
    drawn(few)


@pytest.mark.parametrize("why", ["hidden by hand", "saves data", "a temperature"])
def test_there_are_pages_that_wait_to_be_asked(server: Live, open_page: Open, why: str) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", str(TOKENS))
    desk.write(PROMPT)
    drawn(desk)
    maps = asked(desk)
    if why == "hidden by hand":
        desk.button("Hide").click()
    elif why == "saves data":
        desk.page.evaluate(
            "Object.defineProperty(navigator, 'connection', {value: {saveData: true}, configurable: true})"
        )
    else:
        desk.option("Temperature", "0.5")
    desk.write("Nobody listens to me")
    desk.page.wait_for_timeout(1500)
    assert maps == []
    desk.draw_map()
    wait_until(lambda: desk.page.wait_for_timeout(50) or len(maps) == 1, "a click draws it")


def test_a_page_that_nobody_sees_draws_nothing_until_it_is_seen(server: Live, few: Desk) -> None:
    maps = asked(few)
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    few.page.evaluate(hide, True)
    few.write(PROMPT)
    few.page.wait_for_timeout(1500)
    assert maps == []
    few.page.evaluate(hide, False)
    drawn(few)


def test_a_server_that_is_full_is_no_trouble_where_nobody_asked(server: Live, open_page: Open, watch: Watch) -> None:
    watch.allowed.append("429")
    desk = open_page(server.url)
    desk.option("Most tokens", str(TOKENS))
    full = {"error": {"message": "queue full", "type": "overloaded", "code": "queue_full"}}
    desk.page.route("**/sweep/map", lambda route: route.fulfill(status=429, json=full))
    desk.write(PROMPT)
    desk.page.get_by_text("The server is full just now (queue full).").wait_for()
    assert desk.trouble.is_hidden()


def test_between_two_objectives_it_is_the_line(open_page: Open) -> None:
    with live(Settings(port=0), fake_ensemble(objectives=("warm", "plain"))) as server:
        desk = open_page(server.url)
        desk.option("Most tokens", str(TOKENS))
        desk.write(PROMPT)
        desk.page.get_by_text("between warm and plain, exactly.").wait_for()
        assert desk.page.locator(".piece").count() > 1
