"""`emorl bake`: the mix of a bundle's adapters in weight space -> one PEFT folder, checked against the base."""

from __future__ import annotations

import argparse
from pathlib import Path

from emorl_cli.console.options import BUNDLE_HELP, add_example, add_weight_options, check_new
from emorl_cli.console.printing import print_json
from emorl_cli.console.reading import parse_weights


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help=BUNDLE_HELP)
    add_weight_options(parser)
    parser.add_argument("--out", required=True, type=Path, help="the PEFT folder to write; must not exist or be empty")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_example(
        parser,
        "emorl bake my-bundle --weights reflection=0.7,empathy=0.3 --out my-mix",
        "emorl bake my-bundle --profile balanced --out my-mix",
    )


def run(args: argparse.Namespace) -> int:
    from emorl_core.bundles.bundle import Bundle
    from emorl_core.combine_modes import check_combine
    from emorl_core.errors import InvalidWeights
    from emorl_core.weights import resolve

    out: Path = args.out
    check_new(out)
    bundle = Bundle.open(args.bundle)
    spec = bundle.spec
    weights = resolve(
        spec.lanes,
        parse_weights(args.weights),
        args.profile,
        profiles=spec.profile_weights(),
        default_profile=spec.default_profile,
        normalize=args.normalize,
    )
    check_combine("weights", weights.vector)
    of = dict(zip(weights.lanes, weights.vector, strict=True))
    for name in spec.prompts:
        if of[name]:
            raise InvalidWeights(
                f"weights.{name} is {of[name]:g}, and {name!r} has a prompt of its own, which no adapter holds; "
                "allowed: objectives that are an adapter alone",
                param=f"weights.{name}",
            )
    used = [name for name in spec.adapted if of[name]]
    if not used:
        raise InvalidWeights("weights: no adapter has weight, so the mix is the base itself", param="weights")

    import torch

    from emorl_core.adapters.adapter import read_peft
    from emorl_core.adapters.sums import weighted_sum
    from emorl_core.adapters.writer import write_peft
    from emorl_core.files.hashes import weights_hash
    from emorl_core.files.writing import appearing
    from emorl_core.models.registry import adapter_task, load_model

    adapters = [read_peft(bundle.adapter_folder(name), name) for name in used]
    mix = weighted_sum(out.resolve().name, adapters, [of[name] for name in used])
    base = bundle.base_folder()
    load_model(base, device=torch.device("cpu"), dtype=torch.float32).attach([mix])  # raises if it does not fit
    with appearing(out) as written:
        write_peft(mix, written, base_name=spec.base.hub, base_sha256=weights_hash(base), task=adapter_task(base))
    (rank,) = {pair.rank for pair in mix.modules.values()}
    if args.json:
        report = {"out": str(out), "modules": len(mix.modules), "rank": rank, "parameters": mix.parameters}
        print_json({**report, "weights": weights.as_dict(), "invocation_tokens": mix.invocation_tokens})
    else:
        shown = ", ".join(f"{name} {value:g}" for name, value in weights.as_dict().items() if value)
        kind = "" if mix.invocation_tokens is None else ", activated"
        print(f"{out}: {shown}; {len(mix.modules)} modules of rank {rank}{kind}, {mix.parameters:,} parameters")
    return 0
