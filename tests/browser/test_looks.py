"""Two objectives, five objectives, one; by keys alone; narrow, dark, and for assistive technology."""

from __future__ import annotations

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.http.harness import PROMPT, Live, live, wait_until

pytestmark = pytest.mark.browser


def fill_page(desk: Desk) -> None:
    """Everything that can be on the page at once: a map, pins, a tooltip, open options."""
    desk.option("Most tokens", "6")
    desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for()
    desk.wait_done()
    desk.button("Pin to compare").click()
    desk.button("empathy").click()
    desk.wait_done()
    desk.page.wait_for_timeout(200)
    desk.button("Pin to compare").click()
    desk.page.locator(".token").first.hover()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_screen(
    server: Live, open_page: Open, scheme: str, width: int
) -> None:
    desk = open_page(server.url, width=width, height=844, scheme=scheme)
    desk.shoot(f"{scheme}-{width}")
    fill_page(desk)
    desk.shoot(f"{scheme}-{width}-full", whole=True)
    assert desk.axe() == []
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
    ground = desk.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    desk.button("Dark" if scheme == "light" else "Light").click()
    assert desk.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") != ground
    assert desk.axe() == [], "chosen against the system's setting"


def test_everything_is_reached_by_keys(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    keys = desk.page.keyboard

    def tab_to(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            if desk.page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
            keys.press(key)
        raise AssertionError(f"{selector} is not reached")

    keys.press("Tab")
    assert desk.page.evaluate("document.activeElement.className") == "skip"
    keys.press("Enter")
    tab_to("#prompt")
    keys.press("Control+A")
    keys.type("work hurts")
    keys.press("Enter")
    wait_until(lambda: desk.text == desk.generated("work hurts")["text"], "a draft of what was typed")
    desk.page.evaluate("document.activeElement.blur()")
    tab_to(".pad-point")
    assert desk.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
    before = desk.weights
    keys.press("ArrowUp")
    assert desk.weights == pytest.approx([before[0] + 0.02, before[1] - 0.01, before[2] - 0.01], abs=2e-4)
    keys.press("Shift+ArrowLeft")
    assert desk.weights == pytest.approx([before[0] + 0.02, before[1] + 0.09, before[2] - 0.11], abs=2e-4)
    keys.press("3")
    assert desk.weights == [0.0, 0.0, 1.0]
    keys.press("ArrowDown")
    assert sum(desk.weights) == pytest.approx(1.0), "the edge holds"
    assert "fluency 1.00" in desk.page.locator(".pad-point").get_attribute("aria-valuetext")
    wait_until(
        lambda: desk.text == desk.generated("work hurts", profile="fluency")["text"], "the text follows keys too"
    )
    tab_to(".map-panel select")
    keys.press("Home")
    keys.press("ArrowDown")  # past the exact borders, to the smallest grid
    tab_to(".map-panel .row button:first-child", "Shift+Tab")  # "Hide" is between, if the map has drawn itself
    keys.press("Enter")
    desk.page.get_by_text("on 66 points").wait_for()
    tab_to(".region")
    keys.press("ArrowDown")
    assert desk.page.locator(".cell.lit").count() > 0
    keys.press("Enter")
    second = desk.page.locator(".region-text").nth(1).text_content()
    wait_until(lambda: desk.text == second, "the region is taken")
    desk.wait_done()
    with desk.page.expect_download():
        tab_to("#draft-actions button:nth-child(3)")
        keys.press("Enter")
    tab_to("[role=tab]")
    keys.press("ArrowRight")
    assert "urllib" in desk.page.locator("#snippet-panel").inner_text()
    tab_to(".draft", "Shift+Tab")
    keys.press("ArrowRight")
    assert desk.page.get_by_role("tooltip").is_visible()


def test_two_objectives_have_a_line_with_every_text_on_it(open_page: Open) -> None:
    with live(Settings(port=0), fake_ensemble(("reflection", "empathy"))) as server:
        desk = open_page(server.url)
        desk.option("Most tokens", "4")
        desk.write(PROMPT)
        desk.page.get_by_text("exactly.").wait_for()  # by itself
        line = {"prompt": PROMPT, "from": {"reflection": 1}, "to": {"empathy": 1}, "max_new_tokens": 4}
        intervals = httpx.post(f"{server.url}/sweep/line", json=line).json()["intervals"]
        listed = desk.page.locator(".region")
        assert listed.count() == len(intervals) > 2
        for i, each in enumerate(intervals):
            assert listed.nth(i).locator(".region-text").text_content() == each["text"]
            assert f"{each['start']:.4f} – {each['end']:.4f}" in listed.nth(i).inner_text()
        listed.nth(1).click()
        assert intervals[1]["start"] < desk.weights[1] < intervals[1]["end"]
        wait_until(lambda: desk.text == intervals[1]["text"], "its text is written")
        assert desk.page.locator(".piece").count() == len(intervals)
        desk.page.locator(".line input").press("End")
        assert desk.weights == [0.0, 1.0]
        wait_until(lambda: desk.text == intervals[-1]["text"], "the end's text is written")
        desk.shoot("line")
        assert desk.axe() == []
        desk.option("Temperature", "0.5")
        assert desk.button("Find them anew").is_disabled()


def test_five_objectives_have_linked_sliders(open_page: Open) -> None:
    names = ("reflection", "empathy", "fluency", "hope", "brevity")
    with live(Settings(port=0), fake_ensemble(names)) as server:
        desk = open_page(server.url)
        assert desk.page.locator(".pad").count() == 0
        slider = desk.page.get_by_label("hope, slider")
        slider.fill("0.6")
        assert desk.weights == pytest.approx([0.1, 0.1, 0.1, 0.6, 0.1])
        slider.press("ArrowRight")
        assert desk.weights == pytest.approx([0.0975, 0.0975, 0.0975, 0.61, 0.0975])
        slider.press("End")
        assert desk.weights == [0, 0, 0, 1, 0]
        prompt = desk.page.locator("#prompt").input_value()
        wait_until(lambda: desk.text == desk.generated(prompt, weights={"hope": 1})["text"], "the text follows")
        desk.wait_done()
        desk.shoot("sliders")
        assert desk.axe() == []


def test_one_objective_is_steered_against_the_bare_model(open_page: Open) -> None:
    with live(Settings(port=0), fake_ensemble(("empathy",))) as server:
        desk = open_page(server.url)
        desk.page.locator(".line input").press("Home")
        assert desk.weights == [1.0, 0.0]
        prompt = desk.page.locator("#prompt").input_value()
        wait_until(lambda: desk.text == desk.generated(prompt, weights={"base": 1})["text"], "the text is the base's")


def test_nothing_moves_where_less_motion_is_asked_for(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).transitionDuration !== '0s').length"
    assert desk.page.evaluate(moving) > 0
    desk.page.emulate_media(reduced_motion="reduce")
    assert desk.page.evaluate(moving) == 0


def test_a_person_is_told_to_review(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    assert desk.page.get_by_text("A person reviews it before use.").is_visible()
