"""`emorl demo`: makes the demo bundle on first use, serves it, and shows a request to try."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from emorl_cli.console.exits import FAILED, complain
from emorl_cli.console.options import add_example
from emorl_cli.console.progress import Stages

if TYPE_CHECKING:
    from emorl_core.bundles.bundle import BundleSpec
    from server.settings import Settings

EXAMPLE_PROMPT = "I cannot keep up at work and I feel like a failure."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", default="8000", help="port to listen on (default 8000)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--base",
        metavar="FOLDER|HUB_ID",
        help="base model to use instead of the one from the package registry: the same "
        "architecture and sizes, such as HuggingFaceTB/SmolLM2-135M-Instruct",
    )
    kind.add_argument(
        "--tiny",
        action="store_true",
        help="use a small T5, trained locally in minutes without any download; for tests and offline machines",
    )
    parser.add_argument("--folder", type=Path, help="folder for the bundle (default: in the cache)")
    parser.add_argument("--rebuild", action="store_true", help="build the bundle again, even if it exists")
    parser.add_argument("--build-only", action="store_true", help="build the bundle, print its folder and exit")
    add_example(
        parser,
        "emorl demo",
        "emorl demo --port 8080",
        "emorl demo --base HuggingFaceTB/SmolLM2-135M-Instruct",
        "emorl demo --tiny",
        "emorl demo --folder my-demo --build-only",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_cli.serving import check_address, serve
    from emorl_core.bundles.bundle import Bundle
    from server.settings import load_settings

    folder: Path = args.folder or default_folder(args)
    settings = checking_hosts(watching_for_crises(load_settings(host=args.host, port=args.port, bundle=str(folder))))
    if args.build_only:
        signal.signal(signal.SIGTERM, _exit)  # the default handler would leave pip running
        code = build_here(folder, args)
        print(folder)
        return code
    check_address(settings)
    if args.rebuild or not is_made(folder, args):
        code = build_apart(folder, args)
        if code != 0:
            return code  # the reason was already printed
    spec = Bundle.open(folder).spec

    def ready(url: str) -> None:
        print(f"\nThe demo is ready on {url}. Open it in a browser, or try it in another terminal:\n")
        print(f"  {curl_line(url, spec)}\n\nCtrl-C ends it.", flush=True)

    return serve(settings, ready)


def default_folder(args: argparse.Namespace) -> Path:
    """Where the bundle of these options is in the cache."""
    from emorl_cli.demo import bundle as demo_bundle

    return tiny_folder() if args.tiny else demo_bundle.default_folder(args.base)


def tiny_folder() -> Path:
    from emorl_cli.demo.bundle import cache
    from training.pipeline.demo import DemoSettings, build_key

    return cache() / f"demo-tiny-{build_key(DemoSettings())[:12]}"


def demo_folders() -> list[Path]:
    """Where the demo's bundles may be: with a language model, and the tiny one."""
    from emorl_cli.demo import bundle as demo_bundle

    return [demo_bundle.default_folder(), tiny_folder()]


def is_made(folder: Path, args: argparse.Namespace) -> bool:
    from emorl_cli.demo import bundle as demo_bundle
    from training.pipeline.demo import is_built

    return is_built(folder) if args.tiny else demo_bundle.is_made(folder, args.base)


def build_here(folder: Path, args: argparse.Namespace) -> int:
    """Make the bundle in this process, or copy it from the cache. Returns 0. Raises `EmorlError`."""
    from emorl_cli.demo import bundle as demo_bundle
    from training.pipeline.demo import build_demo, is_built

    if not args.tiny:
        if args.rebuild or not demo_bundle.is_made(folder, args.base):
            print(f"making the demo bundle in {folder}: a minute or two, once", file=sys.stderr, flush=True)
        with Stages() as progress:
            demo_bundle.make(folder, base=args.base, rebuild=args.rebuild, progress=progress)
        return 0
    try:
        cached = tiny_folder()
    except RuntimeError:  # a user without a home, as in some containers
        cached = folder
    if args.rebuild or not (is_built(folder) or is_built(cached)):
        print(f"making the demo bundle in {folder}: a few minutes, once", file=sys.stderr, flush=True)
    with Stages() as progress:
        build_demo(folder, rebuild=args.rebuild, cached=cached, progress=progress)
    return 0


def build_apart(folder: Path, args: argparse.Namespace) -> int:
    """Make the bundle in a separate process, so that its memory is released before serving.

    That process prints progress and errors on the same stderr. It ends when this process ends.

    Returns:
        The exit code; 0 means that the bundle is there.
    """
    before = signal.signal(signal.SIGTERM, _exit)  # the default handler would leave the other process running
    try:
        with subprocess.Popen(build_command(folder, args), stdout=subprocess.DEVNULL) as build:
            try:
                code = build.wait()
            except BaseException:
                build.terminate()
                build.wait()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code >= 0:
        return code
    name = signal.Signals(-code).name
    complain(f"the demo's build was ended by {name}; the same command goes on where it stopped")
    return FAILED


def build_command(folder: Path, args: argparse.Namespace) -> list[str]:
    options = ["--tiny"] if args.tiny else []
    options += ["--base", args.base] if args.base is not None else []
    options += ["--rebuild"] if args.rebuild else []
    return [sys.executable, "-m", "emorl_cli", "demo", "--folder", str(folder), "--build-only", *options]


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def checking_hosts(settings: Settings) -> Settings:
    """Without a key, restrict the Host header, so that pages of other sites cannot call the demo."""
    from server.door.hosts import LOOPBACK_HOSTS

    if settings.allowed_hosts or settings.api_keys or settings.api_keys_file:
        return settings
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    own = () if host in ("", "0.0.0.0", "[::]", *LOOPBACK_HOSTS) else (host,)
    return settings.model_copy(update={"allowed_hosts": (*LOOPBACK_HOSTS, *own)})


def watching_for_crises(settings: Settings) -> Settings:
    """Use the shipped list of crisis cues, unless the environment names another policy."""
    from server.policy.loading import CRISIS_CUES

    return settings if settings.policy is not None else settings.model_copy(update={"policy": CRISIS_CUES})


def curl_line(url: str, spec: BundleSpec) -> str:
    """An example request: the bundle's first two objectives, with most weight on the first."""
    weights = dict(zip(spec.objectives, (0.7, 0.3), strict=False))
    body = json.dumps({"prompt": EXAMPLE_PROMPT, "weights": weights})
    return f"curl -s {url}/generate -H 'Content-Type: application/json' -d '{body}'"
