"""The page as a person uses it: what the browser tests say instead of selectors."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import httpx

SCREENSHOTS = Path(__file__).parents[2] / "runs" / "screenshots"


class Desk:
    """One open page."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url

    # --- looking -----------------------------------------------------------------------------------------------------

    def wait_done(self, timeout_s: float = 60) -> None:
        """Until a draft is whole and nothing more is asked for."""
        from playwright.sync_api import expect

        expect(self.page.locator("#status")).to_contain_text("token", timeout=timeout_s * 1000)
        expect(self.button("Pin to compare")).to_be_enabled(timeout=timeout_s * 1000)

    @property
    def text(self) -> str:
        """The draft's, as it can be selected."""
        found: str = self.page.locator(".draft").evaluate("(draft) => draft.textContent")
        return found

    @property
    def weights(self) -> list[float]:
        return [float(each.input_value()) for each in self.page.locator(".weight input[type=number]").all()]

    def button(self, name: str, *, exact: bool = True) -> Any:
        return self.page.get_by_role("button", name=name, exact=exact)

    @property
    def trouble(self) -> Any:
        return self.page.locator("#trouble")

    def generated(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """What the server answers to the same prompt without the page."""
        return self.answered(prompt=prompt, **fields)

    def answered(self, **body: Any) -> dict[str, Any]:
        """What the server answers to the same request without the page."""
        answer = httpx.post(f"{self.url}/generate", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    # --- doing -------------------------------------------------------------------------------------------------------

    def write(self, prompt: str) -> None:
        """Type a prompt and ask for a draft, as keys do it; waits for its end."""
        self.page.locator("#prompt").fill(prompt)
        with self.page.expect_response(lambda response: response.url.endswith("/generate")):
            self.page.locator("#prompt").press("Enter")
        self.wait_done()

    def draw_map(self, points: str = "exact") -> None:
        """Ask for a map with exact borders, or of a grid with so many steps; one may be there or on its way."""
        self.page.get_by_label("Points of the map").select_option(points)
        self.page.get_by_role("button", name=re.compile("^(Draw the map|Draw it finer|Redraw)$")).click()

    def option(self, label: str, value: str) -> None:
        """Set one of the sampling options."""
        if not self.page.get_by_label(label).is_visible():
            self.page.locator("#sampling summary").click()
        self.page.get_by_label(label).fill(value)
        self.page.get_by_label(label).blur()

    def pad_place(self, weights: tuple[float, float, float]) -> tuple[float, float]:
        """Where on the screen these weights lie."""
        corners = [self.page.locator(".pad-corner").nth(i).bounding_box() for i in range(3)]
        centres = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in corners]
        x = sum(w * c[0] for w, c in zip(weights, centres, strict=True))
        y = sum(w * c[1] for w, c in zip(weights, centres, strict=True))
        return x, y

    def axe(self) -> list[str]:
        """Serious and critical violations that axe-core finds."""
        found = importlib.util.find_spec("axe_playwright_python")
        assert found is not None, "axe-playwright-python is in the dev extras"
        assert found.origin is not None
        source = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
        self.page.emulate_media(reduced_motion="reduce")  # half-way through a change of colour the contrast is another
        self.page.evaluate(source)
        result = self.page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
        return [
            f"{each['id']} ({each['impact']}): {each['help']}: {[node['target'] for node in each['nodes']][:3]}"
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
        ]

    def shoot(self, name: str, *, whole: bool = False) -> None:
        """A picture for people who look at a run; nothing compares it."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)
