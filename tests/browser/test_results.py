"""What is taken away from the page: pins, files with receipts, snippets that run. And that no text becomes markup."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.serving.receipt import Receipt
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.http.harness import PROMPT, Live, wait_until

pytestmark = pytest.mark.browser
AWKWARD = """It's "hard" for me & my $HOME `id`; 100 % \\ tired"""
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> *bold* | cell [link](javascript:alert(3))"


def test_pins_stand_side_by_side_with_their_differences_marked(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    assert desk.page.locator("#compare").is_hidden()
    first = desk.text
    desk.button("Pin to compare").click()
    desk.button("empathy").click()
    wait_until(lambda: desk.text == desk.generated(PROMPT, profile="empathy")["text"], "the text follows")
    desk.wait_done()
    second = desk.text
    desk.button("Pin to compare").click()
    cards = desk.page.locator(".pin")
    assert cards.count() == 2
    assert words(cards.nth(0), "del, ins") == []
    for card, before, after in ((cards.nth(1), first, second),):
        kept = card.locator(".pin-text > span")
        assert squeezed(card.locator(".pin-text"), without="del") == "".join(after.split())
        assert squeezed(card.locator(".pin-text"), without="ins") == "".join(before.split())
        assert kept.count() + len(words(card, "del, ins")) >= 2
    cards.nth(1).get_by_role("button", name="Make it the reference").click()
    assert words(cards.nth(1), "del, ins") == []
    assert words(cards.nth(0), "del, ins") != []
    desk.shoot("compare", whole=True)
    cards.nth(0).get_by_role("button", name="Unpin").click()
    desk.button("Unpin all").click()
    assert desk.page.locator("#compare").is_hidden()


def words(card: Any, marks: str) -> list[str]:
    return [each.text_content() for each in card.locator(marks).all()]


def squeezed(text: Any, without: str) -> str:
    """The text of a card without one kind of mark and without spaces."""
    found: str = text.evaluate(
        "(node, without) => [...node.childNodes].filter((n) => n.localName !== without).map((n) => n.textContent).join('')",
        without,
    )
    return "".join(found.split())


def test_the_differences_are_the_shortest_ones(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    run = "([a, b]) => import('/playground/diff.js').then(({ diff }) => diff(a, b))"
    for before, after, expected in (
        ("You feel tired.", "You feel very tired.", [("same", "You feel "), ("new", "very "), ("same", "tired.")]),
        (
            "I can't go",
            "I can go on",
            [("same", "I "), ("gone", "can't "), ("new", "can "), ("same", "go "), ("new", "on")],
        ),
        ("", "a", [("new", "a")]),
        ("a b", "a  b", [("same", "a  b")]),
        ("a", "a", [("same", "a")]),
    ):
        assert [(each["kind"], each["text"]) for each in desk.page.evaluate(run, [before, after])] == expected


def saved(desk: Desk, name: str) -> str:
    with desk.page.expect_download() as download:
        desk.button(name).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def test_the_json_holds_a_receipt_that_fits(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(PROMPT)
    content = json.loads(saved(desk, "Export JSON"))
    assert content["format"] == "emorl-playground/1"
    assert "reviews" in content["notice"]
    (draft,) = content["drafts"]
    receipt = Receipt.model_validate(draft["receipt"])
    assert receipt.damage() == []
    assert (receipt.prompt, receipt.text) == (PROMPT, desk.text)
    assert draft["answer"]["text"] == desk.text == "".join(token["text"] for token in draft["tokens"])
    assert draft["request"] == {"prompt": PROMPT, "profile": "balanced", "max_new_tokens": 64}
    assert all(set(token["attribution"]) == {"reflection", "empathy", "fluency"} for token in draft["tokens"])
    desk.button("Pin to compare").click()
    desk.button("Pin to compare").click()
    assert len(json.loads(saved(desk, "Export all as JSON"))["drafts"]) == 2


@pytest.mark.parametrize(
    ("name", "sampled"), [("curl", False), ("Python", True), ("OpenAI client", False), ("OpenAI client", True)]
)
def test_snippets_run_as_they_are_and_give_the_draft(server: Live, open_page: Open, name: str, sampled: bool) -> None:
    desk = open_page(server.url)
    if sampled:
        desk.page.get_by_label("Weight of reflection").fill("0.7")
        desk.page.get_by_label("Weight of reflection").blur()
        desk.option("Temperature", "0.7")
        desk.option("Seed", "12")
    desk.option("Most tokens", "9")
    desk.write(AWKWARD)
    desk.page.get_by_role("tab", name=name).click()
    desk.page.locator("#snippets").get_by_role("button", name="Copy").click()
    snippet = desk.page.evaluate("navigator.clipboard.readText()")
    assert snippet == desk.page.locator("#snippet-panel").text_content()
    command = ["bash", "-c", snippet] if name == "curl" else [sys.executable, "-c", snippet]
    environment = {**os.environ, "PYTHONUTF8": "1", "no_proxy": "*"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    text = json.loads(ran.stdout)["text"] if name == "curl" else ran.stdout.removesuffix("\n")
    assert text == desk.text


def hostile_stream(route: Any) -> None:
    """An answer whose tokens are markup, as a model could write it."""
    part = {"reflection": 1.0, "empathy": 0.5, "fluency": -0.2}
    tokens = [{"type": "token", "index": i, "id": i, "text": text, "logprob": -0.1, "attribution": part}
              for i, text in enumerate((HOSTILE, " <b>end</b>", ""))]  # fmt: skip
    text = f"{HOSTILE} <b>end</b>"
    done = {"type": "done", "id": "gen-1", "model": "fake", "text": text, "finish_reason": "stop", "profile": None, "seed": 1,
            "weights": {"reflection": 1.0}, "usage": {"completion_tokens": 3}, "timing": {"total_ms": 1.0}, "tokens": None,
            "receipt": None}  # fmt: skip
    events = "".join(f"data: {json.dumps(event)}\n\n" for event in (*tokens, done)) + "data: [DONE]\n\n"
    route.fulfill(status=200, content_type="text/event-stream", body=events)


def test_markup_stays_text_wherever_it_is_shown(server: Live, open_page: Open, watch: Any) -> None:
    desk = open_page(server.url)
    before = desk.page.locator("img, script, b, a, iframe").count()
    desk.page.route("**/generate", hostile_stream)
    desk.write(HOSTILE)
    assert desk.text == f"{HOSTILE} <b>end</b>"
    desk.page.locator(".token").first.hover()
    assert "<img" in desk.page.get_by_role("tooltip").inner_text()
    desk.button("Pin to compare").click()
    desk.button("Pin to compare").click()
    assert desk.page.locator(".pin-prompt").first.inner_text() == HOSTILE
    markdown = saved(desk, "Export Markdown")
    assert "<" not in markdown.replace("\\<", "")
    assert "](javascript" not in markdown
    item = {"type": "item", "prompt": 0, "text": HOSTILE, "finish_reason": "stop", "total": 66}
    told = "".join(f"data: {json.dumps({**item, 'weights': i, 'completed': i + 1})}\n\n" for i in range(66))
    desk.page.route("**/sweep", lambda route: route.fulfill(
        status=200, content_type="text/event-stream", body=f"{told}data: [DONE]\n\n"))  # fmt: skip
    desk.draw_map("10")
    assert desk.page.locator(".region-text").inner_text() == HOSTILE
    refusal = {"error": {"message": HOSTILE, "type": "invalid_request_error", "param": None, "code": "invalid_value"}}
    desk.page.route("**/generate", lambda route: route.fulfill(status=422, json=refusal))
    watch.allowed.append("status of 422")
    desk.button("Write a draft").click()
    desk.trouble.get_by_text("onerror").wait_for()
    assert desk.page.locator("img, script, b, a, iframe").count() == before


def test_a_hostile_prompt_goes_through_the_real_server_unchanged(server: Live, open_page: Open) -> None:
    desk = open_page(server.url)
    desk.write(HOSTILE)
    assert desk.text == desk.generated(HOSTILE)["text"]
    assert json.loads(saved(desk, "Export JSON"))["drafts"][0]["receipt"]["prompt"] == HOSTILE
