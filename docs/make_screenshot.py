"""`python docs/make_screenshot.py`: the README's picture, docs/assets/playground.png, from the real page on the demo.

Needs Chromium and the development packages. Builds the demo bundle first where there is none.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from emorl_cli.console.progress import Stages  # noqa: E402
from emorl_cli.demo.bundle import default_folder, make  # noqa: E402
from server.app import create_app  # noqa: E402
from server.run import make_server  # noqa: E402
from server.settings import Settings  # noqa: E402

PICTURE = ROOT / "docs" / "assets" / "playground.png"
LARGEST_BYTES = 200_000
SIZE = {"width": 1280, "height": 860}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=default_folder(), help="bundle to show (default: the demo)")
    parser.add_argument("--chromium", default="chromium", help="the browser (default: chromium on the PATH)")
    parser.add_argument("--out", type=Path, default=PICTURE)
    args = parser.parse_args()
    bundle = args.bundle
    if not bundle.exists():
        with Stages() as progress:
            make(bundle, progress=progress)
    app = create_app(Settings(bundle=str(bundle), port=0, dtype="float32"))
    server = make_server(app, app.state.service.settings)
    ready = threading.Event()
    app.state.service.on_ready = ready.set
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        if not ready.wait(300):
            raise SystemExit("the server did not become ready within 300 s")
        shoot(server.url, args.chromium, args.out)
    finally:
        server.should_exit = True
        thread.join()
    shrink(args.out)
    size = args.out.stat().st_size
    print(f"{args.out}: {size} bytes")
    return 0 if size < LARGEST_BYTES else 1


def shrink(picture: Path) -> None:
    """Keep 128 colours, a third of the bytes of all."""
    from PIL import Image

    Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(picture, optimize=True)


def shoot(url: str, chromium: str, out: Path) -> None:
    """A prompt, its map, one token explained."""
    import shutil

    from playwright.sync_api import expect, sync_playwright

    out.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which(chromium) or chromium, args=flags)
        page = browser.new_page(viewport=SIZE, color_scheme="light", reduced_motion="reduce")
        page.set_default_timeout(120_000)
        page.goto(url)
        page.get_by_label("Points of the map").select_option("30")
        page.locator(".map-panel button").first.click()  # one with other borders may have been drawn by itself
        expect(page.get_by_text("on 496 points")).to_be_visible(timeout=120_000)
        expect(page.get_by_role("button", name="Pin to compare")).to_be_enabled(timeout=120_000)
        page.locator(".token").nth(6).hover()
        page.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    raise SystemExit(main())
