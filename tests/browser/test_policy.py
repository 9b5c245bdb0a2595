"""Where the server's policy has no draft written, the page says so plainly, and shows no draft."""

from __future__ import annotations

import pytest

from server.policy.loading import CRISIS_CUES
from server.settings import Settings
from tests.browser.conftest import Open, Watch
from tests.http.harness import PROMPT, live

pytestmark = pytest.mark.browser


def test_words_of_danger_get_a_plain_notice_and_no_draft(open_page: Open, watch: Watch) -> None:
    watch.allowed.append("status of 422")
    with live(Settings(port=0, policy=CRISIS_CUES, policy_timeout_s=60)) as server:
        desk = open_page(server.url)
        desk.page.locator("#prompt").fill("I want to kill myself tonight.")
        desk.page.locator("#prompt").press("Enter")
        notice = desk.page.locator(".refusal")
        notice.get_by_text("No draft was written").wait_for()
        assert "emergency number" in notice.inner_text()
        assert notice.get_by_role("link", name="Before clinical use").get_attribute("href") == (
            "playground/clinical-use.html"
        )
        assert desk.text == ""
        assert desk.page.locator(".loading").is_hidden()
        assert desk.trouble.is_hidden(), "nothing is broken"
        for name in ("Pin to compare", "Copy the text"):
            assert desk.button(name).is_disabled()
        assert desk.axe() == []
        desk.shoot("not-drafted")
        desk.write(PROMPT)
        assert notice.is_hidden()
        assert desk.text == desk.generated(PROMPT, profile="balanced")["text"]


def test_drafts_to_choose_from_leave_no_notice_behind_when_other_words_are_asked_about(
    open_page: Open, watch: Watch
) -> None:
    """It stood over the whole page and stayed there, over an empty prompt and over the next draft."""
    watch.allowed.append("status of 422")
    with live(Settings(port=0, policy=CRISIS_CUES, policy_timeout_s=60)) as server:
        desk = open_page(server.url)
        notice = desk.page.locator(".refusal")
        for mode in ("Three drafts", "Each objective alone"):
            desk.page.locator("#prompt").fill("I want to kill myself tonight.")
            desk.page.locator("#prompt").press("Enter")
            notice.get_by_text("No draft was written").wait_for()
            desk.button(mode).click()
            desk.page.locator("#choose").get_by_text("No draft was written").wait_for()
            assert desk.trouble.is_hidden(), "it is said once"
            assert desk.page.locator("#choose .card").count() == 0
            desk.button("Draw the map").click()
            desk.page.locator("#prompt").fill("")
            notice.wait_for(state="hidden")
            assert desk.trouble.is_hidden()
            desk.button("Ask again").click()
            desk.page.locator("#choose").get_by_text("type what the client said").wait_for()
            assert desk.page.locator("#choose .card").count() == 0, "none of it waits for a text"
            desk.write(PROMPT)
            assert desk.trouble.is_hidden()
        desk.page.get_by_label("fluency", exact=True).locator(".card-text").get_by_text("…", exact=True).wait_for(
            state="hidden"
        )
