"""What somebody meets who has never seen the page: it says what it means, hides nothing, and fits a finger."""

from __future__ import annotations

from typing import Any

import pytest

from emorl_core.bundles.bundle import ChatSpec
from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.http.harness import PROMPT, Live, live, wait_until

pytestmark = pytest.mark.browser
FINGER = 44  # pixels, WCAG 2.5.5


def test_an_empty_prompt_leaves_no_draft_behind(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    desk.page.locator("#prompt").fill("  ")
    desk.page.get_by_text("Type what the client said").wait_for()
    assert desk.text == ""
    assert desk.page.locator("#status").inner_text() == ""
    assert desk.page.locator(".legend").count() == 0
    for name in ("Pin to compare", "Copy the text", "Export JSON", "Export Markdown"):
        assert desk.button(name).is_disabled()
    desk.button("empathy").click()
    assert desk.text == "", "steering drafts nothing either"
    desk.write(PROMPT)
    assert desk.text == desk.generated(PROMPT, profile="empathy")["text"]


def test_a_draft_under_way_ends_with_its_prompt(open_page: Open) -> None:
    with live(Settings(port=0), fake_ensemble(step_delay_s=0.05, mean_length=60)) as server:
        desk = open_page(server.url, ready=False)
        desk.page.locator(".token").nth(2).wait_for()
        desk.page.locator("#prompt").fill("")
        desk.page.locator(".draft").wait_for(state="hidden")
        assert desk.page.locator("#stop").is_hidden()


def test_the_same_text_at_other_weights_is_said(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", "1")
    desk.write(PROMPT)
    text = desk.text
    assert "The same text" not in desk.page.locator("#status").inner_text()
    desk.page.get_by_label("Weight of reflection").fill("0.3335")
    desk.page.get_by_label("Weight of reflection").blur()
    desk.page.get_by_text("The same text as at the weights before.").wait_for()
    assert desk.text == text
    desk.write(PROMPT)
    assert "The same text" not in desk.page.locator("#status").inner_text(), "nothing moved"


def test_asked_and_tipped_are_explained_where_they_stand(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    words = desk.page.locator("#shares").inner_text()
    assert "Asked is the weight you set." in words
    assert "Tipped is what it came to" in words


def test_the_page_says_that_no_crisis_is_noticed_and_links_what_to_know(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    assert desk.page.get_by_text("The model does not notice a crisis").is_visible()
    with desk.page.expect_popup() as popup:
        desk.page.get_by_role("link", name="Before clinical use").click()
    page = popup.value
    assert page.url == f"{server.url}/playground/clinical-use.html"
    assert page.get_by_role("heading", name="What it may be used for").is_visible()
    ground = page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth")
    assert ground != "none", "its style is let in by the policy"
    assert Desk(page, server.url).axe() == []


@pytest.mark.parametrize(
    ("label", "field", "value"),
    [
        ("Repetition penalty", "repetition_penalty", 1.4),
        ("Presence penalty", "presence_penalty", 0.7),
        ("Frequency penalty", "frequency_penalty", -0.5),
        ("No repeat of", "no_repeat_ngram_size", 2),
    ],
)
def test_penalties_reach_the_request(server: Live, open_page: Open, label: str, field: str, value: float) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    with desk.page.expect_request(lambda request: request.url.endswith("/generate")) as asked:
        desk.option(label, str(value))
    assert asked.value.post_data_json[field] == value
    expected = desk.generated(PROMPT, **{field: value})["text"]
    wait_until(lambda: desk.text == expected, "the text with the penalty")
    desk.wait_done()
    assert "1 changed" in desk.page.locator("#sampling summary").inner_text()


def test_what_only_matters_above_temperature_0_is_sent_there_only(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    for label, value in (("Top p", "0.8"), ("Top k", "20"), ("Min p", "0.05"), ("Seed", "3")):
        desk.option(label, value)
    assert "top_p" not in desk.page.locator("#snippet-panel").inner_text()
    desk.option("Temperature", "0.8")
    fields = {"temperature": 0.8, "top_p": 0.8, "top_k": 20, "min_p": 0.05, "seed": 3}
    wait_until(lambda: desk.text == desk.generated(PROMPT, **fields)["text"], "the text of the seed")
    desk.wait_done()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_snippet_shows_the_weights_whole(server: Live, open_page: Open, width: int) -> None:
    desk = open_page(server.url, width=width, height=844)
    desk.write("worried about your family " * 12)
    desk.page.get_by_label("Weight of reflection").fill("0.7")
    desk.page.get_by_label("Weight of reflection").blur()
    panel = desk.page.locator("#snippet-panel")
    assert '"reflection": 0.7' in panel.inner_text()
    assert panel.evaluate("(panel) => panel.scrollWidth <= panel.clientWidth"), "nothing is cut off"


def test_coming_back_to_a_point_asks_the_server_nothing(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    before = desk.text
    desk.button("empathy").click()
    wait_until(lambda: desk.text == desk.generated(PROMPT, profile="empathy")["text"], "the text follows")
    desk.wait_done()
    desk.page.route("**/generate", lambda route: route.abort())
    desk.button("balanced").click()
    wait_until(lambda: desk.text == before, "the text that was there")
    desk.wait_done()
    assert desk.page.locator('.token[class*="lane-"]').count() > 0


def test_over_a_drawn_map_the_text_is_there_before_the_server_is_asked(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.option("Most tokens", "3")
    desk.write(PROMPT)
    desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for()
    held: list[Any] = []
    desk.page.route("**/generate", lambda route: held.append(route))
    weights = {"reflection": 0.6, "empathy": 0.1, "fluency": 0.3}
    expected = desk.generated(PROMPT, weights=weights, max_new_tokens=3)["text"]
    with desk.page.expect_request("**/generate"):
        desk.page.mouse.click(*desk.pad_place((0.6, 0.1, 0.3)))
    assert desk.text == expected, "the map's text, with no answer yet"
    assert desk.page.locator(".token").count() == 0
    held[0].continue_()
    desk.wait_done()
    assert desk.text == expected
    assert desk.page.locator(".token").count() > 0


PLACED = """async ([points, taken]) => {
  const { disc, overlap, placeLabels } = await import("/playground/labels.js");
  const boxes = taken.map(({ x, y, r }) => disc({ x, y }, r));
  const labels = placeLabels(points, boxes, { left: 0, right: 400, bottom: 340 });
  return labels.map(({ box }, i) => [...boxes, ...labels.slice(0, i).map((each) => each.box)].reduce((sum, each) => sum + overlap(box, each), 0));
}"""


@pytest.mark.parametrize("x", [60, 200, 330])
def test_names_of_profiles_get_out_of_the_handles_way(server: Live, open_page: Open, x: int) -> None:
    desk = open_page(server.url)
    points = [{"x": x, "y": 180, "text": "balanced"}, {"x": x + 12, "y": 196, "text": "warm"}]
    for dx, dy in ((0, 0), (30, 0), (-30, 4), (0, 14), (0, -14)):
        handle = {"x": x + dx, "y": 180 + dy, "r": 16}
        assert desk.page.evaluate(PLACED, [points, [handle]]) == [0, 0]


def test_a_region_too_small_for_its_number_shows_it_when_pointed_at(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    desk.draw_map("30")
    desk.page.get_by_text("on 496 points").wait_for(timeout=60_000)
    numbers = desk.page.locator(".map-number")
    assert numbers.count() == desk.page.locator(".region").count(), "every region has one"
    tiny = desk.page.locator(".map-number.tiny").first
    assert tiny.evaluate("(number) => getComputedStyle(number).opacity") == "0"
    region = int(tiny.get_attribute("data-region"))
    desk.page.locator(".region").nth(region).hover()
    assert tiny.evaluate("(number) => getComputedStyle(number).opacity") == "1"


@pytest.fixture(scope="module")
def chat() -> Any:
    with live(Settings(port=0), fake_ensemble(encoder=False, chat=ChatSpec(), max_source_tokens=4096)) as running:
        yield running


def small(desk: Desk) -> list[str]:
    """Controls that are seen and smaller than a finger; links within a sentence are let be."""
    found: list[str] = desk.page.evaluate(
        """(least) => [...document.querySelectorAll('button, select, input, summary, textarea, [role=slider]')]
        .filter((each) => each.checkVisibility() && each.getBoundingClientRect().left > -99)
        .map((each) => [each, each.getBoundingClientRect(), getComputedStyle(each, '::after')])
        .map(([each, box, after]) => [each, Math.max(box.width, parseFloat(after.width) || 0), Math.max(box.height, parseFloat(after.height) || 0)])
        .filter(([, wide, high]) => Math.min(wide, high) < least)
        .map(([each, wide, high]) => `${each.id || each.textContent || each.className}: ${wide} x ${high}`)""",
        FINGER,
    )
    return found


def test_on_a_phone_everything_is_as_large_as_a_finger(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url, width=390, height=844)
    desk.option("Most tokens", "3")
    desk.wait_done()
    desk.button("Use this reply").click()
    desk.write(PROMPT)
    desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for()
    desk.button("Pin to compare").click()
    assert small(desk) == []
    desk.button("Edit turn 2").click()
    assert small(desk) == []


def test_on_a_phone_text_and_triangle_are_seen_together(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url, width=390, height=844)
    desk.page.evaluate("document.querySelector('.pad').scrollIntoView({ block: 'end' })")
    seen = """(node) => { const box = node.getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight + 1; }"""
    covered = """() => document.querySelector('.draft').getBoundingClientRect().bottom
      <= document.querySelector('.pad').getBoundingClientRect().top"""
    for selector in (".draft", ".pad"):
        assert desk.page.locator(selector).evaluate(seen), selector
    assert desk.page.evaluate(covered)
    desk.shoot("phone-together")
