"""`emorl demo`: makes the demo bundle on first use, serves it, and shows a request to try."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emorl_cli.options import add_example
from emorl_cli.progress import Stages

if TYPE_CHECKING:
    from emorl_core.bundle import BundleSpec

EXAMPLE_PROMPT = "I cannot keep up at work and I feel like a failure."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", default="8000", help="port to listen on (default 8000)")
    parser.add_argument("--folder", type=Path, help="where the bundle is kept (default: a cache folder of yours)")
    parser.add_argument("--rebuild", action="store_true", help="make it anew, whatever is there")
    parser.add_argument("--build-only", action="store_true", help="make the bundle, print its folder, do not serve")
    add_example(parser, "emorl demo", "emorl demo --port 8080", "emorl demo --folder my-demo --build-only")


def run(args: argparse.Namespace) -> int:
    from emorl_cli.serving import check_address, serve
    from emorl_core.bundle import Bundle
    from server.settings import load_settings
    from training.pipeline.demo import build_demo

    folder: Path = args.folder or default_folder()
    settings = load_settings(host=args.host, port=args.port, bundle=str(folder))
    if not args.build_only:
        check_address(settings)
    if args.rebuild or not folder.exists():
        print(f"making the demo bundle in {folder}: a few minutes, once", file=sys.stderr, flush=True)
    with Stages() as progress:
        build_demo(folder, rebuild=args.rebuild, progress=progress)
    if args.build_only:
        print(folder)
        return 0
    spec = Bundle.open(folder).spec

    def ready(url: str) -> None:
        print(f"\nThe demo is ready on {url}. Open it in a browser, or try it in another terminal:\n")
        print(f"  {curl_line(url, spec)}\n\nCtrl-C ends it.", flush=True)

    return serve(settings, ready)


def default_folder() -> Path:
    """One folder per kind of demo, so that a new version of it never serves or overwrites an old bundle."""
    from training.pipeline.demo import DemoSettings, build_key

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "emorl" / f"demo-{build_key(DemoSettings())[:12]}"


def curl_line(url: str, spec: BundleSpec) -> str:
    """A request that steers: the first two objectives of the bundle, most weight on the first."""
    weights = dict(zip(spec.objectives, (0.7, 0.3), strict=False))
    body = json.dumps({"prompt": EXAMPLE_PROMPT, "weights": weights})
    return f"curl -s {url}/generate -H 'Content-Type: application/json' -d '{body}'"
