"""Type, drag, stream, tint, map: what the page shows is what the server says for the same weights."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from emorl_core.fake import fake_ensemble
from server.settings import Settings
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.http.harness import PROMPT, Live, idle, live, wait_until

pytestmark = pytest.mark.browser
NAMES = ("reflection", "empathy", "fluency")


def by_name(weights: list[float]) -> dict[str, float]:
    return {name: weight for name, weight in zip(NAMES, weights, strict=True) if weight}


def test_a_typed_prompt_becomes_the_servers_own_text(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    assert desk.text == desk.generated(PROMPT)["text"]
    assert desk.weights == pytest.approx([1 / 3] * 3, abs=1e-4)
    assert desk.button("balanced").get_attribute("aria-pressed") == "true"


def test_typing_alone_is_followed_after_a_pause(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    with desk.page.expect_response(lambda response: response.url.endswith("/generate")):
        desk.page.locator("#prompt").fill("work hurts")
    desk.wait_done()
    assert desk.text == desk.generated("work hurts")["text"]


def test_the_text_follows_the_dragged_point_and_what_ran_is_cancelled(open_page: Open) -> None:
    """Fails when a drag lets requests pile up: each move must end the one before it on the server too."""
    with live(Settings(port=0, max_new_tokens=64), fake_ensemble(mean_length=25)) as server:
        desk = open_page(server.url)
        desk.write(PROMPT)
        desk.wait_done()
        server.model.step_delay_s = 0.3  # no draft ends by itself before the next move
        mouse = desk.page.mouse
        mouse.move(*desk.pad_place((1 / 3, 1 / 3, 1 / 3)))
        mouse.down()
        for step in range(1, 5):
            hits = server.service.reading().prefill_hits
            mouse.move(*desk.pad_place((1 / 3 + step / 6, (2 / 3 - step / 6) / 2, (2 / 3 - step / 6) / 2)))
            wait_until(lambda before=hits: server.service.reading().prefill_hits > before, "its draft runs")  # type: ignore[misc]
        desk.page.locator("#stop").wait_for()  # it streams while the point moves
        mouse.move(desk.pad_place((1, 0, 0))[0], 5)  # far outside: the nearest point of the pad
        mouse.up()
        server.model.step_delay_s = 0.02
        wait_until(lambda: desk.weights == [1.0, 0.0, 0.0], "the point is in the corner")
        desk.wait_done()
        wait_until(lambda: idle(server), "nothing is left running")
        assert desk.text == desk.generated(PROMPT, weights={"reflection": 1.0})["text"]
        metrics = httpx.get(f"{server.url}/metrics").text
        cancelled = next(
            line for line in metrics.splitlines()
            if line.startswith("emorl_requests_total") and 'outcome="cancelled"' in line and '"/generate"' in line
        )  # fmt: skip
        assert float(cancelled.split()[-1]) >= 3
        assert server.service.reading().prefill_hits > server.service.reading().prefill_misses


def test_a_draft_can_be_stopped(open_page: Open) -> None:
    with live(Settings(port=0), fake_ensemble(step_delay_s=0.05, mean_length=40)) as server:
        desk = open_page(server.url, ready=False)
        desk.page.locator(".token").nth(2).wait_for()
        desk.button("Stop").click()
        assert "not the whole text" in desk.page.locator("#status").inner_text()
        assert desk.button("Pin to compare").is_disabled()
        wait_until(lambda: idle(server), "the server has stopped too")


def test_numbers_are_exact_and_linked(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.page.get_by_label("Weight of reflection").fill("0.85")
    desk.page.get_by_label("Weight of reflection").press("Enter")
    assert desk.weights == pytest.approx([0.85, 0.075, 0.075])
    desk.page.get_by_label("Weight of fluency").fill("0")
    desk.page.get_by_label("Weight of fluency").blur()
    assert desk.weights == pytest.approx([0.9189, 0.0811, 0.0], abs=1e-4)
    assert sum(desk.weights) == pytest.approx(1.0)
    desk.wait_done()
    prompt = desk.page.locator("#prompt").input_value()
    wait_until(lambda: desk.text == desk.generated(prompt, weights=by_name(desk.weights))["text"], "the text follows")


def test_profiles_are_named_points(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.page.mouse.click(*desk.pad_place((0, 0, 1)))  # where the profile `fluency` lies
    assert desk.weights == [0.0, 0.0, 1.0]
    assert desk.button("fluency").get_attribute("aria-pressed") == "true"
    assert '"profile": "fluency"' in desk.page.locator("#snippet-panel").inner_text()
    desk.button("balanced").click()
    assert desk.weights == pytest.approx([1 / 3] * 3, abs=1e-4)


def verdicts(tokens: list[dict[str, Any]]) -> list[str | None]:
    """The objective with the largest part of each token, where one spoke for it."""
    best = [max(token["attribution"].items(), key=lambda part: part[1]) for token in tokens]
    return [name if part > 0 else None for name, part in best]


def tinted(desk: Desk) -> list[str | None]:
    classes = [each.get_attribute("class").split() for each in desk.page.locator(".token").all()]
    return [next((NAMES[int(c[5:])] for c in each if c.startswith("lane-")), None) for each in classes]


def test_tokens_are_tinted_by_the_objective_that_tipped_them_and_the_shares_add_up(
    server: Live, open_page: Open
) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    tokens = desk.generated(PROMPT, attribution=True)["tokens"]
    expected = verdicts(tokens)
    assert tinted(desk) == expected
    assert len(set(expected)) > 1, "a text of one tint would prove little"
    shares = dict.fromkeys(NAMES, 0.0)
    for token in tokens:
        spoke = {name: max(part, 0.0) for name, part in token["attribution"].items()}
        for name in NAMES:
            shares[name] += spoke[name] / sum(spoke.values()) / len(tokens)
    for item, name in zip(desk.page.locator(".legend li").all(), NAMES, strict=True):
        assert f"33 % asked, {shares[name] * 100:.0f} % tipped" in item.inner_text()


def test_the_tooltip_has_the_exact_parts_by_mouse_and_by_keys(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    tokens = desk.generated(PROMPT, attribution=True)["tokens"]
    tooltip = desk.page.get_by_role("tooltip")

    def check(index: int) -> None:
        shown = tooltip.inner_text()
        parts = tokens[index]["attribution"]
        for value in (*parts.values(), sum(parts.values())):
            assert f"{'−' if value < 0 else '+'}{abs(value):.3f}" in shown

    desk.page.locator(".token").nth(2).hover()
    check(2)
    desk.page.mouse.move(5, 5)
    assert tooltip.count() == 0, "it goes with the mouse"
    desk.page.locator("#sampling summary").focus()
    desk.page.keyboard.press("Tab")
    assert desk.page.locator(".draft").evaluate("(draft) => draft === document.activeElement")
    check(0)
    desk.page.keyboard.press("ArrowRight")
    check(1)
    desk.page.keyboard.press("End")
    check(len(tokens) - 1)
    desk.page.keyboard.press("Escape")
    assert tooltip.count() == 0


def test_the_map_has_a_region_for_every_text_and_a_click_takes_it(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    desk.option("Most tokens", "2")  # so short, the fake model gives one text to many weights
    with desk.page.expect_response(lambda response: response.url.endswith("/sweep")) as sweep:
        desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for()
    assert len(sweep.value.request.post_data_json["weights"]) == 66, "one sweep"
    answer = httpx.post(
        f"{server.url}/sweep", json={"prompts": [PROMPT], "resolution": 10, "max_new_tokens": 2}, timeout=60
    ).json()
    texts = {found["text"] for found in answer["results"][0]}
    listed = [each.text_content() for each in desk.page.locator(".region-text").all()]
    assert (set(listed), len(listed)) == (texts, len(texts))
    assert 3 < len(texts) < 40
    assert desk.page.locator(".cell").count() == 66
    by_place = {
        tuple(round(10 * answer["weights"][i][name]) for name in NAMES): found["text"]
        for found in answer["results"][0]
        for i in found["weights"]
    }
    desk.page.mouse.move(*desk.pad_place((0.2, 0.5, 0.3)))
    assert by_place[2, 5, 3] in desk.page.locator(".peek").text_content()
    desk.page.mouse.click(*desk.pad_place((0.61, 0.09, 0.3)))
    assert desk.weights == [0.6, 0.1, 0.3], "the point goes to the cell whose text was shown"
    desk.wait_done()
    wait_until(lambda: desk.text == by_place[6, 1, 3], "that text is taken")
    desk.page.locator(".region").nth(1).click()
    wait_until(lambda: desk.text == listed[1], "the list takes it too")
    desk.shoot("map")
    desk.write("work hurts")
    assert "another prompt" in desk.page.locator(".map-panel").inner_text()
    desk.button("Hide").click()
    assert desk.page.locator(".cell").count() == 0


def test_sampling_options_reach_the_request(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    desk.option("Temperature", "0.9")
    desk.wait_done()
    desk.button("Keep this draft's seed").click()
    seed = int(desk.page.get_by_label("Seed").input_value())
    desk.option("Most tokens", "5")
    expected = desk.generated(PROMPT, temperature=0.9, seed=seed, max_new_tokens=5)["text"]
    wait_until(lambda: desk.text == expected, "the text is that of the seed")
    desk.wait_done()
    assert "cut at the most tokens" in desk.page.locator("#status").inner_text()
