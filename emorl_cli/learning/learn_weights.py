"""`emorl learn-weights`: a profile from the drafts that a person chose."""

from __future__ import annotations

import argparse
from pathlib import Path

from emorl_cli.console.options import add_example


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="folder of the bundle that made the drafts")
    parser.add_argument(
        "--choices", type=Path, required=True, help="file with the recorded choices (the server's choices_file)"
    )
    parser.add_argument("--user", required=True, help="user whose choices to learn from")
    parser.add_argument("--profile", help="profile to write (default: only print the weights)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing profile of that name")
    add_example(parser, "emorl learn-weights my-bundle --choices choices.db --user ward-3 --profile ward-3")


def run(args: argparse.Namespace) -> int:
    from emorl_core.bundles.bundle import Bundle
    from emorl_core.choices.learning import Preference
    from emorl_core.choices.store import ChoiceStore
    from emorl_core.errors import InvalidRequest
    from training.search.profile import write_profile

    spec = Bundle.open(args.bundle).spec
    belief = Preference(tuple(spec.objectives))
    belief.learn(ChoiceStore(args.choices, create=False).of(args.user, spec.name))
    found = belief.result()
    if not found.choices:
        raise InvalidRequest(f"{args.choices} has no choice of {args.user!r} among drafts of {spec.name}", param="user")
    print(f"{found.choices} choices of {args.user}")
    for name, weight in found.weights.items():
        low, high = found.region[name]
        print(f"{name:<20} {weight:.3f} ± {found.deviation[name]:.3f}  ({low:.2f} to {high:.2f})")
    if args.profile is not None:
        origin = found.origin("emorl learn-weights", args.user)
        write_profile(args.bundle, args.profile, found.weights, origin, set_default=False, overwrite=args.overwrite)
        print(f"profile {args.profile} written to {args.bundle}")
    return 0
