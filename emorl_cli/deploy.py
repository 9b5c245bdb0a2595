"""`emorl deploy`: a bundle on several replicas with Ray Serve. Its flags are the settings, as for `emorl serve`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from emorl_cli.console.cluster import connected
from emorl_cli.console.exits import DONE, INTERRUPTED
from emorl_cli.console.options import BUNDLE_HELP, add_example
from emorl_cli.serve import add_settings

if TYPE_CHECKING:
    from server.ray.plan import Plan
    from server.settings import Settings

_OWN = ("replicas", "scorers", "session_affinity", "ray", "serve_config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from server.ray.plan import NOT_DEPLOYED
    from server.settings import ENV_PREFIX

    parser.add_argument(
        "bundle", nargs="?", help=f"{BUNDLE_HELP}, the same on every machine; default: {ENV_PREFIX}BUNDLE"
    )
    parser.add_argument(
        "--replicas",
        default="1",
        metavar="N[..M]",
        help="how many; N..M: from N to M, as many as the requests in progress need (default 1)",
    )
    parser.add_argument(
        "--scorers",
        metavar="N[..M]",
        help="separate processes for the bundle's scorers, given likewise (default: each replica scores by itself)",
    )
    parser.add_argument(
        "--session-affinity",
        action="store_true",
        help="send requests with the same x-session-id header to the same replica, for its prefill cache",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="an existing Ray cluster, such as auto or 10.0.0.1:6379 (default: a local one during this command)",
    )
    where.add_argument(
        "--serve-config", type=Path, metavar="FILE", help="only write a new config file for `serve deploy`"
    )
    add_settings(parser, leave_out=NOT_DEPLOYED)
    add_example(
        parser,
        "emorl deploy my-bundle --replicas 1..8",
        "emorl deploy my-bundle --replicas 2 --ray auto",
        "emorl deploy my-bundle --replicas 1..8 --scorers 1..4",
        "emorl deploy my-bundle --replicas 1..8 --serve-config serve.yaml",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_cli.serve import check
    from server.ray.plan import NO_SCORERS, Plan, check_keys_stay, parse_range
    from server.settings import load_settings

    flags = {name: value for name, value in vars(args).items() if name not in _OWN}
    settings = load_settings(**flags)
    replicas = parse_range(args.replicas)
    scorers = NO_SCORERS if args.scorers is None else parse_range(args.scorers, "scorers")
    if args.ray is not None or args.serve_config is not None:
        check_keys_stay(settings)
    plan = Plan.make(settings, replicas, scorers, session_affinity=args.session_affinity)
    check(settings)
    if args.serve_config is not None:
        _write(args.serve_config, plan.serve_config(settings))
        print(f"{args.serve_config} is written; on a machine of the cluster: serve deploy {args.serve_config}")
        return DONE

    with connected(args.ray, cores=plan.cores()):
        return _deploy(plan, settings, stay=args.ray is None)


def _deploy(plan: Plan, settings: Settings, *, stay: bool) -> int:
    """stay: until this program is ended; otherwise Serve's controller continues by itself."""
    from ray import serve

    from server.ray.deploying import deploy

    try:
        print(f"serving on {deploy(plan, settings)}", flush=True)
        while stay:
            time.sleep(1.0)
    except KeyboardInterrupt:
        return DONE if stay else INTERRUPTED
    finally:
        if stay:
            serve.shutdown()  # replicas drain first
    return DONE


def _write(path: Path, config: dict[str, object]) -> None:
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    with path.open("x", encoding="utf-8") as file:  # never overwrite a file
        file.write("# Written by emorl deploy for: serve deploy\n" + text)
