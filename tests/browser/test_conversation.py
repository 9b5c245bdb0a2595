"""A bundle with chat: turns, a system prompt, and what the page asks with them is what the server answers to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from emorl_core.bundles.bundle import ChatSpec, ObjectiveSpec, PromptSpec
from emorl_core.bundles.profiles import ProfileSpec
from emorl_core.fake import fake_ensemble
from server.serving.receipt import Receipt
from server.settings import Settings
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.chats import tiny_chat_bundle
from tests.http.harness import Live, live, wait_until

pytestmark = pytest.mark.browser
SYSTEM = "You are a counselor."
FIRST, SECOND = "I feel tired of work", "and worried about family"


@pytest.fixture(scope="module")
def chat() -> Iterator[Live]:
    ensemble = fake_ensemble(encoder=False, chat=ChatSpec(system=SYSTEM), max_source_tokens=4096)
    with live(Settings(port=0), ensemble) as running:
        yield running


def said(*contents: str) -> list[dict[str, str]]:
    """Turns that begin with the client's."""
    return [{"role": "assistant" if i % 2 else "user", "content": each} for i, each in enumerate(contents)]


def settle(desk: Desk, text: str) -> None:
    wait_until(lambda: desk.text == text, "the text of this conversation")
    desk.wait_done()


def turns(desk: Desk) -> list[str]:
    return [each.text_content() for each in desk.page.locator(".turn-text").all()]


def hold(desk: Desk) -> str:
    """Say the first thing, take the draft of it, say the second; gives the draft that was taken."""
    desk.write(FIRST)
    first = desk.text
    desk.button("Use this reply").click()
    desk.write(SECOND)
    return first


def test_the_first_view_is_a_finished_tinted_reply(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    opening = desk.page.locator("#prompt").input_value()
    assert desk.text == desk.answered(messages=said(opening))["text"]
    assert desk.page.locator('.token[class*="lane-"]').count() > 3
    assert desk.page.locator("#talk-title").inner_text() == "Conversation"
    assert desk.page.locator(".loading").is_hidden()


def test_a_draft_that_is_taken_becomes_a_turn_and_the_next_one_knows_it(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    first = hold(desk)
    assert turns(desk) == [FIRST, first]
    assert desk.text == desk.answered(messages=said(FIRST, first, SECOND))["text"]
    assert desk.text != desk.answered(messages=said(SECOND))["text"], "a model that forgets would prove nothing"
    assert "as drafted" in desk.page.locator(".turns").inner_text()
    desk.shoot("conversation", whole=True)


def test_after_a_draft_is_taken_nothing_is_drafted_until_the_client_speaks(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    desk.write(FIRST)
    desk.button("Use this reply").click()
    assert desk.page.locator("#prompt").input_value() == ""
    assert desk.page.locator("#prompt").evaluate("(area) => area === document.activeElement")
    assert desk.page.get_by_text("Type what the client says next").is_visible()
    assert desk.page.locator(".draft").is_hidden()
    assert desk.button("Use this reply").is_disabled()


def test_turns_can_be_changed_and_the_draft_follows(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    first = hold(desk)
    desk.button("Edit turn 2").click()
    area = desk.page.get_by_label("Turn 2, Counselor")
    assert area.input_value() == first
    area.fill("You feel alone.")
    area.press("Enter")
    settle(desk, desk.answered(messages=said(FIRST, "You feel alone.", SECOND))["text"])
    assert "edited" in desk.page.locator(".turns").inner_text()
    desk.button("Edit turn 1").click()
    desk.page.get_by_label("Turn 1, Client").press("Escape")
    assert turns(desk) == [FIRST, "You feel alone."]
    assert desk.button("Edit turn 1").evaluate("(button) => button === document.activeElement")


def test_a_draft_can_be_edited_as_it_is_taken(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    desk.write(FIRST)
    desk.button("Edit first").click()
    desk.page.get_by_label("Turn 2, Counselor").fill("You are tired.")
    desk.button("Save").click()
    desk.write(SECOND)
    assert desk.text == desk.answered(messages=said(FIRST, "You are tired.", SECOND))["text"]


def test_the_last_exchange_can_be_taken_back_and_all_of_it_left_and_brought_back(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    first = hold(desk)
    desk.button("Start over").click()
    assert turns(desk) == []
    assert desk.page.locator(".draft").is_hidden()
    desk.button("Bring it back").click()
    assert turns(desk) == [FIRST, first]
    assert desk.page.locator("#prompt").input_value() == SECOND
    desk.button("Take back").click()
    assert turns(desk) == []
    assert desk.page.locator("#prompt").input_value() == FIRST
    settle(desk, first)


def test_an_example_may_be_a_conversation(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    desk.button("a conversation").click()
    before = turns(desk)
    assert len(before) == 2
    prompt = desk.page.locator("#prompt").input_value()
    settle(desk, desk.answered(messages=said(*before, prompt))["text"])
    desk.button("nights").click()
    assert turns(desk) == []


def test_the_system_prompt_is_the_bundles_until_it_is_changed(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    desk.write(FIRST)
    own = desk.text
    desk.page.locator("#system summary").click()
    area = desk.page.locator("#system-text")
    assert area.input_value() == SYSTEM
    assert SYSTEM not in desk.page.locator("#snippet-panel").inner_text(), "the bundle's own is not sent"
    for words in ("Be brief.", ""):
        area.fill(words)
        area.blur()
        told = [{"role": "system", "content": words}, *said(FIRST)]
        settle(desk, desk.answered(messages=told)["text"])
        assert json.dumps(words) in desk.page.locator("#snippet-panel").inner_text()
    assert desk.text != own
    desk.button("Back to the bundle's own").click()
    settle(desk, own)


def test_the_map_is_of_the_conversation(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    desk.option("Most tokens", "2")
    first = hold(desk)
    with desk.page.expect_request(lambda request: request.url.endswith("/sweep")) as sweep:
        desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for()
    assert sweep.value.post_data_json["messages"] == said(FIRST, first, SECOND)
    assert "prompts" not in sweep.value.post_data_json
    listed = [each.text_content() for each in desk.page.locator(".region-text").all()]
    assert desk.text in listed
    desk.button("Edit turn 2").click()
    desk.page.get_by_label("Turn 2, Counselor").fill("No.")
    desk.button("Save").click()
    desk.page.get_by_text("This map is of another prompt").wait_for()


def test_drafts_of_a_conversation_are_exported_with_it(chat: Live, open_page: Open) -> None:
    desk = open_page(chat.url)
    first = hold(desk)
    with desk.page.expect_download() as download:
        desk.button("Export JSON").click()
    (draft,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["drafts"]
    assert draft["request"]["messages"] == said(FIRST, first, SECOND)
    receipt = Receipt.model_validate(draft["receipt"])
    assert (receipt.damage(), receipt.text) == ([], desk.text)
    with desk.page.expect_download() as download:
        desk.button("Export Markdown").click()
    markdown = Path(download.value.path()).read_text(encoding="utf-8")
    assert markdown.index(FIRST) < markdown.index("What the counselor said") < markdown.index(SECOND)
    desk.button("Pin to compare").click()
    assert "after 2 turns" in desk.page.locator(".pin").inner_text()
    assert SECOND in desk.page.locator(".pin").inner_text()
    desk.button("Copy the conversation").click()
    copied = desk.page.evaluate("navigator.clipboard.readText()")
    assert copied == f"Client: {FIRST}\n\nCounselor: {first}\n\nClient: {SECOND}"


@pytest.mark.parametrize("name", ["curl", "Python", "OpenAI client"])
def test_snippets_hold_the_conversation_and_run(chat: Live, open_page: Open, name: str) -> None:
    desk = open_page(chat.url)
    desk.option("Repetition penalty", "1.3")
    desk.option("Frequency penalty", "0.4")
    desk.option("Most tokens", "9")
    desk.page.get_by_label("Weight of reflection").fill("0.7")
    desk.page.get_by_label("Weight of reflection").blur()
    hold(desk)
    desk.write('He said "go": now, {"a":"b","c":1} it\'s $HOME')
    desk.page.get_by_role("tab", name=name).click()
    snippet = desk.page.locator("#snippet-panel").text_content()
    command = ["bash", "-c", snippet] if name == "curl" else [sys.executable, "-c", snippet]
    environment = {**os.environ, "PYTHONUTF8": "1", "no_proxy": "*"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    text = json.loads(ran.stdout)["text"] if name == "curl" else ran.stdout.removesuffix("\n")
    assert text == desk.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious_in_a_conversation(chat: Live, open_page: Open, scheme: str, width: int) -> None:
    desk = open_page(chat.url, width=width, height=844, scheme=scheme)
    hold(desk)
    desk.page.locator("#system summary").click()
    desk.page.locator("#system-text").fill("Be brief.")
    desk.page.locator("#system-text").blur()
    desk.wait_done()
    desk.button("Edit turn 2").click()
    assert desk.axe() == []
    desk.button("Cancel").click()
    desk.button("Use this reply").click()
    assert desk.axe() == [], "with nothing drafted"
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
    desk.shoot(f"conversation-{scheme}-{width}", whole=True)


def test_objectives_made_of_sentences_have_their_corners(tmp_path: Path, open_page: Open) -> None:
    """A real, tiny chat model: one adapter and two sentences make a triangle, and a draft is the server's own."""
    names = {"one": 0.5, "warm": 0.3, "brief": 0.2}
    bundle = tiny_chat_bundle(
        tmp_path,
        context=1024,
        objectives={
            "one": ObjectiveSpec(adapter="adapters/one"),
            "warm": ObjectiveSpec(prompt=PromptSpec(system="Be warm.")),
            "brief": ObjectiveSpec(prompt=PromptSpec(system="Be brief.")),
        },
        profiles={"mixed": ProfileSpec(weights=names)},
        default_profile="mixed",
    )
    with live(Settings(port=0, bundle=str(bundle), dtype="float32", device="cpu")) as server:
        desk = open_page(server.url)
        assert desk.weights == list(names.values())
        desk.option("Most tokens", "6")
        desk.write(FIRST)
        first = desk.text
        assert first == desk.answered(messages=said(FIRST), max_new_tokens=6)["text"]
        desk.page.mouse.click(*desk.pad_place((0, 1, 0)))
        settle(desk, desk.answered(messages=said(FIRST), max_new_tokens=6, weights={"warm": 1})["text"])


def test_a_bundle_without_chat_has_no_turns(open_page: Open) -> None:
    with live(Settings(port=0)) as server:
        desk = open_page(server.url)
        assert desk.page.locator("#system").is_hidden()
        assert desk.button("Use this reply").count() == 0
        assert desk.page.locator("#talk-title").inner_text() == "What the client said"
        facts: dict[str, Any] = httpx.get(f"{server.url}/info").json()
        assert facts["chat"] is None
