"""`emorl serve`: serves a bundle over HTTP. Its flags are the server's settings, with the same names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Container
from typing import TYPE_CHECKING

from emorl_cli.console.options import BUNDLE_HELP, add_example

if TYPE_CHECKING:
    from server.settings import Settings

# Anyone on the machine can read a process's arguments, so secrets are only read from the environment or a file.
NOT_FLAGS = ("bundle", "api_keys", "admin_keys")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from server.settings import ENV_PREFIX  # takes half a second; only `--help` needs it

    parser.add_argument("bundle", nargs="?", help=f"{BUNDLE_HELP}; default: {ENV_PREFIX}BUNDLE")
    parser.add_argument("--check", action="store_true", help="validate settings and bundle in full, then exit")
    add_settings(parser)
    add_example(
        parser,
        "emorl serve my-bundle --port 8000",
        "EMORL_API_KEYS=secret emorl serve my-bundle --host 0.0.0.0 --dtype bfloat16",
        "emorl serve my-bundle --check",
        "torchrun --nproc-per-node 2 -m emorl_cli serve my-bundle",
    )


def add_settings(parser: argparse.ArgumentParser, leave_out: Container[str] = ()) -> None:
    """Add a flag for every setting except secrets."""
    from server.settings import ENV_PREFIX, Settings

    settings = parser.add_argument_group(
        "settings", f"each is also {ENV_PREFIX}<NAME> in the environment and a key of the --config file; flags win"
    )
    for name, field in Settings.model_fields.items():
        if name in NOT_FLAGS or name in leave_out:
            continue
        flag = "--" + name.replace("_", "-")
        default = "" if field.default in (None, (), "") else f" (default: {field.default})"
        text = f"{field.description}{default}".replace("%", "%%")
        if field.annotation is bool:
            settings.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            settings.add_argument(flag, metavar="VALUE", help=text)  # parsed and validated by Settings


def run(args: argparse.Namespace) -> int:
    from emorl_cli.bundles.inspect import examine, render
    from emorl_cli.following import follow, joined, rank
    from emorl_cli.serving import check_address, serve
    from emorl_core.bundles.bundle import Bundle
    from emorl_core.errors import InvalidRequest
    from server.settings import load_settings

    flags = {name: value for name, value in vars(args).items() if name != "check"}
    settings = load_settings(**flags)
    if settings.bundle is None:
        raise InvalidRequest("bundle: none given; name a folder or a hub id", param="bundle")
    if args.check:
        check(settings)
        report = examine(settings.bundle)
        print(render(report), file=sys.stdout if report["valid"] else sys.stderr)
        return 0 if report["valid"] else 2

    if rank() == 0:
        check_address(settings)
        Bundle.open(settings.bundle)  # a wrong name fails now, in one line, not after the server has started
    group = joined(settings)
    if group is not None and not group.leads:
        return follow(settings, group)
    return serve(settings, lambda url: print(f"serving on {url}", flush=True), group)


def check(settings: Settings) -> None:
    """Checks beyond `Settings`: files, packages and devices that settings refer to.

    Raises:
        EmorlError: the first setting that cannot be used here, in one line.
    """
    from emorl_core.machine.precision import pick_device, pick_dtype, pick_quantize
    from emorl_core.models.compiling import check_compiler
    from server.door.auth import Keys
    from server.door.connections import most_connections
    from server.policy.loading import load_policy
    from server.settings import unknown_variables
    from server.watch.tracing import check_tracing

    device = pick_device(settings.device)
    pick_dtype(settings.dtype, device)
    pick_quantize(settings.quantize, settings.dtype, device)
    if settings.compile == "on" and device.type == "cpu":
        check_compiler()
    most_connections(settings)
    Keys.read(settings)
    load_policy(settings)
    check_tracing(settings)
    for name in unknown_variables():
        print(f"note: {name} is no setting of emorl; it is ignored", file=sys.stderr)
