"""Drafts to choose from: side by side with their scores, taken, edited or turned down; each objective beside the mix; and
ten pairs that find a person's weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from emorl_core.bundles.bundle import ChatSpec
from emorl_core.choices.record import Choice
from emorl_core.choices.store import ChoiceStore
from emorl_core.ensemble import Ensemble
from emorl_core.fake import fake_ensemble
from emorl_core.scorers import Checked
from server.settings import Settings
from tests.browser.conftest import Open
from tests.browser.desk import Desk
from tests.browser.test_first_time import small
from tests.http.harness import PROMPT, Live, live, wait_until

pytestmark = pytest.mark.browser
TOKENS = 6

OWN_WORDS = """async ([text, others]) => (await import("/playground/differing.js")).ownWords(text, others)"""


def short(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


def broken(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    raise RuntimeError("no")


def scored(**options: Any) -> Ensemble:
    ensemble = fake_ensemble(**options)
    ensemble.scorers = {"empathy": Checked(short), "fluency": Checked(broken)}
    return ensemble


@dataclass
class Keeping:
    """A server of a chat that keeps choices and profiles."""

    live: Live
    store: ChoiceStore

    def kept(self, user: str) -> list[Choice]:
        return self.store.of(user, "fake")


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeping]:
    path = tmp_path_factory.mktemp("choices") / "choices.db"
    settings = Settings(port=0, choices_file=path, learn_profiles=True)
    ensemble = scored(encoder=False, chat=ChatSpec(), max_source_tokens=4096)
    with live(settings, ensemble) as running:
        yield Keeping(running, ChoiceStore(path))


def opened(open_page: Open, url: str, **options: Any) -> Desk:
    desk = open_page(url, **options)
    desk.option("Most tokens", str(TOKENS))
    desk.wait_done()
    return desk


def offered(desk: Desk) -> list[str]:
    """Ask for drafts; their texts."""
    with desk.page.expect_response("**/drafts"):
        desk.button("Three drafts").click()
    desk.page.get_by_text("different texts, best first").wait_for()
    return [each.text_content() for each in desk.page.locator(".card-text").all()]


def test_drafts_stand_side_by_side_with_scores_and_what_differs(keeping: Keeping, open_page: Open) -> None:
    desk = opened(open_page, keeping.live.url)
    prompt = desk.page.locator("#prompt").input_value()
    texts = offered(desk)
    body = {"messages": [{"role": "user", "content": prompt}], "max_new_tokens": TOKENS}
    drafts = httpx.post(f"{keeping.live.url}/drafts", json=body, timeout=60).json()["drafts"]
    assert texts == [draft["text"] for draft in drafts]
    assert len(texts) == 3
    for i, draft in enumerate(drafts):
        card = desk.page.get_by_label(f"Draft {i + 1}", exact=True)
        assert f"{draft['scores']['empathy']:.2f}" in card.locator(".scores").inner_text()
        assert "not scored: the scorer failed" in card.locator(".scores").inner_text()
        assert card.locator("mark").count() > 0
    runs = desk.page.evaluate(
        OWN_WORDS, ["You feel worn out, again.", ["You feel tired, again.", "You seem worn down."]]
    )
    assert [(run["text"], run["own"]) for run in runs] == [
        ("You feel worn ", False),
        ("out", True),
        (", again.", False),
    ], "what another draft has in its place is not marked"
    tops = {round(each.bounding_box()["y"]) for each in desk.page.locator(".card").all()}
    assert len(tops) == 1, "in one row"
    line = desk.page.locator("mark").first.evaluate("(mark) => getComputedStyle(mark).textDecorationLine")
    assert line == "underline", "not by colour alone"
    assert desk.axe() == []
    desk.shoot("drafts")


def test_what_is_taken_edited_or_turned_down_is_the_next_turn_and_is_kept_without_words(
    keeping: Keeping, open_page: Open
) -> None:
    desk = opened(open_page, keeping.live.url)
    desk.page.get_by_label("Your label").fill("ward-3")
    desk.page.get_by_label("Your label").blur()
    texts = offered(desk)
    desk.button("Reject draft 1").click()
    desk.page.get_by_label("Why not draft 1").select_option("less_directive")
    desk.button("Reject it").click()
    desk.page.get_by_text("Recorded for ward-3").wait_for()
    desk.button("Take draft 2").click()
    turns = desk.page.locator(".turn-text")
    assert turns.nth(1).text_content() == texts[1]
    assert "as drafted" in desk.page.locator(".turns").inner_text()
    wait_until(lambda: len(keeping.kept("ward-3")) == 2, "both are on disk")
    rejected, taken = keeping.kept("ward-3")
    assert (rejected.reason, [each.outcome for each in rejected.shown]) == ("less_directive", ["rejected"])
    assert [each.outcome for each in taken.shown] == ["rejected", "taken", "left"]
    assert set(taken.shown[1].scores) == {"empathy"}
    assert desk.button("Take draft 3").count() == 0, "it is settled"

    desk.write("And at night?")
    desk.button("Ask again").click()
    desk.button("Edit draft 1").click()
    area = desk.page.get_by_label("Text of draft 1")
    area.fill("In my own words.")
    desk.button("Save edit").click()
    assert turns.nth(3).text_content() == "In my own words."
    assert "edited" in desk.page.locator(".turns .turn").nth(3).inner_text()
    wait_until(lambda: len(keeping.kept("ward-3")) == 3, "it is on disk")
    assert keeping.kept("ward-3")[2].shown[0].outcome == "edited"
    assert b"own words" not in keeping.store.path.read_bytes()


def test_where_nothing_is_kept_the_buttons_work_and_the_page_says_so(server: Live, open_page: Open) -> None:
    desk = opened(open_page, server.url)
    assert desk.page.get_by_text("This server keeps no choices").is_visible()
    assert desk.page.get_by_label("Your label").count() == 0
    texts = offered(desk)
    assert "Not scored: this bundle has no scorers" in desk.page.locator(".card").first.inner_text()
    desk.button("Reject draft 2").click()
    desk.button("Reject it").click()
    desk.page.get_by_text("Nothing was recorded").wait_for()
    desk.button("Take draft 1").click()
    assert desk.text == texts[0]
    assert desk.page.locator("#status").inner_text() == "Taken from the drafts, as written."
    assert desk.button("Copy the text").is_enabled()
    desk.page.locator("#prompt").fill(PROMPT)
    desk.page.get_by_text("These drafts are of another prompt").wait_for(state="hidden")
    wait_until(lambda: desk.text == desk.generated(PROMPT, max_new_tokens=TOKENS)["text"], "a new prompt, a new draft")


def test_each_objective_stands_beside_the_mix_which_follows_the_point(server: Live, open_page: Open) -> None:
    desk = opened(open_page, server.url)
    desk.write(PROMPT)
    desk.button("Each objective alone").click()

    def alone(**weights: float) -> str:
        text: str = desk.generated(PROMPT, weights=weights, max_new_tokens=TOKENS)["text"]
        return text

    def written(title: str) -> str | None:
        text: str | None = desk.page.get_by_label(title, exact=True).locator(".card-text").text_content()
        return text

    def comes(title: str, expected: str) -> None:
        wait_until(lambda: written(title) == expected, f"the text of {title}")

    for name in ("reflection", "empathy", "fluency"):
        comes(name, alone(**{name: 1.0}))
    for weights in ((0.7, 0.2, 0.1), (0.1, 0.3, 0.6)):
        desk.page.mouse.click(*desk.pad_place(weights))
        desk.wait_done()
        wait_until(lambda: written("The mix") == desk.text, "the mix follows")
    desk.page.locator(".pad-point").press("2")
    desk.page.get_by_text("The mix has the same text as empathy").wait_for()
    assert written("The mix") == alone(empathy=1.0)
    other = "Everything else is heavy"
    desk.write(other)
    comes("fluency", desk.generated(other, weights={"fluency": 1}, max_new_tokens=TOKENS)["text"])


def find(desk: Desk, pairs: int = 10) -> None:
    """Always the one of the two with the longer text."""
    desk.button("Find my weights").click()
    for number in range(1, pairs + 1):
        desk.page.get_by_text(f"Pair {number} of 10").wait_for()
        first, second = desk.page.locator(".card-text").all_text_contents()
        assert first != second
        desk.button("Take A" if len(first) > len(second) else "Take B").click()


def test_ten_pairs_find_a_point_with_its_doubt_and_it_becomes_a_profile(keeping: Keeping, open_page: Open) -> None:
    desk = opened(open_page, keeping.live.url)
    desk.page.get_by_label("Your label").fill("ward-9")
    desk.page.get_by_label("Your label").blur()
    find(desk)
    desk.page.get_by_text("Learned from 10 choices of ward-9.").wait_for()
    assert "null" not in desk.page.locator(".finding").inner_text()
    assert [len(choice.shown) for choice in keeping.kept("ward-9")] == [2] * 10
    answer = httpx.post(f"{keeping.live.url}/profiles/learn", json={"user": "ward-9"}, timeout=60).json()
    outline = desk.page.locator(".doubt-region").get_attribute("points").split()
    assert len(outline) == len(answer["outline"])
    told = desk.page.locator(".finding .legend").inner_text()
    for name, weight in answer["weights"].items():
        assert f"{weight:.2f} ± {answer['deviation'][name]:.2f}" in told
    desk.button("Use this point").click()
    assert desk.weights == pytest.approx(list(answer["weights"].values()), abs=2e-4)
    name, handle = (desk.page.locator(place).bounding_box() for place in (".doubt-name", ".pad-point"))
    beside = name["x"] >= handle["x"] + handle["width"] or name["x"] + name["width"] <= handle["x"]
    above_or_below = name["y"] >= handle["y"] + handle["height"] or name["y"] + name["height"] <= handle["y"]
    assert beside or above_or_below, "the handle does not lie on the name of the point"
    assert desk.axe() == []
    desk.shoot("found-weights", whole=True)
    desk.button("Keep as profile ward-9").click()
    desk.page.locator(".profiles").get_by_role("button", name="ward-9").wait_for()
    desk.page.get_by_text("Kept: requests may say").wait_for()
    body = {"prompt": PROMPT, "profile": "ward-9"}
    assert httpx.post(f"{keeping.live.url}/generate", json=body, timeout=60).json()["profile"] == "ward-9"


def test_answers_that_no_server_keeps_are_learned_from_and_end_in_a_snippet(server: Live, open_page: Open) -> None:
    desk = opened(open_page, server.url)
    find(desk, pairs=2)
    desk.button("Enough: show what is known").click()
    desk.page.get_by_text("Learned from 2 choices.").wait_for()
    assert desk.page.locator(".doubt-region").count() == 1
    desk.page.get_by_text("As a profile in bundle.yaml").click()
    snippet = desk.page.locator(".as-profile pre").inner_text()
    assert snippet.startswith("profiles:")
    assert "choices: 2" in snippet
    desk.button("Take it off the triangle").click()
    assert desk.page.locator(".doubt-region").count() == 0


def test_on_a_phone_the_cards_stand_below_each_other_and_fit_a_finger(keeping: Keeping, open_page: Open) -> None:
    desk = opened(open_page, keeping.live.url, width=390, height=844, scheme="dark")
    offered(desk)
    boxes = [each.bounding_box() for each in desk.page.locator(".card").all()]
    assert len({round(box["x"]) for box in boxes}) == 1
    assert [box["y"] for box in boxes] == sorted({box["y"] for box in boxes})
    desk.button("Reject draft 2").click()
    assert small(desk) == []
    assert desk.axe() == []
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
    desk.button("Find my weights").click()
    desk.page.get_by_text("Pair 1 of 10").wait_for()
    assert small(desk) == []
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= 390
