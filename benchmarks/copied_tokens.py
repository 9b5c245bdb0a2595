"""The time that prompt lookup saves: the same replies with and without it, alternating.

    python -m benchmarks.copied_tokens --bundle my-demo --statements docs/demo-statements.txt

Every round generates a greedy reply to each statement twice, one request at a time, in alternating order. Prompts are
in the prefill cache by then, so only decoding is timed. Medians and spread are over rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from emorl_core.ensemble import Ensemble
from emorl_core.types import Completion


def ask(ensemble: Ensemble, statement: str, options: dict[str, Any], copied: bool) -> Completion:
    request = ensemble.request(statement, stream=False, **options)
    (end,) = ensemble.ends([replace(request, prompt_lookup=copied)], at_once=1)
    if not isinstance(end, Completion):
        raise end.error
    return end


def one_round(
    ensemble: Ensemble, statements: list[str], options: dict[str, Any], number: int
) -> dict[bool, list[Completion]]:
    ends: dict[bool, list[Completion]] = {True: [], False: []}
    for i, statement in enumerate(statements):
        for copied in (True, False) if (i + number) % 2 else (False, True):
            ends[copied].append(ask(ensemble, statement, options, copied))
    return ends


def per_token_ms(ends: list[Completion]) -> float:
    return 1000 * sum(end.total_s - end.queue_s for end in ends) / sum(end.completion_tokens for end in ends)


def measure(ensemble: Ensemble, statements: list[str], options: dict[str, Any], rounds: int) -> dict[str, Any]:
    texts = {copied: [ask(ensemble, each, options, copied).text for each in statements] for copied in (False, True)}
    before = ensemble.engine.stats
    done = [one_round(ensemble, statements, options, number) for number in range(rounds)]
    after = ensemble.engine.stats
    proposed = after.proposed_tokens - before.proposed_tokens
    accepted = after.accepted_tokens - before.accepted_tokens
    tokens = sum(end.completion_tokens for each in done for end in each[True])
    on, off = ([per_token_ms(each[copied]) for each in done] for copied in (True, False))
    ratios = [a / b for a, b in zip(on, off, strict=True)]
    return {
        **options,
        "compiled": ensemble.compiled,
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "same_texts": sum(a == b for a, b in zip(texts[True], texts[False], strict=True)),
        "statements": len(statements),
        "proposed": proposed,
        "accepted": accepted,
        "acceptance": accepted / max(1, proposed),
        "tokens_per_step": tokens / (tokens - accepted),
        "on_ms": median(on),
        "off_ms": median(off),
        "ratio": median(ratios),
        "ratios": ratios,
        "on_rounds_ms": on,
        "off_rounds_ms": off,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="bundle folder")
    parser.add_argument("--statements", type=Path, required=True, help="text file, one statement per line")
    parser.add_argument("--limit", type=int, default=20, help="maximum number of statements (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument(
        "--profiles", default="balanced", help="profiles of the bundle, comma-separated (default balanced)"
    )
    parser.add_argument(
        "--combine", default="hidden,weights", help="ways to combine, comma-separated (default hidden,weights)"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="number format (default auto)"
    )
    parser.add_argument(
        "--prompt-lookup", choices=("auto", "on"), default="auto", help="the engine's setting (default auto)"
    )
    parser.add_argument(
        "--compile", choices=("auto", "off"), default="auto", help="auto (default): use steps that were compiled before"
    )
    parser.add_argument("--compile-cache", help="folder of compiled steps")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's choice)"
    )
    args = parser.parse_args()
    ensemble = Ensemble.load(
        args.bundle,
        dtype=args.dtype,
        prompt_lookup=args.prompt_lookup,
        compile="auto" if args.compile == "auto" else False,
        compile_cache=args.compile_cache,
        threads=args.threads,
    )
    statements = [line for line in args.statements.read_text(encoding="utf-8").splitlines() if line.strip()]
    found = []
    for profile in args.profiles.split(","):
        for combine in args.combine.split(","):
            options = {"profile": profile, "combine": combine, "max_new_tokens": 64}
            result = measure(ensemble, statements[: args.limit], options, args.rounds)
            found.append(result)
            print(
                f"{profile}, combine {combine}: {result['on_ms']:.1f} ms a token with copied ones,"
                f" {result['off_ms']:.1f} without: {result['ratio']:.2f}"
                f" ({min(result['ratios']):.2f} to {max(result['ratios']):.2f});"
                f" {result['acceptance']:.0%} of {result['proposed']} proposed are right,"
                f" {result['tokens_per_step']:.2f} tokens a step;"
                f" {result['same_texts']} of {result['statements']} texts the same",
                flush=True,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
