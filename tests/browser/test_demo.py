"""One journey over a bundle that the demo's own builder made: the one in the cache where there is one, else a tiny one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from emorl_cli.demo.demo import tiny_folder
from server.serving.receipt import Receipt
from server.settings import Settings
from tests.browser.conftest import Open
from tests.http.harness import Live, live, wait_until
from tests.learn.test_demo import MICRO
from training.pipeline.demo import build_demo

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tiny_folder()
    if not folder.exists():
        folder = build_demo(tmp_path_factory.mktemp("demo") / "bundle", settings=MICRO, device="cpu", threads=1)
    with live(Settings(port=0, bundle=str(folder), device="cpu", dtype="float32")) as running:
        yield running


def test_a_journey_over_the_demo(demo: Live, open_page: Open) -> None:
    desk = open_page(demo.url)
    assert "counselor-demo" in desk.page.locator("#served").inner_text()
    desk.page.locator(".examples").get_by_role("button", name="drinking").click()
    prompt = desk.page.locator("#prompt").input_value()
    wait_until(lambda: desk.text == desk.generated(prompt)["text"], "the default profile's draft")
    desk.wait_done()
    desk.button("Pin to compare").click()
    mouse = desk.page.mouse
    mouse.move(*desk.pad_place((0.4, 0.4, 0.2)))
    mouse.down()
    mouse.move(*desk.pad_place((0.6, 0.2, 0.2)), steps=4)
    mouse.move(*desk.pad_place((1.0, 0.0, 0.0)), steps=4)
    mouse.up()
    reflection = desk.generated(prompt, weights={"reflection": 1.0})["text"]
    wait_until(lambda: desk.text == reflection, "the corner's text")
    desk.wait_done()
    desk.draw_map("10")
    desk.page.get_by_text("on 66 points").wait_for(timeout=60_000)
    assert reflection in [each.text_content() for each in desk.page.locator(".region-text").all()]
    desk.button("Pin to compare").click()
    desk.shoot("demo", whole=True)
    with desk.page.expect_download() as download:
        desk.button("Export JSON").click()
    (draft,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["drafts"]
    receipt = Receipt.model_validate(draft["receipt"])
    assert receipt.damage() == []
    assert receipt.text == reflection
    assert set(receipt.identity.adapters) == {"reflection", "empathy", "fluency"}
