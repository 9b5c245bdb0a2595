"""The page behind a proxy that serves it under a path: all of it works from there."""

from __future__ import annotations

from typing import Any

import pytest

from server.settings import load_settings
from tests.browser.conftest import Open
from tests.http.harness import PROMPT, Proxy, live, wait_until

pytestmark = pytest.mark.browser
PREFIX = "/ward/emorl"


@pytest.mark.parametrize(
    ("root_path", "strips", "slash"),
    [(PREFIX, False, ""), (PREFIX, True, ""), ("", True, "/")],
    ids=["left on", "taken off", "taken off, without the setting"],
)
def test_the_page_works_under_a_prefix(open_page: Open, root_path: str, strips: bool, slash: str) -> None:
    def proxy(app: Any) -> Proxy:
        return Proxy(app, PREFIX, strips=strips)

    with live(load_settings(port=0, root_path=root_path), behind=proxy) as server:
        home = f"{server.url}{PREFIX}"
        desk = open_page(home + slash)
        desk.url = home
        assert desk.page.url == f"{home}/"
        desk.write(PROMPT)
        assert desk.text == desk.generated(PROMPT)["text"]
        assert desk.page.locator(".mark img").evaluate("(image) => image.naturalWidth") > 0
        desk.option("Most tokens", "3")
        desk.wait_done()
        desk.draw_map("10")
        desk.page.get_by_text("on 66 points").wait_for()
        snippet = desk.page.locator("#snippet-panel")
        assert f"curl -s {home}/generate" in snippet.inner_text()
        desk.page.get_by_role("tab", name="OpenAI client").click()
        wait_until(lambda: f'base_url="{home}/v1"' in snippet.inner_text(), "the snippet names the prefix too")
