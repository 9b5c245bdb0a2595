"""`emorl drafts`: a few good and different texts to choose from."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emorl_cli.console.options import (
    BUNDLE_HELP,
    add_chat_option,
    add_combine_option,
    add_device_options,
    add_example,
    add_sampling_options,
    add_threads_option,
    sampling_fields,
    use_threads,
)
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import read_chat, utf_8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emorl_core.drafts.plan import Draft, Drafts
    from emorl_core.ensemble import Ensemble
    from server.serving.receipt import Sent

WANTED = ("count", "candidates", "seeds", "diversity", "min_distance")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    parser.add_argument("prompt", nargs="?", help="the prompt")
    add_chat_option(parser)
    parser.add_argument("--count", type=int, default=3, metavar="N", help="most drafts (default 3)")
    parser.add_argument(
        "--candidates",
        type=int,
        default=8,
        metavar="N",
        help="weights to try, each with its most likely text: the default profile, each objective alone, equal "
        "weights, the bundle's other profiles, then those farthest from all before (default 8)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="texts to sample from each objective alone, from --seed on; they take one lane (default: 48 divided among "
        "the objectives, and 0 at temperature 0)",
    )
    parser.add_argument(
        "--diversity",
        type=float,
        default=0.1,
        metavar="X",
        help="weight of being different against being good, from the second draft on (default 0.1)",
    )
    parser.add_argument(
        "--min-distance",
        type=float,
        default=0.4,
        metavar="X",
        help="leave out texts closer than this to a better draft; 0: the same words, 1: none in common (default 0.4)",
    )
    add_sampling_options(parser, temperature=0.7, top_p=0.9, seed="default: 0")
    add_combine_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document, fields as in POST /drafts")
    parser.add_argument(
        "--receipt", action="store_true", help="with --json: each draft's receipt; reads all files of the bundle again"
    )
    parser.add_argument("--slots", type=int, default=64, metavar="N", help="branches that run at once (default 64)")
    add_device_options(parser)
    parser.add_argument(
        "--scorer-device", default="cpu", help="of the bundle's scorers with models: auto, cpu, cuda or cuda:N"
    )
    parser.add_argument(
        "--scorer-code", action="store_true", help="run scorers that are Python functions; only if you trust the bundle"
    )
    add_threads_option(parser)
    add_example(
        parser,
        'emorl drafts my-bundle "I can\'t keep up at work."',
        'emorl drafts my-bundle "I can\'t keep up at work." --count 2 --temperature 0.5 --seeds 4 --json',
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.errors import InvalidRequest

    if (args.prompt is None) == (args.chat is None):
        raise InvalidRequest("give either a prompt or --chat", param="prompt")
    if args.receipt and not args.json:
        raise InvalidRequest("--receipt goes with --json", param="receipt")
    fields = {**{name: getattr(args, name) for name in WANTED}, **sampling_fields(args), "combine": args.combine}
    prompt = None if args.prompt is None else utf_8(args.prompt, "the prompt")
    messages = None if args.chat is None else read_chat(args.chat)

    from emorl_core.ensemble import Ensemble
    from emorl_core.text.chat import read_messages

    use_threads(args.threads, args.device, say=False)
    ensemble = Ensemble.load(
        args.bundle,
        device=args.device,
        dtype=args.dtype,
        slots=args.slots,
        hashed=args.receipt,
        scorer_device=args.scorer_device,
        scorer_code=args.scorer_code,
    )
    found = ensemble.drafts(prompt, messages=messages, **fields)
    if args.json:
        sent: Sent = read_messages(messages) if messages is not None else prompt or ""
        source = None if Path(args.bundle).is_dir() else args.bundle
        print_json(_document(ensemble, found, sent, source, receipts=args.receipt))
    else:
        _print(found)
    return 0


def _document(ensemble: Ensemble, found: Drafts, sent: Sent, source: str | None, *, receipts: bool) -> dict[str, Any]:
    """The answer of POST /drafts, so that scripts can read both in the same way."""
    from server.api.drafts_models import chosen_among, draft_text
    from server.serving.receipt import Identity, make_receipt

    identity = Identity.of(ensemble.spec, ensemble.hashes, source)
    drafts = []
    for draft in found.drafts:
        receipt = make_receipt(ensemble, identity, sent, draft.request, draft.completion) if receipts else None
        unscored = {name: "code" for name, score in draft.scores.items() if score is None}
        drafts.append(draft_text(draft, {"unscored": unscored}, receipt))
    return {"model": ensemble.name, "drafts": drafts, "seed": found.seed, **chosen_among(found)}


def _print(found: Drafts) -> None:
    for draft in found.drafts:
        print(" ".join(draft.text.split()))
        print(f"    {_facts(draft, found)}\n")
    saved = found.unshared_lane_row_steps / max(1, found.lane_row_steps)
    by = "the mean of the scores" if found.ranked_by == "scores" else "likelihood: the bundle names no scorer that runs"
    print(
        f"{len(found.drafts)} of {found.distinct} texts from {found.candidates} candidates, best first by {by};"
        f" {found.lane_row_steps} lane-row steps, {found.unshared_lane_row_steps} one by one"
        f" ({saved:.1f} times as many)"
    )


def _facts(draft: Draft, found: Drafts) -> str:
    facts = [_written(draft.weights)]
    if draft.temperature:
        facts.append(f"temperature {draft.temperature:g}, seed {draft.completion.seed}")
    if draft.mean is not None:
        each = ", ".join(f"{name} {score:.2f}" for name, score in draft.scores.items() if score is not None)
        facts.append(f"score {draft.mean:.3f} ({each})")
    else:
        facts.append(f"likelihood {draft.likelihood:.3f}")
    if draft.shares is not None:
        spoke = ", ".join(f"{name} {share:.0%}" for name, share in draft.shares.items() if share)
        facts.append(f"tipped by {spoke}")
    facts.append(f"given by {draft.given_by} of {found.candidates}")
    return "; ".join(facts)


def _written(weights: Mapping[str, float]) -> str:
    return " ".join(f"{name}={value:.4g}" for name, value in weights.items() if value)
